"""Does memory grow? Many small calls in one process, new graphs all the time.

    python benchmarks/soak.py --write

In turn: layers, stacks, solvers and transforms on graphs of some ten nodes that
are made for one call each, every tenth with its derivative.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch
from memory import memory_used
from torch import Tensor
from torch_geometric.data import Data
from utils import Row, parse_args, report

from pyg_unroll import (
    GLRConv,
    GTVConv,
    InterpolateFeatures,
    KNNGraph,
    TemporalProduct,
    UnrolledGLR,
    UnrolledGTV,
    solvers,
)
from pyg_unroll.nn import MLPFeatures

_NODES = 12
_CHECKS = 10


def make_data() -> Data:
    """A new graph and signal each time."""
    pos = torch.rand(_NODES, 2)
    data = Data(x=torch.randn(_NODES, 2), pos=pos)
    data.mask = torch.rand(_NODES) < 0.5
    data.mask[0], data.mask[1] = True, False
    return KNNGraph(3)(data)


def make_calls() -> list[Callable[[Data], Tensor]]:
    """Calls to be made in turn; layers more often than the rest."""
    glr, gtv = GLRConv(4, heads=2), GTVConv(2, 2)
    stacks = [
        cls(2, MLPFeatures(2, 4, 8, pos_channels=2), num_blocks=1)
        for cls in (UnrolledGLR, UnrolledGTV)
    ]
    fill = InterpolateFeatures('missing', fill=0.0)

    def interpolated(data: Data) -> Tensor:
        data.missing = ~data.mask
        return fill(data).x

    def product(data: Data) -> Tensor:
        return TemporalProduct()(data).edge_weight

    return [
        lambda data: glr(data.x, data.edge_index, mask=data.mask),
        lambda data: gtv(data.x, data.edge_index, mask=data.mask),
        lambda data: glr(data.x, data.edge_index),
        lambda data: gtv(data.x, data.edge_index),
        stacks[0],
        stacks[1],
        lambda data: (
            solvers.glr(data.x, data.edge_index, mask=data.mask, fill='mean').x
        ),
        interpolated,
        product,
    ]


def main() -> None:
    """Runs the calls and reports memory on the way."""
    args = parse_args(
        __doc__, forwards=(100_000, 'number of calls'), seed=(0, 'of graphs')
    )
    torch.manual_seed(args.seed)
    calls = make_calls()
    rows: list[Row] = []
    backwards = 0
    begin = time.perf_counter()
    for k in range(args.forwards + 1):
        if k % (args.forwards // _CHECKS) == 0:
            gc.collect()
            rows.append(
                {
                    'forwards': k,
                    'backwards': backwards,
                    'resident (MiB)': memory_used(args.device) / 2**20,
                    'minutes': (time.perf_counter() - begin) / 60,
                }
            )
            print(rows[-1], flush=True)
        out = calls[k % len(calls)](make_data())
        if not bool(out.isfinite().all()):
            raise RuntimeError(f'call {k} gave a result that is not finite')
        if k % 10 == 0 and out.requires_grad:
            out.square().sum().backward()
            backwards += 1
    report('soak', rows, args.device, args.write)


if __name__ == '__main__':
    main()
