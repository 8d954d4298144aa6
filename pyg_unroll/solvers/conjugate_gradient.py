"""Conjugate gradients to a tolerance, with implicit derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.system import LaplacianSystem
from pyg_unroll.solvers.result import warn_unconverged

# Steps between looks at the residual: each look synchronises a device.
_CHECK_EVERY = 8


def conjugate_gradient(
    system: LaplacianSystem,
    residual: Tensor,
    tol: float,
    max_steps: int,
    scale: Tensor | None = None,
) -> tuple[Tensor, float, int]:
    r"""Solves :math:`A x = r` by Jacobi-preconditioned conjugate gradients.

    All columns run together; a column that has reached the tolerance is
    frozen.

    Args:
        system (LaplacianSystem): The operator :math:`A`.
        residual (torch.Tensor): Right-hand side :math:`(N, F, H)`.
        tol (float): Tolerance of the residual in the norm
            :math:`\|r\|_{D^{-1}}`, relative to :obj:`scale`.
        max_steps (int): Largest number of steps.
        scale (torch.Tensor, optional): Reference norm of each column,
            :math:`(1, F, H)`; that of :obj:`residual` if :obj:`None`.
            (default: :obj:`None`)

    Returns:
        The solution, the largest relative residual and the number of steps.
    """
    x = torch.zeros_like(residual)
    z = system.precondition(residual)
    energy = (residual * z).sum(0, keepdim=True)
    reference = energy.sqrt() if scale is None else scale
    direction = z
    num_steps = 0

    def error() -> Tensor:
        tiny = torch.finfo(energy.dtype).tiny
        return energy.clamp(min=0).sqrt() / reference.clamp(min=tiny**0.5)

    while num_steps < max_steps:
        active = error() > tol
        if num_steps % _CHECK_EVERY == 0 and not bool(active.any()):
            break
        image = system(direction)
        curvature = (direction * image).sum(0, keepdim=True)
        active = active & (curvature > 0)
        step = torch.where(
            active, energy / torch.where(active, curvature, 1), 0
        )
        x = x + step * direction
        residual = residual - step * image
        z = system.precondition(residual)
        previous = torch.where(energy > 0, energy, 1)
        updated = (residual * z).sum(0, keepdim=True)
        direction = z + updated / previous * direction
        energy = torch.where(active, updated, energy)
        num_steps += 1
    return x, float(error().max()) if energy.numel() else 0.0, num_steps


class ImplicitSolve(torch.autograd.Function):
    r"""The solution of :math:`A x = b`, differentiated without the steps.

    With :math:`g = A^{-1} \partial x`, one more solve, the vector-Jacobian
    product is :math:`\partial b = g`, :math:`\partial w = -\langle g, \partial
    P x \rangle` and :math:`\partial c = -g x`. It is written with this function
    itself, hence any order of derivative exists.
    """

    @staticmethod
    def forward(
        ctx: Any,
        topology: Topology,
        free: Tensor | None,
        order: int,
        tol: float,
        max_steps: int,
        report: dict[str, Any],
        weight: Tensor,
        confidence: Tensor | None,
        b: Tensor,
    ) -> Tensor:
        """Runs the solver and reports how it went into `report`."""
        system = LaplacianSystem.build(
            topology, weight, confidence, free, order
        )
        x, residual, num_steps = conjugate_gradient(
            system, system.restrict(b), tol, max_steps
        )
        report.update(residual=residual, num_steps=num_steps)
        ctx.settings = topology, free, order, tol, max_steps
        ctx.save_for_backward(weight, confidence, x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Solves once more, for the adjoint."""
        topology, free, order, tol, _ = ctx.settings
        weight, confidence, x = ctx.saved_tensors
        report: dict[str, Any] = {}
        g = ImplicitSolve.apply(
            *ctx.settings, report, weight, confidence, grads[0]
        )
        if report['residual'] > tol:
            warn_unconverged('glr (backward)', **report, tol=tol)
        grad_weight = grad_confidence = None
        if ctx.needs_input_grad[6]:
            system = LaplacianSystem.build(
                topology, weight, confidence, free, order
            )
            grad_weight = -system.weight_derivative(g, x)
        if ctx.needs_input_grad[7]:
            grad_confidence = (-g * x).sum_to_size(confidence.shape)
        return (None,) * 6 + (grad_weight, grad_confidence, g)
