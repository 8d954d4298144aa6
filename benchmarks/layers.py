"""Times the layers against the same loops over PyG's message passing.

    python benchmarks/layers.py [--size 512] [--device cuda] [--write]

Both run interleaved in one process, after a check that they agree; times are
medians. Memory is the peak of one call beyond what is held before it, each in
a fresh process. `FeaturePropagation`, which has one graph and no gradients,
is compared by what one more step costs, and by a whole call of eight. On a
small graph, where what counts is the work around the kernels, the layers run
beside `APPNP(8)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from layer_peers import MessagePassingGLR, MessagePassingGTV, propagation
from memory import child_main, free_memory, in_child, peak_of
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import APPNP
from utils import Row, Run, interleaved, parse_args, report

from pyg_unroll import (
    GLRConv,
    GridGraph,
    GTVConv,
    KNNGraph,
    Topology,
    image_to_data,
)

LAYERS: dict[str, Callable[[int], GLRConv | GTVConv]] = {
    'GLRConv(8)': lambda heads: GLRConv(8, heads=heads),
    'GTVConv(4, 4)': lambda heads: GTVConv(4, 4, heads=heads),
}
# The peer of the second runs out of memory on a larger one.
_SHARE = {'GLRConv(8)': 1, 'GTVConv(4, 4)': 2}


@dataclass(frozen=True)
class Config:
    """One layer on a square grid with 8 neighbours, 30 % known, float32."""

    size: int
    layer: str = 'GLRConv(8)'
    features: int = 3
    heads: int = 4
    device: str = 'cpu'


@dataclass(frozen=True)
class Operands:
    """Its operands, and forward passes by both as functions of the weight."""

    x: Tensor
    mask: Tensor
    edge_index: Tensor
    weights: dict[str, Tensor]
    calls: dict[str, Callable[[Tensor], Tensor]]
    conv: torch.nn.Module

    @classmethod
    def build(cls, config: Config) -> Operands:
        """Draws a problem."""
        torch.manual_seed(0)
        shape = (config.features, config.size, config.size)
        data = image_to_data(torch.rand(shape, device=config.device))
        topology = GridGraph(8).topology(data)
        edge_index, x = topology.edge_index, data.x
        weight = torch.rand(topology.num_edges, config.heads).to(x.device)
        mask = torch.rand(x.shape).to(x.device) < 0.3
        conv = LAYERS[config.layer](config.heads).to(x.device)
        wrap = MessagePassingGLR
        if isinstance(conv, GTVConv):
            wrap = MessagePassingGTV
        peer = wrap(conv)
        return cls(
            x,
            mask,
            edge_index,
            {'ours': weight, 'PyG': topology.directed_weight(weight)},
            {
                'ours': lambda w: conv(x, topology, w, mask),
                'PyG': lambda w: peer(x, edge_index, w, mask),
            },
            conv,
        )

    def forward(self, who: str) -> Tensor:
        """Inference."""
        with torch.no_grad():
            return self.calls[who](self.weights[who])

    def train(self, who: str) -> tuple[Tensor, ...]:
        """Forward and backward, by edge weights and coefficients."""
        weight = self.weights[who].detach().requires_grad_()
        out = self.calls[who](weight)
        leaves = [weight, *self.conv.parameters()]
        given = out.detach()
        # Held entries leave `log_mu` unused in the peer.
        return torch.autograd.grad(out, leaves, given, allow_unused=True)

    def run(self, what: str, who: str) -> Run:
        """One of the two above."""
        return partial(self.forward if what == 'forward' else self.train, who)


def agree(problem: Operands) -> None:
    """Checks results and the gradients of the coefficients."""
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    close(problem.forward('ours'), problem.forward('PyG'))
    ours, theirs = (problem.train(who)[1:] for who in problem.calls)
    for left, right in zip(ours, theirs, strict=True):
        if right is not None:
            # Sums over all nodes: relative to the largest.
            scale = right.abs().max().clamp(min=1e-6)
            close(left / scale, right / scale)


def peak(config: Config, what: str, who: str, max_memory: float) -> int | None:
    """Peak memory of one call in a fresh process; None if it ran out."""
    spec = {'config': asdict(config), 'what': what, 'who': who}
    rows, finished = in_child(__file__, spec, max_memory, lean=True)
    return rows[0]['peak'] if finished else None


def child(config: Config, what: str, who: str) -> Row:
    """The work of the fresh process."""
    small = Config(**{**asdict(config), 'size': 16})
    Operands.build(small).run(what, who)()  # loads the kernels
    problem = Operands.build(config)
    return {'peak': peak_of(problem.run(what, who), config.device)}


def measure(config: Config, repeats: int, max_memory: float) -> list[Row]:
    """Measures one layer."""
    agree(Operands.build(Config(**{**asdict(config), 'size': 48})))
    problem = Operands.build(config)
    rows = []
    for what, title in (('forward', ''), ('train', ' + backward')):
        runs = {who: problem.run(what, who) for who in problem.calls}
        seconds = interleaved(runs, repeats, config.device)
        row: Row = {
            'problem': f'{config.size} x {config.size} grid, '
            f'F={config.features}, H={config.heads}',
            'what': f'{config.layer}, forward{title}',
            'ours (ms)': 1e3 * seconds['ours'],
            'PyG (ms)': 1e3 * seconds['PyG'],
            'time ratio': seconds['PyG'] / seconds['ours'],
        }
        rows.append(row)
    # The children share the machine with what is held here.
    del problem, runs
    for row, what in zip(rows, ('forward', 'train'), strict=True):
        ours, theirs = (
            peak(config, what, who, max_memory) for who in ('ours', 'PyG')
        )
        for who, used in (('ours', ours), ('PyG', theirs)):
            row[f'{who} (MiB)'] = 'out of memory'
            if used is not None:
                row[f'{who} (MiB)'] = used / 2**20
        if ours and theirs:
            row['memory ratio'] = theirs / ours
    return rows


def measure_propagation(config: Config, repeats: int) -> list[Row]:
    """Measures inference against `FeaturePropagation`, one head."""
    problem = Operands.build(config)
    weight, both = problem.weights['ours'], problem.weights['PyG']
    topology = GridGraph(8).topology(
        image_to_data(torch.zeros(1, config.size, config.size).to(both.device))
    )
    runs: dict[str, Run] = {}
    for steps in (8, 24):
        conv = GLRConv(steps).to(both.device)
        runs[f'ours {steps}'] = torch.no_grad()(
            partial(conv, problem.x, topology, weight, problem.mask)
        )
        runs[f'PyG {steps}'] = propagation(
            problem.x, problem.edge_index, both[:, 0], problem.mask, steps
        )
    seconds = interleaved(runs, repeats, config.device)
    rows = []
    for what, per in (('8 steps', None), ('each further step', 16)):
        ours, theirs = seconds['ours 8'], seconds['PyG 8']
        if per is not None:
            ours = (seconds['ours 24'] - ours) / per
            theirs = (seconds['PyG 24'] - theirs) / per
        rows.append(
            {
                'problem': f'{config.size} x {config.size} grid, '
                f'F={config.features}, H=1',
                'what': f'GLRConv and FeaturePropagation, {what}',
                'ours (ms)': 1e3 * ours,
                'PyG (ms)': 1e3 * theirs,
                'time ratio': theirs / ours,
            }
        )
    return rows


def measure_small(repeats: int, device: str, num_nodes: int = 200) -> list[Row]:
    """Measures forward and backward on few nodes against `APPNP`, by signal,
    edge weights and coefficients.
    """
    torch.manual_seed(0)
    data = KNNGraph(6)(Data(pos=torch.rand(num_nodes, 2))).to(device)
    topology = Topology.from_edge_index(data.edge_index, num_nodes)
    weight = torch.rand(topology.num_edges, 1, device=device)
    weight = topology.directed_weight(weight)[:, 0].requires_grad_()
    x = torch.randn(num_nodes, 1, device=device, requires_grad=True)
    mask = torch.rand(num_nodes, device=device) < 0.3
    appnp = APPNP(8, 0.1)
    convs = {name: make(1).to(device) for name, make in LAYERS.items()}
    forward: dict[str, Callable[[], Tensor]] = {
        name: partial(conv, x, data.edge_index, weight, mask)
        for name, conv in convs.items()
    }
    forward['APPNP(8)'] = partial(appnp, x, data.edge_index, weight)

    def train(name: str, calls: int = 20) -> None:
        for _ in range(calls):
            forward[name]().square().sum().backward()

    runs: dict[str, Run] = {name: partial(train, name) for name in forward}
    seconds = interleaved(runs, 3 * repeats, device)
    theirs = seconds.pop('APPNP(8)') / 20
    return [
        {
            'problem': f'{num_nodes} points, F=1, H=1',
            'what': f'{name} and APPNP(8), forward + backward',
            'ours (ms)': 1e3 * ours / 20,
            'PyG (ms)': 1e3 * theirs,
            'time ratio': 20 * theirs / ours,
        }
        for name, ours in seconds.items()
    ]


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        size=(512, 'rows and columns of the grid'),
        max_memory=(free_memory(), 'GiB at which a child is ended'),
    )
    if args.child:
        spec = args.child
        config = Config(**spec.pop('config'))
        child_main(child(config, **spec) for _ in '1')
        return
    rows = []
    for layer in LAYERS:
        size = args.size // _SHARE[layer]
        config = Config(size, layer, device=args.device)
        rows += measure(config, args.repeats, args.max_memory)
    config = Config(args.size, heads=1, device=args.device)
    rows += measure_propagation(config, args.repeats)
    rows += measure_small(args.repeats, args.device)
    report('layers', rows, args.device, args.write)


if __name__ == '__main__':
    main()
