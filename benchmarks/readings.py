"""Fills in hidden readings of sensors over time, by many methods.

    python benchmarks/readings.py --file metr-la-week.npz [--write]

Of all times of the file, readings are hidden in the manners of the field: a
quarter of them at random (`points`); in blocks of 12 to 48 times, which begin
with a chance of 0.0015, beside 5 % at random (`blocks`, seeds 9101112 and
56789); half a day (144 times) of a third of the sensors (`outages`); and all of
a tenth of the sensors (`silent`).
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from utils import Row, parse_args, report

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from graph_data import HiddenSignal, load
from graph_peers import methods_over_time

from pyg_unroll import FillWarning, TemporalInterpolator

OURS = 'TemporalInterpolator'
SEEDS = (9101112, 56789)

Manner = Callable[[tuple[int, int], np.random.Generator], np.ndarray]


def points(shape: tuple[int, int], chance: np.random.Generator) -> np.ndarray:
    """Single readings."""
    return chance.random(shape) < 0.25


def blocks(shape: tuple[int, int], chance: np.random.Generator) -> np.ndarray:
    """Faults of a sensor, and single readings."""
    missing = chance.random(shape) < 0.05
    for sensor, start in np.argwhere(chance.random(shape) < 0.0015):
        missing[sensor, start : start + chance.integers(12, 49)] = True
    return missing


def outages(shape: tuple[int, int], chance: np.random.Generator) -> np.ndarray:
    """One long gap of some sensors."""
    missing = np.zeros(shape, dtype=bool)
    for sensor in np.flatnonzero(chance.random(shape[0]) < 1 / 3):
        start = chance.integers(max(shape[1] - 144, 1))
        missing[sensor, start : start + 144] = True
    return missing


def silent(shape: tuple[int, int], chance: np.random.Generator) -> np.ndarray:
    """All readings of some sensors."""
    missing = np.zeros(shape, dtype=bool)
    missing[chance.permutation(shape[0])[: shape[0] // 10]] = True
    return missing


def coverage(problem: HiddenSignal) -> float:
    """Share of hidden readings in intervals of 90 %."""
    low, high = TemporalInterpolator().fit(problem.data).predict_interval()
    inside = (low <= problem.truth) & (problem.truth <= high)
    return float(inside[~problem.mask].double().mean())


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(__doc__, file=('', 'NPZ file, or a folder with one'))
    signal = load(Path(args.file))
    rows: list[Row] = []
    manners: list[Manner] = [points, blocks, outages, silent]
    for manner in manners:
        errors: dict[str, list[tuple[float, float, float]]] = {}
        covered = []
        for seed in tqdm(SEEDS, desc=manner.__name__):
            shape = signal.data.x.shape[0], signal.data.x.shape[1]
            missing = manner(shape, np.random.default_rng(seed))
            problem = signal.hide_readings(missing)
            for method, run in methods_over_time().items():
                begin = time.process_time()
                out = run(problem)
                taken = time.process_time() - begin
                figures = problem.mae(out), problem.rmse(out), taken
                errors.setdefault(method, []).append(figures)
            covered.append(coverage(problem))
        mean = {m: np.mean(e, 0) for m, e in errors.items()}
        best = min((m for m in mean if m != OURS), key=lambda m: mean[m][0])
        row: Row = {
            'hidden': manner.__name__,
            **{f'{m}, MAE': f'{e[0]:.3f}' for m, e in mean.items()},
            'best peer': best,
            'ours / best peer, MAE': float(mean[OURS][0] / mean[best][0]),
            'RMSE': float(
                mean[OURS][1] / min(e[1] for m, e in mean.items() if m != OURS)
            ),
            'coverage of 90 %': f'{np.mean(covered):.1%}',
            'CPU seconds': float(mean[OURS][2]),
        }
        tqdm.write(str(row))
        rows.append(row)
    report('readings', rows, args.device, args.write)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    warnings.simplefilter('ignore', FillWarning)  # of silent sensors
    main()
