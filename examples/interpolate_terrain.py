"""Fills in terrain from scattered points, by many methods, and draws it.

    python examples/interpolate_terrain.py
    python examples/interpolate_terrain.py --points 20000 --hidden 0.9
    python examples/interpolate_terrain.py --temperature

The terrain is real: the digital elevation model of the Jacksboro fault that
ships with Matplotlib; --temperature fills in generated air temperatures
instead, with the elevation as a covariate, and shows the learned metric.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from graph_data import (
    HiddenSignal,
    make_parser,
    parse_args,
    run,
    stations,
    terrain,
)
from graph_peers import compare, methods, print_rows
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll import GraphInterpolator, KNNGraph

OURS = 'GraphInterpolator'


def main() -> None:
    """Compares the methods and draws maps."""
    parser = make_parser(__doc__, 'terrain.png', hidden=0.8)
    add = parser.add_argument
    add('--points', type=int, default=4000, help='number of points')
    add('--temperature', action='store_true', help='generated temperatures')
    args = parse_args(parser)
    if args.points < 50:
        parser.error(f'--points must be at least 50 (got {args.points})')
    make = stations if args.temperature else terrain
    problem = make(args.points, args.seed).hide(args.hidden, args.seed)
    known = int(problem.mask.sum())
    print(f'{args.points} points, {known} known, seed {args.seed}\n')
    ours = GraphInterpolator()
    outs, rows = compare(problem, methods(problem, ours))
    if args.temperature:
        plain = HiddenSignal(problem.data.clone(), problem.truth)
        del plain.data.covariates
        blind = {OURS: methods(plain)[OURS]}
        rows += [
            ('the same without the elevation', rmse, seconds)
            for _, rmse, seconds in compare(plain, blind)[1]
        ]
    print_rows(rows, f'[{problem.unit}]')
    metric = None
    if args.temperature:
        tell_metric(ours)
        metric = ours.metric()
    low, high = ours.predict_interval()
    draw(problem, outs, high - low, args.out, metric)
    print(f"\nwrote '{args.out}'")


def tell_metric(fitted: GraphInterpolator) -> None:
    """Says how far apart features make points."""
    scale = 1 / fitted.metric().diagonal().sqrt()
    east, north, up = scale.tolist()
    print(
        f'\nlearned metric: points are one unit apart at {east:.1f} km east, '
        f'{north:.1f} km north or {1000 * up:.0f} m of elevation'
    )


def draw(
    problem: HiddenSignal,
    outs: dict[str, Tensor],
    width: Tensor,
    path: Path,
    metric: Tensor | None = None,
) -> None:
    """Draws the known points, two results and their errors, and a metric."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    pos, mask, truth = problem.data.pos, problem.mask, problem.truth[:, 0]
    peer = 'linear (SciPy griddata)'
    errors = {name: outs[name][:, 0] - truth for name in (OURS, peer)}
    limit = float(errors[peer].abs().quantile(0.97))
    value = {'vmin': float(truth.min()), 'vmax': float(truth.max())}
    value['cmap'] = 'terrain' if problem.unit == 'm' else 'viridis'
    error = {'vmin': -limit, 'vmax': limit, 'cmap': 'RdBu_r'}
    share = f'known: {float(mask.double().mean()):.0%}'
    panels = [
        (share, mask, truth, value),
        (OURS, mask | True, outs[OURS][:, 0], value),
        ('truth', mask | True, truth, value),
        (f'error of {OURS}', ~mask, errors[OURS], error),
        (f'error of {peer}', ~mask, errors[peer], error),
        ('width of 90 % intervals', ~mask, width[:, 0], {'cmap': 'magma'}),
    ]
    figure = plt.figure(
        figsize=(13 if metric is None else 17.5, 8), layout='constrained'
    )
    maps = figure
    if metric is not None:
        maps, side = figure.subfigures(1, 2, width_ratios=(13, 4.5))
        draw_metric(metric, problem.data, side.subplots())
    axes = maps.subplots(2, 3, sharex=True, sharey=True)
    size = max(1.0, min(30.0, 2e4 / len(pos)))
    origin = pos.amin(0)
    for axis, (title, chosen, colour, options) in zip(
        axes.flat, panels, strict=True
    ):
        east, north = (pos - origin)[chosen].T
        shown = axis.scatter(
            east, north, c=colour[chosen], s=size, linewidths=0, **options
        )
        if title.startswith('error of '):
            rmse = float(colour[chosen].square().mean().sqrt())
            title += f': RMSE {rmse:.3g} {problem.unit}'
        axis.set(title=title, aspect='equal', facecolor='0.93')
        maps.colorbar(shown, ax=axis, label=f'[{problem.unit}]', shrink=0.7)
    for axis in axes[1]:
        axis.set_xlabel('east [km]')
    for axis in axes[:, 0]:
        axis.set_ylabel('north [km]')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_metric(metric: Tensor, data: Data, axis: Any) -> None:
    """Draws what differences between neighbours count."""
    features = torch.cat([data.pos, data.covariates], 1)
    src, dst = KNNGraph(8)(Data(pos=data.pos)).edge_index
    usual = (features[src] - features[dst]).square().mean(0).sqrt()
    metric = usual.unsqueeze(1) * metric * usual
    east, north, up = usual.tolist()
    names = [
        f'{east:.2f} km east',
        f'{north:.2f} km north',
        f'{1000 * up:.0f} m of elevation',
    ]
    limit = float(metric.abs().max())
    shown = axis.imshow(metric, cmap='RdBu_r', vmin=-limit, vmax=limit)
    for row, values in enumerate(metric.tolist()):
        for col, value in enumerate(values):
            dark = abs(value) > 0.6 * limit
            axis.text(
                *(col, row, f'{value:.2g}'),
                ha='center',
                va='center',
                color='white' if dark else 'black',
            )
    axis.set_xticks(range(3), names, fontsize=8)
    axis.set_yticks(range(3), names, rotation=90, va='center', fontsize=8)
    axis.set(
        title='learned metric M, times differences\nthat are usual between '
        'neighbours',
        xlabel='difference of one feature',
        ylabel='difference of the other',
    )
    axis.figure.colorbar(
        shown,
        ax=axis,
        label='squared distance',
        location='bottom',
        ticks=[-limit, 0, limit],
        format='%.2g',
    )


if __name__ == '__main__':
    run(main)
