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
from pyg_unroll.solvers.problem import Parts, check_convergence, power_of_two
from pyg_unroll.solvers.spanning_tree import caution, solve_by_trees

# Squares of numbers between it and its inverse neither vanish nor overflow.
# Others are divided by a power of two, which changes no bits.
_LEAST = 1e-12


def conjugate_gradient(
    system: LaplacianSystem,
    residual: Tensor,
    tol: float,
    max_steps: int,
    preconditioner: Preconditioner | None = None,
    part: Tensor | None = None,
) -> tuple[Tensor, float, int]:
    """See :func:`.reference.solve.conjugate_gradient`, for a residual that
    vanishes at held entries; each connected part, of these numbers
    :math:`(N, H)`, is solved in a unit of its own.
    """
    if residual.numel() == 0:
        return residual.clone(), 0.0, 0
    (residual,) = numbers(residual)
    unit, share = None, 1.0
    if part is None or (parts := Parts.of(part)).total == 1:
        size = torch.maximum(-residual.amin(0), residual.amax(0))
        is_safe = (size == 0) | ((size > _LEAST) & (size < 1 / _LEAST))
        if not bool(is_safe.all()):
            unit = power_of_two(size)
            residual = residual / unit
    else:
        size = parts.spread(parts.reduce(residual.abs(), 'amax'))
        unit = power_of_two(size)
        square = (residual / unit).square() / system.diagonal
        norm = parts.reduce(square, 'sum').sqrt()
        unit = unit * parts.spread(power_of_two(norm))
        # The residual of all may be that of one of them.
        residual, share = residual / unit, parts.total**0.5
        unit = torch.where(size > 0, unit, 0)
    run = kernels('solve', residual).conjugate_gradient
    rest = tol / share, max_steps, preconditioner
    x, error, num_steps = run(as_numbers(system), residual, *rest)
    return x if unit is None else x * unit, error * share, num_steps


class Settings(NamedTuple):
    """The system of some weights, confidence and free entries, and the effort
    to solve it.
    """

    system: Callable[[Tensor, Tensor | None, Tensor | None], LaplacianSystem]
    tol: float
    max_steps: int
    preconditioner: Preconditioner | None = None
    unit: float = 0.0  # size of the solution relative to which it is judged


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
        part: Tensor,
        b: Tensor,
    ) -> tuple[Tensor, float, int]:
        """Returns what :func:`conjugate_gradient` does."""
        system = settings.system(weight, confidence, free)
        _, tol, max_steps, preconditioner, unit = settings
        b, factor = system.restrict(b), 1.0
        if b.numel() and (factor := caution(system)) == torch.inf:
            return solve_by_trees(system, b, tol, max_steps, unit)
        effort = tol / factor, max_steps, preconditioner, part
        x, error, num_steps = conjugate_gradient(system, b, *effort)
        return x, error * factor, num_steps

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
        settings: Settings = ctx.settings._replace(unit=0.0)
        weight, confidence, free, _, x = ctx.saved_tensors
        solve = partial(ImplicitSolve.apply, settings)
        g, residual, num_steps = on_batch(solve, *ctx.saved_tensors[:4], grad)
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
        return None, grad_weight, grad_confidence, None, None, g
