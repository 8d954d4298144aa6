import warnings

import pytest
import torch

from pyg_unroll import Topology, ops
from pyg_unroll.ops import backend
from tests.backends import needs_numba
from tests.oracles import random_graph


@pytest.fixture
def fresh():
    backend._load.cache_clear()
    yield
    backend._load.cache_clear()


def test_one_warning_without_the_package(fresh, monkeypatch):
    graph = random_graph(9, 10)
    topology = Topology.from_edge_index(graph.edge_index, 9)
    x = torch.randn(9, 2, 1)
    expected = x[topology.src] - x[topology.dst]
    import_module = backend.import_module

    def without_numba(name):
        if name == 'numba':
            raise ImportError('no numba')
        return import_module(name)

    monkeypatch.setattr(backend, 'import_module', without_numba)
    with pytest.warns(UserWarning, match='pip install numba'):
        assert torch.equal(ops.gradient(topology, x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(ops.gradient(topology, x), expected)


@needs_numba
def test_chosen_by_device(fresh):
    assert backend.backend(torch.ones(1)).__name__ == 'pyg_unroll.ops.cpu'
    other = backend.backend(torch.ones(1, device='meta'))
    assert other.__name__ == 'pyg_unroll.ops.reference'
