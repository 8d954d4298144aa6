import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pyg_unroll.estimators.conditioning import (
    AllPoints,
    Covariance,
    NearPoints,
    condition,
)
from pyg_unroll.estimators.kriging import SMOOTHNESS, Kriging, metric_factor

MATERN = {
    0.5: lambda r: np.exp(-r),
    1.5: lambda r: (1 + 3**0.5 * r) * np.exp(-(3**0.5) * r),
    2.5: lambda r: (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r),
}


def ordinary_kriging(nu, factor, noise, known, y, query):
    """The textbook's system with a Lagrange multiplier, all points."""
    count = len(known)
    a, b = known @ factor.T, query @ factor.T
    system = np.ones((count + 1, count + 1))
    system[:-1, :-1] = MATERN[nu](cdist(a, a)) + noise * np.eye(count)
    system[-1, -1] = 0
    side = np.ones((count + 1, len(query)))
    side[:-1] = MATERN[nu](cdist(a, b))
    solved = np.linalg.solve(system, side)
    variance = 1 - (solved * side).sum(0) + noise
    return solved[:-1].T @ y, variance


@pytest.mark.parametrize('kind', [AllPoints, NearPoints])
@pytest.mark.parametrize('nu', SMOOTHNESS)
def test_equals_ordinary_kriging(nu, kind):
    chance = np.random.default_rng(0)
    known, query = chance.uniform(size=(30, 2)), chance.uniform(size=(7, 2))
    y = chance.normal(size=(30, 3))
    factor = np.array([[3.0, 0.0], [1.0, 2.0]])
    places, wanted = torch.from_numpy(known @ factor.T), query @ factor.T
    process = kind(Covariance(nu, 0.1), places, torch.from_numpy(y))
    wanted = torch.from_numpy(wanted)
    expected = ordinary_kriging(nu, factor, 0.1, known, y, query)
    mean, variance = process.mean(wanted), process.variance(wanted)
    np.testing.assert_allclose(mean, expected[0], atol=1e-5)
    np.testing.assert_allclose(variance, expected[1], atol=1e-5)
    # Observations that are left out are not seen.
    fold = np.arange(30) % 4
    mean, variance = process.left_out(torch.from_numpy(fold))
    for k in range(4):
        rest = known[fold != k], y[fold != k], known[fold == k]
        expected = ordinary_kriging(nu, factor, 0.1, *rest)
        np.testing.assert_allclose(mean[fold == k], expected[0], atol=1e-5)
        np.testing.assert_allclose(variance[fold == k], expected[1], atol=1e-5)


def test_near_points_are_enough():
    chance = np.random.default_rng(0)
    places = torch.from_numpy(4 * chance.uniform(size=(900, 2)))
    y = (2 * places[:, :1]).sin() + places[:, 1:].cos()
    query = torch.from_numpy(4 * chance.uniform(size=(50, 2)))
    covariance = Covariance(1.5, 1e-3)
    near = condition(covariance, places, y)
    assert isinstance(near, NearPoints)
    exact = AllPoints(covariance, places, y)
    error = (near.mean(query) - exact.mean(query)).abs().max()
    assert error < 0.01
    ratio = near.variance(query) / exact.variance(query)
    assert ((ratio > 0.99) & (ratio < 1.1)).all()


def draw(count, nu, factor, noise, seed, columns=20):
    chance = np.random.default_rng(seed)
    points = chance.uniform(size=(count, factor.shape[1]))
    place = points @ factor.T
    covariance = MATERN[nu](cdist(place, place)) + noise * np.eye(count)
    y = np.linalg.cholesky(covariance) @ chance.normal(size=(count, columns))
    return torch.from_numpy(points), torch.from_numpy(y)


def test_finds_noise_and_metric():
    factor = np.diag([3.0, 0.4])
    points, y = draw(400, 1.5, factor, 0.1, seed=0)
    model = Kriging(1.5).fit(points, y, 2)
    assert 0.05 < model.noise < 0.2
    scale = (model.factor.T @ model.factor).diagonal().sqrt()
    assert 2 < scale[0] < 4.5
    assert scale[1] < 0.8


def test_covariate_that_matters():
    factor = np.diag([1.0, 1.0, 4.0])
    points, y = draw(300, 2.5, factor, 0.01, seed=1)
    model = Kriging(2.5).fit(points, y, 2)
    scale = (model.factor.T @ model.factor).diagonal().sqrt()
    assert scale[2] > 2 * scale[:2].max()


def test_few_and_equal_points():
    points = torch.rand(4, 2, dtype=torch.float64)
    points[1] = points[0]
    y = torch.randn(4, 1, dtype=torch.float64)
    model = Kriging(0.5).fit(points, y, 2)
    places = points @ model.factor.T
    for kind in (AllPoints, NearPoints):
        process = kind(Covariance(0.5, model.noise), places, y)
        mean, variance = process.mean(places), process.variance(places)
        assert mean.isfinite().all() and variance.isfinite().all()
        assert process.mean(places[:0]).shape == (0, 1)


def test_metric_does_not_overflow():
    # Any scale, however short, is likely of white noise.
    theta = torch.tensor([1e3, -1e3, 0.5, 0.0], dtype=torch.float64)
    factor = metric_factor(theta, 2)
    assert factor.isfinite().all() and (factor.diagonal() > 0).all()


def test_one_point_far_away():
    torch.manual_seed(0)
    points = torch.rand(300, 2, dtype=torch.float64)
    truth = ((4 * points[:, :1]).sin() + points[:, 1:]) - 1
    known, query = points[:150], points[150:]
    errors = []
    for far in ([], [[1e4, 1e4]]):
        features = torch.cat([known, torch.tensor(far).double().view(-1, 2)])
        y = torch.cat([truth[:150], truth[: len(far)]])
        kriging = Kriging(2.5).fit(features, y, 2)
        places = features @ kriging.factor.T
        process = condition(Covariance(2.5, kriging.noise), places, y)
        out = process.mean(query @ kriging.factor.T)
        errors.append(float((out - truth[150:]).square().mean().sqrt()))
    assert errors[1] < 2 * errors[0] < 0.02
