"""A step of conjugate gradients in plain PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.reference.operators import edge_dot, laplacian


@dataclass(eq=False)
class Matrix:
    r"""The matrix :math:`A = P + \mathrm{diag}(c)` and its preconditioner, with
    the prior :math:`P = L_w`, or of second order :math:`L_w D_w^{-1} L_w`.
    """

    topology: Topology
    weight: Tensor  # [E, H]
    diagonal: Tensor  # D, infinite at held entries, [N, 1, H] or [N, F, H]
    confidence: Tensor | None = None  # of such a shape, or zero
    degree: Tensor | None = None  # D_w of second order, [N, 1, H]
    # True at entries that are not held, if not all; kernels see these by D.
    free: Tensor | None = None

    @property
    def operands(self) -> tuple[Any, ...]:
        """What kernels read."""
        parts = self.diagonal, self.confidence, self.degree
        return self.topology, self.weight, *parts


class State(NamedTuple):
    """What steps change in place, [N, F, H]."""

    x: Tensor
    residual: Tensor


class Directions(NamedTuple):
    """The directions of steps; that before the first is their start."""

    start: Tensor  # [N, F, H]
    rest: Sequence[Tensor]  # the same: of step k that modulo their number

    def of(self, k: int) -> Tensor:
        """That of a step, or before the first."""
        return self.start if k < 0 else self.rest[k % len(self.rest)]


@dataclass
class Adjoint:
    """Derivatives on the way back through the steps, which change them."""

    x: Tensor  # [N, F, H], never changed; all but it and the next in place
    residual: Tensor  # q
    direction: Tensor  # g
    weight: Tensor  # sum of those by w, [E, H]
    diagonal: Tensor  # sum of -D times those by D, [N, F, H]
    # Sums of those by c and by D_w, if there are such, [N, F, H].
    confidence: Any = None
    degree: Any = None


def mean_difference(
    a: Matrix, x: Tensor, apply: Callable[..., Tensor] = laplacian
) -> Tensor:
    r""":math:`D_w^{-1} L_w x`, or of first order :math:`x` itself."""
    if a.degree is None:
        return x
    return apply(a.topology, a.weight, x) / a.degree


def product(
    a: Matrix, x: Tensor, apply: Callable[..., Tensor] = laplacian
) -> Tensor:
    """:math:`A x`, by a function for the Laplacian."""
    out = apply(a.topology, a.weight, mean_difference(a, x, apply))
    return out if a.confidence is None else out + a.confidence * x


def cg_step(
    a: Matrix, state: State, v: Tensor, new: Tensor, scalars: Tensor
) -> None:
    r"""One step of conjugate gradients.

    .. math::
        r &\leftarrow r - \alpha A v

        v' &= D^{-1} r + \beta v

        x &\leftarrow x + \alpha' v'

    The scalars :math:`(3, H)` are :math:`\alpha` of the step that is completed,
    :math:`\beta` and :math:`\alpha'`. The next direction :math:`v'` goes to
    :obj:`new`.
    """
    (x, residual), (alpha, beta, alpha_next) = state, scalars
    residual -= alpha * product(a, v)
    torch.add(residual / a.diagonal, beta * v, out=new)
    x += alpha_next * new


def cg_steps(
    a: Matrix,
    state: State,
    directions: Directions,
    scalars: Tensor,
    step: Callable[..., None] = cg_step,
) -> None:
    """Several of them, by a backend's :func:`cg_step`, with scalars
    :math:`(K, 3, H)`. All directions but the first are written.
    """
    for k, row in enumerate(scalars):
        step(a, state, directions.of(k - 1), directions.of(k), row)


def cg_step_backward(
    a: Matrix, adjoint: Adjoint, v: Tensor, u: Tensor, scalars: Tensor
) -> Tensor:
    r"""The adjoint of :func:`cg_step`, from one step to the one before it.

    With :math:`q` the derivative by the residual after the step and :math:`g`
    that by the direction :math:`v'`:

    .. math::
        g &\leftarrow \beta g + \alpha (\partial x - A q)

        q &\leftarrow q + D^{-1} g

    The direction before :math:`v` is :math:`u`, any one at the first step. The
    scalars :math:`(3, H)` are :math:`\alpha`, :math:`\beta`, and :math:`\beta`
    of the step before, zero at the first. Returns the derivatives by
    :math:`\alpha` and by :math:`\beta` of the step before, :math:`(2, H)`.
    """
    alpha, beta, beta_previous = scalars
    q = adjoint.residual
    mean_q, mean_v = mean_difference(a, q), mean_difference(a, v)
    adjoint.weight -= alpha * edge_dot(a.topology, q, mean_v)
    if adjoint.degree is not None:
        adjoint.weight -= alpha * edge_dot(a.topology, mean_q, v)
        adjoint.degree += alpha * mean_q * mean_v
    image = laplacian(a.topology, a.weight, mean_q)
    if a.confidence is not None:
        image += a.confidence * q
        adjoint.confidence -= alpha * q * v
    slope = adjoint.x - image
    g = adjoint.direction.mul_(beta).add_(alpha * slope)
    adjoint.diagonal += g * (v - beta_previous * u)
    adjoint.residual = q + g / a.diagonal
    return torch.stack([(slope * v).sum((0, 1)), (g * u).sum((0, 1))])


def cg_steps_backward(
    a: Matrix,
    adjoint: Adjoint,
    directions: Directions,
    scalars: Tensor,
    step: Callable[..., Tensor] = cg_step_backward,
) -> Tensor:
    r"""The adjoint of :func:`cg_steps`, by a backend's
    :func:`cg_step_backward`, and of the first residual :math:`b - A x`.

    That is what a whole step from zero along the start :math:`x` leaves; its
    scalars are the last of :math:`(K + 1, 3, H)`. The derivatives by :math:`x`
    and :math:`b` are the direction and the residual of the adjoint; returns
    those by the scalars, :math:`(K, 2, H)`.
    """
    count = len(directions.rest)
    dots = scalars.new_empty((count, 2, scalars.size(2)))
    for k in range(count - 1, -1, -1):
        v, u = directions.of(k), directions.of(max(k - 1, 0))
        dots[k] = step(a, adjoint, v, u, scalars[k])
    b, diagonal, start = adjoint.residual, adjoint.diagonal, directions.start
    # The start is no unknown divided by the diagonal.
    adjoint.diagonal = torch.zeros_like(b)
    step(a, adjoint, start, start, scalars[count])
    adjoint.residual, adjoint.diagonal = b, diagonal
    return dots
