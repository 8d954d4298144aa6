"""What the steps of one solver layer did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
        objective (torch.Tensor): What the layer minimises: the prior, and
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
        degree (torch.Tensor): Least value, quartiles and largest value of
            the degrees of each head :math:`(5, H)`.
        weight (torch.Tensor): The same of the edge weights.
        neighbours (torch.Tensor): Mean over nodes of
            :math:`(\sum_j w_{ij})^2 / \sum_j w_{ij}^2`, the number of
            neighbours that a node in effect listens to :math:`(H)`.
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
        """Steps after which the objective is larger than before.

        Args:
            tolerance (float, optional): Relative rise that is taken for
                rounding. (default: :obj:`1e-6`)

        Returns:
            Number of the step, from 1, and column.
        """
        before, after = self.objective[:-1], self.objective[1:]
        falls = after <= (1 + tolerance) * before  # not of NaN
        rows = (~falls).nonzero().tolist()
        return [(step + 1, self.labels[column]) for step, column in rows]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per step and column."""
        return [
            {
                'layer': self.name,
                'step': step,
                'column': label,
                **{
                    name: float(getattr(self, name)[step, column])
                    for name in QUANTITIES
                },
            }
            for step in range(self.num_steps + 1)
            for column, label in enumerate(self.labels)
        ]

    def plot(self, ax: Any) -> None:
        """Draws the objective over the steps; rises are marked."""
        for column, label in enumerate(self.labels):
            last = label == 'combined'
            line = ax.plot(
                self.objective[:, column].tolist(),
                marker='o',
                markersize=4,
                color='black' if last else None,
                linewidth=2 if last else 1.2,
                label=label,
            )[0]
            line.set_zorder(3 if last else 2)
        columns = {label: k for k, label in enumerate(self.labels)}
        for k, (step, label) in enumerate(self.rises()):
            ax.plot(
                step,
                float(self.objective[step, columns[label]]),
                marker='^',
                markersize=9,
                color='red',
                linestyle='none',
                zorder=4,
                label=None if k else 'rises',
            )
        if bool((self.objective > 0).all()):
            ax.set_yscale('log')
        ax.set_xticks(range(self.num_steps + 1))
        unit = 'iteration' if self.prior == 'gtv' else 'step'
        ax.set_xlabel(f'{unit} (0: start)')
        ax.set_title(f'{self.name or "layer"}: objective')
        ax.legend(fontsize='small')

    def __str__(self) -> str:
        rows = [
            f'{self.name or "layer"} ({self.prior.upper()}); degree '
            f'{_range(self.degree)}, weight {_range(self.weight)}, '
            f'{_list(self.neighbours)} neighbours in effect',
            '  step' + ''.join(f'{name:>12}' for name in QUANTITIES),
        ]
        rising = {step for step, label in self.rises() if label == 'combined'}
        for step in range(self.num_steps + 1):
            values = (float(getattr(self, q)[step, -1]) for q in QUANTITIES)
            row = f'{step:6d}' + ''.join(f'{value:12.4g}' for value in values)
            rows.append(row + ('  rises' if step in rising else ''))
        return '\n'.join(rows)


def _list(values: Tensor) -> str:
    return ' / '.join(f'{value:.3g}' for value in values.tolist())


def _range(quartiles: Tensor) -> str:
    """Median and range per head."""
    return ' / '.join(
        f'{column[2]:.3g} ({column[0]:.2g} to {column[4]:.2g})'
        for column in quartiles.T.tolist()
    )
