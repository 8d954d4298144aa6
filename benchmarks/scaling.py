"""Grows a pixel grid until memory or patience ends.

    python benchmarks/scaling.py [--max-nodes 1.6e7] [--device cuda] [--write]

Square grids with 8 neighbours, one feature, one head, 30 % known, float32;
each size in a fresh process. Times are medians: of building the graph (once,
seconds), and of running on it (nanoseconds per node). Memory is the peak of
the process in that stage, half a GiB of it the libraries; on CUDA, the peak of
the tensors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from memory import child_main, free_memory, in_child, memory_used, reset_peak
from torch import Tensor
from torch_geometric.data import Data
from utils import Row, Run, interleaved, parse_args, report, synchronize

from pyg_unroll import GLRConv, GridGraph, Topology, ops

SIZES = (100, 316, 1000, 2000, 4000)


@dataclass(frozen=True)
class Config:
    """One square grid."""

    size: int
    repeats: int = 7
    device: str = 'cpu'


def draw(size: int, device: str) -> Data:
    """A random image."""
    x = torch.rand(size * size, 1, device=device)
    mask = torch.rand(size * size, 1, device=device) < 0.3
    return Data(x=x, mask=mask, height=size, width=size)


def stages(data: Data, topology: Topology, weight: Tensor) -> dict[str, Run]:
    """The calls on the graph, by name."""
    conv = GLRConv(8).to(data.x.device)

    def laplacian() -> Tensor:
        return ops.laplacian(topology, weight, data.x.unsqueeze(-1))

    @torch.no_grad()
    def inference() -> Tensor:
        return conv(data.x, topology, weight, data.mask)

    def train() -> object:
        leaf = weight.detach().requires_grad_()
        out = conv(data.x, topology, leaf, data.mask)
        return torch.autograd.grad(out, [leaf, conv.alpha], out.detach())

    return {
        'laplacian': laplacian,
        'GLRConv(8)': inference,
        'GLRConv(8) + backward': train,
    }


def child(config: Config) -> Iterator[Row]:
    """Runs one size, and reports every stage as soon as it is done."""
    device = config.device
    graph = GridGraph(8)
    small = draw(16, device)
    topology = graph.topology(small)
    weight = torch.rand(topology.num_edges, 1, device=device)
    for run in stages(small, topology, weight).values():
        run()  # loads the kernels
    data = draw(config.size, device)
    topologies: list[Topology] = []

    def build() -> None:
        topologies.append(graph.topology(data))
        synchronize(device)

    reset_peak(device)
    seconds = once(build)
    yield {'name': 'graph (s)', 'value': seconds}
    yield {'name': 'graph (GiB)', 'value': gib(device)}
    topology = topologies[0]
    weight = torch.rand(topology.num_edges, 1, device=device)
    for name, run in stages(data, topology, weight).items():
        reset_peak(device)
        run()
        peak = gib(device)
        taken = interleaved({name: run}, config.repeats, device)[name]
        per_node = 1e9 * taken / topology.num_nodes
        yield {'name': f'{name} (ns)', 'value': per_node}
        yield {'name': f'{name} (GiB)', 'value': peak}


def once(run: Run) -> float:
    """Seconds of the first call, which later ones may remember."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def gib(device: str) -> float:
    """Peak memory in GiB."""
    return memory_used(device, peak=True) / 2**30


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        max_nodes=(1.6e7, 'largest number of nodes'),
        max_memory=(free_memory(), 'GiB at which a child is ended'),
    )
    if args.child:
        child_main(child(Config(**args.child)))
        return
    rows = []
    for size in SIZES:
        if size * size > args.max_nodes:
            continue
        config = Config(size, args.repeats, args.device)
        steps, done = in_child(__file__, asdict(config), args.max_memory)
        nodes = size * size
        row: Row = {'nodes': f'{nodes:,}'}
        row |= {step['name']: step['value'] for step in steps}
        if not done:
            row['ended'] = 'out of memory'
        print(row, flush=True)
        rows.append(row)
    report('scaling', rows, args.device, args.write)


if __name__ == '__main__':
    main()
