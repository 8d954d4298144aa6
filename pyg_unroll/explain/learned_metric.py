"""The metrics that a model learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.explain.figure import make_axes, pyplot
from pyg_unroll.transforms import MahalanobisGraph


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
            axes (sequence of matplotlib axes, optional): One per head; new
                ones if :obj:`None`. (default: :obj:`None`)

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
                ax.set_xticks(range(channels))
                ax.set_yticks(range(channels))
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
            found.append(
                LearnedMetric(
                    name,
                    matrix,
                    values.clamp(min=0).to(matrix.dtype),
                    axes.to(matrix.dtype),
                )
            )
    if not found:
        raise ValueError(
            f"'model' has no 'MahalanobisGraph' (got '{type(model).__name__}')"
        )
    return found
