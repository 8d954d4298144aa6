import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pyg_unroll.ops import backend
from tests.backends import needs_numba

WITHOUT_NUMBA = """
import sys
import warnings

sys.modules['numba'] = None  # importing it now fails
import torch

from pyg_unroll import Topology, ops

topology = Topology.from_pairs(torch.arange(3), torch.arange(1, 4), 4)
x = torch.randn(4, 2, 1)
for _ in range(2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert torch.equal(ops.gradient(topology, x), x[:-1] - x[1:])
    print(*(str(warning.message) for warning in caught))
"""


def test_one_warning_without_the_package():
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_NUMBA],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "run in plain PyTorch, several times slower than with 'numba'" in (
        first
    )
    assert "'pip install numba'" in first
    assert second == ''


@pytest.mark.parametrize('family', ['operators', 'cg', 'admm'])
@pytest.mark.parametrize(
    'device, name',
    [pytest.param('cpu', 'cpu', marks=needs_numba), ('meta', 'reference')],
)
def test_chosen_by_device(family, device, name):
    module = backend.kernels(family, torch.ones(1, device=device))
    assert module.__name__ == f'pyg_unroll.ops.{name}.{family}'


@pytest.mark.filterwarnings('error')
def test_chosen_for_cuda_without_a_gpu(monkeypatch):
    pytest.importorskip('triton')
    monkeypatch.delitem(backend.chosen, 'cuda', raising=False)
    operand = SimpleNamespace(device=torch.device('cuda'))
    for family, name in (('cg', 'cuda'), ('order', 'reference')):
        module = backend.kernels(family, operand)
        assert module.__name__ == f'pyg_unroll.ops.{name}.{family}'
