r"""Conjugate-gradient steps as one operator, one pass over the edges each.

The derivative of a step needs one direction of size nodes x features x heads,
kept or, with checkpointing, computed again; nothing of size edges x features
is stored. For derivatives of higher order the steps are composed of
differentiable operators.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops import backend, func
from pyg_unroll.ops.operators import laplacian
from pyg_unroll.ops.order import local_order, take
from pyg_unroll.ops.reference.cg import Adjoint, Directions, Matrix, State
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
    keep = not checkpoint and backend.needs_grad(*operands)
    out: Tensor = _cg_steps(topology, *operands, keep)[0]
    return out


@torch.no_grad()
def cg_iterates(
    a: Matrix, x: Tensor, b: Tensor | None, alpha: Tensor, beta: Tensor
) -> Iterator[Tensor]:
    """Yields the signal after each step of :func:`cg_steps`, bit for bit.

    Derivatives are not recorded.
    """
    run = backend.kernels('cg', x).cg_steps
    order, a, x, b = _in_local_order(a, x, b)
    a, state, direction = _begin(a, x, b)
    for row in step_scalars(alpha, beta).split(1):
        new = torch.empty_like(direction)
        run(a, state, Directions(direction, [new]), row)
        direction = new
        (found,) = take(order.number, state.x)
        yield found.to(x.dtype, copy=True)


def _in_local_order(a: Matrix, *values: Any) -> tuple[Any, ...]:
    """A local order of nodes, and matrix and signals in that order."""
    order = local_order(a.topology)
    weight, parts = take(order.edge, a.weight), take(order.node, *a[2:])
    matrix = Matrix(order.topology, *weight, *parts)
    return order, matrix, *take(order.node, *values)


def _begin(
    a: Matrix, x: Tensor, b: Tensor | None
) -> tuple[Matrix, State, Tensor]:
    """The matrix, what the steps change, and the start."""
    topology, *parts = a
    a = Matrix(topology, *backend.numbers(*parts))
    (start,) = backend.numbers(x)
    residual = torch.zeros_like(start)
    if b is not None:
        residual.copy_(b)
    return a, State(start.clone(), residual), start


def step_scalars(alpha: Tensor, beta: Tensor) -> Tensor:
    """Those of :func:`.reference.cg.cg_steps`, :math:`(*, K, 3, H)`."""
    alpha, beta = backend.numbers(alpha, beta)
    # The first residual, b - A x, is that of a whole step from zero along x.
    one = torch.ones_like(alpha[..., :1, :])
    before = torch.cat([one, alpha[..., :-1, :]], -2)
    momenta = torch.cat([one - 1, beta], -2)
    return torch.stack([before, momenta, alpha], -2)


def step_scalars_backward(alpha: Tensor, beta: Tensor) -> Tensor:
    """Of :func:`.reference.cg.cg_steps_backward`, :math:`(*, K + 1, 3, H)`."""
    alpha, beta = backend.numbers(alpha, beta)
    one = torch.ones_like(alpha[..., :1, :])
    zero = one - 1
    columns = [alpha, one], [beta, zero, zero], [zero, beta, zero]
    return torch.stack([torch.cat(column, -2) for column in columns], -2)


def run_steps(
    a: Matrix, x: Tensor, b: Tensor | None, scalars: Tensor, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """The signal after the steps, and their directions if they are to be kept,
    by the kernels themselves.
    """
    a, state, start = _begin(a, x, b)
    count = scalars.size(0) if keep else 2
    rest = [torch.empty_like(start) for _ in range(count)]
    if not keep and start is not x:  # a copy, not read after the first step
        rest[1] = start
    run = backend.kernels('cg', x).cg_steps
    run(a, state, Directions(start, rest), scalars)
    return state.x.to(x.dtype), rest if keep else []


def _run(topology: Topology, *operands: Any) -> tuple[Tensor, list[Tensor]]:
    *parts, x, b, alpha, beta, keep = operands
    scalars = step_scalars(alpha, beta)
    order, a, x, b = _in_local_order(Matrix(topology, *parts), x, b)
    out, directions = run_steps(a, x, b, scalars, keep)
    # Directions stay in the order of the steps.
    return *take(order.number, out), directions


def _fake(topology: Topology, *operands: Any) -> tuple[Tensor, list[Tensor]]:
    *_, x, _, alpha, _, keep = operands
    dtype = accumulate_type(x.dtype)
    count = alpha.size(0) if keep else 0
    return backend.empty_like(x), [
        backend.empty_like(x, dtype) for _ in range(count)
    ]


_OPERANDS = (
    'Tensor weight, Tensor diagonal, Tensor? confidence, Tensor? degree, '
    'Tensor x, Tensor? b, Tensor alpha, Tensor beta'
)
_cg_steps = backend.Operator(
    'cg_steps', f'{_OPERANDS}, bool keep', '(Tensor, Tensor[])', _run, _fake
)


def run_steps_backward(
    a: Matrix,
    x: Tensor,
    directions: Sequence[Tensor],
    scalars: Tensor,
    grad: Tensor,
) -> tuple[Any, ...]:
    """Derivatives by the parts of the matrix, of a part that features share
    those of each, and by x, b, alpha and beta.
    """
    topology, *parts = a
    a = Matrix(topology, *backend.numbers(*parts))
    start, grad_out = backend.numbers(x, grad)
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
    run = backend.kernels('cg', grad).cg_steps_backward
    path = Directions(start, backend.numbers(*directions))
    dots = run(a, adjoint, path, scalars)
    return (
        adjoint.weight,
        adjoint.diagonal.div_(a.diagonal).neg_(),
        adjoint.confidence,
        adjoint.degree,
        adjoint.direction,
        adjoint.residual,
        dots[:, 0].clone(),  # results of an operator may not share memory
        dots[1:, 1].clone(),
    )


def _run_backward(topology: Topology, *operands: Any) -> tuple[Tensor, ...]:
    *parts, x, _, alpha, beta, directions, grad = operands
    scalars = step_scalars_backward(alpha, beta)
    likes = *parts, x, grad, alpha, beta
    order, a, x, own = _in_local_order(Matrix(topology, *parts), x, grad)
    weight, *nodes, by_alpha, by_beta = run_steps_backward(
        a, x, directions, scalars, own
    )
    found = *take(order.edge_number, weight), *take(order.number, *nodes)
    return backend.like_operands((*found, by_alpha, by_beta), likes, grad)


def _fake_backward(topology: Topology, *operands: Any) -> tuple[Tensor, ...]:
    *parts, x, _, alpha, beta, _, grad = operands
    return backend.empty_operands((*parts, x, grad, alpha, beta), grad)


_cg_steps_backward = backend.Operator(
    'cg_steps_backward',
    f'{_OPERANDS}, Tensor[] directions, Tensor grad',
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
    # Transforms always ask for derivatives of derivatives, and seldom use them.
    if torch.is_grad_enabled() and not func.is_transformed():
        composed = partial(composed_steps, topology)
        return *backend.differentiate(composed, operands, (grad,)), None
    if not directions:
        directions = _cg_steps(topology, *operands, True)[1]
    grads = _cg_steps_backward(topology, *operands, directions, grad)
    return *backend.of_operands(grads, operands), None


_cg_steps.set_derivative(_keep, _derivative)


def _keep_operands(ctx: Any, *inputs: Any) -> list[Tensor | None]:
    *operands, directions, grad, _ = inputs
    ctx.count = len(directions)
    return [*operands, grad]


def _second_derivative(
    ctx: Any, topology: Topology, kept: Any, *weights: Tensor
) -> tuple[Any, ...]:
    composed = partial(composed_steps, topology)
    *operands, grad = kept
    *found, by_grad = backend.differentiate_again(
        composed, operands, (grad,), weights
    )
    return *found, [None] * ctx.count, by_grad


_cg_steps_backward.set_derivative(_keep_operands, _second_derivative)


def composed_steps(
    topology: Topology, *operands: Any, apply: Any = laplacian
) -> tuple[Tensor]:
    """The steps one operation at a time, by a function for the Laplacian."""
    weight, diagonal, confidence, degree, x, b, alpha, beta = operands

    def multiply(v: Tensor) -> Tensor:
        mean = v if degree is None else apply(topology, weight, v) / degree
        out = apply(topology, weight, mean)
        return out if confidence is None else out + confidence * v

    residual = -multiply(x) if b is None else b - multiply(x)
    direction = residual / diagonal
    out = x + alpha[0] * direction
    for k in range(1, alpha.size(0)):
        residual = residual - alpha[k - 1] * multiply(direction)
        direction = residual / diagonal + beta[k - 1] * direction
        out = out + alpha[k] * direction
    return (out,)
