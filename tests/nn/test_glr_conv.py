from itertools import pairwise

import pytest
import torch

from pyg_unroll import GLRConv, Topology
from pyg_unroll.testing import assert_same
from tests.oracles import (
    dense_glr,
    dense_proximal,
    grid_graph,
    random_graph,
    relative_error,
    spsolve_glr,
)


@pytest.fixture(scope='module')
def grid():
    """64 x 64 pixels, 30 % known, of a smooth and of a rough signal."""
    torch.manual_seed(0)
    graph = grid_graph(64, 64, dtype=torch.float64)
    row, col = torch.arange(64.0).repeat_interleave(64), torch.arange(64.0)
    smooth = (row / 9).sin() + (col.repeat(64) / 7).cos()
    x = torch.stack([smooth, torch.rand(64 * 64)], 1).double() + 1
    mask = torch.rand(64 * 64) < 0.3
    x = torch.where(mask[:, None], x, x[mask].mean(0))
    return x, graph, mask, spsolve_glr(x, *graph[:2], mask)


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_converges(grid, weighted, dtype):
    x, graph, mask, exact = grid
    weight = graph.edge_weight
    if not weighted:
        weight = torch.ones_like(weight)
        exact = spsolve_glr(x, graph.edge_index, weight, mask)
    out = GLRConv(num_steps=32)(
        x.to(dtype), graph.edge_index, weight.to(dtype), mask
    )
    assert relative_error(out, exact) <= 1e-2


def test_error_falls_with_steps(grid):
    x, graph, mask, exact = grid
    errors = [
        relative_error(GLRConv(k)(x, *graph[:2], mask), exact)
        for k in (1, 2, 4, 8, 16, 32, 64)
    ]
    assert all(a > b for a, b in pairwise(errors)), errors
    assert errors[-1] < 1e-3


def test_stack_converges(grid):
    x, graph, mask, exact = grid
    conv = GLRConv(16)
    errors = []
    for _ in range(4):
        x = conv(x, *graph[:2], mask)
        errors.append(relative_error(x, exact))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize('mu', [0.3, 1.0, 5.0])
@torch.no_grad()
def test_soft_fidelity(mu):
    graph = random_graph(30, 60, dtype=torch.float64)
    y = torch.randn(30, 2).double()
    mask = torch.rand(30, 2) < 0.5
    mask[0] = True
    confidence = torch.rand(30).double() + 0.5
    conv = GLRConv(200, fidelity='soft', mu=mu, spectrum=(0.005, 2.0))
    for known, c in [
        (None, None),
        (mask, None),
        (mask, confidence),
        (None, confidence),
    ]:
        total = torch.ones_like(y) if known is None else known.double()
        total = total if c is None else total * c[:, None]
        expected = dense_proximal(y, *graph[:2], total, mu)
        out = conv(y, *graph[:2], known, c)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_heads_have_their_own_mu():
    graph = random_graph(20, 40, dtype=torch.float64)
    y = torch.randn(20, 1).double()
    conv = GLRConv(100, heads=2, spectrum=(0.01, 2.0))
    conv.log_mu.data = torch.tensor([0.1, 3.0]).log()
    expected = sum(
        dense_proximal(y, *graph[:2], torch.ones(20), mu) / 2
        for mu in (0.1, 3.0)
    )
    torch.testing.assert_close(conv(y, *graph[:2]), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_second_order():
    heads = 2
    graph = random_graph(12, 20, heads, torch.float64)
    x, mask = torch.randn(12, 2).double(), torch.arange(12) % 2 == 0
    conv = GLRConv(400, heads, order=2, spectrum=(0.004, 4.0))
    weights = graph.edge_weight.view(-1, heads).unbind(1)
    expected = sum(
        dense_glr(x, graph.edge_index, weight, mask, order=2) / heads
        for weight in weights
    )
    torch.testing.assert_close(
        conv(x, *graph[:2], mask), expected, atol=1e-4, rtol=0
    )
    # A step reaches two hops, and lines stay lines on a path.
    src = torch.arange(10)
    edge_index = torch.stack([src, src + 1])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    line = torch.arange(11.0).view(-1, 1).double()
    mask = (line.view(-1) - 5).abs() > 1
    start = torch.where(mask.view(-1, 1), line, 0)
    conv = GLRConv(100, order=2)
    torch.testing.assert_close(
        conv(start, edge_index, mask=mask), line, atol=1e-3, rtol=0
    )


def test_no_mask_is_a_low_pass_filter():
    graph = random_graph(40, 80, dtype=torch.float64)
    x = torch.randn(40, 1).double()
    topology = Topology.from_edge_index(graph.edge_index, 40)
    before = (x[topology.src] - x[topology.dst]).square().sum()
    out = GLRConv(8)(x, *graph[:2])
    after = (out[topology.src] - out[topology.dst]).square().sum()
    assert after < before / 2
    # Its matrix has unit row and column sums at convergence only; the first
    # holds always.
    assert_same(GLRConv(8)(x + 5, *graph[:2]), out + 5)


def test_receptive_field():
    # A change is seen K hops away and no further.
    num_nodes, num_steps = 21, 4
    src = torch.arange(num_nodes - 1)
    edge_index = torch.stack([src, src + 1])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    x = torch.randn(num_nodes, 1)
    mask = torch.arange(num_nodes) == 10
    other = x.clone()
    other[10] += 1
    conv = GLRConv(num_steps)
    same = conv(x, edge_index, mask=mask) == conv(other, edge_index, mask=mask)
    expected = (torch.arange(num_nodes) - 10).abs() > num_steps
    assert torch.equal(same.view(-1), expected)


def test_saves_no_edges_times_features():
    features, heads, num_steps = 64, 2, 6
    graph = random_graph(12, 60, heads)
    topology = Topology.from_edge_index(graph.edge_index, 12)
    assert topology.num_edges > 2 * 12
    weight = topology.undirected_weight(graph.edge_weight).requires_grad_()
    x = torch.randn(12, features, requires_grad=True)
    mask = torch.arange(12) < 4
    saved = {}

    def pack(y):
        if y.is_floating_point():
            saved[y.data_ptr()] = y.untyped_storage().size() // y.itemsize
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        GLRConv(num_steps, heads)(x, topology, weight, mask)
    assert max(saved.values()) < topology.num_edges * features * heads
    # A few node signals per step.
    assert sum(saved.values()) < 8 * num_steps * 12 * features * heads


def test_training_improves():
    graph = grid_graph(12, 12)
    clean = torch.rand(144, 1).cumsum(0) / 72
    mask = torch.rand(144) < 0.3
    x = torch.where(mask[:, None], clean, 0.5)
    conv = GLRConv(4)
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (conv(x, *graph[:2], mask) - clean).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_one_step():
    # Jacobi by hand: each unknown node moves towards its neighbours' mean.
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x = torch.tensor([[1.0], [0.0], [3.0]])
    mask = torch.tensor([True, False, True])
    conv = GLRConv(1, spectrum=(0.5, 1.5))
    assert_same(conv(x, edge_index, mask=mask)[1], torch.tensor([2.0]))


def test_repr():
    conv = GLRConv(3, heads=2, fidelity='soft')
    assert str(conv) == "GLRConv(num_steps=3, heads=2, fidelity='soft')"
    assert conv.propagate.__module__.endswith('_propagate')
