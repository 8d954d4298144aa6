"""A step of conjugate gradients in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.reference.operators import edge_dot, laplacian


class Matrix(NamedTuple):
    r"""The matrix :math:`A = P + \mathrm{diag}(c)` and its preconditioner, with
    the prior :math:`P = L_w`, or of second order :math:`L_w D_w^{-1} L_w`.

    Attributes:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`w`, :math:`(E, H)`.
        diagonal (torch.Tensor): Preconditioner :math:`D`, infinite at held
            entries, :math:`(N, 1, H)` or :math:`(N, F, H)`.
        confidence (torch.Tensor or None): :math:`c`, of such a shape; zero
            if :obj:`None`.
        degree (torch.Tensor or None): :math:`D_w`, infinite at isolated
            nodes, :math:`(N, 1, H)`, of a prior of second order.
    """

    topology: Topology
    weight: Tensor
    diagonal: Tensor
    confidence: Tensor | None = None
    degree: Tensor | None = None


@dataclass
class Adjoint:
    r"""Derivatives on the way back through the steps, which change them.

    Attributes:
        x (torch.Tensor): By :math:`x`, :math:`(N, F, H)`; never changed.
        residual (torch.Tensor): By the residual, :math:`q`.
        direction (torch.Tensor): By the direction, :math:`g`; in place.
        weight (torch.Tensor): Sum of those by :math:`w`, :math:`(E, H)`; in
            place.
        diagonal (torch.Tensor): Sum of :math:`-D \, \partial D`,
            :math:`(N, F, H)`; in place.
        confidence (torch.Tensor or None): Sum of those by :math:`c`,
            :math:`(N, F, H)`, if there is one; in place.
        degree (torch.Tensor or None): Sum of those by :math:`D_w`, likewise.
    """

    x: Tensor
    residual: Tensor
    direction: Tensor
    weight: Tensor
    diagonal: Tensor
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

    Args:
        a (Matrix): :math:`A` and :math:`D`.
        x (torch.Tensor): Estimate :math:`(N, F, H)`.
        residual (torch.Tensor): :math:`r`, :math:`(N, F, H)`.
        v (torch.Tensor): Direction :math:`(N, F, H)`.
        scalars (torch.Tensor): :math:`\alpha` of the step that is completed,
            :math:`\beta` and :math:`\alpha'`, :math:`(3, H)`.

    Returns:
        The next direction :math:`v'`.
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

    Args:
        a (Matrix): :math:`A` and :math:`D`.
        adjoint (Adjoint): The derivatives, changed.
        v (torch.Tensor): Direction :math:`(N, F, H)`.
        u (torch.Tensor): The direction before it; any one at the first step.
        scalars (torch.Tensor): :math:`\alpha`, :math:`\beta`, and
            :math:`\beta` of the step before, zero at the first step,
            :math:`(3, H)`.

    Returns:
        Derivatives by :math:`\alpha` and by :math:`\beta` of the step before,
        :math:`(2, H)`.
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
