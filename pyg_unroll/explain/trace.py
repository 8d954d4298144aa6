"""Figures of each step of a model's solver layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.explain.calls import LayerCall, record_calls
from pyg_unroll.explain.figure import make_axes
from pyg_unroll.nn import GTVConv
from pyg_unroll.ops import degree, edge_dot, gradient
from pyg_unroll.ops.cg import LaplacianSystem

QUANTITIES = ('objective', 'energy', 'residual', 'violation', 'change')


@dataclass(frozen=True, eq=False)
class LayerTrace:
    r"""Figures of each step of a solver layer, in double precision.

    Signals have :math:`K + 1` rows, for the start and each step (of
    :class:`~pyg_unroll.nn.GTVConv`, each iteration), and :math:`H + 1`
    columns: of each head on its own graph, and last of the heads' average
    :math:`\bar{\mathbf{x}}`, which the layer would return here.

    Attributes:
        name (str): Name of the layer in the model.
        prior (str): :obj:`'glr'` or :obj:`'gtv'`.
        shares (torch.Tensor): Share :math:`a_h` of each head in the average
            :math:`(H)`.
        energy (torch.Tensor): The prior: :math:`\mathbf{z}^{\top} \mathbf{L}
            \mathbf{z}` or GTV; of the average :math:`\sum_h a_h
            E_h(\bar{\mathbf{x}})`.
        objective (torch.Tensor): The objective of the layer: the prior, and
            with noisy observations :math:`\sum_i c_i (z_i - x_i)^2` plus
            :math:`\mu` times the prior.
        residual (torch.Tensor): Of GLR the length of :math:`\mathbf{b} -
            \mathbf{A} \mathbf{z}` on the entries to be found, half the
            gradient; of GTV that of the constraint :math:`w_{ij} (x_i -
            x_j) = z_{ij}` (over-relaxed), unknown at the start; in the last
            column the average over heads.
        violation (torch.Tensor): Largest distance of a known entry from its
            observation; zero where known entries are held.
        change (torch.Tensor): Length of the step, unknown at the start.
        degree (torch.Tensor): Minimum, quartiles and maximum of the degrees
            of each head :math:`(5, H)`.
        weight (torch.Tensor): The same of the edge weights.
        neighbours (torch.Tensor): Mean over nodes of
            :math:`(\sum_j w_{ij})^2 / \sum_j w_{ij}^2`, the effective number
            of neighbours :math:`(H)`.
    """

    name: str
    prior: str
    shares: Tensor
    energy: Tensor
    objective: Tensor
    residual: Tensor
    violation: Tensor
    change: Tensor
    degree: Tensor
    weight: Tensor
    neighbours: Tensor

    @property
    def num_steps(self) -> int:
        """Number of steps, or iterations."""
        return self.energy.size(0) - 1

    @property
    def labels(self) -> list[str]:
        """Names of the columns."""
        heads = self.shares.size(0)
        return [*(f'head {head}' for head in range(heads)), 'combined']

    def rises(self, tolerance: float = 1e-6) -> list[tuple[int, str]]:
        """Steps, from 1, after which the objective is larger than before, and
        their columns; see :meth:`Trace.rises`.
        """
        before, after = self.objective[:-1], self.objective[1:]
        falls = after <= (1 + tolerance) * before  # not of NaN
        rows = (~falls).nonzero().tolist()
        return [(step + 1, self.labels[column]) for step, column in rows]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per step and column."""
        return [
            {'layer': self.name, 'step': step, 'column': label}
            | {q: float(getattr(self, q)[step, column]) for q in QUANTITIES}
            for step in range(self.num_steps + 1)
            for column, label in enumerate(self.labels)
        ]

    def plot(self, ax: Any) -> None:
        """Draws the objective over the steps; rises are marked."""
        objective = self.objective.cpu().numpy()
        lines = ax.plot(objective, 'o-', lw=1.2, ms=4, label=self.labels)
        lines[-1].set(color='black', linewidth=2, zorder=3)
        if rises := self.rises():
            steps = [step for step, _ in rises]
            columns = [self.labels.index(label) for _, label in rises]
            values = objective[steps, columns]
            ax.plot(steps, values, 'r^', ms=9, zorder=4, label='rises')
        if bool((self.objective > 0).all()):
            ax.set_yscale('log')
        unit = 'iteration' if self.prior == 'gtv' else 'step'
        ax.set(
            xticks=range(self.num_steps + 1),
            xlabel=f'{unit} (0: start)',
            title=f'{self.name or "layer"}: objective',
        )
        ax.legend(fontsize='small')

    def __str__(self) -> str:
        neighbours = (f'{value:.3g}' for value in self.neighbours.tolist())
        rows = [
            f'{self.name or "layer"} ({self.prior.upper()}); degree '
            f'{_range(self.degree)}, weight {_range(self.weight)}, '
            f'{" / ".join(neighbours)} neighbours in effect',
            '  step' + ''.join(f'{name:>12}' for name in QUANTITIES),
        ]
        rises = self.rises()
        for step in range(self.num_steps + 1):
            values = (float(getattr(self, q)[step, -1]) for q in QUANTITIES)
            row = f'{step:6d}' + ''.join(f'{value:12.4g}' for value in values)
            rows.append(row + '  rises' * ((step, 'combined') in rises))
        return '\n'.join(rows)


def _range(quartiles: Tensor) -> str:
    """Median and range per head."""
    return ' / '.join(
        f'{column[2]:.3g} ({column[0]:.2g} to {column[4]:.2g})'
        for column in quartiles.T.tolist()
    )


@dataclass(frozen=True, eq=False)
class Trace:
    """Figures of each step of each solver layer of a model.

    Attributes:
        layers (list[LayerTrace]): One for each call of a layer, in order.
    """

    layers: list[LayerTrace]

    def rises(self, tolerance: float = 1e-6) -> list[tuple[str, int, str]]:
        """Steps at which a layer does not descend.

        Args:
            tolerance (float, optional): Relative rise that is taken for
                rounding. (default: :obj:`1e-6`)

        Returns:
            Layer, step and head, or :obj:`'combined'`, of each step after
            which the objective is larger than before.
        """
        return [
            (layer.name, *where)
            for layer in self.layers
            for where in layer.rises(tolerance)
        ]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per layer, step and head, for example for
        :class:`pandas.DataFrame`.
        """
        return [row for layer in self.layers for row in layer.records()]

    def plot(self, axes: Any = None) -> Any:
        """Draws the objective of each layer over its steps.

        Args:
            axes (sequence of matplotlib axes, optional): One per layer.
                (default: :obj:`None`)

        Returns:
            The axes, an array with one row.

        Raises:
            ImportError: If matplotlib (extra :obj:`viz`) is missing.
        """
        axes = make_axes(axes, 1, len(self.layers))
        for ax, layer in zip(axes[0], self.layers, strict=True):
            layer.plot(ax)
        return axes

    def __str__(self) -> str:
        return '\n\n'.join(str(layer) for layer in self.layers)


def trace(model: torch.nn.Module, data: Data) -> Trace:
    r"""Runs a model and measures each step of its solver layers.

    A trained layer need not descend at each of its steps;
    :meth:`Trace.rises` lists those at which it does not.

    Restorers mirror images at the border, and figures include the margin;
    where a net gives a guide, they are of the signal relative to it.

    Args:
        model (torch.nn.Module): :class:`~pyg_unroll.nn.UnrolledGLR`,
            :class:`~pyg_unroll.nn.UnrolledGTV`,
            :class:`~pyg_unroll.imaging.Demosaic`,
            :class:`~pyg_unroll.imaging.Inpaint`, or any model with layers
            :class:`~pyg_unroll.nn.GLRConv` and
            :class:`~pyg_unroll.nn.GTVConv` that is called as
            :obj:`model(data)`; or one such layer.
        data (Data): The data that it is run on; for a layer with :obj:`x`,
            :obj:`edge_index` and, if any, :obj:`edge_weight`, :obj:`mask`
            and :obj:`confidence`.

    Returns:
        The figures, see :class:`Trace`; :obj:`print` shows a table.

    Raises:
        ValueError: If the model has no solver layer, or data is of several
            images or of more than one tile.
    """
    return Trace([_trace_call(call) for call in record_calls(model, data)])


@torch.no_grad()
def _trace_call(call: LayerCall) -> LayerTrace:
    weight = call.weight.double()
    degrees = degree(call.topology, weight)
    squares = degree(call.topology, weight.square())
    effective = degrees.square() / squares.where(squares > 0, 1)
    rows = zip(*_measure(call, weight), strict=True)
    return LayerTrace(
        name=call.name,
        prior='gtv' if isinstance(call.layer, GTVConv) else 'glr',
        shares=call.shares,
        degree=_quartiles(degrees),
        weight=_quartiles(weight),
        neighbours=effective.mean(0),
        **dict(zip(QUANTITIES, map(torch.stack, rows), strict=True)),
    )


def _quartiles(values: Tensor) -> Tensor:
    """Minimum, quartiles and maximum of each column."""
    if values.size(0) == 0:
        return values.new_full((5, values.size(1)), float('nan'))
    ordered = values.sort(0).values
    rows = torch.linspace(0, values.size(0) - 1, 5).round().long()
    return ordered[rows.to(values.device)]


def _measure(call: LayerCall, weight: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the quantities of the start and of each step, in their order."""
    layer, signal, topology = call.layer, call.signal, call.topology
    one = signal.layout.first_heads  # observations are the same for all
    x, shares = one(signal.x).double(), call.shares
    mu, confidence = torch.ones_like(shares), x.new_zeros((1, 1, 1))
    free = None if signal.free is None else one(signal.free)
    if signal.confidence is not None:
        mu = layer.log_mu.double().exp()
        confidence = one(signal.confidence).double()
    known = confidence > 0 if free is None else ~free
    order = getattr(layer, 'order', 1)
    system = LaplacianSystem.build(
        topology, weight, confidence / mu, free, order
    )

    def energy(z: Tensor) -> Tensor:
        if isinstance(layer, GTVConv):
            return (weight * gradient(topology, z).abs().sum(1)).sum(0)
        if order == 2:
            return (z * system.prior(z)).sum((0, 1))
        return (weight * edge_dot(topology, z, z)).sum(0)

    def columns(heads: Tensor, combined: Tensor) -> Tensor:
        """Of each head, then the average by their shares."""
        return torch.cat([heads, (shares @ combined)[None]])

    unknown = torch.full_like(shares, float('nan'))
    old = dual = None
    for step, now in enumerate(call.iterates()):
        heads, combined = now.heads.double(), now.x.double().unsqueeze(-1)
        both = torch.cat([heads, combined], -1)
        # The average has an energy on the graph of each head.
        energies = energy(heads), energy(combined.expand_as(heads))
        distance = both - x
        error = (confidence * distance.square()).sum((0, 1))
        residual = unknown
        if not isinstance(layer, GTVConv):
            residual = _length(system.residual(heads, x))
        elif dual is not None and now.state is not None:
            # The dual variable moves by the penalty times the residual.
            rho = layer.log_rho[step - 1].double().exp()
            residual = _length(now.state.double() - dual) / rho
        yield (
            error + columns(*(mu * part for part in energies)),
            columns(*energies),
            columns(residual, residual),
            torch.where(known, distance.abs(), 0).amax((0, 1)),
            columns(unknown, unknown) if old is None else _length(both - old),
        )
        old, dual = both, now.state


def _length(x: Tensor) -> Tensor:
    """Euclidean norm of each head."""
    return x.square().sum((0, 1)).sqrt()
