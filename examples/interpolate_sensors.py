"""Fills in sensors that do not report, from the others, over time.

    python examples/interpolate_sensors.py SENSORS.npz
    python examples/interpolate_sensors.py

The file holds signals `y` [sensors, time steps], and `pos` (longitude and
latitude), `edge_index`, `edge_weight` or both. Without a file, temperatures of
a day at points of real terrain are generated.
"""

from __future__ import annotations

from pathlib import Path

import torch
from graph_data import (
    HiddenSignal,
    load,
    make_parser,
    parse_args,
    run,
    stations,
)
from graph_peers import compare, methods, print_rows
from torch import Tensor

from pyg_unroll import GraphInterpolator

OURS = 'GraphInterpolator'


def main() -> None:
    """Compares the methods and draws sensors."""
    parser = make_parser(__doc__, 'sensors.png', file=True)
    args = parse_args(parser)
    if args.file is None:
        signal = stations(200, args.seed, steps=96)
        print('no file: generated temperatures of a day')
    else:
        signal = load(args.file)
    problem = signal.hide(args.hidden, args.seed)
    count, steps = problem.truth.shape
    known = int(problem.mask.sum())
    print(f'{count} sensors, {known} known, {steps} time steps\n')
    ours = GraphInterpolator(samples=problem.samples)
    outs, rows = compare(problem, methods(problem, ours))
    print_rows(rows, problem.unit and f'[{problem.unit}]')
    draw(problem, outs, ours.predict_interval(), args.out)
    print(f"\nwrote '{args.out}'")


def draw(
    problem: HiddenSignal,
    outs: dict[str, Tensor],
    interval: tuple[Tensor, Tensor],
    path: Path,
) -> None:
    """Draws a map of errors, if there is one, and three hidden sensors."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    out, truth, mask = outs[OURS], problem.truth, problem.mask
    error = (out - truth).square().mean(1).sqrt()
    hidden = (~mask).nonzero().squeeze(1)
    order = hidden[error[hidden].argsort()]
    places = [int(k * (len(order) - 1)) for k in (0.1, 0.5, 0.9)]
    figure, axes = plt.subplots(
        4, 1, figsize=(11, 13), layout='constrained', height_ratios=(2, 1, 1, 1)
    )
    pos = problem.data.get('pos')
    if pos is None:
        axes[0].hist(error[hidden], bins=30)
        axes[0].set(xlabel='RMSE of a hidden sensor', ylabel='sensors')
    else:
        east, north = (pos - pos.amin(0)).T
        axes[0].scatter(
            *(east[mask], north[mask]), marker='^', c='0.6', label='known'
        )
        shown = axes[0].scatter(
            *(east[~mask], north[~mask]), c=error[~mask], label='hidden'
        )
        figure.colorbar(shown, ax=axes[0], label=f'RMSE {problem.unit}')
        axes[0].set(xlabel='east [km]', ylabel='north [km]', aspect='equal')
        axes[0].legend()
    length = min(truth.size(1), 576)
    time = torch.arange(length)
    names = ('well filled in', 'the median', 'badly filled in')
    for axis, name, place in zip(axes[1:], names, places, strict=True):
        sensor = int(order[place])
        low, high = (end[sensor, :length] for end in interval)
        axis.fill_between(time, low, high, alpha=0.25, label='90 % interval')
        axis.plot(truth[sensor, :length], 'k', lw=1, label='truth')
        axis.plot(out[sensor, :length], lw=1, label=OURS)
        rmse = float(error[sensor])
        axis.set(title=f'hidden sensor {sensor}, {name}: RMSE {rmse:.3g}')
        axis.set_ylabel(problem.unit)
    axes[1].legend(loc='lower right')
    axes[-1].set_xlabel('time step')
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == '__main__':
    run(main)
