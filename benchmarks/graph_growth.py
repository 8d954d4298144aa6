"""Grows a graph of points until memory or patience ends.

    python benchmarks/graph_growth.py [--max-points 1e6] [--write]

Random points in the plane in random order, 8 nearest neighbours, few known;
each number of points in a fresh process, on the CPU. `solvers.glr` and SciPy's
conjugate gradients run to a relative residual of 1e-4, by turns, of which the
median of three is shown; FeaturePropagation 200 iterations, once. Setup is that
of SciPy's matrices and of pyamg's hierarchy; `solvers.glr` does all it needs in
its own seconds, less of it "again" on a graph that it has solved on before. CPU
seconds are those of all threads, which others on the machine change less;
"SciPy / ours" is their ratio, with the setup. The error is that of unknown
entries, relative to the spread of the exact solution; memory is the peak of the
process in that stage, half a GiB of it the libraries.
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
REPEATS = 3


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
    peer: float | None = None,
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
        'SciPy / ours': peer,
        'error': error and f'{error:.1e}',
        'peak (GiB)': memory.peak,
    }


def methods(topology: Topology, x: Tensor, share: float) -> Iterator[Row]:
    """Solves by all methods, in turn, and yields the arguments of `row` of the
    median of each.
    """
    chance = np.random.default_rng(1)
    mask = torch.from_numpy(chance.random(len(x)) < share)
    mask[0] = True
    kept = copy_of(topology)

    def ours(
        preconditioner: str, graph: Topology | None = None, tol: float = 0
    ) -> Row:
        graph = copy_of(topology) if graph is None else graph
        with Stage() as stage:
            out = solvers.glr(
                *(x, graph, None, mask),
                tol=tol or TOLERANCE,
                fill='mean',
                preconditioner=preconditioner,
            )
        return {
            'out': out.x,
            'steps': out.num_steps,
            'seconds': stage,
            'memory': stage,
        }

    exact = ours('amg', tol=1e-9)['out']
    spread = float((exact[~mask] - exact.mean()).norm())
    runs: dict[str, Callable[[], Row]] = {
        'solvers.glr, jacobi': lambda: ours('jacobi'),
        'solvers.glr, jacobi, again': lambda: ours('jacobi', kept),
        'solvers.glr, amg': lambda: ours('amg'),
        'SciPy, Jacobi': lambda: by_scipy(topology, x, mask, jacobi),
        'SciPy, pyamg': lambda: by_scipy(topology, x, mask, multigrid),
        'FeaturePropagation': lambda: propagation(topology, x, mask),
    }
    found: dict[str, list[Row]] = {name: [] for name in runs}
    for k in range(REPEATS):
        for name, run in runs.items():
            if k == 0 or name != 'FeaturePropagation':
                found[name].append(run())
    best = {
        name: sorted(rows, key=total)[len(rows) // 2]
        for name, rows in found.items()
    }
    for name, out in best.items():
        peer = None
        if name.startswith('solvers'):
            method = 'pyamg' if 'amg' in name else 'Jacobi'
            peer = total(best[f'SciPy, {method}']) / total(out)
        difference = (out.pop('out') - exact)[~mask]
        error = float(difference.norm()) / spread
        own = {'name': name, 'known': share, 'peer': peer, 'error': error}
        yield own | out


def copy_of(topology: Topology) -> Topology:
    """A graph of which nothing is remembered."""
    return Topology.unpack([v.clone() for v in topology.pack()[0]], [0])


def total(out: Row) -> float:
    """CPU seconds with the setup."""
    setup = out.get('setup')
    return float(out['seconds'].cpu + (setup.cpu if setup else 0))


def jacobi(matrix: Any) -> Callable[[Any], Any]:
    """Division by the diagonal."""
    divisor = np.maximum(matrix.diagonal(), 1e-300)
    return lambda residual: residual / divisor


def multigrid(matrix: Any) -> Callable[[Any], Any]:
    """A cycle of pyamg."""
    from pyamg import smoothed_aggregation_solver

    hierarchy = smoothed_aggregation_solver(matrix, symmetry='symmetric')
    return hierarchy.aspreconditioner().matvec


def by_scipy(
    topology: Topology,
    x: Tensor,
    mask: Tensor,
    preconditioner: Callable[[Any], Callable[[Any], Any]],
) -> Row:
    """The same by SciPy."""
    mean = x[mask].mean(0)
    start = torch.where(mask.unsqueeze(1), x - mean, 0)
    free, y = (~mask).numpy(), start[:, 0].numpy()
    with Stage() as setup:
        indices = topology.col.numpy(), topology.rowptr.numpy()
        size = (len(x), len(x))
        adjacency = csr_matrix((np.ones(len(indices[0])), *indices), size)
        laplacian = (diags(np.diff(indices[1])) - adjacency).tocsr()
        inner = laplacian[free][:, free]
        right = -(laplacian @ y)[free]
        inverse = LinearOperator(inner.shape, preconditioner(inner))
    steps: list[int] = []
    with Stage() as stage:
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
        'setup': setup,
        'seconds': stage,
        'memory': max(setup, stage, key=lambda part: part.peak),
    }


def propagation(topology: Topology, x: Tensor, mask: Tensor) -> Row:
    """The same by PyG, in a number of iterations."""
    mean = x[mask].mean(0)
    start = torch.where(mask.unsqueeze(1), x - mean, 0)
    data = Data(x=start.float(), edge_index=topology.edge_index)
    with Stage() as stage:
        out = FeaturePropagation(~mask.unsqueeze(1), 200)(data).x
    return {'out': out + mean, 'steps': 200, 'seconds': stage, 'memory': stage}


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
