import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pyg_unroll.estimators.kriging import (
    SMOOTHNESS,
    LocalKriging,
    metric_factor,
)

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


@pytest.mark.parametrize('nu', SMOOTHNESS)
def test_equals_ordinary_kriging(nu):
    chance = np.random.default_rng(0)
    known, query = chance.uniform(size=(30, 2)), chance.uniform(size=(7, 2))
    y = chance.normal(size=(30, 3))
    factor = np.array([[3.0, 0.0], [1.0, 2.0]])
    model = LocalKriging(nu, factor=torch.from_numpy(factor), noise=0.1)
    mean, variance = model.krige(
        *(torch.from_numpy(v) for v in (known, y, query))
    )
    expected = ordinary_kriging(nu, factor, 0.1, known, y, query)
    np.testing.assert_allclose(mean, expected[0], atol=1e-5)
    np.testing.assert_allclose(variance, expected[1], atol=1e-5)


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
    model = LocalKriging(1.5).fit(points, y, 2)
    assert 0.05 < model.noise < 0.2
    scale = (model.factor.T @ model.factor).diagonal().sqrt()
    assert 2 < scale[0] < 4.5
    assert scale[1] < 0.8


def test_covariate_that_matters():
    factor = np.diag([1.0, 1.0, 4.0])
    points, y = draw(300, 2.5, factor, 0.01, seed=1)
    model = LocalKriging(2.5).fit(points, y, 2)
    scale = (model.factor.T @ model.factor).diagonal().sqrt()
    assert scale[2] > 2 * scale[:2].max()


def test_few_and_equal_points():
    points = torch.rand(4, 2, dtype=torch.float64)
    points[1] = points[0]
    y = torch.randn(4, 1, dtype=torch.float64)
    model = LocalKriging(0.5).fit(points, y, 2)
    mean, variance = model.krige(points, y, points)
    assert mean.isfinite().all() and variance.isfinite().all()
    none, _ = model.krige(points, y, points[:0])
    assert none.shape == (0, 1)


def test_metric_does_not_overflow():
    # Any scale, however short, is likely of white noise.
    theta = torch.tensor([1e3, -1e3, 0.5, 0.0], dtype=torch.float64)
    factor = metric_factor(theta)
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
        kriging = LocalKriging(2.5).fit(features, y, 2)
        out, _ = kriging.krige(features, y, query)
        errors.append(float((out - truth[150:]).square().mean().sqrt()))
    assert errors[1] < 2 * errors[0] < 0.02
