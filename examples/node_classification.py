"""Classifies nodes with graph smoothness as the propagation layer.

Generates graphs of communities (stochastic block models) whose nodes have
noisy features and of whom few have labels, and compares an MLP with the same
MLP followed by APPNP, or by GLRConv without a mask: a graph low-pass filter
whose strength and steps are learned. Each seed is another graph. For either,
the validation nodes choose among the same strengths: APPNP at `alpha` and
GLRConv at `mu = (1 - alpha) / alpha` have the same limit if all degrees are
equal (and APPNP adds no self-loops).

Usage::

    python examples/node_classification.py
    python examples/node_classification.py --noise 1 --mixing 0.5
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import APPNP
from torch_geometric.utils import degree, stochastic_blockmodel_graph
from tqdm import tqdm

from pyg_unroll import GLRConv

ALPHAS = (0.02, 0.05, 0.1)
HIDDEN = 32
MAX_NODES = 10_000  # chance decides on each pair of them
EVERY = 2  # epochs between looks at the validation nodes


def main() -> None:
    """Trains all nets on all graphs and prints the table."""
    args = parse_args()
    # On small graphs, threads mostly wait for each other.
    torch.set_num_threads(1)
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    strengths: list[tuple[float, float]] = []
    bar = tqdm(range(args.seeds), disable=None, leave=False)
    for seed in bar:
        torch.manual_seed(seed)
        data = make_graph(args)
        for name, build in nets(args).items():
            bar.set_description(name)
            start = time.perf_counter()
            trained = [train(net, data, args, seed) for net in build()]
            _, test, net = max(trained, key=lambda one: one[0])
            spent = time.perf_counter() - start
            scores.setdefault(name, []).append(test)
            seconds[name] = seconds.get(name, 0.0) + spent / len(trained)
        strengths.append((net.propagation.mu, net.mu()))
    print(
        f'{args.seeds} graphs of {data.num_nodes} nodes, about '
        f'{data.num_edges // data.num_nodes} neighbours each, {args.classes} '
        f'classes, {args.labels} labels of each\n'
    )
    print(f'{"net":<34}{"test accuracy [%]":>19}{"s per training":>16}')
    for name, values in scores.items():
        percent = 100 * torch.tensor(values)
        spread = f'{percent.mean():.1f} +- {percent.std(correction=0):.1f}'
        print(f'{name:<34}{spread:>19}{seconds[name] / args.seeds:>16.2f}')
    changes = ', '.join(f'{a:.0f} -> {b:.1f}' for a, b in strengths)
    print(f'\nmu chosen and learned: {changes}')


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses values that make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--nodes', type=int, default=1000, help='nodes of each graph')
    add('--classes', type=int, default=5, help='communities')
    add('--degree', type=float, default=10.0, help='mean number of neighbours')
    add('--mixing', type=float, default=0.4, help='share of edges to others')
    add('--channels', type=int, default=16, help='features of a node')
    add('--noise', type=float, default=2.0, help='of the features')
    add('--labels', type=int, default=10, help='labelled nodes per class')
    add('--steps', type=int, default=10, help='steps of propagation')
    add('--epochs', type=int, default=60)
    add('--seeds', type=int, default=5, help='number of graphs')
    args = parser.parse_args()
    for name, value in vars(args).items():
        if not 0 < value < math.inf and (name, value) != ('noise', 0):
            parser.error(f'--{name} must be positive (got {value})')
    if not args.mixing < 1:
        parser.error(f'--mixing must be below 1 (got {args.mixing})')
    if args.classes < 2 or args.nodes < 4 * args.classes * args.labels:
        parser.error(
            'give at least two classes, and --nodes four times as many as '
            'there are labels'
        )
    if args.nodes > MAX_NODES:
        parser.error(f'--nodes must be at most {MAX_NODES} (got {args.nodes})')
    if args.degree > args.nodes // args.classes:
        parser.error('--degree must not exceed the size of a class')
    return args


def make_graph(args: argparse.Namespace) -> Data:
    """Draws a graph of communities with features around their centres."""
    size, classes = args.nodes // args.classes, args.classes
    probability = torch.full(
        (classes, classes), args.mixing * args.degree / (size * (classes - 1))
    )
    probability.fill_diagonal_((1 - args.mixing) * args.degree / size)
    edge_index = stochastic_blockmodel_graph([size] * classes, probability)
    y = torch.arange(classes).repeat_interleave(size)
    centres = torch.randn(classes, args.channels)
    x = centres[y] + args.noise * torch.randn(y.numel(), args.channels)
    # The same number of labels of each class; half of the rest validates.
    rank = torch.cat([torch.randperm(size) for _ in range(classes)])
    middle = (args.labels + size) // 2
    degrees = degree(edge_index[0], y.numel()).clamp(min=1)
    return Data(
        x=x,
        y=y,
        edge_index=edge_index,
        # Divided by both degrees, as APPNP does.
        edge_weight=degrees[edge_index].prod(0).rsqrt(),
        train=rank < args.labels,
        val=(rank >= args.labels) & (rank < middle),
        test=rank >= middle,
    )


class Net(torch.nn.Module):
    """An MLP, and what propagates its result."""

    def __init__(
        self,
        args: argparse.Namespace,
        propagation: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(args.channels, HIDDEN)
        self.out = torch.nn.Linear(HIDDEN, args.classes)
        self.propagation = propagation

    def forward(self, data: Data) -> Tensor:
        """Returns a logit for each node and class."""
        x = F.dropout(self.hidden(data.x).relu(), 0.5, self.training)
        x = self.out(x)
        if isinstance(self.propagation, APPNP):
            return self.propagation(x, data.edge_index)
        if self.propagation is not None:
            return self.propagation(x, data.edge_index, data.edge_weight)
        return x

    def mu(self) -> float:
        """The strength that GLRConv has learned."""
        return float(self.propagation.log_mu.detach().exp())


def nets(args: argparse.Namespace) -> dict[str, Callable[[], list[Net]]]:
    """Builds of each net those of which the validation chooses one."""

    def appnp(alpha: float) -> Net:
        return Net(args, APPNP(args.steps, alpha, cached=True))

    def glr(alpha: float, learned: bool) -> Net:
        conv = GLRConv(args.steps, mu=(1 - alpha) / alpha)
        return Net(args, conv.requires_grad_(learned))

    return {
        'MLP': lambda: [Net(args)],
        'MLP + APPNP': lambda: [appnp(a) for a in ALPHAS],
        'MLP + GLRConv, not trained': lambda: [glr(a, False) for a in ALPHAS],
        'MLP + GLRConv': lambda: [glr(a, True) for a in ALPHAS],
    }


def train(
    net: Net, data: Data, args: argparse.Namespace, seed: int
) -> tuple[float, float, Net]:
    """Returns validation and test accuracy at the best epoch, and the net."""
    torch.manual_seed(seed)
    net.hidden.reset_parameters()
    net.out.reset_parameters()
    linear = [*net.hidden.parameters(), *net.out.parameters()]
    others = [] if net.propagation is None else net.propagation.parameters()
    optimizer = torch.optim.Adam(
        [
            {'params': linear, 'weight_decay': 5e-3},
            {'params': list(others), 'weight_decay': 0},
        ],
        lr=0.02,
    )
    best = (-1.0, -1.0, net)
    for epoch in range(args.epochs):
        net.train()
        optimizer.zero_grad()
        out = net(data)
        F.cross_entropy(out[data.train], data.y[data.train]).backward()
        optimizer.step()
        if epoch % EVERY:
            continue
        net.eval()
        with torch.no_grad():
            right = (net(data).argmax(1) == data.y).float()
        val = float(right[data.val].mean())
        if val > best[0]:
            best = (val, float(right[data.test].mean()), copy.deepcopy(net))
    return best


if __name__ == '__main__':
    main()
