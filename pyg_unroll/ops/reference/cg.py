"""A step of conjugate gradients in plain PyTorch."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.reference.operators import edge_dot, laplacian


class Matrix(NamedTuple):
    r"""The matrix :math:`A = P + \mathrm{diag}(c)` and its preconditioner, with
    the prior :math:`P = L_w`, or of second order :math:`L_w D_w^{-1} L_w`.
    """

    topology: Topology
    weight: Tensor  # [E, H]
    diagonal: Tensor  # D, infinite at held entries, [N, 1, H] or [N, F, H]
    confidence: Tensor | None = None  # of such a shape, or zero
    degree: Tensor | None = None  # D_w of second order, [N, 1, H]


@dataclass
class Adjoint:
    """Derivatives on the way back through the steps, which change them."""

    x: Tensor  # [N, F, H], never changed; all but it and the next in place
    residual: Tensor  # q
    direction: Tensor  # g
    weight: Tensor  # sum of those by w, [E, H]
    diagonal: Tensor  # sum of -D times those by D, [N, F, H]
    # Sums of those by c and by D_w, if there are such, [N, F, H].
    confidence: Tensor | None = None
    degree: Tensor | None = None


def mean_difference(a: Matrix, x: Tensor) -> Tensor:
    r""":math:`D_w^{-1} L_w x`, or of first order :math:`x` itself."""
    if a.degree is None:
        return x
    return laplacian(a.topology, a.weight, x) / a.degree


def _product(a: Matrix, x: Tensor, mean: Tensor) -> Tensor:
    image = laplacian(a.topology, a.weight, mean)
    if a.confidence is not None:
        image += a.confidence * x
    return image


def cg_step(
    a: Matrix, x: Tensor, residual: Tensor, v: Tensor, scalars: Tensor
) -> Tensor:
    r"""One step of conjugate gradients, :obj:`x` and :obj:`residual` in place.

    .. math::
        r &\leftarrow r - \alpha A v

        v' &= D^{-1} r + \beta v

        x &\leftarrow x + \alpha' v'

    The scalars :math:`(3, H)` are :math:`\alpha` of the step that is completed,
    :math:`\beta` and :math:`\alpha'`. Returns the next direction :math:`v'`.
    """
    alpha, beta, alpha_next = scalars
    residual -= alpha * _product(a, v, mean_difference(a, v))
    new = residual / a.diagonal + beta * v
    x += alpha_next * new
    return new


def cg_step_backward(
    a: Matrix, adjoint: Adjoint, v: Tensor, u: Tensor, scalars: Tensor
) -> Tensor:
    r"""The adjoint of :func:`cg_step`, from one step to the one before it.

    With :math:`q` the derivative by the residual after the step and :math:`g`
    that by the direction :math:`v'`:

    .. math::
        g &\leftarrow \beta g + \alpha (\partial x - A q)

        q &\leftarrow q + D^{-1} g

    The direction before :math:`v` is :math:`u`, any one at the first step. The
    scalars :math:`(3, H)` are :math:`\alpha`, :math:`\beta`, and :math:`\beta`
    of the step before, zero at the first. Returns the derivatives by
    :math:`\alpha` and by :math:`\beta` of the step before, :math:`(2, H)`.
    """
    alpha, beta, beta_previous = scalars
    q = adjoint.residual
    mean_q, mean_v = mean_difference(a, q), mean_difference(a, v)
    adjoint.weight -= alpha * edge_dot(a.topology, q, mean_v)
    if adjoint.degree is not None:
        adjoint.weight -= alpha * edge_dot(a.topology, mean_q, v)
        adjoint.degree += alpha * mean_q * mean_v
    if adjoint.confidence is not None:
        adjoint.confidence -= alpha * q * v
    slope = adjoint.x - _product(a, q, mean_q)
    g = adjoint.direction.mul_(beta).add_(alpha * slope)
    adjoint.diagonal += g * (v - beta_previous * u)
    adjoint.residual = q + g / a.diagonal
    return torch.stack([(slope * v).sum((0, 1)), (g * u).sum((0, 1))])
