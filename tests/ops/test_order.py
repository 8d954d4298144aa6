import copy

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch._dynamo.testing import CompileCounterWithBackend

from pyg_unroll import GLRConv, GridGraph, GTVConv, Topology, ops
from pyg_unroll.ops import order
from pyg_unroll.testing import assert_same
from tests.oracles import random_graph


def scattered_path(num_nodes):
    """A path through the nodes in random order, and isolated nodes."""
    node = torch.randperm(num_nodes)[: num_nodes - 3]
    ends = torch.stack([node[:-1], node[1:]])
    return Topology.from_pairs(ends.amin(0), ends.amax(0), num_nodes), node


def scattered_graph(num_nodes=300):
    """A path and random edges, its nodes in random order."""
    graph = random_graph(num_nodes, num_nodes // 2)
    node = torch.randperm(num_nodes)
    src, dst = node[graph.edge_index[:, graph.edge_index[0].argsort()]]
    keep = src < dst
    return Topology.from_pairs(src[keep], dst[keep], num_nodes)


@pytest.mark.usefixtures('each_backend')
def test_local_order_is_the_same_graph(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 0)
    topology = scattered_graph()
    found = order.local_order(topology)
    local, edge = found.topology, found.edge.long()
    numbers = torch.arange(300), torch.arange(topology.num_edges)
    assert torch.equal(found.node[found.number.long()].long(), numbers[0])
    assert torch.equal(found.edge_number[edge].long(), numbers[1])
    assert bool((local.src < local.dst).all())
    ends = torch.stack([found.node[local.src], found.node[local.dst]])
    assert torch.equal(ends.amin(0), topology.src[edge])
    assert torch.equal(ends.amax(0), topology.dst[edge])
    assert torch.equal(ends[0] > ends[1], found.turned)
    weight = torch.rand(topology.num_edges, 2, dtype=torch.float64)
    x = torch.randn(300, 3, 2, dtype=torch.float64)
    rows = found.node.long()
    out = ops.laplacian(local, weight[edge], x[rows])
    assert_same(out, ops.laplacian(topology, weight, x)[rows])
    flow = ops.gradient(local, x[rows])
    assert_same(found.turn(flow), ops.gradient(topology, x)[edge])
    out = ops.divergence(local, found.turn(weight[edge].unsqueeze(1)))
    expected = ops.divergence(topology, weight.unsqueeze(1))
    assert_same(out, expected[rows])


@pytest.mark.usefixtures('each_backend')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('columns', [1, 3, 130])
def test_take(dtype, columns):
    x = torch.randn(50, columns).to(dtype)
    index = torch.randint(50, (70,), dtype=torch.int32)
    some, none, mask = order.take(index, x, None, x > 0)
    assert torch.equal(some, x[index]) and none is None
    assert torch.equal(mask, x[index] > 0)


@pytest.mark.usefixtures('each_backend')
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
@pytest.mark.parametrize('samples', [(), (2,)])
@pytest.mark.parametrize(
    'conv',
    [
        GLRConv(4, heads=2),
        GLRConv(3, order=2, checkpoint=True),
        GTVConv(3, 2, heads=2),
        GTVConv(4, 2, checkpoint=True),
    ],
)
def test_layers_do_not_depend_on_the_order(
    monkeypatch, conv, samples, fidelity
):
    conv = copy.deepcopy(conv).double()
    conv.fidelity = fidelity
    topology = scattered_graph()
    x = torch.randn(*samples, 300, 3, dtype=torch.float64)
    mask = torch.rand(300, 1) < 0.4
    shape = *samples, topology.num_edges, conv.heads
    weight = torch.rand(shape, dtype=torch.float64)
    x.requires_grad_()
    weight.requires_grad_()
    found = []
    for least in (10**9, 0):
        monkeypatch.setattr(order, '_LEAST_NODES', least)
        graph = copy.deepcopy(topology)
        assert (order.local_order(graph).node is None) == (least > 0)
        arguments, state = (graph, weight, mask), []
        out = conv(x, *arguments)
        *_, last = conv.iterates(x, *arguments)
        assert torch.equal(last.x, out)
        if isinstance(conv, GTVConv):
            out, dual = conv(x, *arguments, return_state=True)
            out, dual = conv(out, *arguments, state=dual, return_state=True)
            state.append(dual)
        total = sum(v.sin().sum() for v in (out, *state))
        operands = [x, weight, *conv.parameters()]
        grads = torch.autograd.grad(total, operands, allow_unused=True)
        found.append([out, *state, *(v for v in grads if v is not None)])
    assert_same(*found)


@pytest.mark.parametrize('conv', [GLRConv(3, heads=2), GTVConv(2, 2)])
def test_layers_compile_once(monkeypatch, conv):
    monkeypatch.setattr(order, '_LEAST_NODES', 0)
    counter = CompileCounterWithBackend('aot_eager')
    torch.compiler.reset()
    compiled = torch.compile(
        conv, fullgraph=True, dynamic=True, backend=counter
    )
    for size in (300, 77, 180):
        topology, x = scattered_graph(size), torch.randn(size, 2)
        mask, results = torch.rand(size) < 0.5, []
        for layer in (conv, compiled):
            conv.zero_grad()
            out = layer(x, topology, None, mask)
            out.sin().sum().backward()
            results.append((out, *(v.grad.clone() for v in conv.parameters())))
        assert_same(*results)
    assert counter.frame_count == 1


def test_orders_made_in_inference_mode_can_be_trained_on(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 0)
    topology, x, conv = scattered_graph(), torch.randn(300, 1), GLRConv(3)
    mask = torch.rand(300) < 0.5
    with torch.inference_mode():
        out = conv(x, topology, None, mask)
    again = conv(x, topology, None, mask)
    again.sum().backward()
    assert torch.equal(out, again)


@pytest.mark.usefixtures('each_backend')
def test_neighbours_are_near_each_other(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 0)
    topology, _ = scattered_path(1000)
    local = order.local_order(topology).topology
    assert (topology.dst - topology.src).double().mean() > 200
    # Rows of one length are put together in groups of 16 nodes.
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


def test_random_edges_have_no_local_order(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 100)
    key = torch.randint(500**2, (3000,)).unique()
    src, dst = key // 500, key % 500
    topology = Topology.from_pairs(src[src < dst], dst[src < dst], 500)
    assert order.is_scattered(topology)
    assert order.local_order(topology).node is None
    count = len(order._ORDERS)
    del topology
    assert len(order._ORDERS) == count - 1


def test_others_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(order, '_LEAST_NODES', 100)
    assert order.local_order(scattered_path(99)[0]).node is None
    line = torch.arange(200)
    path = Topology.from_pairs(line[:-1], line[1:], 200)
    assert order.local_order(path).node is None
    grid = GridGraph(4).pixels(2, 100, torch.device('cpu'))
    assert order.local_order(grid).node is None
    empty = Topology.from_pairs(line[:0], line[:0], 200)
    assert order.local_order(empty).node is None


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
