"""Ways to fill in signals on graphs and points, ours and others'."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from graph_data import HiddenSignal
from scipy.interpolate import RBFInterpolator, griddata
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import FeaturePropagation

from pyg_unroll import (
    GraphInterpolator,
    KNNGraph,
    TemporalInterpolator,
    TemporalProduct,
    from_product,
    solvers,
)

Method = Callable[[HiddenSignal], Tensor]

# Known points that a dense Gaussian process is given: its cost is cubic.
GP_POINTS = 1500


def methods(
    problem: HiddenSignal, ours: GraphInterpolator | None = None
) -> dict[str, Method]:
    """Methods that are installed and can work on a problem, by name; ours is
    the given estimator, which is fitted then.
    """
    if ours is None:
        ours = GraphInterpolator(samples=problem.samples)
    out: dict[str, Method] = {
        'GraphInterpolator': lambda p: ours.fit(p.data).predict(),
        'solvers.glr': lambda p: smooth(p, 1),
        'FeaturePropagation (PyG)': propagate,
    }
    if importlib.util.find_spec('pygsp'):
        out['Tikhonov (PyGSP)'] = tikhonov
    if problem.data.get('pos') is not None:
        out['solvers.glr, order 2'] = lambda p: smooth(p, 2)
        out['linear (SciPy griddata)'] = linear
        out['thin-plate spline (SciPy)'] = spline
        if importlib.util.find_spec('sklearn'):
            out['10 neighbours, IDW (scikit-learn)'] = neighbours
            out['Gaussian process (scikit-learn)'] = gaussian_process
    return out


def methods_over_time() -> dict[str, Method]:
    """Methods for readings over time, by name."""
    return {
        'TemporalInterpolator': lambda p: (
            TemporalInterpolator().fit(p.data).predict()
        ),
        'SoftImpute': soft_impute,
        'IterativeImputer (scikit-learn)': iterative,
        'linear in time (NumPy)': linear_in_time,
        'FeaturePropagation (PyG), sensors': propagate,
        'FeaturePropagation (PyG), product': propagate_over_time,
    }


def _centred(problem: HiddenSignal) -> tuple[Tensor, Tensor]:
    """The signal less the mean of what is known, zero where hidden."""
    mean = problem.data.x.nanmean(0).nan_to_num()
    return (problem.data.x - mean).nan_to_num(), mean


def _graph(problem: HiddenSignal) -> tuple[Tensor, Tensor | None]:
    data = problem.data
    if data.get('edge_index') is None:
        return KNNGraph(8)(data).edge_index, None
    return data.edge_index, data.get('edge_weight')


def smooth(problem: HiddenSignal, order: int) -> Tensor:
    """Exact smoothness on the graph."""
    x, mean = _centred(problem)
    edges, weight = _graph(problem)
    result = solvers.glr(
        *(x, edges, weight, problem.mask), order=order, tol=1e-5, fill='mean'
    )
    return result.x + mean


def propagate(problem: HiddenSignal) -> Tensor:
    """PyG's transform, of centred signals, 200 iterations."""
    x, mean = _centred(problem)
    data = problem.data.clone()
    edges, weight = _graph(problem)
    data.x, data.edge_index = x.float(), edges
    if weight is not None:
        data.edge_weight = weight.float()
    missing = ~problem.mask.view(len(x), -1).expand_as(x)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # sparse tensors are in beta
        return FeaturePropagation(missing, 200)(data).x + mean


def linear_in_time(problem: HiddenSignal) -> Tensor:
    """Each sensor on its own; the mean of all if nothing is known of it."""
    x, mask = problem.data.x.numpy(), problem.mask.numpy()
    step, out = np.arange(x.shape[1]), np.full(x.shape, x[mask].mean())
    for sensor in np.flatnonzero(mask.any(1)):
        known = mask[sensor]
        out[sensor] = np.interp(step, step[known], x[sensor, known])
    return torch.from_numpy(out)


def _mean_of_sensors(x: np.ndarray) -> np.ndarray:
    """Mean of each sensor, of all where it has none, `[N, 1]`."""
    known = ~np.isnan(x)
    total = np.where(known, x, 0).sum(1, keepdims=True)
    count = known.sum(1, keepdims=True)
    return np.where(count, total / np.maximum(count, 1), np.nanmean(x))


def soft_impute(problem: HiddenSignal) -> Tensor:
    """Singular values shrunk (Mazumder, Hastie, Tibshirani, 2010) by what
    predicts a tenth of the known readings best from the others.
    """
    x = problem.data.x.numpy()
    mean = _mean_of_sensors(x)
    known = ~np.isnan(x)
    start = np.where(known, x - mean, 0)
    largest = np.linalg.norm(start, 2)
    held = known & (np.random.default_rng(0).random(x.shape) < 0.1)

    def fill(share: float, seen: np.ndarray) -> np.ndarray:
        out = np.where(seen, start, 0)
        for _ in range(60):
            left, size, right = np.linalg.svd(out, full_matrices=False)
            low = left * np.maximum(size - share * largest, 0) @ right
            out = np.where(seen, start, low)
        return low

    def error(share: float) -> float:
        change = fill(share, known & ~held) - start
        return float(np.square(change[held]).mean())

    best = min((0.003, 0.01, 0.03, 0.1), key=error)
    return torch.from_numpy(fill(best, known) + mean)


def iterative(problem: HiddenSignal) -> Tensor:
    """Regression of each sensor on thirty others at the same time, and on all
    sensors' readings a step before and after, those linear in time.
    """
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    x = problem.data.x.numpy()
    line = linear_in_time(problem).numpy()
    before = np.concatenate([line[:, :1], line[:, :-1]], 1)
    after = np.concatenate([line[:, 1:], line[:, -1:]], 1)
    table = np.concatenate([x, before, after]).T
    model = IterativeImputer(
        n_nearest_features=30,
        max_iter=5,
        min_value=x[problem.mask.numpy()].min(),
        max_value=x[problem.mask.numpy()].max(),
        keep_empty_features=True,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it did not converge
        out = model.fit_transform(table)[:, : len(x)].T
    return torch.from_numpy(out)


def propagate_over_time(problem: HiddenSignal) -> Tensor:
    """PyG's transform on the product with time; the weight of time that
    predicts a tenth of the known readings best from the others.
    """
    edges, weight = _graph(problem)
    mean = problem.data.x[problem.mask].mean()
    chance = np.random.default_rng(0)
    held = torch.from_numpy(chance.random(problem.mask.shape) < 0.1)
    held &= problem.mask

    def fill(time_weight: float, mask: Tensor) -> Tensor:
        x = torch.where(mask, problem.data.x - mean, 0).float()
        data = Data(x=x, mask=mask, edge_index=edges)
        if weight is not None:
            data.edge_weight = weight.float()
        data = TemporalProduct(time_weight)(data)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # sparse tensors are in beta
            data = FeaturePropagation(~data.mask.unsqueeze(1), 200)(data)
        return from_product(data).squeeze(-1) + mean

    def error(time_weight: float) -> float:
        change = fill(time_weight, problem.mask & ~held) - problem.data.x
        return float(change[held].square().mean())

    best = min((4.0, 16.0, 64.0, 256.0, 1024.0), key=error)
    return fill(best, problem.mask)


def tikhonov(problem: HiddenSignal) -> Tensor:
    """On the same graph; the regularisation that predicts a fifth of the known
    nodes best from the others, in fifty features at most.
    """
    from pygsp.graphs import Graph
    from pygsp.learning import regression_tikhonov
    from scipy.sparse import coo_matrix

    x, mean = _centred(problem)
    y, mask = x.numpy(), problem.mask.numpy()
    edges, weight = _graph(problem)
    count = len(y)
    value = np.ones(edges.size(1)) if weight is None else weight.numpy()
    graph = Graph(coo_matrix((value, tuple(edges.numpy())), (count, count)))
    chance = np.random.default_rng(0)
    order = chance.permutation(np.flatnonzero(mask))
    test, train = order[: len(order) // 5], mask.copy()
    train[test] = False
    few = y[:, chance.permutation(y.shape[1])[:50]]

    def error(tau: float) -> float:
        out = regression_tikhonov(graph, few, train, tau)
        return float(np.square(out[test] - few[test]).mean())

    best = min((0.01, 0.1, 1.0, 10.0), key=error)
    out = regression_tikhonov(graph, y, mask, best)
    return torch.from_numpy(out) + mean


def _points(problem: HiddenSignal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Known points and values, and hidden points; duplicates shifted."""
    pos = problem.data.pos.numpy()
    jitter = 1e-6 * np.random.default_rng(0).normal(size=pos.shape)
    pos = pos + jitter * np.ptp(pos, axis=0).max()
    mask = problem.mask.numpy()
    return pos[mask], problem.data.x[problem.mask].numpy(), pos[~mask]


def _put(problem: HiddenSignal, hidden: np.ndarray) -> Tensor:
    out = problem.data.x.clone()
    out[~problem.mask] = torch.from_numpy(hidden).to(out.dtype)
    return out


def linear(problem: HiddenSignal) -> Tensor:
    """On triangles, the nearest outside."""
    known, values, hidden = _points(problem)
    out = griddata(known, values, hidden)
    nearest = griddata(known, values, hidden, method='nearest')
    return _put(problem, np.where(np.isnan(out), nearest, out))


def spline(problem: HiddenSignal) -> Tensor:
    """From 64 neighbours; the smoothing that predicts a fifth of the known
    points best from the others.
    """
    known, values, hidden = _points(problem)
    order = np.random.default_rng(0).permutation(len(known))
    test, train = np.split(order, [len(known) // 5])
    count = min(64, len(train))

    def error(smoothing: float) -> float:
        rbf = RBFInterpolator(
            *(known[train], values[train]), neighbors=count, smoothing=smoothing
        )
        return float(np.square(rbf(known[test]) - values[test]).mean())

    best = min((0.0, 1e-2, 1.0, 1e2), key=error)
    rbf = RBFInterpolator(known, values, neighbors=count, smoothing=best)
    return _put(problem, rbf(hidden))


def neighbours(problem: HiddenSignal) -> Tensor:
    """The mean of the nearest known points, weighed by inverse distance."""
    from sklearn.neighbors import KNeighborsRegressor

    known, values, hidden = _points(problem)
    count = min(10, len(known))
    model = KNeighborsRegressor(count, weights='distance').fit(known, values)
    return _put(problem, model.predict(hidden))


def gaussian_process(problem: HiddenSignal) -> Tensor:
    """Matérn 3/2 of position and covariates, with noise."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern, WhiteKernel

    known, values, hidden = _points(problem)
    covariates = problem.data.get('covariates')
    if covariates is not None:
        extra = covariates.numpy()
        mask = problem.mask.numpy()
        known = np.hstack([known, extra[mask]])
        hidden = np.hstack([hidden, extra[~mask]])
    scale = known.std(0) + 1e-12
    chosen = np.random.default_rng(0).permutation(len(known))[:GP_POINTS]
    kernel = Matern(np.ones(known.shape[1]), nu=1.5) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        model.fit(known[chosen] / scale, values[chosen])
    out = model.predict(hidden / scale)
    return _put(problem, out.reshape(len(hidden), -1))


def compare(
    problem: HiddenSignal, chosen: dict[str, Method]
) -> tuple[dict[str, Tensor], list[tuple[str, float, float]]]:
    """Runs methods; returns their signals, and name, RMSE and seconds."""
    outs, rows = {}, []
    for name, method in chosen.items():
        begin = time.perf_counter()
        outs[name] = method(problem)
        seconds = time.perf_counter() - begin
        rows.append((name, problem.rmse(outs[name]), seconds))
    return outs, rows


def print_rows(rows: list[tuple[str, float, float]], unit: str) -> None:
    """Prints a table."""
    print(f'{"method":<36}{f"RMSE {unit}".strip():>12}{"seconds":>10}')
    for name, rmse, seconds in rows:
        print(f'{name:<36}{rmse:>12.4g}{seconds:>10.2f}')
