"""Times the graph Laplacian and the layers against PyTorch Geometric.

    python benchmarks/operators.py [--size 512] [--repeats 7] [--write]

Peers run interleaved in one process; the figures are medians, their ratios,
and the distance to the time in which the machine copies the bytes that must
move (each operand read once, the result written once). `--write` puts the
table into RESULTS.md and the figures into operators.json, beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch_geometric
from torch import Tensor
from torch_geometric.nn import MessagePassing

from pyg_unroll import GLRConv, GridGraph, Topology, mosaic, ops

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    """One problem: a square grid with 8 neighbours, float32."""

    size: int = 512
    features: int = 3
    heads: int = 1

    @property
    def name(self) -> str:
        """Short description."""
        return (
            f'{self.size} x {self.size}, 8 neighbours, '
            f'{self.features} features, {self.heads} heads'
        )


class DifferenceConv(MessagePassing):
    """The Laplacian as PyG's users write it: `sum_j w_ij (x_i - x_j)`."""

    def __init__(self) -> None:
        super().__init__(aggr='add', node_dim=0)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor
    ) -> Tensor:
        """Applies it to `[N, F, H]` with weights `[2E, H]`."""
        return self.propagate(edge_index, x=x, edge_weight=edge_weight)

    def message(self, x_i: Tensor, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """Weighs the difference."""
        return edge_weight.unsqueeze(1) * (x_i - x_j)


class MessagePassingGLR(torch.nn.Module):
    """The unrolled loop of `GLRConv`, written with PyG's message passing."""

    def __init__(self, conv: GLRConv) -> None:
        super().__init__()
        self.conv, self.laplacian = conv, DifferenceConv()

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Runs the same steps with the same coefficients."""
        free = ~mask.unsqueeze(-1)
        degree = x.new_zeros(x.size(0), edge_weight.size(1))
        degree = degree.index_add(0, edge_index[1], edge_weight).unsqueeze(1)
        out = x.unsqueeze(-1).expand(-1, -1, edge_weight.size(1))
        direction = None
        residual = -self.laplacian(out, edge_index, edge_weight)
        residual = torch.where(free, residual, 0)
        for k in range(self.conv.num_steps):
            if direction is None:
                direction = residual / degree
            else:
                image = self.laplacian(direction, edge_index, edge_weight)
                image = torch.where(free, image, 0)
                residual = residual - self.conv.alpha[k - 1] * image
                direction = (
                    residual / degree + self.conv.beta[k - 1] * direction
                )
            out = out + self.conv.alpha[k] * direction
        share = self.conv.head_logits.softmax(0)
        return torch.where(mask, x, (out * share).sum(-1))


def copy_rate() -> float:
    """Bytes per second that the machine copies (read and written)."""
    source = torch.randn(2**25)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds)


def interleaved(
    runs: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Median seconds of each run, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    # The first round warms up.
    return {name: statistics.median(s[1:]) for name, s in seconds.items()}


def measure(config: Config, repeats: int) -> list[dict[str, object]]:
    """Measures one problem."""
    torch.manual_seed(0)
    image = torch.rand(3, config.size, config.size)
    data = GridGraph(8)(mosaic(image))
    topology = Topology.from_edge_index(data.edge_index, data.num_nodes)
    weight = torch.rand(topology.num_edges, config.heads)
    both = topology.directed_weight(weight)
    x = torch.rand(data.num_nodes, config.features, config.heads)
    peer = DifferenceConv()
    torch.testing.assert_close(
        ops.laplacian(topology, weight, x), peer(x, data.edge_index, both)
    )

    def train(function: Callable[..., Tensor], *operands: Tensor) -> None:
        leaves = [operand.detach().requires_grad_() for operand in operands]
        function(*leaves).square().sum().backward()

    conv = GLRConv(8, heads=config.heads)
    conv_peer = MessagePassingGLR(conv)
    signal = data.x[:, :1].expand(-1, config.features).contiguous()
    mask = data.mask[:, :1].expand(-1, config.features).contiguous()
    torch.testing.assert_close(
        conv(signal, topology, weight, mask),
        conv_peer(signal, data.edge_index, both, mask),
    )
    with torch.no_grad():
        forward = interleaved(
            {
                'pyg_unroll': lambda: ops.laplacian(topology, weight, x),
                'PyG': lambda: peer(x, data.edge_index, both),
            },
            repeats,
        )
    backward = interleaved(
        {
            'pyg_unroll': lambda: train(
                lambda w, a: ops.laplacian(topology, w, a), weight, x
            ),
            'PyG': lambda: train(
                lambda w, a: peer(a, data.edge_index, w), both, x
            ),
        },
        repeats,
    )
    layer = interleaved(
        {
            'pyg_unroll': lambda: train(
                lambda w: conv(signal, topology, w, mask), weight
            ),
            'PyG': lambda: train(
                lambda w: conv_peer(signal, data.edge_index, w, mask), both
            ),
        },
        max(2, repeats // 3),
    )
    moved = 2 * x.nbytes + weight.nbytes + topology.col.nbytes * 2
    limit = moved / copy_rate()
    rows: list[dict[str, object]] = []
    for what, seconds in (
        ('laplacian, forward', forward),
        ('laplacian, forward + backward', backward),
        ('GLRConv(8), forward + backward', layer),
    ):
        ours, theirs = seconds['pyg_unroll'], seconds['PyG']
        row: dict[str, object] = {
            'problem': config.name,
            'what': what,
            'pyg_unroll_ms': round(1e3 * ours, 1),
            'pyg_ms': round(1e3 * theirs, 1),
            'ratio': round(theirs / ours, 1),
        }
        if what == 'laplacian, forward':
            row['over_copy_limit'] = round(ours / limit, 1)
        rows.append(row)
    return rows


def table(rows: list[dict[str, object]], environment: str) -> str:
    """Formats the figures as Markdown."""
    lines = [
        environment,
        '',
        '| problem | what | pyg_unroll (ms) | PyG message passing (ms) '
        '| ratio | over copy limit |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        limit = row.get('over_copy_limit', '')
        lines.append(
            f'| {row["problem"]} | {row["what"]} | {row["pyg_unroll_ms"]} | '
            f'{row["pyg_ms"]} | {row["ratio"]} | {limit} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--write', action='store_true')
    args = parser.parse_args()
    environment = (
        f'Python {platform.python_version()}, torch {torch.__version__}, '
        f'PyG {torch_geometric.__version__}, {torch.get_num_threads()} '
        f'threads, {platform.machine()}, copy rate '
        f'{copy_rate() / 1e9:.1f} GB/s'
    )
    configs = [Config(args.size), Config(args.size, heads=4)]
    rows = [row for c in configs for row in measure(c, args.repeats)]
    text = table(rows, environment)
    print(text)
    if args.write:
        results = HERE / 'RESULTS.md'
        before, _, after = results.read_text().partition('<!-- operators -->\n')
        rest = after.partition('<!-- end -->')[2]
        results.write_text(
            f'{before}<!-- operators -->\n{text}<!-- end -->{rest}'
        )
        report = {
            'environment': environment,
            'configs': [asdict(config) for config in configs],
            'rows': rows,
        }
        (HERE / 'operators.json').write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
