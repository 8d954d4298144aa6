"""The solvers' steps by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops.cuda import admm_kernels, cg_kernels
from pyg_unroll.ops.cuda.launch import (
    Launch,
    check_in_place,
    contiguous,
    csr,
    expand_diagonals,
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
    """See :func:`.reference.cg_step`."""
    check_in_place(x, residual)
    weight, direction = contiguous(weight, direction)
    diagonals, meta = expand_diagonals(diagonal, confidence, x.size(2))
    out = torch.empty_like(direction)
    scalars = contiguous(alpha, beta, alpha_next)
    arrays = (weight, *diagonals, x, residual, direction, out, *scalars)
    launch = Launch(*x.shape, x, weight)
    launch(cg_kernels.cg_step, *csr(graph), *arrays, **meta)
    return out


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
    """See :func:`.reference.cg_step_backward`."""
    check_in_place(grad_direction, grad_weight, sum_diagonal, sum_confidence)
    weight, q, direction, grad_x = contiguous(weight, q, direction, grad_x)
    diagonals, meta = expand_diagonals(diagonal, confidence, q.size(2))
    previous = None if previous is None else previous.contiguous()
    out = torch.empty_like(q)
    dots = Launch(*q.shape, q, weight).sums(
        cg_kernels.cg_step_backward,
        2,
        *csr(graph),
        weight,
        *diagonals,
        q,
        direction,
        previous,
        grad_direction,
        grad_x,
        *contiguous(alpha, beta, beta_previous),
        grad_weight,
        sum_diagonal,
        sum_confidence,
        out,
        HAS_PREVIOUS=previous is not None,
        SUM_CONFIDENCE=sum_confidence is not None,
        **meta,
    )
    return out, dots[0], dots[1]


def admm_step(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.admm_step`."""
    weight, x, dual = contiguous(weight, x, dual)
    scalars = contiguous(rho_previous, rho, relaxation)
    b, new_dual = torch.empty_like(x), torch.empty_like(dual)
    launch = Launch(*x.shape, x, dual)
    arrays = (weight, x, dual, *scalars, b, new_dual)
    launch(admm_kernels.admm_step, *csr(graph), *arrays)
    return b, new_dual


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
    """See :func:`.reference.admm_step_backward`."""
    weight, x, dual = contiguous(weight, x, dual)
    grads = contiguous(grad_b, grad_dual)
    scalars = contiguous(rho_previous, rho, relaxation)
    launch = Launch(*x.shape, x, dual)
    grad_x, grad_old_dual = torch.empty_like(x), torch.empty_like(dual)
    # Blocks of features add to it.
    grad_weight = torch.zeros_like(weight, dtype=launch.accumulate)
    out = (grad_x, grad_weight, grad_old_dual)
    arrays = (weight, x, dual, *scalars, *grads, *out)
    kernel = admm_kernels.admm_step_backward
    sums = launch.sums(kernel, 3, *csr(graph), *arrays).to(rho.dtype)
    # Copies: outputs of a registered operator may not share memory.
    first, second, third = (row.clone() for row in sums)
    grad_weight = grad_weight.to(weight.dtype)
    return grad_weight, grad_x, grad_old_dual, first, second, third
