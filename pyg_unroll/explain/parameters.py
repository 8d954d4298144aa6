"""Parameters of a model: counted next to a transformer's, metrics shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.checks import check_positive
from pyg_unroll.explain.figure import make_axes, pyplot
from pyg_unroll.imaging.block_restorer import BlockRestorer
from pyg_unroll.nn.unrolled import UnrolledStack
from pyg_unroll.transforms import MahalanobisGraph


@dataclass(frozen=True)
class ParameterTable:
    """Numbers of parameters by block and part.

    Attributes:
        rows (list[tuple[str, str, int]]): Block, part and number.
        width (int): Width of the transformer block.
    """

    rows: list[tuple[str, str, int]]
    width: int

    def total(self, block: str) -> int:
        """Number of parameters of one block, for example
        :obj:`'transformer'`.
        """
        return sum(number for name, _, number in self.rows if name == block)

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per row, for example for
        :class:`pandas.DataFrame`.
        """
        names = ('block', 'part', 'parameters')
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def __str__(self) -> str:
        lines = [f'{"block":14}{"part":18}{"parameters":>12}']
        previous = ''
        for block, part, number in self.rows:
            shown = block if block != previous else ''
            lines.append(f'{shown:14}{part:18}{number:12,}')
            previous = block
        return '\n'.join(lines)


def parameter_table(
    model: torch.nn.Module, width: int | None = None
) -> ParameterTable:
    r"""Counts a model's parameters by block and part, next to those of a
    transformer block of the same width.

    Graph learning (metric) and steps take the place of attention, the
    feature net that of the perceptron. The transformer block has
    :class:`torch.nn.MultiheadAttention` and a perceptron with four times the
    width inside.

    Args:
        model (torch.nn.Module): :class:`~pyg_unroll.nn.UnrolledGLR`,
            :class:`~pyg_unroll.nn.UnrolledGTV`,
            :class:`~pyg_unroll.imaging.Demosaic` or
            :class:`~pyg_unroll.imaging.Inpaint`.
        width (int, optional): Width of the transformer block; the
            :obj:`hidden_channels` of the first block's feature net if
            :obj:`None`. (default: :obj:`None`)

    Returns:
        The numbers; :obj:`print` shows a table.

    Raises:
        ValueError: If it is another module, or its feature net has no
            :obj:`hidden_channels`.
    """
    if not isinstance(model, UnrolledStack | BlockRestorer):
        raise ValueError(
            f"'model' must be an 'UnrolledGLR', 'UnrolledGTV', 'Demosaic' or "
            f"'Inpaint' (got '{type(model).__name__}')"
        )
    blocks: Any = model.blocks
    rows = []
    for k, block in enumerate(blocks):
        graphs = (m for m in block.modules() if isinstance(m, MahalanobisGraph))
        net, metric = _count(block.features), sum(map(_count, graphs))
        steps = _count(block) - net - metric
        counts = {'feature net': net, 'metric': metric, 'steps': steps}
        rows += [(f'block {k}', *item) for item in counts.items()]
    if width is None:
        net = blocks[0].features
        if not hasattr(net, 'hidden_channels'):
            raise ValueError(
                f"'width' must be given for a feature net without "
                f"'hidden_channels' (got '{type(net).__name__}')"
            )
        width = int(net.hidden_channels)
    check_positive('width', width)
    with torch.device('meta'):  # counted, not filled
        attention = torch.nn.MultiheadAttention(width, 1)
        perceptron = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width),
            torch.nn.GELU(),
            torch.nn.Linear(4 * width, width),
        )
    rows.append(('transformer', 'attention', _count(attention)))
    rows.append(('transformer', 'perceptron', _count(perceptron)))
    return ParameterTable(rows, width)


@dataclass(frozen=True, eq=False)
class LearnedMetric:
    r"""The metrics :math:`\mathbf{M}` of one graph module, one per head.

    Attributes:
        name (str): Name of the module in the model.
        matrix (torch.Tensor): The metrics :math:`(H, C, C)`.
        eigenvalues (torch.Tensor): Their eigenvalues, ascending
            :math:`(H, C)`: squared lengths of a unit step along each axis.
        axes (torch.Tensor): Their eigenvectors, as columns
            :math:`(H, C, C)`.
    """

    name: str
    matrix: Tensor
    eigenvalues: Tensor
    axes: Tensor

    def ellipse(self, head: int, num_points: int = 100) -> Tensor:
        r"""The steps of unit length, of a metric of two features.

        Args:
            head (int): The head.
            num_points (int, optional): Number of points.
                (default: :obj:`100`)

        Returns:
            Points on :math:`\mathbf{f}^{\top} \mathbf{M} \mathbf{f} = 1`,
            :math:`(P, 2)`.

        Raises:
            ValueError: If there are more features.
        """
        if self.matrix.size(-1) != 2:
            raise ValueError(
                f'only metrics of two features are ellipses (this one has '
                f'{self.matrix.size(-1)})'
            )
        turn = torch.linspace(0, 2 * torch.pi, num_points).to(self.matrix)
        circle = torch.stack([turn.cos(), turn.sin()])
        radius = self.eigenvalues[head].clamp(min=1e-12).rsqrt()
        return (self.axes[head] @ (radius.unsqueeze(1) * circle)).T

    def plot(self, axes: Any = None) -> Any:
        """Draws an ellipse of unit length per head for two features, else
        the matrices as heat maps.

        Args:
            axes (sequence of matplotlib axes, optional): One per head.
                (default: :obj:`None`)

        Returns:
            The axes, an array with one row.

        Raises:
            ImportError: If matplotlib (extra :obj:`viz`) is missing.
        """
        heads, channels, _ = self.matrix.shape
        axes = make_axes(axes, 1, heads)
        for head, ax in enumerate(axes[0]):
            if channels == 2:
                ax.plot(*self.ellipse(head).cpu().numpy().T)
                ax.set_aspect('equal')
                ax.axhline(0, color='lightgrey', zorder=0)
                ax.axvline(0, color='lightgrey', zorder=0)
            else:
                matrix = self.matrix[head].cpu().numpy()
                limit = float(abs(matrix).max())
                shown = ax.imshow(
                    matrix, cmap='RdBu_r', vmin=-limit, vmax=limit
                )
                pyplot().colorbar(shown, ax=ax, shrink=0.8)
                ax.set(xticks=range(channels), yticks=range(channels))
            ax.set_title(f'{self.name or "metric"}, head {head}')
        return axes


@torch.no_grad()
def learned_metrics(model: torch.nn.Module) -> list[LearnedMetric]:
    r"""The metrics of a model's graph modules.

    Args:
        model (torch.nn.Module): A model with modules
            :class:`~pyg_unroll.transforms.MahalanobisGraph`, or one of them.

    Returns:
        One for each module, in order.

    Raises:
        ValueError: If there is none.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, MahalanobisGraph):
            matrix = module.metric.detach()
            values, axes = torch.linalg.eigh(matrix.double())
            values = values.clamp(min=0).to(matrix)
            found.append(LearnedMetric(name, matrix, values, axes.to(matrix)))
    if not found:
        raise ValueError(
            f"'model' has no 'MahalanobisGraph' (got '{type(model).__name__}')"
        )
    return found


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
