"""Parameters of a model: their numbers, and the metrics and filters that
they stand for.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.checks import check_positive
from pyg_unroll.explain.figure import make_axes
from pyg_unroll.imaging.block_restorer import BlockRestorer
from pyg_unroll.nn import GLRConv, GTVConv
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
    # Weights and biases of four projections, and of two layers.
    attention, perceptron = 4 * (width**2 + width), 8 * width**2 + 5 * width
    rows.append(('transformer', 'attention', attention))
    rows.append(('transformer', 'perceptron', perceptron))
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
            axes (sequence of matplotlib axes, optional): One per head, see
                :meth:`Trace.plot`. (default: :obj:`None`)
        """
        heads, channels, _ = self.matrix.shape
        axes = make_axes(axes, 1, heads)
        for head, ax in enumerate(axes[0]):
            ax.set_title(f'{self.name or "metric"}, head {head}')
            if channels == 2:
                ax.plot(*self.ellipse(head).cpu().numpy().T)
                ax.set_aspect('equal')
                ax.axhline(0, color='lightgrey', zorder=0)
                ax.axvline(0, color='lightgrey', zorder=0)
                continue
            matrix = self.matrix[head].cpu().numpy()
            end = float(abs(matrix).max())
            shown = ax.imshow(matrix, cmap='RdBu_r', vmin=-end, vmax=end)
            ax.figure.colorbar(shown, ax=ax, shrink=0.8)
            ax.set(xticks=range(channels), yticks=range(channels))
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


@dataclass(frozen=True, eq=False)
class SpectralResponse:
    r"""The polynomials that the steps of a layer apply, in double precision.

    Steps :math:`\mathbf{v} = \mathbf{D}^{-1} \mathbf{r} + \beta_k
    \mathbf{v}`, :math:`\mathbf{x} = \mathbf{x} + \alpha_k \mathbf{v}` are,
    whatever the graph, polynomials of :math:`\mathbf{D}^{-1} \mathbf{A}`:

    .. math::
        \mathbf{x}_K = q(\mathbf{D}^{-1} \mathbf{A}) \, \mathbf{x}_0 +
        s(\mathbf{D}^{-1} \mathbf{A}) \, \mathbf{D}^{-1} \mathbf{b},
        \qquad q(\lambda) = 1 - \lambda s(\lambda),

    where the exact solution has :math:`s(\lambda) = 1 / \lambda` and
    :math:`q = 0`. Where known entries are held, :math:`\mathbf{A} =
    \mathbf{L}_{uu}` is the Laplacian's block of the unknown entries,
    :math:`\mathbf{D}` holds their degrees, :math:`\mathbf{b} =
    -\mathbf{L}_{us} \mathbf{y}` and :math:`0 < \lambda \le 2` (with
    :obj:`order=2`, :math:`\mathbf{A}` is that block of :math:`\mathbf{L}
    \mathbf{D}_w^{-1} \mathbf{L}`, and :math:`\lambda \le 4`): :math:`s`
    passes the smooth part of the known neighbours' values. With noisy
    observations, :math:`\mathbf{A} = \mathbf{C} / \mu + \mathbf{L}`,
    :math:`\mathbf{D}` is its diagonal and :math:`\mathbf{b} = \mathbf{C}
    \mathbf{y} / \mu`; see :meth:`denoising`.

    Of :class:`~pyg_unroll.nn.GTVConv`, they are those of the solves inside
    its iterations: :math:`\mathbf{L}` is then that of :math:`w_{ij}^2`, and
    :math:`\mu \rho / 2` takes the place of :math:`\mu`.

    Attributes:
        alpha (torch.Tensor): Step sizes :math:`(T, K, H)`, one row
            :math:`T` for each solve.
        beta (torch.Tensor): Momenta :math:`(T, K - 1, H)`.
        mu (torch.Tensor): Weight of the prior where observations are noisy
            :math:`(T, H)`.
        order (int): Order of the prior.
    """

    alpha: Tensor
    beta: Tensor
    mu: Tensor
    order: int

    def solution(self, eigenvalues: Tensor) -> Tensor:
        r"""The polynomial :math:`s`, of degree :math:`K - 1`.

        Args:
            eigenvalues (torch.Tensor): Eigenvalues :math:`\lambda` of
                :math:`\mathbf{D}^{-1} \mathbf{A}`, broadcastable to
                :math:`(T, M, H)`, for example :math:`(M, 1)`.

        Returns:
            Its values :math:`(T, M, H)`.
        """
        eigenvalues = eigenvalues.double()
        alpha, beta = self.alpha.unsqueeze(2), self.beta.unsqueeze(2)
        residual = torch.ones_like(alpha[:, 0] * eigenvalues)
        solution, step = torch.zeros_like(residual), residual
        for k in range(alpha.size(1)):
            step = residual + beta[:, k - 1] * step if k else residual
            solution = solution + alpha[:, k] * step
            residual = residual - alpha[:, k] * eigenvalues * step
        return solution

    def error(self, eigenvalues: Tensor) -> Tensor:
        r"""The polynomial :math:`q`, of degree :math:`K`: the share of the
        start's error that remains.

        Args:
            eigenvalues (torch.Tensor): See :meth:`solution`.

        Returns:
            Its values :math:`(T, M, H)`.
        """
        return 1 - eigenvalues.double() * self.solution(eigenvalues)

    def denoising(
        self, eigenvalues: Tensor, degree: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        r"""Gains of a layer without a mask, and of the exact solution, on the
        eigenvectors of the Laplacian :math:`\mathbf{L}` itself.

        .. math::
            h(\ell) = 1 - s \left( \frac{1 + \mu p}{1 + \mu d} \right)
            \frac{\mu p}{1 + \mu d}, \qquad h^{*}(\ell) = \frac{1}{1 + \mu p},

        with :math:`p = \ell`, or :math:`\ell^2 / d` for :obj:`order=2`. It is
        exact where all degrees are :math:`d`; learned graphs with
        :obj:`'sym'` normalization come near, with :math:`d = 1`. Of
        :class:`~pyg_unroll.nn.GTVConv` it holds for differences below the
        threshold.

        Args:
            eigenvalues (torch.Tensor): Eigenvalues :math:`\ell` of the
                Laplacian, at most :math:`2 d`, :math:`(M)`.
            degree (float, optional): The degree :math:`d`.
                (default: :obj:`1.0`)

        Returns:
            Gains of the layer and of the exact solution, both
            :math:`(T, M, H)`.
        """
        eigenvalues = eigenvalues.double().view(-1, 1)
        prior = eigenvalues
        if self.order == 2:
            prior = eigenvalues.square() / degree
        mu = self.mu.unsqueeze(1)
        diagonal = 1 + mu * degree
        solution = self.solution((1 + mu * prior) / diagonal)
        return 1 - solution * mu * prior / diagonal, 1 / (1 + mu * prior)

    def plot(self, axes: Any = None, denoising: bool = False) -> Any:
        """Draws the filter of each head next to the exact solution's, and
        the share of the start's error that remains.

        Args:
            axes (sequence of matplotlib axes, optional): Two of them, see
                :meth:`Trace.plot`. (default: :obj:`None`)
            denoising (bool, optional): Draw :meth:`denoising` rather than
                :meth:`solution`. (default: :obj:`False`)
        """
        axes = make_axes(axes, 1, 2)
        left, right = axes[0]
        device, end = self.alpha.device, 2.0**self.order
        grid = torch.linspace(0, end, 201, device=device)[1:, None]
        error, gain = self.error(grid).abs(), self.solution(grid)
        across, exact = grid, 1 / grid.expand_as(gain)
        name, eigenvalue, of = 's', r'\lambda', 'D^{-1} A'
        if denoising:
            across = torch.linspace(0, 2, 201, device=device)[:, None]
            gain, exact = self.denoising(across)
            name, eigenvalue, of = 'h', r'\ell', 'L'
        for t, head in np.ndindex(*gain.shape[::2]):
            label = f'head {head}'
            if len(gain) > 1:
                label += f', iteration {t + 1}'
            style = {'color': f'C{head}', 'alpha': 1 - 0.7 * t / len(gain)}
            column = (t, slice(None), head)
            left.plot(across.cpu(), gain[column].cpu(), label=label, **style)
            right.plot(grid.cpu(), error[column].cpu(), **style)
            label = '' if t or head else 'exact solution'
            style = {'color': 'grey', 'linestyle': '--'}
            left.plot(across.cpu(), exact[column].cpu(), label=label, **style)
        left.set(
            ylim=(min(0, float(gain.min())), 1.15 * float(gain.max())),
            xlabel=f'eigenvalue ${eigenvalue}$ of ${of}$',
            title=f'gain ${name}({eigenvalue})$',
        )
        left.legend(fontsize='small')
        right.set(
            ylim=(0, None),
            xlabel=r'eigenvalue $\lambda$ of $D^{-1} A$',
            title=r"share of the start's error, $|q(\lambda)|$",
        )
        return axes


@torch.no_grad()
def spectral_response(layer: GLRConv | GTVConv) -> SpectralResponse:
    r"""The exact polynomials that the learned :math:`\alpha_k, \beta_k` of a
    layer apply, from the coefficients alone.

    Args:
        layer (GLRConv or GTVConv): The layer.

    Returns:
        The polynomials per head, see :class:`SpectralResponse`.

    Raises:
        ValueError: If it is another module.
    """
    if not isinstance(layer, GLRConv | GTVConv):
        raise ValueError(
            f"'layer' must be a 'GLRConv' or 'GTVConv' (got "
            f"'{type(layer).__name__}'); of a model, take one of its layers, "
            f"as in 'model.blocks[0].conv'"
        )
    # Detached: a parameter that is in double precision comes back as itself.
    alpha, beta = layer.alpha.detach().double(), layer.beta.detach().double()
    mu = layer.log_mu.double().exp().unsqueeze(0)
    if isinstance(layer, GTVConv):
        mu = mu * layer.log_rho.double().exp() / 2
    else:
        alpha, beta = alpha.unsqueeze(0), beta.unsqueeze(0)
    return SpectralResponse(alpha, beta, mu, getattr(layer, 'order', 1))


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
