"""Fills in counties that did not report, from their neighbours.

    python examples/interpolate_counties.py COUNTIES.npz
    python examples/interpolate_counties.py

The file holds signals `y` [counties, features] and `edge_index`, and perhaps
`pos` (longitude and latitude). Without a file, districts of real terrain serve:
the mean and the spread of their elevation. Features are standardised.
"""

from __future__ import annotations

from pathlib import Path

from graph_data import (
    HiddenSignal,
    districts,
    load,
    make_parser,
    parse_args,
    run,
)
from graph_peers import compare, methods, print_rows
from torch import Tensor

from pyg_unroll import GraphInterpolator

OURS = 'GraphInterpolator'


def main() -> None:
    """Compares the methods and draws what they filled in."""
    parser = make_parser(__doc__, 'counties.png', file=True)
    args = parse_args(parser)
    if args.file is None:
        signal = districts(1000, args.seed)
        print('no file: districts of the terrain')
    else:
        signal = load(args.file)
        if signal.data.get('edge_index') is None:
            raise ValueError(f"'{args.file}' has no 'edge_index'")
        signal.standardize = True
    problem = signal.hide(args.hidden, args.seed)
    count, features = problem.truth.shape
    known = int(problem.mask.sum())
    print(f'{count} counties, {known} known, {features} features\n')
    ours = GraphInterpolator()
    outs, rows = compare(problem, methods(problem, ours))
    print_rows(rows, '')
    print('\nblend:')
    for name, weight in ours.report_.items():
        print(f'  {weight:5.2f}  {name}')
    draw(problem, outs, ours.predict_interval(), args.out)
    print(f"\nwrote '{args.out}'")


def draw(
    problem: HiddenSignal,
    outs: dict[str, Tensor],
    interval: tuple[Tensor, Tensor],
    path: Path,
) -> None:
    """Draws what was filled in against the truth, and how often the truth
    lies in the interval.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    hidden = ~problem.mask
    truth, out = problem.truth[hidden], outs[OURS][hidden]
    low, high = (end[hidden] for end in interval)
    columns = truth.size(1)
    figure, axes = plt.subplots(
        *(1, columns),
        figsize=(3.6 * columns, 4),
        layout='constrained',
        squeeze=False,
    )
    for column, axis in enumerate(axes.flat):
        value = truth[:, column]
        inside = (low[:, column] <= value) & (value <= high[:, column])
        ends = [float(value.quantile(q)) for q in (0.002, 0.998)]
        axis.scatter(out[:, column], value, s=4, c=inside, cmap='coolwarm_r')
        axis.plot(ends, ends, 'k', lw=1)
        share = float(inside.double().mean())
        axis.set(
            title=f'feature {column}: {share:.0%} in 90 % intervals',
            xlabel='filled in',
            ylabel='truth',
            ylim=ends,
        )
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == '__main__':
    run(main)
