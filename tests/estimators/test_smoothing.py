from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import erdos_renyi_graph, to_undirected

from pyg_unroll.estimators.inputs import Sites, SiteSignal
from pyg_unroll.estimators.smoothing import GraphSmoother

SIZE = 20


@pytest.fixture
def sites():
    """A weighted random graph."""
    torch.manual_seed(0)
    edge_index = to_undirected(erdos_renyi_graph(SIZE, 0.3))
    weight = torch.rand(SIZE, SIZE, dtype=torch.float64) + 0.1
    weight = (weight + weight.T)[edge_index[0], edge_index[1]]
    data = Data(x=torch.zeros(SIZE), edge_index=edge_index, edge_weight=weight)
    return Sites.read(data, 'covariates', 8)


def observe(sites, features):
    """Every other site is known."""
    known = torch.arange(0, SIZE, 2)
    y = torch.zeros(SIZE, features, dtype=torch.float64)
    y[known] = torch.randn(len(known), features, dtype=torch.float64)
    return SiteSignal(sites, known, y)


def posterior(sites, known, smoother):
    """The system as a dense matrix, mean degree one, and the confidence."""
    topology, weight = sites.graphs['given']
    a = np.zeros((SIZE, SIZE))
    a[topology.src, topology.dst] = weight
    a += a.T
    a /= a.sum(1).mean()
    d = np.diag(a.sum(1))
    prior = d - a
    if smoother.order == 2:
        prior = prior @ np.linalg.inv(d) @ prior
    unit = np.sqrt(np.diag(d)) if smoother.normalized else np.ones(SIZE)
    c = np.zeros(SIZE)
    c[known] = smoother.trust
    ridge = np.diag(c + smoother.ridge)
    return prior / unit / unit[:, None] + ridge, c


KINDS = [(1, False), (2, False), (1, True), (2, True)]


@pytest.mark.parametrize('kind', KINDS)
def test_equals_dense_solutions(sites, kind):
    smoother = GraphSmoother('given', *kind, trust=3.0, ridge=0.05)
    signal = observe(sites, 3)
    out = smoother.predict(signal)
    matrix, c = posterior(sites, signal.known, smoother)
    expected = np.linalg.solve(matrix, c[:, None] * signal.y.numpy())
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    variance = smoother.deviation(signal).square() - 1 / 3.0
    inverse = np.linalg.inv(matrix)
    np.testing.assert_allclose(variance, np.diag(inverse), rtol=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_held_out_sites_are_not_seen(sites, kind):
    smoother = GraphSmoother('given', *kind)
    signal = observe(sites, 2)
    known = signal.known
    folds = torch.arange(len(known)) % 3
    settings = [(1.0, 0.1), (10.0, 0.3)]
    out = smoother.held_out(signal, folds, settings)
    assert out.shape == (len(known), 2, 2)
    for k, (trust, ridge) in enumerate(settings):
        for fold in range(3):
            smoother.trust, smoother.ridge = trust, ridge
            seen = replace(signal, known=known[folds != fold])
            expected = smoother.predict(seen)[known[folds == fold]]
            torch.testing.assert_close(
                out[folds == fold, :, k], expected, atol=5e-3, rtol=0
            )


def test_hutchinson_is_near_the_diagonal(sites):
    signal = observe(sites, 1)
    smoother = GraphSmoother('given', 1, trust=1.0, ridge=0.5)
    exact = smoother.deviation(signal).square() - 1
    smoother.num_probes = 15
    tries = []
    for smoother.seed in range(60):
        tries.append(smoother.deviation(signal).square() - 1)
    mean = torch.stack(tries).mean(0)
    assert not torch.equal(mean, exact)
    torch.testing.assert_close(mean, exact, rtol=0.15, atol=0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('trust', (1.0, 1e4))
def test_variance_left_out(sites, kind, trust):
    smoother = GraphSmoother('given', *kind, trust=trust, ridge=0.01)
    signal = observe(sites, 1)
    out = smoother.variance_left_out(signal)
    expected = []
    for node in signal.known:
        others = signal.known[signal.known != node]
        matrix, _ = posterior(sites, others, smoother)
        expected.append(np.linalg.inv(matrix)[node, node])
    expected = torch.tensor(expected)
    torch.testing.assert_close(out, expected, rtol=5e-3, atol=0)
    if trust > 1:
        smoother.num_probes = SIZE - 1
        guess = []
        for smoother.seed in range(20):
            guess.append(smoother.variance_left_out(signal))
        near = torch.stack(guess).median(0).values / expected
        assert ((near > 0.5) & (near < 2)).all()


def test_tuning_finds_the_noise(sites):
    known = torch.arange(SIZE)
    folds = known % 10
    torch.manual_seed(1)
    noise = torch.randn(SIZE, 40, dtype=torch.float64)
    noisy = GraphSmoother('given', 1)
    held_out, _ = noisy.tune(SiteSignal(sites, known, noise), folds)
    # White noise says nothing of its neighbours: predict the mean.
    assert held_out.abs().mean() < 0.3 * noise.abs().mean()
    smooth = GraphSmoother('given', 1, trust=1e2, ridge=1e-3)
    signal = smooth.predict(SiteSignal(sites, known[:4], noise))
    smooth.tune(SiteSignal(sites, known, signal), folds)
    assert smooth.ridge < noisy.ridge


@pytest.mark.parametrize('kind', KINDS)
def test_leaving_one_out_in_closed_form(sites, kind):
    smoother = GraphSmoother('given', *kind)
    signal = observe(sites, 2)
    folds = torch.arange(len(signal.known))
    out, _ = smoother.tune(signal, folds)
    setting = smoother.trust, smoother.ridge
    expected = smoother.held_out(signal, folds, [setting]).squeeze(-1)
    torch.testing.assert_close(out, expected, atol=5e-3, rtol=0)
