"""What is written down twice agrees."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def test_citation_version():
    citation = (ROOT / 'CITATION.cff').read_text()
    found = re.search(r'^version: (.*)$', citation, re.MULTILINE)
    assert found and found[1] == PROJECT['version']


def test_oldest_releases():
    # Those that run the tests; other tools of `dev` change nothing there.
    extras = PROJECT['optional-dependencies']
    wanted = [*PROJECT['dependencies'], 'pytest>=8']
    for name in (
        *(
            'amg',
            'estimators',
            'fast',
            'images',
            'peers',
            'raw',
            'train',
            'viz',
        ),
    ):
        wanted += extras[name]
    assert 'pytest>=8' in extras['dev']
    lines = (ROOT / '.ci' / 'oldest.txt').read_text().splitlines()
    pinned = dict(line.split('==') for line in lines if '==' in line)
    for requirement in wanted:
        name, bound = re.match(r'([\w-]+)[^>]*>=([\d.]+)', requirement).groups()
        if name != 'triton':  # PyTorch brings it
            assert f'{pinned.pop(name)}.'.startswith(f'{bound}.')
    assert not pinned
