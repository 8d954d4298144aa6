import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from torch_geometric.data import Data
from torch_geometric.utils import erdos_renyi_graph, to_undirected

from pyg_unroll import GraphInterpolator
from pyg_unroll.estimators.blending import stacking_weights


def stations(count=400, seed=0):
    """A signal of position, and a non-linear one of covariates."""
    chance = np.random.default_rng(seed)
    pos = chance.uniform(size=(count, 2))
    extra = chance.normal(size=(count, 4))
    space = np.sin(5 * pos[:, 0]) + np.cos(4 * pos[:, 1])
    rest = 2 * np.sin(2 * extra[:, 0]) + extra[:, 1] * (extra[:, 2] > 0)
    noise = 0.1 * chance.normal(size=count)
    return np.hstack([pos, extra]), space, rest, noise


def rmse(model, X, y, known=200):
    out = model.fit(X[:known], y[:known]).predict(X[known:])
    return float(np.sqrt(np.mean((out - y[known:]) ** 2)))


def test_trees_and_kriging_where_both_matter():
    X, space, rest, noise = stations()
    trees = HistGradientBoostingRegressor(random_state=0)
    ours = GraphInterpolator()
    y = rest + noise
    assert rmse(ours, X, y) < 1.03 * rmse(trees, X, y)
    y = y + 2 * space
    best = min(rmse(trees, X, y), rmse(GraphInterpolator(), X[:, :2], y))
    assert rmse(ours, X, y) < 0.9 * best


def test_linear_trend_goes_on_outside():
    X, *_, noise = stations(300)
    y = 3 * X[:, 0] + 2 * X[:, 1] + X[:, 2:] @ [1, 2, 0, -1] + noise
    inside = (X[:, :2] < 0.7).all(1)
    order = np.argsort(~inside)
    known = int(inside.sum())
    ours = rmse(GraphInterpolator(), X[order], y[order], known)
    exact = rmse(LinearRegression(), X[order], y[order], known)
    assert ours < 1.5 * exact


def test_covariates_of_a_graph_without_positions():
    torch.manual_seed(0)
    extra = torch.randn(120, 2, dtype=torch.float64)
    data = Data(x=extra @ torch.tensor([[2.0], [1.0]]).double())
    data.edge_index = to_undirected(erdos_renyi_graph(120, 0.05))
    data.mask = torch.arange(120) < 80
    blind = GraphInterpolator().fit(data).predict()
    data.covariates = extra
    out = GraphInterpolator().fit(data).predict()
    error, before = ((o - data.x)[80:].std() for o in (out, blind))
    assert error < 0.1 * before


def test_columns_without_positions():
    X, _, rest, noise = stations()
    y = rest + noise
    trees = HistGradientBoostingRegressor(random_state=0)
    ours = GraphInterpolator(positions=[])
    assert rmse(ours, X[:, 2:], y) < 1.03 * rmse(trees, X[:, 2:], y)


def test_scales_of_columns_do_not_matter():
    X, space, rest, noise = stations(200)
    y = 2 * space + rest + noise
    scaled = X * [1.0, 3000.0, 1e-3, 1.0, 1e4, 1.0]
    expected = rmse(GraphInterpolator(), X, y, 100)
    assert rmse(GraphInterpolator(), scaled, y, 100) < 1.05 * expected
    data = Data(x=torch.from_numpy(space), mask=torch.arange(200) < 100)
    errors = []
    for pos in (X, scaled):
        data.pos = torch.from_numpy(pos[:, :2])
        out = GraphInterpolator().fit(data).predict()[:, 0]
        errors.append(float((out - data.x)[100:].square().mean().sqrt()))
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize('count', [12, 4000])
def test_weights(count):
    torch.manual_seed(0)
    target = torch.randn(count, 1, dtype=torch.float64)
    noise = torch.randn(count, 1, 3, dtype=torch.float64)
    # Errors that are independent: each is worth its inverse variance.
    scale = torch.tensor([0.2, 0.3, 0.9])
    out = stacking_weights(target.unsqueeze(-1) + noise * scale, target)
    best = scale**-2 / (scale**-2).sum()
    assert (out - best).abs().max() < (0.5 if count < 100 else 0.05)
    assert abs(out.sum() - 1) < 0.05
    # One that is as good as any keeps all of the weight.
    guesses = torch.stack([target, -target, 0 * target], -1)
    torch.testing.assert_close(
        stacking_weights(guesses, target),
        torch.tensor([1.0, 0, 0]).double(),
        atol=1e-3,
        rtol=0,
    )
