"""Conjugate gradients to a tolerance in plain PyTorch."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyg_unroll.ops.backend import kernels
from pyg_unroll.ops.reference.cg import Matrix, product

# Approximate inverse of a matrix, symmetric positive definite.
Preconditioner: TypeAlias = Callable[[Tensor], Tensor]

# Steps between looks at the residual, each of which synchronises a device.
_CHECK_EVERY = 8


class Steps(NamedTuple):
    """The three passes of a step; they take sums over the columns."""

    # A v and <v, A v>.
    product: Callable[[Matrix, Tensor], tuple[Tensor, Tensor]]
    # x + s v and r - s A v in place, and <r, r / D>.
    advance: Callable[..., Tensor]
    # r / D + m v in place of v.
    turn: Callable[..., None]


def _measured(a: Matrix, v: Tensor) -> tuple[Tensor, Tensor]:
    image = product(a, v, kernels('operators', v).laplacian)
    return image, _dot(v, image)


def advance(
    a: Matrix,
    x: Tensor,
    residual: Tensor,
    v: Tensor,
    image: Tensor,
    step: Tensor,
) -> Tensor:
    """See :class:`Steps`."""
    x.addcmul_(v, step)
    residual.addcmul_(image, step, value=-1)
    return _dot(residual, residual / a.diagonal)


def turn(a: Matrix, v: Tensor, residual: Tensor, momentum: Tensor) -> None:
    """See :class:`Steps`."""
    v.mul_(momentum).add_(residual / a.diagonal)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products of columns, `[1, F, H]`."""
    return (a * b).sum(0, keepdim=True)


_STEPS = Steps(_measured, advance, turn)


def conjugate_gradient(
    a: Matrix,
    residual: Tensor,
    tol: float,
    max_steps: int,
    preconditioner: Preconditioner | None = None,
    steps: Steps = _STEPS,
) -> tuple[Tensor, float, int]:
    r"""Solves :math:`A x = r`; returns also the largest relative residual and
    the number of steps.

    All columns of the right-hand side :math:`(N, F, H)`, zero at held entries,
    run together; one is frozen when its residual in the norm
    :math:`\|r\|_{D^{-1}}` has reached the tolerance, relative to the first.
    Of held entries, where :math:`D` is infinite, the residual means nothing.
    """
    x, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    residual = residual.clone()  # changed in place, as all
    nothing = residual.new_zeros((1, *residual.shape[1:]))
    norm = steps.advance(a, x, residual, direction, direction, nothing)
    reference = norm.clamp(min=0).sqrt()

    def error() -> Tensor:
        tiny = torch.finfo(norm.dtype).tiny
        return norm.clamp(min=0).sqrt() / reference.clamp(min=tiny**0.5)

    # A look costs little on the CPU and beside another preconditioner.
    is_cheap = preconditioner is not None or x.device.type == 'cpu'
    check_every = 1 if is_cheap else _CHECK_EVERY
    energy, num_steps = nothing, 0
    while num_steps < max_steps:
        active = error() > tol
        if num_steps % check_every == 0 and not bool(active.any()):
            break
        previous, energy = torch.where(energy > 0, energy, 1), norm
        if preconditioner is None:
            steps.turn(a, direction, residual, energy / previous)
        else:
            z = preconditioner(residual)
            energy = _dot(residual, z)
            direction.mul_(energy / previous).add_(z)
        image, curvature = steps.product(a, direction)
        active = active & (curvature > 0)
        curvature = torch.where(active, curvature, 1)
        step = torch.where(active, energy / curvature, 0)
        latest = steps.advance(a, x, residual, direction, image, step)
        norm = torch.where(active, latest, norm)
        num_steps += 1
    return x, float(error().max()), num_steps
