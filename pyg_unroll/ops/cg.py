r"""Conjugate-gradient steps as one operator, one pass over the edges each.

The derivative of a step needs one direction of size nodes x features x heads,
kept or, with checkpointing, computed again; nothing of size edges x features
is stored. For derivatives of higher order the steps are composed of
differentiable operators.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import (
    Operator,
    differentiate,
    empty_like,
    kernels,
    numbers,
)
from pyg_unroll.ops.operators import laplacian
from pyg_unroll.ops.reference.cg import Adjoint, Matrix
from pyg_unroll.ops.reference.operators import accumulate_type


def cg_steps(
    a: Matrix,
    x: Tensor,
    b: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    checkpoint: bool,
) -> Tensor:
    """The steps of :meth:`.system.LaplacianSystem.iterate` for `A x = b`."""
    topology, *parts = a
    operands = (*parts, x, b, alpha, beta)
    keep = (
        torch.is_grad_enabled()
        and not checkpoint
        and any(v is not None and v.requires_grad for v in operands)
    )
    out: Tensor = _cg_steps(topology, *operands, keep)[0]
    return out


@torch.no_grad()
def cg_iterates(
    a: Matrix, x: Tensor, b: Tensor | None, alpha: Tensor, beta: Tensor
) -> Iterator[Tensor]:
    """Yields the signal after each step of :func:`cg_steps`, bit for bit.

    Derivatives are not recorded.
    """
    for out, _ in _steps(a, x, b, alpha, beta):
        yield out.to(x.dtype, copy=True)


def _steps(
    a: Matrix, x: Tensor, b: Tensor | None, alpha: Tensor, beta: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the signal, always the same memory, and direction of each step."""
    step = kernels('cg', x).cg_step
    topology, *parts = a
    a = Matrix(topology, *numbers(*parts))
    direction, alpha, beta = numbers(x, alpha, beta)
    out, residual = direction.clone(), torch.zeros_like(direction)
    if b is not None:
        residual.copy_(b)
    # The first residual, b - A x, is that of a whole step from zero along x.
    alpha_before = torch.cat([torch.ones_like(alpha[:1]), alpha[:-1]])
    beta_before = torch.cat([torch.zeros_like(alpha[:1]), beta])
    for scalars in torch.stack([alpha_before, beta_before, alpha], 1):
        direction = step(a, out, residual, direction, scalars)
        yield out, direction


def _run(topology: Topology, *operands: Any) -> tuple[Tensor, list[Tensor]]:
    *parts, x, b, alpha, beta, keep = operands
    directions = []
    steps = _steps(Matrix(topology, *parts), x, b, alpha, beta)
    for signal, direction in steps:
        out = signal
        if keep:
            directions.append(direction)
    return out.to(x.dtype), directions


def _fake(topology: Topology, *operands: Any) -> tuple[Tensor, list[Tensor]]:
    *_, x, _, alpha, _, keep = operands
    dtype = accumulate_type(x.dtype)
    count = alpha.size(0) if keep else 0
    return empty_like(x), [empty_like(x, dtype) for _ in range(count)]


_cg_steps = Operator(
    'cg_steps',
    'Tensor weight, Tensor diagonal, Tensor? confidence, Tensor x, Tensor? b, '
    'Tensor alpha, Tensor beta, bool keep',
    '(Tensor, Tensor[])',
    _run,
    _fake,
)


def _run_backward(topology: Topology, *operands: Any) -> tuple[Tensor, ...]:
    """Derivatives by weight, diagonal, confidence, x, b, alpha and beta."""
    *parts, x, directions, alpha, beta, grad = operands
    step = kernels('cg', grad).cg_step_backward
    a = Matrix(topology, *numbers(*parts))
    alpha, beta, grad_out = numbers(alpha, beta, grad)
    nothing = torch.zeros_like(grad_out)
    adjoint = Adjoint(
        x=grad_out,
        residual=nothing,
        direction=nothing.clone(),
        weight=torch.zeros_like(a.weight),
        diagonal=nothing.clone(),
        confidence=None if a.confidence is None else nothing.clone(),
    )
    del nothing
    zero = torch.zeros_like(alpha[:1])
    scalars = torch.stack(
        [alpha, torch.cat([beta, zero]), torch.cat([zero, beta])], 1
    )
    dots = alpha.new_zeros((alpha.size(0), 2, alpha.size(1)))
    for k in range(alpha.size(0) - 1, -1, -1):
        v, u = directions[k], directions[max(k - 1, 0)]
        dots[k] = step(a, adjoint, v, u, scalars[k])
    # Memory that is done with goes before more is made: this is the peak.
    del adjoint.direction
    grad_diagonal = adjoint.diagonal.div_(a.diagonal).neg_()
    grad_diagonal = grad_diagonal.sum_to_size(a.diagonal.shape)
    # The first residual was b - A x.
    (start,) = numbers(x)
    q = adjoint.residual
    operators = kernels('operators', grad)
    grad_weight = adjoint.weight.sub_(operators.edge_dot(topology, q, start))
    grad_x = operators.laplacian(topology, a.weight, q).neg_().add_(grad_out)
    grad_confidence = grad_out.new_empty(0)
    if a.confidence is not None and adjoint.confidence is not None:
        grad_x -= a.confidence * q
        grad_confidence = adjoint.confidence.sub_(q * start)
        grad_confidence = grad_confidence.sum_to_size(a.confidence.shape)
    grads = grad_weight, grad_diagonal, grad_confidence, grad_x, q
    # Copies: results of an operator may not share memory.
    by_steps = dots[:, 0].clone(), dots[1:, 1].clone()
    return tuple(v.to(grad.dtype) for v in (*grads, *by_steps))


def _fake_backward(topology: Topology, *operands: Any) -> tuple[Tensor, ...]:
    weight, diagonal, confidence, x, _, alpha, beta, grad = operands
    if confidence is None:
        confidence = grad.new_empty(0)
    likes = weight, diagonal, confidence, x, grad, alpha, beta
    return tuple(empty_like(v, grad.dtype) for v in likes)


_cg_steps_backward = Operator(
    'cg_steps_backward',
    'Tensor weight, Tensor diagonal, Tensor? confidence, Tensor x, '
    'Tensor[] directions, Tensor alpha, Tensor beta, Tensor grad',
    '(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
    _run_backward,
    _fake_backward,
)


def _keep(ctx: Any, *inputs: Any) -> list[Tensor | None]:
    # The derivative by the directions is always zero: do not make it.
    ctx.set_materialize_grads(False)
    *operands, _, (_, directions) = inputs
    return [*operands, *directions]


def _derivative(
    ctx: Any, topology: Topology, kept: Any, grad: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    weight, diagonal, confidence, x, b, alpha, beta, *directions = kept
    operands = weight, diagonal, confidence, x, b, alpha, beta
    if grad is None:
        return (None,) * 8
    if torch.is_grad_enabled():
        composed = partial(_composed, topology)
        return *differentiate(composed, operands, (grad,)), None
    if not directions:
        directions = _cg_steps(topology, *operands, True)[1]
    matrix = weight, diagonal, confidence
    grads = _cg_steps_backward(
        topology, *matrix, x, directions, alpha, beta, grad
    )
    found = (
        None if operand is None else grad
        for operand, grad in zip(operands, grads, strict=True)
    )
    return *found, None


_cg_steps.set_derivative(_keep, _derivative)


def _composed(topology: Topology, *operands: Any) -> tuple[Tensor]:
    """The steps one operator at a time."""
    weight, diagonal, confidence, x, b, alpha, beta = operands

    def apply(v: Tensor) -> Tensor:
        out = laplacian(topology, weight, v)
        return out if confidence is None else out + confidence * v

    residual = -apply(x) if b is None else b - apply(x)
    steps = composed_cg_iterates(
        apply, lambda r: r / diagonal, x, residual, alpha, beta
    )
    for x in steps:
        out = x
    return (out,)


def composed_cg_iterates(
    apply: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    x: Tensor,
    residual: Tensor,
    alpha: Tensor,
    beta: Tensor,
) -> Iterator[Tensor]:
    """Yields the signal after each step, for any operator and preconditioner,
    both callable; differentiable.
    """
    direction = precondition(residual)
    for k in range(alpha.size(0)):
        if k > 0:
            residual = residual - alpha[k - 1] * apply(direction)
            direction = precondition(residual) + beta[k - 1] * direction
        x = x + alpha[k] * direction
        yield x
