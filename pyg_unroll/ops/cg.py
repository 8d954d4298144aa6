r"""The linear system behind every layer and solver, and its iterations.

Conjugate-gradient steps are one operator, one pass over the edges each.

The derivative of a step needs one direction of size nodes x features x heads,
kept or, with checkpointing, computed again; nothing of size edges x features
is stored.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import kernels, numbers
from pyg_unroll.ops.operators import degree, laplacian
from pyg_unroll.ops.order import local_order, take
from pyg_unroll.ops.reference.cg import (
    Adjoint,
    Directions,
    Matrix,
    State,
    mean_difference,
    product,
)
from pyg_unroll.ops.reference.operators import accumulate_type
from pyg_unroll.ops.registry import empty_like, iterations, needs_grad


class LaplacianSystem(Matrix):
    r"""The operator :math:`A = \mathrm{diag}(c) + P` on the free entries.

    The prior :math:`P` is the Laplacian :math:`L_w`, or of second order
    :math:`L_w D_w^{-1} L_w` with the degrees :math:`D_w`. :math:`A` is
    symmetric positive semidefinite. Entries that are not free are held:
    rows and columns of :math:`A` there are zero.
    """

    @classmethod
    def build(
        cls,
        topology: Topology,
        weight: Tensor,
        confidence: Tensor | None = None,
        free: Tensor | None = None,
        order: int = 1,
        degrees: Tensor | None = None,
    ) -> Self:
        """Computes the preconditioner :math:`c + D_w`, and degrees if they are
        not given, of weights :math:`(E, H)`, and of confidence and free
        entries, if not all, broadcastable to :math:`(N, F, H)`.
        """
        if degrees is None:
            degrees = degree(topology, weight)
        diagonal = degrees.unsqueeze(1)
        degrees = None if order == 1 else _divisor(diagonal)
        if confidence is not None:
            diagonal = diagonal + confidence
            confidence = confidence.expand(-1, -1, weight.size(1))
        diagonal = _divisor(diagonal)
        if free is not None:  # nothing moves where it is infinite
            diagonal = torch.where(free, diagonal, float('inf'))
        return cls(topology, weight, diagonal, confidence, degrees, free)

    def prior(self, x: Tensor) -> Tensor:
        """Applies :math:`P`, half the gradient of the smoothness prior."""
        mean = mean_difference(self, x, laplacian)
        return laplacian(self.topology, self.weight, mean)

    def restrict(self, x: Tensor) -> Tensor:
        """Zero outside the free entries."""
        return x if self.free is None else torch.where(self.free, x, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Applies :math:`A` to a signal that vanishes on held entries."""
        return self.restrict(product(self, x, laplacian))

    def residual(self, x: Tensor, observed: Tensor) -> Tensor:
        r"""The residual :math:`c (y - x) - P x` on the free entries."""
        out = -self.prior(x)
        if self.confidence is not None:
            out = out + self.confidence * (observed - x)
        return self.restrict(out)


def _divisor(diagonal: Tensor) -> Tensor:
    """The diagonal, infinite where it is too small to divide by.

    Divide by it: the derivative of a product with its inverse would overflow
    at nodes that are nearly isolated.
    """
    least = 1e4 * torch.finfo(accumulate_type(diagonal.dtype)).tiny
    return torch.where(diagonal > least, diagonal, float('inf'))


def cg_steps(
    a: Matrix,
    x: Tensor,
    b: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    checkpoint: bool = False,
) -> Tensor:
    r"""Runs conjugate-gradient-like steps with given coefficients.

    .. math::
        v_k &= D^{-1} r_k + \beta_k v_{k-1}

        x_{k+1} &= x_k + \alpha_k v_k

        r_{k+1} &= r_k - \alpha_k A v_k

    The start is :obj:`x`, and :math:`b - A x` the first residual, with
    :math:`b = 0` if :obj:`None`; :obj:`alpha` are step sizes :math:`(K, H)`
    and :obj:`beta` momenta :math:`(K - 1, H)`. To :obj:`checkpoint` keeps
    nothing of the steps for the derivative, but runs them again.
    """
    topology, *parts = a.operands
    operands = (*parts, x, b, alpha, beta)
    keep = not checkpoint and needs_grad(*operands)
    out: Tensor = _cg_steps(topology, *operands, int(keep))[0]
    return out


@torch.no_grad()
def cg_iterates(
    a: Matrix, x: Tensor, b: Tensor | None, alpha: Tensor, beta: Tensor
) -> Iterator[Tensor]:
    """Yields the signal after each step of :func:`cg_steps`, bit for bit.

    Derivatives are not recorded.
    """
    run = kernels('cg', x).cg_steps
    order, a, x, b = _in_local_order(a, x, b)
    a, state, direction = _begin(a, x, b)
    for row in step_scalars(alpha, beta).split(1):
        new = torch.empty_like(direction)
        run(a, state, Directions(direction, [new]), row)
        direction = new
        (found,) = take(order.number, state.x)
        yield found.to(x.dtype, copy=True)


def chebyshev_coefficients(
    num_steps: int, lower: float, upper: float
) -> tuple[Tensor, Tensor]:
    r"""Coefficients that make `iterate` a Chebyshev semi-iteration.

    They minimise the worst error over operators whose preconditioned spectrum
    lies in :math:`[lower, upper]` (Golub and Varga, 1961); the eigenvalues of
    a Jacobi-preconditioned Laplacian are at most 2.

    Returns step sizes :math:`(K)` and momenta :math:`(K - 1)`.
    """
    center, radius = (upper + lower) / 2, (upper - lower) / 2
    alpha: list[float] = [1 / center]
    beta: list[float] = []
    for k in range(1, num_steps):
        momentum = (radius * alpha[-1] / 2) ** 2 * (2 if k == 1 else 1)
        alpha.append(1 / (center - momentum / alpha[-1]))
        beta.append(momentum)
    return torch.tensor(alpha), torch.tensor(beta)


def _in_local_order(a: Matrix, *values: Any) -> tuple[Any, ...]:
    """A local order of nodes, and matrix and signals in that order."""
    order = local_order(a.topology)
    _, weight, *parts = a.operands
    kept = *take(order.edge, weight), *take(order.node, *parts)
    return order, Matrix(order.topology, *kept), *take(order.node, *values)


def _begin(
    a: Matrix, x: Tensor, b: Tensor | None
) -> tuple[Matrix, State, Tensor]:
    """The matrix, what the steps change, and the start."""
    (start,) = numbers(x)
    residual = torch.zeros_like(start)
    if b is not None:
        residual.copy_(b)
    return as_numbers(a), State(start.clone(), residual), start


def as_numbers(a: Matrix) -> Matrix:
    """The matrix as kernels take it."""
    topology, *parts = a.operands
    return Matrix(topology, *numbers(*parts))


def step_scalars(alpha: Tensor, beta: Tensor) -> Tensor:
    """Those of :func:`.reference.cg.cg_steps`, :math:`(*, K, 3, H)`."""
    alpha, beta = numbers(alpha, beta)
    # The first residual, b - A x, is that of a whole step from zero along x.
    one = torch.ones_like(alpha[..., :1, :])
    before = torch.cat([one, alpha[..., :-1, :]], -2)
    momenta = torch.cat([one - 1, beta], -2)
    return torch.stack([before, momenta, alpha], -2)


def step_scalars_backward(alpha: Tensor, beta: Tensor) -> Tensor:
    """Of :func:`.reference.cg.cg_steps_backward`, :math:`(*, K + 1, 3, H)`."""
    alpha, beta = numbers(alpha, beta)
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
    run = kernels('cg', x).cg_steps
    run(a, state, Directions(start, rest), scalars)
    return state.x.to(x.dtype), rest if keep else []


def _run(topology: Topology, *operands: Any) -> tuple[Tensor, list[Tensor]]:
    *parts, x, b, alpha, beta, every = operands
    scalars = step_scalars(alpha, beta)
    order, a, x, b = _in_local_order(Matrix(topology, *parts), x, b)
    out, directions = run_steps(a, x, b, scalars, every > 0)
    # Directions stay in the order of the steps.
    return *take(order.number, out), directions


def _fake(topology: Topology, *operands: Any) -> tuple[Tensor, list[Tensor]]:
    *_, x, _, alpha, _, every = operands
    count, dtype = alpha.size(0) if every else 0, accumulate_type(x.dtype)
    return empty_like(x), [empty_like(x, dtype) for _ in range(count)]


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
    a = as_numbers(a)
    start, grad_out = numbers(x, grad)
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
    run = kernels('cg', grad).cg_steps_backward
    path = Directions(start, numbers(*directions))
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


def _run_backward(
    topology: Topology, operands: Any, every: int, kept: Any, grads: Any
) -> tuple[Any, ...]:
    *parts, x, _, alpha, beta = operands
    directions = kept or _run(topology, *operands, 1)[1]
    scalars = step_scalars_backward(alpha, beta)
    order, a, x, grad = _in_local_order(Matrix(topology, *parts), x, *grads)
    weight, *nodes, by_alpha, by_beta = run_steps_backward(
        a, x, directions, scalars, grad
    )
    found = *take(order.edge_number, weight), *take(order.number, *nodes)
    return *found, by_alpha, by_beta


def composed_steps(
    topology: Topology, *operands: Any, apply: Any = laplacian
) -> tuple[Tensor]:
    """The steps one operation at a time, by a function for the Laplacian."""
    *parts, x, b, alpha, beta = operands
    a = Matrix(topology, *parts)
    image = product(a, x, apply)
    residual = -image if b is None else b - image
    direction = residual / a.diagonal
    out = x + alpha[0] * direction
    for k in range(1, alpha.size(0)):
        residual = residual - alpha[k - 1] * product(a, direction, apply)
        direction = residual / a.diagonal + beta[k - 1] * direction
        out = out + alpha[k] * direction
    return (out,)


_cg_steps = iterations(
    'cg_steps',
    'Tensor weight, Tensor diagonal, Tensor? confidence, Tensor? degree, '
    'Tensor x, Tensor? b, Tensor alpha, Tensor beta',
    1,
    _run,
    _fake,
    _run_backward,
    composed_steps,
)
