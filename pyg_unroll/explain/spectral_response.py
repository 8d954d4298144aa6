"""Polynomial filters of the learned coefficients of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.explain.figure import make_axes
from pyg_unroll.nn import GLRConv, GTVConv


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
        r"""Draws the filter of each head next to the exact solution's, and
        the share of the start's error that remains.

        Args:
            axes (sequence of matplotlib axes, optional): Two of them.
                (default: :obj:`None`)
            denoising (bool, optional): Draw :meth:`denoising` rather than
                :meth:`solution`. (default: :obj:`False`)

        Returns:
            The two axes, an array with one row.

        Raises:
            ImportError: If matplotlib (extra :obj:`viz`) is missing.
        """
        axes = make_axes(axes, 1, 2)
        left, right = axes[0]
        device = self.alpha.device
        grid = torch.linspace(0, 2.0**self.order, 201, device=device)
        ells = grid = grid[1:, None]
        error = self.error(grid).abs()
        gain, exact = self.solution(grid), 1 / grid.expand_as(error)
        name, eigenvalue, of = 's', r'\lambda', 'D^{-1} A'
        if denoising:
            ells = torch.linspace(0, 2, 201, device=device)[:, None]
            gain, exact = self.denoising(ells)
            name, eigenvalue, of = 'h', r'\ell', 'L'
        solves, _, heads = gain.shape
        across, under, gains, errors, exacts = (
            values.detach().cpu().numpy()
            for values in (ells, grid, gain, error, exact)
        )
        for t, head in product(range(solves), range(heads)):
            label = f'head {head}'
            if solves > 1:
                label += f', iteration {t + 1}'
            style = {'color': f'C{head}', 'alpha': 1 - 0.7 * t / solves}
            left.plot(across, gains[t, :, head], label=label, **style)
            right.plot(under, errors[t, :, head], **style)
            label = '' if t or head else 'exact solution'
            left.plot(
                across, exacts[t, :, head], '--', color='grey', label=label
            )
        left.set(
            ylim=(min(0, float(gain.min())), 1.15 * float(gain.max())),
            xlabel=f'eigenvalue ${eigenvalue}$ of ${of}$',
            title=f'gain ${name}({eigenvalue})$',
        )
        left.legend(fontsize='small')
        right.set_ylim(0)
        right.set(
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
