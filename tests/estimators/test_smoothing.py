import numpy as np
import pytest
import torch
from torch_geometric.utils import erdos_renyi_graph, to_undirected

from pyg_unroll import Topology
from pyg_unroll.estimators.smoothing import Smoother

SIZE = 20


@pytest.fixture
def graph():
    torch.manual_seed(0)
    edges = to_undirected(erdos_renyi_graph(SIZE, 0.3))
    topology = Topology.from_edge_index(edges, SIZE)
    return topology, torch.rand(topology.num_edges, dtype=torch.float64) + 0.1


def dense(graph, order, normalized):
    """The prior as a dense matrix, mean degree one."""
    topology, weight = graph
    a = np.zeros((SIZE, SIZE))
    a[topology.src, topology.dst] = weight
    a += a.T
    a /= a.sum(1).mean()
    d = np.diag(a.sum(1))
    prior = d - a
    if order == 2:
        prior = prior @ np.linalg.inv(d) @ prior
    unit = np.sqrt(np.diag(d)) if normalized else np.ones(SIZE)
    return prior / unit / unit[:, None]


KINDS = [(1, False), (2, False), (1, True), (2, True)]


@pytest.mark.parametrize('order,normalized', KINDS)
def test_equals_dense_solutions(graph, order, normalized):
    smoother = Smoother.build(*graph, order, normalized)
    known = torch.arange(0, SIZE, 2)
    y = torch.zeros(SIZE, 3, dtype=torch.float64)
    y[known] = torch.randn(len(known), 3, dtype=torch.float64)
    smoother.trust, smoother.ridge = 3.0, 0.05
    out, residual = smoother.predict(y, known)
    c = np.zeros(SIZE)
    c[known] = 3.0
    matrix = np.diag(c + 0.05) + dense(graph, order, normalized)
    expected = np.linalg.solve(matrix, c[:, None] * y.numpy())
    assert residual <= 1e-6
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    variance = smoother.variance(known, SIZE, 0)
    inverse = np.linalg.inv(matrix)
    np.testing.assert_allclose(variance, np.diag(inverse), rtol=1e-3)


@pytest.mark.parametrize('order,normalized', KINDS)
def test_held_out_nodes_are_not_seen(graph, order, normalized):
    smoother = Smoother.build(*graph, order, normalized)
    known = torch.arange(0, SIZE, 2)
    folds = torch.arange(len(known)) % 3
    y = torch.zeros(SIZE, 2, dtype=torch.float64)
    y[known] = torch.randn(len(known), 2, dtype=torch.float64)
    settings = [(1.0, 0.1), (10.0, 0.3)]
    out = smoother.held_out(y, known, folds, settings)
    assert out.shape == (len(known), 2, 2)
    for k, (trust, ridge) in enumerate(settings):
        for fold in range(3):
            left = known[folds != fold]
            smoother.trust, smoother.ridge = trust, ridge
            alone, _ = smoother.predict(y, left)
            expected = alone[known[folds == fold]]
            torch.testing.assert_close(
                out[folds == fold, :, k], expected, atol=5e-3, rtol=0
            )


def test_hutchinson_is_near_the_diagonal(graph):
    smoother = Smoother.build(*graph, 1, False)
    known = torch.arange(0, SIZE, 2)
    smoother.trust, smoother.ridge = 1.0, 0.5
    exact = smoother.variance(known, SIZE, 0)
    probes = 15
    tries = torch.stack(
        [smoother.variance(known, probes, seed) for seed in range(60)]
    )
    torch.testing.assert_close(tries.mean(0), exact, rtol=0.15, atol=0)


@pytest.mark.parametrize('order,normalized', KINDS)
@pytest.mark.parametrize('trust', (1.0, 1e4))
def test_variance_left_out(graph, order, normalized, trust):
    smoother = Smoother.build(*graph, order, normalized)
    known = torch.arange(0, SIZE, 2)
    smoother.trust, smoother.ridge = trust, 0.01
    out = smoother.variance_left_out(known, SIZE, 0)
    # Of strong trust a node alone, without its observation, counts.
    expected = [
        smoother.variance(known[known != node], SIZE, 0)[node] for node in known
    ]
    torch.testing.assert_close(out, torch.stack(expected), rtol=5e-3, atol=0)
    if trust > 1:
        guess = [
            smoother.variance_left_out(known, SIZE - 1, seed)
            for seed in range(20)
        ]
        near = torch.stack(guess).median(0).values / torch.stack(expected)
        assert ((near > 0.5) & (near < 2)).all()


def test_tuning_finds_the_noise(graph):
    topology, weight = graph
    known = torch.arange(SIZE)
    folds = known % 10
    torch.manual_seed(1)
    noise = torch.randn(SIZE, 40, dtype=torch.float64)
    noisy = Smoother.build(topology, weight, 1, False)
    held_out = noisy.tune(noise, known, folds)
    # White noise says nothing of its neighbours: predict the mean.
    assert held_out.abs().mean() < 0.3 * noise.abs().mean()
    smooth = Smoother.build(topology, weight, 1, False)
    signal, _ = smooth.predict(noise, known[:4])
    smooth.tune(signal, known, folds)
    assert smooth.ridge < noisy.ridge
