"""Conjugate gradients to a tolerance, with implicit derivatives."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyg_unroll.ops.backend import differentiate
from pyg_unroll.ops.system import LaplacianSystem
from pyg_unroll.solvers.problem import check_convergence

# Approximate inverse of the operator, symmetric positive definite.
Preconditioner: TypeAlias = Callable[[Tensor], Tensor]

# Steps between looks at the residual: each look synchronises a device.
_CHECK_EVERY = 8


def conjugate_gradient(
    system: LaplacianSystem,
    residual: Tensor,
    tol: float,
    max_steps: int,
    preconditioner: Preconditioner | None = None,
) -> tuple[Tensor, float, int]:
    r"""Solves :math:`A x = r`; returns also the largest relative residual and
    the number of steps.

    All columns of the right-hand side :math:`(N, F, H)` run together; one is
    frozen when its residual in the norm :math:`\|r\|_{D^{-1}}` has reached
    the tolerance, relative to the first.
    """
    x = torch.zeros_like(residual)
    residual = residual.clone()  # changed in place, as all below
    z = torch.empty_like(residual)

    def update() -> tuple[Tensor, Tensor]:
        # Energy of the preconditioned residual, and its squared norm.
        torch.div(residual, system.diagonal, out=z)
        norm = _dot(residual, z)
        if preconditioner is None:
            return norm, norm
        z.copy_(preconditioner(residual))
        return _dot(residual, z), norm

    energy, norm = update()
    reference = norm.clamp(min=0).sqrt()
    direction = z.clone()
    num_steps = 0
    # A look costs little beside another preconditioner.
    check_every = _CHECK_EVERY if preconditioner is None else 1

    def error() -> Tensor:
        tiny = torch.finfo(norm.dtype).tiny
        return norm.clamp(min=0).sqrt() / reference.clamp(min=tiny**0.5)

    while num_steps < max_steps:
        active = error() > tol
        if num_steps % check_every == 0 and not bool(active.any()):
            break
        image = system(direction)
        curvature = _dot(direction, image)
        active = active & (curvature > 0)
        curvature = torch.where(active, curvature, 1)
        step = torch.where(active, energy / curvature, 0)
        x.addcmul_(direction, step)
        residual.addcmul_(image, step, value=-1)
        previous = torch.where(energy > 0, energy, 1)
        updated, latest = update()
        direction.mul_(updated / previous).add_(z)
        energy = torch.where(active, updated, energy)
        norm = torch.where(active, latest, norm)
        num_steps += 1
    return x, float(error().max()) if norm.numel() else 0.0, num_steps


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of columns, `[1, F, H]`."""
    if a[:1].numel() == 1:
        return torch.dot(a.flatten(), b.flatten()).view(1, 1, 1)
    return (a * b).sum(0, keepdim=True)


class Settings(NamedTuple):
    """The system of some weights and confidence, and the effort to solve it."""

    system: Callable[[Tensor, Tensor | None], LaplacianSystem]
    tol: float
    max_steps: int
    preconditioner: Preconditioner | None = None


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
        settings: Settings,
        weight: Tensor,
        confidence: Tensor | None,
        b: Tensor,
    ) -> tuple[Tensor, float, int]:
        """Returns what :func:`conjugate_gradient` does."""
        system = settings.system(weight, confidence)
        x, residual, num_steps = conjugate_gradient(
            system, system.restrict(b), *settings[1:]
        )
        ctx.settings = settings
        ctx.save_for_backward(weight, confidence, x)
        return x, residual, num_steps

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
        """Solves once more, for the adjoint."""
        settings: Settings = ctx.settings
        weight, confidence, x = ctx.saved_tensors
        g, residual, num_steps = ImplicitSolve.apply(
            settings, weight, confidence, grad
        )
        check_convergence('glr (backward)', residual, num_steps, settings.tol)
        grad_weight = grad_confidence = None
        _, needs_weight, needs_confidence, _ = ctx.needs_input_grad
        if needs_weight:
            with torch.enable_grad():
                (grad_weight,) = differentiate(
                    lambda w: (settings.system(w, confidence).prior(x),),
                    [weight],
                    (-g,),
                )
        if needs_confidence:
            grad_confidence = (-g * x).sum_to_size(confidence.shape)
        return None, grad_weight, grad_confidence, g
