"""Grows a graph of points until memory or patience ends.

    python benchmarks/graph_growth.py [--max-points 1e6] [--write]

Random points in the plane in random order, 8 nearest neighbours, few known;
each number of points in a fresh process, on the CPU. `solvers.glr` and
SciPy's conjugate gradients run to a relative residual of 1e-4,
FeaturePropagation 200 iterations. Setup is that of SciPy's matrices and of
pyamg's hierarchy; `solvers.glr` does all it needs in its own seconds. CPU
seconds are those of all threads, which others on the machine change less; the
error is that of unknown entries, relative to the
spread of the exact solution; memory is the peak of the process in that stage,
half a GiB of it the libraries.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from memory import child_main, free_memory, in_child, memory_used, reset_peak
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import FeaturePropagation
from utils import Row, parse_args, report

from pyg_unroll import KNNGraph, Topology, solvers

POINTS = (10_000, 100_000, 1_000_000)
KNOWN = (0.1, 0.01, 0.001)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Config:
    """Some points."""

    points: int


class Stage:
    """Times and memory of what runs in a `with` block."""

    def __enter__(self) -> Stage:
        """Starts the clocks."""
        reset_peak('cpu')
        self.begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops them."""
        self.seconds = time.perf_counter() - self.begin[0]
        self.cpu = time.process_time() - self.begin[1]
        self.peak = memory_used('cpu', peak=True) / 2**30


def draw(count: int) -> tuple[Data, Tensor]:
    """Points, and waves with some noise."""
    chance = np.random.default_rng(0)
    pos = torch.from_numpy(chance.random((count, 2)))
    noise = 0.1 * torch.from_numpy(chance.normal(size=(count, 1)))
    return Data(pos=pos), (9 * pos).sin().sum(1, keepdim=True) + noise


def child(config: Config) -> Iterator[Row]:
    """Runs one number of points."""
    small, x = draw(2000)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        list(methods(KNNGraph(8).topology(small), x, 0.1))  # loads the kernels
        data, x = draw(config.points)
        with Stage() as stage:
            topology = KNNGraph(8).topology(data)
        name = 'KNNGraph(8)'
        yield row(config.points, name=name, seconds=stage, memory=stage)
        for share in KNOWN:
            for found in methods(topology, x, share):
                yield row(config.points, **found)


def row(
    points: int,
    name: str,
    seconds: Stage,
    memory: Stage,
    setup: Stage | None = None,
    known: float | None = None,
    steps: int | None = None,
    error: float | None = None,
) -> Row:
    """A line of the table."""
    return {
        'points': f'{points:,}',
        'known': known and f'{known:.1%}',
        'what': name,
        'steps': steps,
        'setup (s)': setup and setup.seconds,
        'setup (CPU s)': setup and setup.cpu,
        'seconds': seconds.seconds,
        'CPU seconds': seconds.cpu,
        'error': error and f'{error:.1e}',
        'peak (GiB)': memory.peak,
    }


def methods(topology: Topology, x: Tensor, share: float) -> Iterator[Row]:
    """Solves by all methods; yields the arguments of `row`."""
    chance = np.random.default_rng(1)
    mask = torch.from_numpy(chance.random(len(x)) < share)
    mask[0] = True

    def ours(preconditioner: str, tol: float = TOLERANCE) -> Any:
        # The order of the nodes is kept with the topology: a new one each.
        fresh = Topology(**vars(topology))
        with Stage() as stage:
            out = solvers.glr(
                *(x, fresh, None, mask),
                tol=tol,
                fill='mean',
                preconditioner=preconditioner,
            )
        return out, stage

    exact = ours('amg', 1e-9)[0].x
    spread = float((exact[~mask] - exact.mean()).norm())

    def error(out: Tensor) -> float:
        return float((out - exact)[~mask].norm()) / spread

    for preconditioner in ('jacobi', 'amg'):
        out, stage = ours(preconditioner)
        yield {
            'name': f'solvers.glr, {preconditioner}',
            'known': share,
            'steps': out.num_steps,
            'seconds': stage,
            'error': error(out.x),
            'memory': stage,
        }
    for found in peers(topology, x, mask):
        yield {'known': share, 'error': error(found.pop('out'))} | found


def peers(topology: Topology, x: Tensor, mask: Tensor) -> Iterator[Row]:
    """The same by SciPy, pyamg and PyG."""
    from pyamg import smoothed_aggregation_solver

    mean = x[mask].mean(0)
    start = torch.where(mask.unsqueeze(1), x - mean, 0)
    free, y = (~mask).numpy(), start[:, 0].numpy()
    with Stage() as matrices:
        indices = topology.col.numpy(), topology.rowptr.numpy()
        size = (len(x), len(x))
        adjacency = csr_matrix((np.ones(len(indices[0])), *indices), size)
        laplacian = (diags(np.diff(indices[1])) - adjacency).tocsr()
        inner = laplacian[free][:, free]
        right = -(laplacian @ y)[free]
        divisor = np.maximum(inner.diagonal(), 1e-300)

    def solve(preconditioner: Callable[[Any], Any]) -> Row:
        steps = []
        with Stage() as stage:
            inverse = LinearOperator(inner.shape, preconditioner)
            found, _ = cg(
                *(inner, right),
                rtol=TOLERANCE,
                M=inverse,
                callback=lambda _: steps.append(1),
            )
        out = start.clone()
        out[~mask, 0] = torch.from_numpy(found)
        return {
            'out': out + mean,
            'steps': len(steps),
            'seconds': stage,
            'memory': stage,
        }

    jacobi = solve(lambda residual: residual / divisor)
    yield {'name': 'SciPy, Jacobi', 'setup': matrices} | jacobi
    with Stage() as setup:
        hierarchy = smoothed_aggregation_solver(inner, symmetry='symmetric')
    setup.seconds += matrices.seconds
    setup.cpu += matrices.cpu
    cycle = hierarchy.aspreconditioner().matvec
    found = solve(cycle) | {'memory': setup}  # the larger one
    yield {'name': 'SciPy, pyamg', 'setup': setup} | found
    del hierarchy, laplacian, adjacency, cycle
    data = Data(x=start.float(), edge_index=topology.edge_index)
    with Stage() as stage:
        out = FeaturePropagation(~mask.unsqueeze(1), 200)(data).x
    yield {
        'name': 'FeaturePropagation',
        'out': out + mean,
        'steps': 200,
        'seconds': stage,
        'memory': stage,
    }


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        max_points=(1e6, 'largest number of points'),
        max_memory=(free_memory(), 'GiB at which a child is ended'),
    )
    if args.child:
        child_main(child(Config(**args.child)))
        return
    rows: list[Row] = []
    for points in POINTS:
        if points > args.max_points:
            continue
        found, done = in_child(
            __file__, asdict(Config(points)), args.max_memory
        )
        if not done:
            found.append({'points': f'{points:,}', 'what': 'out of memory'})
        print(*found, sep='\n', flush=True)
        rows += found
    report('graph-growth', rows, args.device, args.write)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main()
