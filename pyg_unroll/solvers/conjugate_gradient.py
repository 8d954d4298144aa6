"""Conjugate gradients to a tolerance, with implicit derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyg_unroll.ops.backend import kernels, numbers
from pyg_unroll.ops.cg import LaplacianSystem, as_numbers
from pyg_unroll.ops.reference.solve import Preconditioner
from pyg_unroll.ops.registry import differentiate, on_batch, on_heads
from pyg_unroll.solvers.problem import check_convergence


def conjugate_gradient(
    system: LaplacianSystem,
    residual: Tensor,
    tol: float,
    max_steps: int,
    preconditioner: Preconditioner | None = None,
) -> tuple[Tensor, float, int]:
    """See :func:`.reference.solve.conjugate_gradient`, for a residual that
    vanishes at held entries.
    """
    if residual.numel() == 0:
        return residual.clone(), 0.0, 0
    (residual,) = numbers(residual)
    run = kernels('solve', residual).conjugate_gradient
    out: tuple[Tensor, float, int]
    out = run(as_numbers(system), residual, tol, max_steps, preconditioner)
    return out


class Settings(NamedTuple):
    """The system of some weights, confidence and free entries, and the effort
    to solve it.
    """

    system: Callable[[Tensor, Tensor | None, Tensor | None], LaplacianSystem]
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
        settings: Settings,
        weight: Tensor,
        confidence: Tensor | None,
        free: Tensor | None,
        b: Tensor,
    ) -> tuple[Tensor, float, int]:
        """Returns what :func:`conjugate_gradient` does."""
        system = settings.system(weight, confidence, free)
        return conjugate_gradient(system, system.restrict(b), *settings[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves the system and the solution."""
        ctx.settings, *system, _ = inputs
        ctx.save_for_backward(*system, output[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, settings: Settings, *operands: Any
    ) -> Any:
        """Adds the samples to the heads."""
        solve = partial(ImplicitSolve.apply, settings)
        return on_heads(in_dims[1:], info.batch_size)(solve, *operands), -2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
        """Solves once more, for the adjoint."""
        settings: Settings = ctx.settings
        weight, confidence, free, x = ctx.saved_tensors
        solve = partial(ImplicitSolve.apply, settings)
        g, residual, num_steps = on_batch(solve, *ctx.saved_tensors[:3], grad)
        check_convergence('glr (backward)', residual, num_steps, settings.tol)
        grad_weight = grad_confidence = None
        _, needs_weight, needs_confidence, *_ = ctx.needs_input_grad
        if needs_weight:
            with torch.enable_grad():
                (grad_weight,) = differentiate(
                    lambda w: (settings.system(w, confidence, free).prior(x),),
                    [weight],
                    (-g,),
                )
        if needs_confidence:
            grad_confidence = (-g * x).sum_to_size(confidence.shape)
        return None, grad_weight, grad_confidence, None, g
