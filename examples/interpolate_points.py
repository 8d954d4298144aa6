"""Interpolates terrain elevation from scattered points, by many methods.

The terrain is real: the digital elevation model of the Jacksboro fault that
ships with Matplotlib. A random selection of its cells, without replacement,
plays the scattered points; a part of them is known, the rest is compared with
the truth.

Usage::

    python examples/interpolate_points.py
    python examples/interpolate_points.py --points 20000 --known 0.05
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric.transforms as T
from scipy.interpolate import griddata
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from pyg_unroll import (
    GLRConv,
    GTVConv,
    KNNGraph,
    Topology,
    points_to_data,
    solvers,
)

# Weights are `distance ** -power`. Powers 0 to 3 and the numbers of steps were
# compared by RMSE with `--seed 1` and `--seed 2`, k = 8, not with the default
# seed; the best power differs by method
# (for GTV it was compared with the layer only).
POWER = {'first order': 2, 'second order': 1, 'variation': 1, 'PyG': 1}

METRES_PER_DEGREE = 111_320.0  # of latitude


@dataclass
class Problem:
    """Points in metres, with elevations of which some are known."""

    pos: Tensor
    truth: Tensor
    mask: Tensor
    data: Data
    mean: Tensor
    scale: Tensor
    distance: Tensor
    topology: Topology

    def weight(self, kind: str) -> Tensor:
        """One weight per edge, about one in size."""
        relative = self.distance / self.distance.median()
        return relative.clamp(min=1e-6) ** -POWER[kind]

    def metres(self, x: Tensor) -> Tensor:
        """Undoes the standardisation: `[N]`."""
        return x.detach().squeeze(-1) * self.scale + self.mean

    def rmse(self, elevation: Tensor) -> float:
        """Root mean squared error on the unknown points, in metres."""
        error = (elevation - self.truth)[~self.mask]
        return float(error.double().square().mean().sqrt())


def main() -> None:
    """Compares the methods and draws maps."""
    args = parse_args()
    terrain, cell = load_terrain()
    if args.points > terrain.size:
        raise SystemExit(
            f'error: --points must be at most {terrain.size}, the number of '
            f'cells of the terrain (got {args.points})'
        )
    start = time.perf_counter()
    problem = make_problem(terrain, cell, args)
    seconds = time.perf_counter() - start
    num_known = int(problem.mask.sum())
    print(
        f'{args.points} points, {num_known} known, '
        f'{problem.topology.num_edges} edges to {args.k} nearest neighbours, '
        f'made in {seconds:.2f} s\n'
    )
    results: dict[str, Tensor] = {}
    rows = []
    # Not a tenth of a second each, but for total variation to a tolerance.
    bar = tqdm(methods(problem).items(), disable=None, leave=False)
    for name, method in bar:
        bar.set_description(name)
        start = time.perf_counter()
        results[name] = method()
        rows.append((name, problem.rmse(results[name]), start))
        rows[-1] = (*rows[-1][:2], time.perf_counter() - start)
    print(f'{"method":<44}{"RMSE [m]":>10}{"time [s]":>10}')
    for name, rmse, seconds in rows:
        print(f'{name:<44}{rmse:>10.2f}{seconds:>10.2f}')
    draw(problem, results, terrain, cell, args.out)
    print(f"\nwrote '{args.out}'")


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses values that make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--points', type=int, default=8000, help='number of points')
    add('--known', type=float, default=0.2, help='fraction of known points')
    add('--k', type=int, default=8, help='neighbours in the graph')
    add('--seed', type=int, default=0)
    add('--out', type=Path, default=Path('terrain.png'), help='PNG for maps')
    args = parser.parse_args()
    if not 0 < args.known < 1:
        parser.error(f'--known must lie between 0 and 1 (got {args.known})')
    if args.points < 20 or round(args.known * args.points) < 4:
        parser.error('--points must be at least 20, 4 of them known')
    if round(args.known * args.points) == args.points:
        parser.error('--known leaves no point to interpolate')
    if not 0 < args.k < args.points:
        parser.error(f'--k must lie between 1 and --points (got {args.k})')
    if not args.out.resolve().parent.is_dir():
        parser.error(f"no such folder: '{args.out.resolve().parent}'")
    return args


def load_terrain() -> tuple[np.ndarray, tuple[float, float]]:
    """Elevations in metres, row 0 in the north; metres per row and column."""
    from matplotlib import cbook

    with cbook.get_sample_data('jacksboro_fault_dem.npz') as file:
        elevation = file['elevation'].astype(np.float32)
        latitude = (float(file['ymin']) + float(file['ymax'])) / 2
        dx, dy = float(file['dx']), float(file['dy'])
    shrink = np.cos(np.radians(latitude))  # meridians converge
    return elevation, (dy * METRES_PER_DEGREE, dx * METRES_PER_DEGREE * shrink)


def make_problem(
    terrain: np.ndarray, cell: tuple[float, float], args: argparse.Namespace
) -> Problem:
    """Draws the points, hides most elevations and builds the graph."""
    rng = np.random.default_rng(args.seed)
    chosen = rng.choice(terrain.size, args.points, replace=False)
    row, col = np.divmod(chosen, terrain.shape[1])
    east_north = np.stack([col * cell[1], -row * cell[0]], axis=1)
    pos = torch.from_numpy(east_north).float()
    truth = torch.from_numpy(terrain.ravel()[chosen])
    # The order of the points is random already.
    mask = torch.arange(args.points) < round(args.known * args.points)

    # Solvers and layers start from zero where the elevation is unknown; what
    # stands there is never looked at, and to be sure it is gone.
    seen = torch.where(mask, truth, torch.nan)
    mean, scale = seen[mask].mean(), seen[mask].std().clamp(min=1e-6)
    data = points_to_data(pos, (seen - mean) / scale)
    data = KNNGraph(args.k)(data)
    topology = Topology.from_edge_index(data.edge_index, args.points)
    distance = (pos[topology.src] - pos[topology.dst]).norm(dim=-1)
    return Problem(pos, truth, mask, data, mean, scale, distance, topology)


def methods(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """All methods, by name; each gives elevations `[N]`."""
    x, mask, graph = problem.data.x, problem.mask, problem.topology

    def solve(solver: Any, kind: str, **options: Any) -> Tensor:
        weight = problem.weight(kind)
        # A cluster of points without a known one gets the mean.
        out = solver(x, graph, weight, mask, fill='mean', **options)
        return problem.metres(out.x)

    def layer(conv: torch.nn.Module, kind: str) -> Tensor:
        with torch.no_grad():
            return problem.metres(conv(x, graph, problem.weight(kind), mask))

    def propagate(num_iterations: int) -> Tensor:
        data = problem.data.clone()
        data.edge_weight = graph.directed_weight(problem.weight('PyG'))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # sparse tensors are in beta
            transform = T.FeaturePropagation(~data.mask, num_iterations)
            return problem.metres(transform(data).x)

    return {
        'nearest neighbour (SciPy)': lambda: scipy_grid(problem, 'nearest'),
        'linear on triangles (SciPy griddata)': lambda: scipy_grid(
            problem, 'linear'
        ),
        'FeaturePropagation (PyG), 40 iterations': lambda: propagate(40),
        'FeaturePropagation (PyG), 200 iterations': lambda: propagate(200),
        'GTVConv, untrained, 32 iterations': lambda: layer(
            GTVConv(32), 'variation'
        ),
        'solvers.gtv, tol 1e-3': lambda: solve(
            solvers.gtv, 'variation', tol=1e-3
        ),
        'GLRConv, untrained, 32 steps': lambda: layer(
            GLRConv(32), 'first order'
        ),
        'solvers.glr': lambda: solve(solvers.glr, 'first order'),
        'GLRConv, order 2, untrained, 32 steps': lambda: layer(
            GLRConv(32, order=2), 'second order'
        ),
        'solvers.glr, order 2': lambda: solve(
            solvers.glr, 'second order', order=2
        ),
    }


def scipy_grid(problem: Problem, method: str) -> Tensor:
    """Interpolation by `scipy.interpolate.griddata`, nearest outside."""
    pos, mask = problem.pos.numpy(), problem.mask.numpy()
    known, values = pos[mask], problem.truth.numpy()[mask]
    out = problem.truth.clone()
    filled = griddata(known, values, pos[~mask], method=method)
    if np.isnan(filled).any():
        nearest = griddata(known, values, pos[~mask], method='nearest')
        filled = np.where(np.isnan(filled), nearest, filled)
    out[~problem.mask] = torch.from_numpy(filled).to(out.dtype)
    return out


def draw(
    problem: Problem,
    results: dict[str, Tensor],
    terrain: np.ndarray,
    cell: tuple[float, float],
    path: Path,
) -> None:
    """Draws the points, the truth, two results and their errors."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    linear = results['linear on triangles (SciPy griddata)']
    ours = results['solvers.glr, order 2']
    errors = {
        'linear (SciPy)': linear - problem.truth,
        'GLR, order 2': ours - problem.truth,
    }
    limit = float(errors['linear (SciPy)'].abs().quantile(0.98))
    height = {
        'cmap': 'terrain',
        'vmin': float(terrain.min()),
        'vmax': float(terrain.max()),
    }
    share = f'{float(problem.mask.float().mean()):.0%}'
    figure, axes = plt.subplots(
        2, 3, figsize=(13, 7.6), layout='constrained', sharex=True, sharey=True
    )
    extent = (
        *(-cell[1] / 2e3, (terrain.shape[1] - 0.5) * cell[1] / 1e3),
        *((0.5 - terrain.shape[0]) * cell[0] / 1e3, cell[0] / 2e3),
    )
    shown = axes[0, 0].imshow(terrain, extent=extent, **height)
    axes[0, 0].set_title('the terrain')
    mask = problem.mask
    scatter(axes[0, 1], problem.pos[mask], problem.truth[mask], height)
    axes[0, 1].set_title(f'known: {share} of {len(mask)} points')
    scatter(axes[0, 2], problem.pos, problem.truth, height)
    axes[0, 2].set_title('truth at all points')
    scatter(axes[1, 0], problem.pos, ours, height)
    axes[1, 0].set_title(f'GLR, order 2: RMSE {problem.rmse(ours):.1f} m')
    colours = {'cmap': 'RdBu_r', 'vmin': -limit, 'vmax': limit}
    for place, (name, error) in zip(axes[1, 1:], errors.items(), strict=True):
        points = scatter(place, problem.pos, error, colours)
        rmse = problem.rmse(problem.truth + error)
        place.set_title(f'error of {name}: RMSE {rmse:.1f} m')
    for place in axes.flat:
        place.set(xlim=extent[:2], ylim=extent[2:], aspect='equal')
    for place in axes[1]:
        place.set_xlabel('east [km]')
    for place in axes[:, 0]:
        place.set_ylabel('north [km]')
    figure.colorbar(shown, ax=axes[0], label='elevation [m]', pad=0.01)
    figure.colorbar(
        points, ax=axes[1], label='error [m]', pad=0.01, extend='both'
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def scatter(
    axes: Any, pos: Tensor, value: Tensor, options: dict[str, Any]
) -> Any:
    """Draws points, coloured by a value, at positions in kilometres."""
    east, north = (pos / 1e3).T
    size = max(1.0, min(30.0, 3e4 / len(pos)))
    axes.set_facecolor('0.93')
    return axes.scatter(east, north, c=value, s=size, linewidths=0, **options)


if __name__ == '__main__':
    main()
