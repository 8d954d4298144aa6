"""How many examples hypothesis tries.

By default a few, the same in each run. `HYPOTHESIS_PROFILE=large python -m
pytest tests/properties` tries some 10^5 new ones, which takes about an hour.
"""

import os

from hypothesis import HealthCheck, settings

_COMMON = {
    'deadline': None,
    'database': None,
    'print_blob': True,
    'suppress_health_check': [HealthCheck.too_slow],
}
settings.register_profile('small', max_examples=20, derandomize=True, **_COMMON)
settings.register_profile('large', max_examples=1800, **_COMMON)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'small'))
