r"""Conjugate-gradient steps as one operator, one pass over the edges each.

What a step needs for its derivative is one direction of size nodes x
features x heads, kept or, with checkpointing, computed again; nothing of size
edges x features is stored. For derivatives of higher order the steps are
composed of the operators of :mod:`.dispatch`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import Ints, Tensors, arrays, backend
from pyg_unroll.ops.fused import (
    differentiate,
    empty_like,
    no_grads,
    numbers,
    topology_of,
)
from pyg_unroll.ops.operators import laplacian
from pyg_unroll.ops.reference import accumulate_type

_define = torch.library.custom_op


def cg_steps(
    topology: Topology,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    b: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    checkpoint: bool = False,
) -> Tensor:
    r"""Runs conjugate-gradient-like steps for :math:`(L + \mathrm{diag}(c))
    x = b`.

    See :meth:`.system.LaplacianSystem.iterate`.

    Args:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        diagonal (torch.Tensor): Preconditioner, infinite at held entries,
            :math:`(N, 1, H)` or :math:`(N, F, H)`.
        confidence (torch.Tensor or None): :math:`c`, of such a shape.
        x (torch.Tensor): Start :math:`(N, F, H)`.
        b (torch.Tensor or None): Right-hand side :math:`(N, F, H)`, zero if
            :obj:`None`.
        alpha (torch.Tensor): Step sizes :math:`(K, H)`.
        beta (torch.Tensor): Momenta :math:`(K - 1, H)`.
        checkpoint (bool, optional): Keep no directions for the derivative,
            run the steps again instead. (default: :obj:`False`)
    """
    operands = (weight, diagonal, confidence, x, b, alpha, beta)
    keep = (
        torch.is_grad_enabled()
        and not checkpoint
        and any(v is not None and v.requires_grad for v in operands)
    )
    return _cg_steps(*topology.operands, *operands, keep)[0]


@_define('pyg_unroll::cg_steps', mutates_args=())
def _cg_steps(
    graph: Tensors,
    grid: Ints,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    b: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensors]:
    ops, edges = backend(x), arrays(graph, grid)
    start, weight, diagonal, alpha, beta = numbers(
        x, weight, diagonal, alpha, beta
    )
    if confidence is not None:
        (confidence,) = numbers(confidence)
    out = start.clone()
    residual = torch.zeros_like(out)
    if b is not None:
        residual.copy_(b)
    # The first residual, b - A x, is that of a whole step from zero along x.
    one = torch.ones_like(alpha[0])
    direction, directions = start, []
    for k in range(alpha.size(0)):
        direction = ops.cg_step(
            edges,
            weight,
            diagonal,
            confidence,
            out,
            residual,
            direction,
            alpha[k - 1] if k > 0 else one,
            beta[k - 1] if k > 0 else torch.zeros_like(one),
            alpha[k],
        )
        if keep:
            directions.append(direction)
    return out.to(x.dtype), directions


@_cg_steps.register_fake
def _(graph: Tensors, grid: Ints, *args: Any) -> tuple[Tensor, Tensors]:
    x, alpha, keep = args[3], args[5], args[7]
    dtype = accumulate_type(x.dtype)
    count = alpha.size(0) if keep else 0
    return empty_like(x), [empty_like(x, dtype) for _ in range(count)]


@_define('pyg_unroll::cg_steps_backward', mutates_args=())
def _cg_steps_backward(
    graph: Tensors,
    grid: Ints,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    directions: Tensors,
    alpha: Tensor,
    beta: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by weight, diagonal, confidence, x, b, alpha and beta."""
    ops, edges = backend(grad), arrays(graph, grid)
    weight, diagonal, alpha, beta, grad_out = numbers(
        weight, diagonal, alpha, beta, grad
    )
    sum_confidence = None
    if confidence is not None:
        (confidence,) = numbers(confidence)
        sum_confidence = torch.zeros_like(grad_out)
    grad_weight, sum_diagonal = map(torch.zeros_like, (weight, grad_out))
    grad_alpha, grad_beta = map(torch.zeros_like, (alpha, beta))
    grad_direction, q = map(torch.zeros_like, (grad_out, grad_out))
    zero = torch.zeros_like(alpha[0])
    for k in range(alpha.size(0) - 1, -1, -1):
        q, grad_alpha[k], dot_beta = ops.cg_step_backward(
            edges,
            weight,
            diagonal,
            confidence,
            q,
            directions[k],
            directions[k - 1] if k > 0 else None,
            grad_direction,
            grad_out,
            alpha[k],
            beta[k] if k < beta.size(0) else zero,
            beta[k - 1] if k > 0 else zero,
            grad_weight,
            sum_diagonal,
            sum_confidence,
        )
        if k > 0:
            grad_beta[k - 1] = dot_beta
    # What is done with goes before more is made: this is the peak.
    del grad_direction
    grad_diagonal = sum_diagonal.div_(diagonal).neg_()
    grad_diagonal = grad_diagonal.sum_to_size(diagonal.shape)
    # The first residual was b - A x.
    (start,) = numbers(x)
    grad_weight -= ops.edge_dot(edges, q, start)
    grad_confidence = grad_out.new_empty(0)
    if confidence is not None and sum_confidence is not None:
        sum_confidence -= q * start
        grad_confidence = sum_confidence.sum_to_size(confidence.shape)
    del start
    grad_x = ops.laplacian(edges, weight, q).neg_().add_(grad_out)
    if confidence is not None:
        grad_x -= confidence * q
    return (
        grad_weight.to(grad.dtype),
        grad_diagonal.to(grad.dtype),
        grad_confidence.to(grad.dtype),
        grad_x.to(grad.dtype),
        q.to(grad.dtype),
        grad_alpha.to(grad.dtype),
        grad_beta.to(grad.dtype),
    )


@_cg_steps_backward.register_fake
def _(graph: Tensors, grid: Ints, *args: Any) -> tuple[Tensor, ...]:
    weight, diagonal, confidence, x, _, alpha, beta, grad = args
    if confidence is None:
        confidence = grad.new_empty(0)
    likes = weight, diagonal, confidence, x, grad, alpha, beta
    return tuple(empty_like(v, grad.dtype) for v in likes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    graph, ctx.grid, *operands, ctx.keep = inputs
    # The gradient by the directions is always zero: do not make it.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*graph, *operands, *output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: `torch.utils.checkpoint` insists
    graph, operands, kept = list(saved[:6]), saved[6:13], list(saved[13:])
    none = no_grads(graph)
    if grad is None:
        return *none, *(None,) * 8
    if torch.is_grad_enabled():
        composed = partial(_composed, topology_of(graph, ctx.grid))
        return *none, *differentiate(composed, operands, (grad,)), None
    if not ctx.keep:
        kept = _cg_steps(graph, ctx.grid, *operands, True)[1]
    weight, diagonal, confidence, x, _, alpha, beta = operands
    grads = _cg_steps_backward(
        graph,
        ctx.grid,
        weight,
        diagonal,
        confidence,
        x,
        kept,
        alpha,
        beta,
        grad,
    )
    found = tuple(
        None if operand is None else grad
        for operand, grad in zip(operands, grads, strict=True)
    )
    return *none, *found, None


_cg_steps.register_autograd(_backward, setup_context=_setup)


def _composed(
    topology: Topology,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    b: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
) -> tuple[Tensor]:
    """The steps one operator at a time."""

    def apply(v: Tensor) -> Tensor:
        out = laplacian(topology, weight, v)
        return out if confidence is None else out + confidence * v

    residual = -apply(x) if b is None else b - apply(x)
    return (
        composed_cg_steps(
            apply, lambda r: r / diagonal, x, residual, alpha, beta
        ),
    )


def composed_cg_steps(
    apply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    x: Tensor,
    residual: Tensor,
    alpha: Tensor,
    beta: Tensor,
) -> Tensor:
    """The steps for any operator and preconditioner, both callable."""
    direction = precondition(residual)
    for k in range(alpha.size(0)):
        if k > 0:
            residual = residual - alpha[k - 1] * apply(direction)
            direction = precondition(residual) + beta[k - 1] * direction
        x = x + alpha[k] * direction
    return x
