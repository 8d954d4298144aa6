"""The solvers' steps in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops.reference.operators import (
    edge_dot,
    laplacian,
    to_edges,
    to_nodes,
)


def cg_step(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    residual: Tensor,
    direction: Tensor,
    alpha: Tensor,
    beta: Tensor,
    alpha_next: Tensor,
) -> Tensor:
    r"""One step of conjugate gradients, :obj:`x` and :obj:`residual` in place.

    .. math::
        r &\leftarrow r - \alpha (L + \mathrm{diag}(c)) v

        v' &= D^{-1} r + \beta v

        x &\leftarrow x + \alpha' v'

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        diagonal (torch.Tensor): :math:`D`, infinite at held entries,
            :math:`(N, 1, H)` or :math:`(N, F, H)`.
        confidence (torch.Tensor or None): :math:`c`, of such a shape.
        x (torch.Tensor): Estimate :math:`(N, F, H)`.
        residual (torch.Tensor): :math:`r`, :math:`(N, F, H)`.
        direction (torch.Tensor): :math:`v`, :math:`(N, F, H)`.
        alpha (torch.Tensor): :math:`(H)`, of the step that is completed.
        beta (torch.Tensor): :math:`(H)`.
        alpha_next (torch.Tensor): :math:`\alpha'`, :math:`(H)`.

    Returns:
        The next direction :math:`v'`.
    """
    image = laplacian(graph, weight, direction)
    if confidence is not None:
        image += confidence * direction
    residual -= alpha * image
    new = residual / diagonal + beta * direction
    x += alpha_next * new
    return new


def cg_step_backward(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    q: Tensor,
    direction: Tensor,
    previous: Tensor | None,
    grad_direction: Tensor,
    grad_x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    beta_previous: Tensor,
    grad_weight: Tensor,
    sum_diagonal: Tensor,
    sum_confidence: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The adjoint of :func:`cg_step`, from one step to the one before it.

    With :math:`q` the derivative by the residual after the step and :math:`g`
    that by the direction :math:`v'`:

    .. math::
        g &\leftarrow \beta g + \alpha (\partial x - A q)

        q' &= q + D^{-1} g

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        diagonal (torch.Tensor): As in :func:`cg_step`.
        confidence (torch.Tensor or None): As in :func:`cg_step`.
        q (torch.Tensor): :math:`(N, F, H)`.
        direction (torch.Tensor): :math:`v`, :math:`(N, F, H)`.
        previous (torch.Tensor or None): The direction before :math:`v`.
        grad_direction (torch.Tensor): :math:`g`, changed in place.
        grad_x (torch.Tensor): :math:`\partial x`, :math:`(N, F, H)`.
        alpha (torch.Tensor): :math:`(H)`.
        beta (torch.Tensor): :math:`(H)`.
        beta_previous (torch.Tensor): Of the step before, :math:`(H)`.
        grad_weight (torch.Tensor): Accumulates :math:`\partial w`.
        sum_diagonal (torch.Tensor): Accumulates :math:`-D \, \partial D`.
        sum_confidence (torch.Tensor or None): Accumulates
            :math:`\partial c`.

    Returns:
        :math:`q'`, and the derivatives by :obj:`alpha` and
        :obj:`beta_previous`, :math:`(H)`.
    """
    image = laplacian(graph, weight, q)
    if confidence is not None:
        image += confidence * q
    grad_weight -= alpha * edge_dot(graph, q, direction)
    if sum_confidence is not None:
        sum_confidence -= alpha * q * direction
    slope = grad_x - image
    grad_direction.mul_(beta).add_(alpha * slope)
    change, dot_beta = direction, torch.zeros_like(beta)
    if previous is not None:
        change = direction - beta_previous * previous
        dot_beta = (grad_direction * previous).sum((0, 1))
    sum_diagonal += grad_direction * change
    dot_alpha = (slope * direction).sum((0, 1))
    return q + grad_direction / diagonal, dot_alpha, dot_beta


def admm_step(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""The part of an iteration of ADMM along the edges.

    With the weighted gradient :math:`g = W B x`:

    .. math::
        p &= q + \rho_{-} g

        t &= g + a (\mathrm{shrink}(g + p / \rho, 1 / \rho) - g)

        b &= B^{\top} W (t - p / \rho), \qquad q' = p - \rho t

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        x (torch.Tensor): Estimate :math:`(N, F, H)`.
        dual (torch.Tensor): :math:`q`, :math:`(E, F, H)`.
        rho_previous (torch.Tensor): :math:`\rho_{-}`, the penalty of the
            iteration before (zero if :math:`q` is :math:`p`), :math:`(H)`.
        rho (torch.Tensor): Penalty, :math:`(H)`.
        relaxation (torch.Tensor): Over-relaxation :math:`a`, :math:`(H)`.

    Returns:
        The right-hand side :math:`b` and :math:`q'`.
    """
    *_, p, _, target = _edge_state(
        graph, weight, x, dual, rho_previous, rho, relaxation
    )
    flow = weight.unsqueeze(1) * (target - p / rho)
    return to_nodes(graph, flow, signed=True), p - rho * target


def admm_step_backward(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
    grad_b: Tensor,
    grad_dual: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""The adjoint of :func:`admm_step`.

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): As in :func:`admm_step`, and so on.
        x (torch.Tensor): The same.
        dual (torch.Tensor): The same.
        rho_previous (torch.Tensor): The same.
        rho (torch.Tensor): The same.
        relaxation (torch.Tensor): The same.
        grad_b (torch.Tensor): Derivative by :math:`b`.
        grad_dual (torch.Tensor): Derivative by :math:`q'`.

    Returns:
        Derivatives by :obj:`weight`, :obj:`x`, :obj:`dual`,
        :obj:`rho_previous`, :obj:`rho` and :obj:`relaxation`.
    """
    w = weight.unsqueeze(1)
    d, flow, s, clamped, p, excess, target = _edge_state(
        graph, weight, x, dual, rho_previous, rho, relaxation
    )
    slope = to_edges(graph, grad_b, signed=True)
    grad_u = w * slope
    grad_target = grad_u - rho * grad_dual
    grad_s = torch.where(s == clamped, 0, relaxation * grad_target)
    grad_p = grad_dual + (grad_s - grad_u) / rho
    grad_flow = (1 - relaxation) * grad_target + grad_s + rho_previous * grad_p
    grad_weight = ((target - p / rho) * slope + grad_flow * d).sum(1)
    grad_rho = (
        grad_s * clamped / rho
        + (grad_u - grad_s) * p / rho**2
        - target * grad_dual
    )
    grad_x = to_nodes(graph, w * grad_flow, signed=True)
    sums = (grad_p * flow, grad_rho, grad_target * excess)
    grads = [value.sum((0, 1)) for value in sums]
    return grad_weight, grad_x, grad_p, grads[0], grads[1], grads[2]


def _edge_state(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, ...]:
    d = to_edges(graph, x, signed=True)
    flow = weight.unsqueeze(1) * d
    p = dual + rho_previous * flow
    s = flow + p / rho
    clamped = s.clamp(-1 / rho, 1 / rho)
    excess = s - clamped - flow
    return d, flow, s, clamped, p, excess, flow + relaxation * excess
