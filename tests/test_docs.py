"""The examples of README and docstrings; pytest itself runs those of docs/."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyg_unroll

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


EXAMPLES = [
    module.name
    for module in pkgutil.walk_packages(pyg_unroll.__path__, 'pyg_unroll.')
    if '>>>' in (inspect.getsource(importlib.import_module(module.name)))
]


@pytest.mark.parametrize('name', EXAMPLES)
def test_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    'package',
    [
        *('estimators', 'explain', 'imaging', 'imaging.files', 'nn'),
        *('ops', 'solvers', 'transforms'),
    ],
)
def test_api_reference_is_complete(package):
    pages = (README.parent / 'docs' / 'api').glob('*.rst')
    text = '\n'.join(page.read_text() for page in pages)
    described = set(re.findall(r'^\.\. (?:auto|py:)\w+:: (\S+)', text, re.M))
    described = {name.rpartition('.')[2] for name in described}
    public = importlib.import_module(f'pyg_unroll.{package}').__all__
    assert set(public) <= described, set(public) - described
