"""Times the graph operators against PyTorch Geometric and sparse matrices.

    python benchmarks/operators.py [--size 512] [--device cuda] [--write]

All peers run interleaved in one process, each with its operands in the layout
it likes best; figures are medians in milliseconds. The last two columns are
our time over the time in which the machine, in the same run, copies the bytes
that must move: every operand and result once, with and without the indices,
which a pixel grid does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from peers import Peer, edge_dot_peers, laplacian_peers
from torch_geometric.data import Data
from utils import Row, copy_run, interleaved, parse_args, report

from pyg_unroll import GridGraph, KNNGraph, Topology, image_to_data


@dataclass(frozen=True)
class Config:
    """One problem, float32.

    Attributes:
        size: Rows and columns of a grid with 8 neighbours, or 0.
        points: Otherwise, the number of points in a square, each joined to
            its 8 nearest neighbours, in random order.
        features: Features of each node.
        heads: Weights of each edge.
    """

    size: int = 0
    points: int = 0
    features: int = 3
    heads: int = 1

    @property
    def name(self) -> str:
        """Short description."""
        graph = f'{self.size} x {self.size} grid'
        if self.points:
            graph = f'{self.points} points'
        return f'{graph}, F={self.features}, H={self.heads}'

    def topology(self, device: str) -> Topology:
        """Builds the graph."""
        if self.points:
            pos = torch.rand(self.points, 2, device=device)
            return KNNGraph(8).topology(Data(pos=pos))
        image = torch.zeros(1, self.size, self.size, device=device)
        return GridGraph(8).topology(image_to_data(image))


@dataclass(frozen=True)
class Traffic:
    """Bytes that an operator must move.

    Attributes:
        data: Of signals and weights, read and written.
        indices: Of the graph.
    """

    data: int
    indices: int


def measure(config: Config, device: str, repeats: int) -> list[Row]:
    """Measures one problem."""
    torch.manual_seed(0)
    topology = config.topology(device)
    edge_index = topology.edge_index
    shape = (topology.num_nodes, config.features, config.heads)
    x, y = torch.rand(2, *shape, device=device)
    weight = torch.rand(topology.num_edges, config.heads, device=device)
    laplacian = laplacian_peers(topology, edge_index, weight, x)
    edge_dot = edge_dot_peers(topology, edge_index, x, y)
    agree(laplacian)
    agree(edge_dot)
    neighbours = topology.col.nbytes + topology.edge_id.nbytes
    ends = topology.src.nbytes + topology.dst.nbytes
    node, edge = x.nbytes, weight.nbytes
    cases: list[tuple[str, dict[str, Callable[[], object]], Traffic]] = [
        (
            'laplacian, forward',
            without_grad(laplacian),
            Traffic(2 * node + edge, neighbours),
        ),
        (
            'laplacian, forward + backward',
            {k: p.train for k, p in laplacian.items() if p.differentiable},
            # Backward reads the gradient, x and w, and writes theirs.
            Traffic(5 * node + 3 * edge, 2 * neighbours + ends),
        ),
        (
            'edge_dot, forward',
            without_grad(edge_dot),
            Traffic(2 * node + edge, ends),
        ),
    ]
    rows = []
    for what, runs, traffic in cases:
        copy, copied = copy_run(device)
        seconds = interleaved({**runs, 'copy': copy}, repeats, device)
        per_byte = seconds.pop('copy') / copied
        ours = seconds['pyg_unroll']
        row: Row = {'problem': config.name, 'what': what}
        for peer in ('pyg_unroll', 'PyG', 'torch CSR', 'torch_sparse'):
            if peer in seconds:
                row[peer] = 1e3 * seconds[peer]
        # SciPy and gathering by hand stand in columns of their own.
        row['SciPy'] = _milliseconds(seconds, 'SciPy')
        row['torch gather'] = _milliseconds(seconds, 'torch gather')
        row['PyG / ours'] = seconds['PyG'] / ours
        best = min(s for peer, s in seconds.items() if peer != 'pyg_unroll')
        row['best peer / ours'] = best / ours
        limit = per_byte * (traffic.data + traffic.indices)
        row['over copy limit'] = ours / limit
        row['without indices'] = None
        if config.size:
            row['without indices'] = ours / (per_byte * traffic.data)
        rows.append(row)
    return rows


def _milliseconds(seconds: dict[str, float], peer: str) -> float | None:
    return 1e3 * seconds[peer] if peer in seconds else None


def without_grad(peers: dict[str, Peer]) -> dict[str, Callable[[], object]]:
    """The forward runs."""
    return {name: peer.forward for name, peer in peers.items()}


def agree(peers: dict[str, Peer]) -> None:
    """Checks that all peers compute what we do, and its gradient by `x`."""
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-3)
    ours = peers['pyg_unroll']
    for peer in peers.values():
        close(peer.read(peer.forward()), ours.forward())
        if peer.differentiable:
            close(peer.read(peer.train()[1]), ours.train()[1])


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        size=(512, 'rows and columns of the reference grid'),
        large=(1000, 'rows and columns of the grid with F=1, H=1'),
        points=(100_000, 'points of the irregular graph'),
    )
    configs = [
        Config(args.size, features=3, heads=4),
        Config(args.size, features=3),
        Config(args.large, features=1),
        Config(points=args.points, features=3, heads=4),
    ]
    rows = []
    for config in configs:
        rows += measure(config, args.device, args.repeats)
    report('operators', rows, args.device, args.write)


if __name__ == '__main__':
    main()
