"""Fills in hidden signals on graphs and points, by many methods.

    python benchmarks/graph_interpolation.py --folder GRAPHS [--write]

Data sets are the folders of --folder, each with one NPZ file, and Matplotlib's
terrain. Of each, 30, 50 and 80 % of the nodes are hidden (all features of
them); RMSE of the hidden nodes, mean over the seeds, the same nodes for all
methods. Signals of several features on counties are standardised by what is
known. Point sets are cut to --limit random points, as some peers are dense.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from utils import Row, parse_args, report

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from graph_data import HiddenSignal, Signal, load, terrain
from graph_peers import methods

from pyg_unroll import GraphInterpolator

SHARES = (0.3, 0.5, 0.8)
OURS = 'GraphInterpolator'
OF_HERE = (OURS, 'solvers.glr', 'solvers.glr, order 2')


def signals(folder: str, limit: int, only: str) -> dict[str, Signal]:
    """Data sets by name."""
    out: dict[str, Signal] = {}
    if folder:
        for path in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
            if only in path.name:
                out[path.name] = load(path, limit)
                counties = out[path.name].data.get('edge_index') is not None
                several = 1 < out[path.name].data.x.size(1) < 100
                out[path.name].standardize = counties and several
    if only in 'terrain':
        out['terrain'] = terrain(limit)
    return out


def coverage(problem: HiddenSignal, fitted: GraphInterpolator) -> float:
    """Share of the hidden values in 90 % intervals; without intervals of no
    width, which exact copies of known points have.
    """
    low, high = fitted.predict_interval(coverage=0.9)
    inside = (low <= problem.truth) & (problem.truth <= high)
    hidden = ~problem.mask.view(len(low), -1).expand_as(low)
    wide = hidden & (low < high)
    return float(inside[wide].double().mean())


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        folder=('', 'folder of data sets'),
        seeds=(5, 'number of seeds'),
        limit=(5000, 'points of a point set'),
        only=('', 'data sets whose name contains this'),
        name=('graph-interpolation', 'marker in RESULTS.md'),
    )
    rows: list[Row] = []
    sets = signals(args.folder, args.limit, args.only)
    for name, signal in sets.items():
        for share in SHARES:
            errors: dict[str, list[float]] = {}
            seconds: dict[str, list[float]] = {}
            covered = []
            for seed in tqdm(range(args.seeds), desc=f'{name} {share:.0%}'):
                problem = signal.hide(share, seed)
                for method, run in methods(problem).items():
                    begin = time.perf_counter()
                    if method == OURS:
                        fitted = GraphInterpolator(samples=problem.samples)
                        out = fitted.fit(problem.data).predict()
                    else:
                        out = run(problem)
                    taken = time.perf_counter() - begin
                    seconds.setdefault(method, []).append(taken)
                    errors.setdefault(method, []).append(problem.rmse(out))
                    if method == OURS:
                        covered.append(coverage(problem, fitted))
            mean = {m: float(np.mean(e)) for m, e in errors.items()}
            peers = {m: e for m, e in mean.items() if m not in OF_HERE}
            row: Row = {
                'data': name,
                'hidden': f'{share:.0%}',
                **{m: f'{e:.4g}' for m, e in mean.items()},
                'ours / best peer': mean[OURS] / min(peers.values()),
                'coverage of 90 %': f'{np.mean(covered):.1%}',
                'seconds': float(np.median(seconds[OURS])),
            }
            tqdm.write(str(row))
            rows.append(row)
    report(args.name, rows, args.device, args.write)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
