r"""Conjugate-gradient steps as one operator, one pass over the edges each.

The derivative of a step needs one direction of size nodes x features x heads,
kept or, with checkpointing, computed again; nothing of size edges x features
is stored. For derivatives of higher order the steps are composed of
differentiable operators.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops import backend
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
    step = backend.kernels('cg', x).cg_step
    topology, *parts = a
    a = Matrix(topology, *backend.numbers(*parts))
    direction, alpha, beta = backend.numbers(x, alpha, beta)
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
    return backend.empty_like(x), [
        backend.empty_like(x, dtype) for _ in range(count)
    ]


# A matrix without its topology.
_MATRIX = 'Tensor weight, Tensor diagonal, Tensor? confidence, Tensor? degree'
_cg_steps = backend.Operator(
    'cg_steps',
    f'{_MATRIX}, Tensor x, Tensor? b, Tensor alpha, Tensor beta, bool keep',
    '(Tensor, Tensor[])',
    _run,
    _fake,
)


def _run_backward(topology: Topology, *operands: Any) -> tuple[Tensor, ...]:
    """Derivatives by the matrix, x, b, alpha and beta."""
    *parts, x, directions, alpha, beta, grad = operands
    step = backend.kernels('cg', grad).cg_step_backward
    a = Matrix(topology, *backend.numbers(*parts))
    start, alpha, beta, grad_out = backend.numbers(x, alpha, beta, grad)
    nothing = torch.zeros_like(grad_out)
    adjoint = Adjoint(
        x=grad_out,
        residual=nothing,
        direction=nothing.clone(),
        weight=torch.zeros_like(a.weight),
        diagonal=nothing.clone(),
        confidence=None if a.confidence is None else nothing.clone(),
        degree=None if a.degree is None else nothing.clone(),
    )
    del nothing
    zero, one = torch.zeros_like(alpha[:1]), torch.ones_like(alpha[:1])
    scalars = torch.stack(
        [alpha, torch.cat([beta, zero]), torch.cat([zero, beta])], 1
    )
    dots = alpha.new_zeros((alpha.size(0), 2, alpha.size(1)))
    for k in range(alpha.size(0) - 1, -1, -1):
        v, u = directions[k], directions[max(k - 1, 0)]
        dots[k] = step(a, adjoint, v, u, scalars[k])
    b = adjoint.residual
    grad_diagonal = adjoint.diagonal.div_(a.diagonal).neg_()
    # The first residual is that of a whole step from zero along the start; its
    # direction is no unknown divided by the diagonal.
    adjoint.diagonal = torch.zeros_like(b)
    step(a, adjoint, start, start, torch.cat([one, zero, zero]))
    found = adjoint.weight, grad_diagonal, adjoint.confidence, adjoint.degree
    # Copies: results of an operator may not share memory.
    rest = adjoint.direction, b, dots[:, 0].clone(), dots[1:, 1].clone()
    by_matrix = (
        grad.new_empty(0)
        if v is None or part is None
        else v.sum_to_size(part.shape)
        for v, part in zip(found, a[1:], strict=True)
    )
    return tuple(v.to(grad.dtype) for v in (*by_matrix, *rest))


def _fake_backward(topology: Topology, *operands: Any) -> tuple[Tensor, ...]:
    *matrix, x, _, alpha, beta, grad = operands
    nothing = grad.new_empty(0)
    parts = (nothing if part is None else part for part in matrix)
    likes = *parts, x, grad, alpha, beta
    return tuple(backend.empty_like(v, grad.dtype) for v in likes)


_cg_steps_backward = backend.Operator(
    'cg_steps_backward',
    f'{_MATRIX}, Tensor x, Tensor[] directions, Tensor alpha, Tensor beta, '
    'Tensor grad',
    f'({", ".join(["Tensor"] * 8)})',
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
    operands, directions = kept[:8], kept[8:]
    if grad is None:
        return (None,) * 9
    if torch.is_grad_enabled():
        composed = partial(_composed, topology)
        return *backend.differentiate(composed, operands, (grad,)), None
    if not directions:
        directions = _cg_steps(topology, *operands, True)[1]
    *start, _, alpha, beta = operands
    grads = _cg_steps_backward(topology, *start, directions, alpha, beta, grad)
    found = (
        None if operand is None else grad
        for operand, grad in zip(operands, grads, strict=True)
    )
    return *found, None


_cg_steps.set_derivative(_keep, _derivative)


def _composed(topology: Topology, *operands: Any) -> tuple[Tensor]:
    """The steps one operator at a time."""
    weight, diagonal, confidence, degree, x, b, alpha, beta = operands

    def apply(v: Tensor) -> Tensor:
        mean = v
        if degree is not None:
            mean = laplacian(topology, weight, v) / degree
        out = laplacian(topology, weight, mean)
        return out if confidence is None else out + confidence * v

    residual = -apply(x) if b is None else b - apply(x)
    direction = residual / diagonal
    out = x + alpha[0] * direction
    for k in range(1, alpha.size(0)):
        residual = residual - alpha[k - 1] * apply(direction)
        direction = residual / diagonal + beta[k - 1] * direction
        out = out + alpha[k] * direction
    return (out,)
