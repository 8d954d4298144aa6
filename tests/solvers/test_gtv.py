import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_unroll import KNNGraph
from pyg_unroll.solvers import ConvergenceWarning, gtv
from pyg_unroll.testing import assert_same
from tests.oracles import (
    dual_gtv_proximal,
    grid_graph,
    gtv_objective,
    linprog_gtv,
    random_graph,
)


def knn_graph(num_nodes):
    data = KNNGraph(5)(Data(pos=torch.rand(num_nodes, 2)))
    topology = KNNGraph(5).topology(data)
    weight = torch.rand(topology.num_edges).double() + 0.1
    return data.edge_index, topology.directed_weight(weight), num_nodes


GRAPHS = {
    'grid': lambda: grid_graph(44, 45, dtype=torch.float64),
    'knn': lambda: knn_graph(800),
    'random': lambda: random_graph(500, 700, dtype=torch.float64),
}


@pytest.mark.parametrize('name', GRAPHS)
def test_against_highs(name):
    edge_index, weight, num_nodes = GRAPHS[name]()
    x = torch.randn(num_nodes, 1).double()
    mask = torch.rand(num_nodes, 1) < 0.3
    result = gtv(x, edge_index, weight, mask)
    assert result.converged and result.residual <= 1e-4
    optimum = linprog_gtv(x, edge_index, weight, mask)
    value = gtv_objective(result.x, edge_index, weight)
    assert value[0] >= optimum[0] * (1 - 1e-7)
    assert value[0] <= optimum[0] * (1 + 1e-4)
    assert torch.equal(result.x[mask], x[mask])


@pytest.mark.parametrize('max_steps', [1, 10, 40, 150])
def test_residual_bounds_the_gap(max_steps):
    # Also when it is stopped early, and of several features the worst.
    graph = random_graph(150, 250, dtype=torch.float64)
    x = torch.randn(150, 2).double() * torch.tensor([1.0, 100.0])
    mask = torch.rand(150, 2) < 0.3
    with pytest.warns(ConvergenceWarning, match="'gtv' reached"):
        result = gtv(x, *graph[:2], mask, tol=1e-14, max_steps=max_steps)
    assert not result.converged and result.num_steps == max_steps
    optimum = linprog_gtv(x, *graph[:2], mask)
    value = gtv_objective(result.x, *graph[:2])
    gap = (value - optimum) / value
    assert np.all(gap >= -1e-9) and gap.max() <= result.residual + 1e-9


def objective(x, y, graph, confidence, mu):
    variation = gtv_objective(x, *graph[:2])
    fit = (confidence * (x - y).square()).sum(0).numpy()
    return fit + mu * variation


@pytest.mark.parametrize('mu', [0.05, 0.5, 50.0])
def test_soft_fidelity(mu):
    graph = random_graph(30, 30, dtype=torch.float64)
    y = torch.randn(30, 2).double()
    c = torch.rand(30).double() + 0.5
    for confidence in (None, c):
        total = (torch.ones(30) if confidence is None else c).unsqueeze(1)
        result = gtv(y, *graph[:2], confidence=confidence, mu=mu, tol=1e-7)
        assert result.converged
        expected = dual_gtv_proximal(y, *graph[:2], total, mu)
        best = objective(expected, y, graph, total, mu)
        value = objective(result.x, y, graph, total, mu)
        assert np.all(np.abs(value / best - 1) < 1e-6)
        # The objective is strongly convex.
        torch.testing.assert_close(result.x, expected, atol=5e-3, rtol=0)


def test_soft_mask_on_a_path():
    # Known entries 0 and 1 at the ends of a path move by mu / 2 each.
    src = torch.arange(4)
    edge_index = torch.stack([src, src + 1])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    x = torch.tensor([[0.0], [7], [7], [7], [1]]).double()
    mask = torch.tensor([True, False, False, False, True])
    result = gtv(x, edge_index, mask=mask, fidelity='soft', mu=0.4, tol=1e-8)
    ends = result.x[[0, 4]].view(-1)
    expected = torch.tensor([0.2, 0.8]).double()
    torch.testing.assert_close(ends, expected, atol=1e-3, rtol=0)
    assert bool((result.x.diff(dim=0) > -1e-3).all())


@pytest.mark.parametrize('mu, move', [(0.5, 0.25), (4.0, 0.5)])
def test_two_nodes(mu, move):
    edge_index = torch.tensor([[0, 1], [1, 0]])
    y = torch.tensor([[0.0], [1.0]]).double()
    result = gtv(y, edge_index, mu=mu, tol=1e-10)
    expected = torch.tensor([[move], [1 - move]]).double()
    torch.testing.assert_close(result.x, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('scale', [1e-6, 1e6])
def test_scale_of_signal_and_weights(scale):
    graph = random_graph(40, 40, dtype=torch.float64)
    x, mask = torch.randn(40, 1).double(), torch.arange(40) % 3 == 0
    optimum = linprog_gtv(x, *graph[:2], mask)[0]
    for a, b in ((scale, 1), (1, scale)):
        result = gtv(x * a, graph[0], graph[1] * b, mask)
        assert result.converged
        value = gtv_objective(result.x / a, *graph[:2])[0]
        assert value <= optimum * (1 + 2e-4)


def test_refuses_gradients():
    graph = random_graph(10, 10)
    x, mask = torch.rand(10, 1), torch.arange(10) < 4
    with pytest.raises(ValueError, match=r"'x' requires gradients.*GTVConv"):
        gtv(x.clone().requires_grad_(), *graph[:2], mask)
    weight = graph.edge_weight.clone().requires_grad_()
    with pytest.raises(ValueError, match="'edge_weight' requires gradients"):
        gtv(x, graph.edge_index, weight, mask)
    confidence = torch.ones(10, requires_grad=True)
    with pytest.raises(ValueError, match="'confidence' requires gradients"):
        gtv(x, *graph[:2], confidence=confidence)
    with torch.no_grad():
        assert gtv(x, graph.edge_index, weight, mask).converged


def test_refuses_gradients_of_mu():
    graph = random_graph(10, 10)
    mu = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="'mu' requires gradients"):
        gtv(torch.rand(10, 1), *graph[:2], mu=mu)


def test_constants():
    graph = random_graph(20, 20)
    x, mask = torch.full((20, 2), 0.3), torch.arange(20) < 5
    for kwargs in ({'mask': mask}, {}):
        result = gtv(x, *graph[:2], **kwargs)
        assert result.converged
        assert_same(result.x, x)


def test_unreachable_nodes():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x = torch.tensor([[1.0], [float('nan')], [2.0], [float('nan')]])
    mask = torch.tensor([True, False, True, False])
    with pytest.raises(ValueError, match=r'1 node\(s\) \(3\).*fill'):
        gtv(x, edge_index, mask=mask)
    out = gtv(x, edge_index, mask=mask, fill=5.0).x.view(-1)
    assert out[[0, 2, 3]].tolist() == [1, 2, 5]
    assert 1 <= float(out[1]) <= 2
    out = gtv(x, edge_index, mask=mask, fill='mean').x.view(-1)
    assert out[[0, 2, 3]].tolist() == [1, 2, 1.5]


def test_weights_that_are_all_zero():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x = torch.tensor([[1.0], [9.0], [2.0], [9.0]])
    mask = torch.tensor([True, False, True, False])
    weight = torch.zeros(4)
    with pytest.raises(ValueError, match=r'2 node\(s\) \(1, 3\)'):
        gtv(x, edge_index, weight, mask)
    out = gtv(x, edge_index, weight, mask, fill=0.0)
    assert out.x.view(-1).tolist() == [1, 0, 2, 0] and out.converged


def test_without_edges():
    empty = torch.empty(2, 0, dtype=torch.long)
    x = torch.rand(3, 2)
    result = gtv(x, empty)
    assert result.converged
    assert_same(result.x, x)


def test_batch_and_type():
    examples = []
    for num_nodes in (8, 20):
        graph = random_graph(num_nodes, num_nodes)
        x = torch.rand(num_nodes, 1)
        examples.append(
            Data(x=x, edge_index=graph.edge_index, edge_weight=graph[1])
        )
    batch = Batch.from_data_list(examples)
    kwargs = {'mu': 0.3, 'tol': 1e-9}
    out = gtv(batch.x, batch.edge_index, batch.edge_weight, **kwargs).x
    assert out.dtype == torch.float32
    single = [
        gtv(data.x, data.edge_index, data.edge_weight, **kwargs).x
        for data in examples
    ]
    torch.testing.assert_close(out, torch.cat(single), atol=1e-4, rtol=0)


def test_bad_input():
    graph = random_graph(8, 8)
    x, mask = torch.rand(8, 1), torch.arange(8) < 4
    with pytest.raises(ValueError, match="'tol' must be positive"):
        gtv(x, *graph[:2], mask, tol=-1)
    with pytest.raises(ValueError, match="'fidelity' must be one of"):
        gtv(x, *graph[:2], mask, fidelity='other')
    with pytest.raises(ValueError, match="'mu' must be positive"):
        gtv(x, *graph[:2], mu=-1)
    with pytest.raises(ValueError, match='2 heads'):
        gtv(x, graph[0], graph[1].unsqueeze(1).expand(-1, 2), mask)


def test_refuses_gradients_of_sparse_values():
    edge_index = random_graph(8, 8)[0]
    values = torch.ones(edge_index.size(1)).requires_grad_()
    sparse = torch.sparse_coo_tensor(edge_index, values, (8, 8))
    mask = torch.arange(8) < 4
    with pytest.raises(ValueError, match="'edge_index' requires gradients"):
        gtv(torch.rand(8, 1), sparse, mask=mask)
