"""The solvers' steps by CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops.cpu import admm_kernels, cg_kernels
from pyg_unroll.ops.cpu.launch import (
    add_up,
    diagonal_of,
    flat,
    launch,
    partial_sums,
    row_blocks,
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
    out = torch.empty_like(direction)
    arrays = flat(weight, direction, out, x, residual)
    last = (
        *diagonal_of(diagonal),
        *diagonal_of(confidence, diagonal),
        *flat(torch.stack([alpha, beta, alpha_next])),
    )
    for first, width in row_blocks(graph, x.shape):
        rest = (*first, *arrays, *last)
        launch(cg_kernels.cg_step, x.size(0), width, *rest)
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
    out = torch.empty_like(q)
    if previous is None:  # the first direction has none before it
        previous, beta_previous = direction, torch.zeros_like(beta)
        is_first = True
    else:
        is_first = False
    if sum_confidence is None:
        sum_confidence = q[:0]
    arrays = flat(weight, q, out, direction, previous, grad_direction, grad_x)
    last = (
        *diagonal_of(diagonal),
        *diagonal_of(confidence, diagonal),
        *flat(torch.stack([alpha, beta, beta_previous])),
        *flat(grad_weight, sum_diagonal, sum_confidence),
    )
    partial = partial_sums(q, 2)
    for first, width in row_blocks(graph, q.shape):
        launch(
            cg_kernels.cg_step_backward,
            q.size(0),
            width,
            *first,
            *arrays,
            *last,
            partial=partial,
        )
    dots = add_up(partial, 2)
    return out, dots[0], torch.zeros_like(beta) if is_first else dots[1]


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
    b, new_dual = torch.empty_like(x), torch.empty_like(dual)
    coefficients = torch.stack([rho_previous, rho, 1 / rho, relaxation])
    arrays = flat(weight, x, dual, coefficients, b, new_dual)
    for first, width in row_blocks(graph, x.shape, False):
        launch(admm_kernels.admm_step, x.size(0), width, *first, *arrays)
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
    grad_x, grad_old = torch.empty_like(x), torch.empty_like(dual)
    grad_weight = torch.zeros_like(weight)
    coefficients = torch.stack([rho_previous, rho, 1 / rho, relaxation])
    arrays = flat(weight, x, dual, coefficients, grad_b, grad_dual)
    outputs = flat(grad_x, grad_weight, grad_old)
    partial = partial_sums(x, 3)
    for first, width in row_blocks(graph, x.shape, False):
        launch(
            admm_kernels.admm_step_backward,
            x.size(0),
            width,
            *first,
            *arrays,
            *outputs,
            partial=partial,
        )
    sums = add_up(partial, 3)
    return grad_weight, grad_x, grad_old, sums[0], sums[1], sums[2]
