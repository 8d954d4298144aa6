"""What imports what: inside the package, and of other packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyg_unroll

ROOT = Path(pyg_unroll.__file__).parent

# By part of the package, the parts that it may import from: arrows point one
# way. Beside the others, `transforms` interpolate by `solvers`, and stacks of
# `nn` learn their graphs by `transforms`.
CORE = {'checks', 'graph', 'ops', 'inputs', 'threads'}
ARROWS = {
    'checks': set(),
    'threads': set(),
    'files': set(),
    'graph': {'checks'},
    'ops': {'checks', 'graph', 'threads'},
    'inputs': {'checks', 'graph', 'ops'},
    'solvers': CORE,
    'transforms': CORE | {'solvers'},
    'nn': CORE | {'solvers', 'transforms'},
    'imaging': CORE | {'files', 'solvers', 'transforms', 'nn'},
    'estimators': CORE | {'files', 'solvers', 'transforms', 'nn'},
    'explain': CORE | {'solvers', 'transforms', 'nn', 'imaging', 'estimators'},
    'testing': CORE,
}


def part_of(module: str) -> str:
    """`pyg_unroll.nn.glr_conv` is of the part `nn`."""
    return module.split('.')[1]


def imported(source: str) -> Iterator[str]:
    """Modules and names that a source imports, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def against_arrows(part: str, source: str) -> set[str]:
    ours = {
        part_of(module)
        for module in imported(source)
        if module.startswith('pyg_unroll.')
    }
    return ours - ARROWS[part] - {part}


def test_arrows():
    wrong = {}
    for path in ROOT.rglob('*.py'):
        names = path.relative_to(ROOT.parent).with_suffix('').parts
        module = '.'.join(name for name in names if name != '__init__')
        if module != 'pyg_unroll':  # the public names, of all parts
            found = against_arrows(part_of(module), path.read_text())
            wrong.update({module: found} if found else {})
    assert not wrong


def test_arrows_are_those_of_the_package():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == '.py'}
    parts |= {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert parts - {'__init__'} == set(ARROWS)
    # No two parts import each other, however many lie between.
    order = list(ARROWS)
    for part, others in ARROWS.items():
        assert all(order.index(other) < order.index(part) for other in others)


def test_arrows_see_wrong_imports():
    for source, wrong in (
        ('from pyg_unroll.nn.glr_conv import GLRConv', 'nn'),
        ('from pyg_unroll.inputs import read_signal', 'inputs'),
        ('from pyg_unroll import solvers', 'solvers'),
        ('def f():\n    import pyg_unroll.testing', 'testing'),
        ('from pyg_unroll import GLRConv', 'GLRConv'),
    ):
        assert against_arrows('ops', source) == {wrong}
    assert not against_arrows('ops', 'from pyg_unroll.graph import Topology')
    nn = 'from pyg_unroll.imaging import images'
    assert against_arrows('nn', nn) == {'imaging'}
    assert against_arrows('estimators', nn) == {'imaging'}


def test_light_import():
    script = """
import sys
import torch_geometric

before = set(sys.modules)
import pyg_unroll

print(*sorted(set(sys.modules) - before))
import pyg_unroll.explain

print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    added, with_explain = map(str.split, done.stdout.splitlines())
    assert 'pyg_unroll.explain' not in added
    assert 'matplotlib' not in with_explain
    ours = {name for name in added if name.startswith('pyg_unroll')}
    packages = {name.split('.')[0] for name in set(added) - ours}
    assert packages - sys.stdlib_module_names <= {'numpy', 'safetensors'}
    # PyTorch loads numba and Triton itself where it finds them; these are the
    # modules that need them.
    needing = ('pyg_unroll.ops.cpu', 'pyg_unroll.ops.cuda')
    assert not [name for name in ours if name.startswith(needing)]
    assert 'pyg_unroll.ops.reference' in ours
