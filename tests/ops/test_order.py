import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pyg_unroll import GridGraph, Topology, ops
from pyg_unroll.ops import order
from pyg_unroll.testing import assert_same
from tests.oracles import random_graph


def scattered_path(num_nodes):
    """A path through the nodes in random order, and isolated nodes."""
    node = torch.randperm(num_nodes)[: num_nodes - 3]
    ends = torch.stack([node[:-1], node[1:]])
    return Topology.from_pairs(ends.amin(0), ends.amax(0), num_nodes), node


@pytest.mark.usefixtures('each_backend')
def test_local_order_is_the_same_graph(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 0)
    graph = random_graph(300, 200)
    topology = Topology.from_edge_index(graph.edge_index, 300)
    node = torch.randperm(300)
    ends = node[torch.stack([topology.src, topology.dst]).long()]
    topology = Topology.from_pairs(ends.amin(0), ends.amax(0), 300)
    found = order.local_order(topology)
    local = found.topology
    assert found.node.sort()[0].tolist() == list(range(300))
    assert found.edge.sort()[0].tolist() == list(range(topology.num_edges))
    assert bool((local.src < local.dst).all())
    ends = torch.stack([found.node[local.src], found.node[local.dst]])
    edge = found.edge.long()
    assert torch.equal(ends.amin(0), topology.src[edge])
    assert torch.equal(ends.amax(0), topology.dst[edge])
    weight = torch.rand(topology.num_edges, 2, dtype=torch.float64)
    x = torch.randn(300, 3, 2, dtype=torch.float64)
    rows = found.node.long()
    for kind in (ops.laplacian, lambda t, w, x: ops.divergence(t, w[:, None])):
        one = kind(local, weight[edge] * _sign(found, topology, kind), x[rows])
        assert_same(one, kind(topology, weight, x)[rows])


def _sign(found, topology, kind):
    """A divergence depends on which end of an edge has the smaller number."""
    if kind is ops.laplacian:
        return 1
    is_same = found.node[found.topology.src] == topology.src[found.edge.long()]
    return 2.0 * is_same.double().unsqueeze(1) - 1


@pytest.mark.usefixtures('each_backend')
def test_neighbours_are_near_each_other(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 0)
    topology, _ = scattered_path(1000)
    local = order.local_order(topology).topology
    assert (topology.dst - topology.src).double().mean() > 200
    # Rows of one length are put together in groups of 64 nodes.
    assert (local.dst - local.src).double().mean() < 64


def test_is_remembered_with_the_graph(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 100)
    topology, _ = scattered_path(200)
    first = order.local_order(topology)
    again = Topology.unpack(*topology.pack())  # as registered operators do
    assert order.local_order(again) is first
    other, _ = scattered_path(200)
    assert order.local_order(other) is not first
    count = len(order._ORDERS)
    del topology, again
    assert len(order._ORDERS) == count - 1


def test_others_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 100)
    assert order.local_order(scattered_path(99)[0]) is None
    line = torch.arange(200)
    path = Topology.from_pairs(line[:-1], line[1:], 200)
    assert order.local_order(path) is None
    grid = GridGraph(4).pixels(2, 100, torch.device('cpu'))
    assert order.local_order(grid) is None
    empty = Topology.from_pairs(line[:0], line[:0], 200)
    assert order.local_order(empty) is None


@pytest.mark.usefixtures('each_backend')
@pytest.mark.parametrize('least', [0, 10**9])
@pytest.mark.parametrize('cut', [False, True])
def test_components(monkeypatch, least, cut):
    monkeypatch.setattr(order, '_LEAST_NODES', least)
    topology, _ = scattered_path(500)
    weight = torch.rand(topology.num_edges, dtype=torch.float64) + 0.1
    if cut:
        weight[torch.rand(topology.num_edges) < 0.1] = 0
    ends = topology.src.numpy(), topology.dst.numpy()
    matrix = coo_matrix((weight.numpy(), ends), (500, 500)).tocsr()
    matrix.eliminate_zeros()
    count, expected = connected_components(matrix, directed=False)
    label = order.components(topology, weight).numpy()
    assert len(np.unique(label)) == count
    # The same partition: each of our numbers goes with one of theirs.
    assert len(np.unique(np.stack([label, expected]), axis=1).T) == count
