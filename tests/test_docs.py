"""The examples of README and docstrings; pytest itself runs those of docs/."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from pyg_unroll.estimators import graph_interpolator

README = Path(__file__).parent.parent / 'README.md'
BLOCKS = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


def test_readme_has_examples():
    assert len(BLOCKS) >= 6


def test_readme_runs():
    # In one namespace, as a reader would: blocks use what stands above.
    namespace = {'__name__': 'readme'}
    for block in BLOCKS:
        exec(compile(block, str(README), 'exec'), namespace)
    assert namespace['out'].shape == (500, 1)
    assert namespace['colours'].shape == (64 * 64, 3)
    assert namespace['filled'].shape == (3, 24, 1)


@pytest.mark.parametrize('module', [graph_interpolator])
def test_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    'package',
    ['data', 'estimators', 'nn', 'ops', 'solvers', 'transforms'],
)
def test_api_reference_is_complete(package):
    pages = (README.parent / 'docs' / 'api').glob('*.rst')
    text = '\n'.join(page.read_text() for page in pages)
    described = set(re.findall(r'^\.\. (?:auto|py:)\w+:: (\S+)', text, re.M))
    described = {name.rpartition('.')[2] for name in described}
    public = importlib.import_module(f'pyg_unroll.{package}').__all__
    assert set(public) <= described, set(public) - described
