"""Parameters of a model by block and part, next to a transformer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pyg_unroll.checks import check_positive
from pyg_unroll.imaging.restorer import Restorer
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
    if not isinstance(model, UnrolledStack | Restorer):
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


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
