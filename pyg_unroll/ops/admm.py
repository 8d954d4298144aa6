r"""Iterations of ADMM on graph total variation, for layer and solver.

Those of a layer are one operator. The derivative needs the state before each
of them and the directions of its steps: these are kept or, with checkpointing,
every so many states, from which they are computed again. For derivatives of
higher order the iterations are composed of differentiable operators.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops import cg, operators
from pyg_unroll.ops.backend import kernels, numbers
from pyg_unroll.ops.order import LocalOrder, local_order, take
from pyg_unroll.ops.reference import admm as reference
from pyg_unroll.ops.reference.admm import shrink
from pyg_unroll.ops.reference.operators import accumulate_type
from pyg_unroll.ops.registry import empty_like, iterations, needs_grad


@dataclass(frozen=True, eq=False)
class TotalVariation:
    r"""The problem :math:`\min_x \sum_i c_i (x_i - y_i)^2 / \mu + \|z\|_1`
    subject to :math:`z = W B x`, with known entries held if :math:`c` is
    :obj:`None`. :math:`W B x` is the weighted gradient.
    """

    topology: Topology
    weight: Tensor  # [E, H]
    # Broadcastable to [N, F, H]: y, c >= 0, and which are free, if not all.
    observed: Tensor
    confidence: Tensor | None
    free: Tensor | None
    mu: Tensor  # scalar or [H], not read without c

    def gradient(self, x: Tensor) -> Tensor:
        r"""The weighted gradient :math:`w_{ij} (x_i - x_j)`."""
        gradient = operators.gradient(self.topology, x)
        return self.weight.unsqueeze(1) * gradient

    def divergence(self, z: Tensor) -> Tensor:
        """The adjoint of :meth:`gradient`."""
        flow = self.weight.unsqueeze(1) * z
        return operators.divergence(self.topology, flow)

    def system(self, rho: Tensor) -> cg.LaplacianSystem:
        r"""The system :math:`2 c / (\mu \rho) + L_{w^2}` of the signal."""
        if self.confidence is None:
            return self._held
        return self._build(self.confidence * (2 / (self.mu * rho)))

    @cached_property
    def _held(self) -> cg.LaplacianSystem:
        """That without a confidence, the same for all penalties."""
        return self._build(None)

    @cached_property
    def _squares(self) -> tuple[Tensor, Tensor]:
        square = self.weight.square()
        return square, operators.degree(self.topology, square)

    def _build(self, confidence: Tensor | None) -> cg.LaplacianSystem:
        square, degree = self._squares
        return cg.LaplacianSystem.build(
            self.topology, square, confidence, self.free, degrees=degree
        )

    def iterate(
        self,
        x: Tensor,
        flow: Tensor,
        dual: Tensor,
        rho: Tensor,
        solve: Callable[[Tensor, Tensor], Tensor],
        system: cg.LaplacianSystem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""One iteration of ADMM.

        .. math::
            z &= \mathrm{shrink}(W B x + p / \rho, 1 / \rho)

            x &\leftarrow \arg\min_x c (x - y)^2 / \mu +
            \rho / 2 \| W B x - z + p / \rho \|^2

            p &\leftarrow p + \rho (W B x - z)

        The weighted gradient of :obj:`x` is :obj:`flow`, :math:`p` the
        :obj:`dual` variable, in :math:`[-1, 1]` at the optimum, and the
        :obj:`system` that of :obj:`rho`; :obj:`solve` maps a start and its
        residual to the (approximate) solution. Returns the next estimate, its
        gradient and dual variable.
        """
        scaled = dual / rho
        target = shrink(flow + scaled, 1 / rho)
        residual = self.divergence(target - scaled - flow)
        if system.confidence is not None:
            residual = residual + system.confidence * (self.observed - x)
        x = solve(x, system.restrict(residual))
        flow = self.gradient(x)
        return x, flow, dual + rho * (flow - target)


class Coefficients(NamedTuple):
    """Of :math:`T` iterations of :math:`K` steps each."""

    rho: Tensor  # penalties [T, H]
    relaxation: Tensor  # over-relaxations [T, H]
    alpha: Tensor  # step sizes [T, K, H]
    beta: Tensor  # momenta [T, K - 1, H]


def admm_steps(
    problem: TotalVariation,
    x: Tensor,
    dual: Tensor | None,
    coefficients: Coefficients,
    checkpoint: bool,
) -> tuple[Tensor, Tensor]:
    r"""The signal and the dual variable after iterations from others, or from
    a dual variable of zero.

    As :meth:`TotalVariation.iterate`, over-relaxed, with conjugate-gradient
    steps in place of a solution; the dual variable still lacks the last
    penalty times the gradient of the signal. To :obj:`checkpoint` keeps every
    :math:`\sqrt{T}`-th state only.
    """
    operands = _operands(problem, x, dual, coefficients)
    every = 0
    if needs_grad(*operands):
        count = coefficients.rho.size(0)
        every = max(round(sqrt(count)), 2) if checkpoint else 1
    x, dual, _ = _admm_steps(problem.topology, *operands, every)
    return x, dual


@torch.no_grad()
def admm_iterates(
    problem: TotalVariation,
    x: Tensor,
    dual: Tensor | None,
    coefficients: Coefficients,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields signal and dual variable after each iteration of
    :func:`admm_steps`, bit for bit. Derivatives are not recorded.
    """
    dtype = x.dtype
    operands = _operands(problem, x, dual, coefficients)
    order, problem, x, dual, scalars, *steps = _begin(
        problem.topology, *operands
    )
    for rows in zip(scalars, cg.step_scalars(*steps), strict=True):
        x, dual, _ = _iterate(problem, x, dual, rows, False)
        found = _in_old_order(order, x, dual)
        yield found[0].to(dtype), found[1].to(dtype)


def _operands(
    problem: TotalVariation,
    x: Tensor,
    dual: Tensor | None,
    coefficients: Coefficients,
) -> tuple[Any, ...]:
    """Those of the operator, with all heads each."""
    observed = mu = None
    confidence, free = problem.confidence, problem.free
    if confidence is not None:
        confidence = confidence.expand(-1, -1, x.size(2))
        observed, mu = problem.observed.expand(-1, -1, x.size(2)), problem.mu
    if free is not None:
        free = free.expand(-1, -1, x.size(2))
    start = problem.weight, x, dual, confidence, observed, mu
    return *start, *coefficients, free


def _in_old_order(order: LocalOrder, x: Tensor, dual: Tensor) -> Any:
    """Signal and dual variable for the user."""
    edges = take(order.edge_number, order.turn(dual))
    return *take(order.number, x), *edges


def _no_dual(topology: Topology, x: Tensor) -> Tensor:
    """A dual variable of zero."""
    return x.new_zeros((topology.num_edges, *x.shape[1:]))


def _read(topology: Topology, *operands: Any) -> tuple[Any, ...]:
    """The problem, the start, scalars of :func:`.reference.admm.admm_step`,
    step sizes and momenta.
    """
    weight, x, dual, confidence, observed, mu, rho, *rest, free = operands
    problem = TotalVariation(topology, weight, observed, confidence, free, mu)
    relaxation, alpha, beta = rest
    before = torch.cat([torch.zeros_like(rho[:1]), rho[:-1]])
    scalars = torch.stack([before, rho, relaxation], 1)
    return problem, x, dual, scalars, alpha, beta


def _begin(topology: Topology, *operands: Any) -> tuple[Any, ...]:
    """A local order of nodes, and in that order what :func:`_read` returns, in
    the types of kernels, and contiguous if these read it.
    """
    order = local_order(topology)
    weight, x, dual, *rest = operands
    confidence, observed, *rest, free = (
        v if v is None else v.to(accumulate_type(v.dtype)) for v in rest
    )
    weight, x, dual = numbers(weight, x, dual)
    weight, dual = take(order.edge, weight, dual)
    x, *others, free = take(order.node, x, confidence, observed, free)
    start = order.topology, weight, x, order.turn(dual)
    return order, *_read(*start, *others, *rest, free)


def _follow(
    problem: TotalVariation,
    x: Tensor,
    dual: Tensor | None,
    scalars: Tensor,
    step: Callable[..., Any],
    solve: Callable[..., Any],
) -> tuple[Any, Any]:
    """One iteration, of a part along the edges and steps."""
    if dual is None:
        dual = _no_dual(problem.topology, x)
    b, dual = step(problem.topology, problem.weight, x, dual, scalars)
    a = problem.system(scalars[1])
    if a.confidence is not None:
        b = b + a.confidence * problem.observed
    return solve(a, x, b), dual


def _iterate(
    problem: TotalVariation,
    x: Tensor,
    dual: Tensor | None,
    rows: tuple[Tensor, Tensor],
    keep: bool,
) -> tuple[Tensor, Any, list[Tensor]]:
    """One iteration by kernels; also the directions of its steps."""
    step = kernels('admm', x).admm_step
    solve = partial(cg.run_steps, scalars=rows[1], keep=keep)
    (x, path), dual = _follow(problem, x, dual, rows[0], step, solve)
    return x, dual, path


def composed_iterations(
    topology: Topology, *operands: Any
) -> tuple[Tensor, Tensor]:
    """All iterations, of operators that have derivatives."""
    problem, x, dual, *rows = _read(topology, *operands)
    to_edges, to_nodes = operators.to_edges, operators.to_nodes
    step = partial(reference.admm_step, to_edges=to_edges, to_nodes=to_nodes)
    for scalars, *steps in zip(*rows, strict=True):
        (x,), dual = _follow(
            problem,
            x,
            dual,
            scalars,
            step,
            lambda a, x, b, steps=steps: cg.composed_steps(
                *a.operands, x, b, *steps
            ),
        )
    return x, dual


def _run(
    topology: Topology, *operands: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    *given, every = operands
    dtype = given[1].dtype
    order, problem, x, dual, scalars, *steps = _begin(topology, *given)
    xs, duals, paths = [], [], []
    rows = zip(scalars, cg.step_scalars(*steps), strict=True)
    for t, row in enumerate(rows):
        if t and every and t % every == 0:
            xs.append(x)
            duals.append(dual)
        x, dual, path = _iterate(problem, x, dual, row, every == 1)
        paths += path
    x, dual = _in_old_order(order, x, dual)
    # What is kept stays in the order of the steps.
    return x.to(dtype), dual.to(dtype), [*xs, *duals, *paths]


def _fake(
    topology: Topology, *operands: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    _, x, *_, alpha, _, _, every = operands
    dual = _no_dual(topology, x)
    (count, num_steps, _), dtype = alpha.shape, accumulate_type(x.dtype)
    states = range(every, count, every) if every else ()
    kept = [empty_like(v, dtype) for v in (x, dual) for _ in states]
    paths = range(count * num_steps if every == 1 else 0)
    kept += [empty_like(x, dtype) for _ in paths]
    return empty_like(x), dual, kept


def _go_back(
    problem: TotalVariation,
    by_x: Tensor,
    by_dual: Tensor,
    x: Tensor,
    dual: Tensor | None,
    path: Sequence[Tensor],
    rows: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, list[Tensor], tuple[Tensor, ...]]:
    """The adjoint of one iteration, from its start and directions.

    Returns derivatives by the start; what all iterations add to, by weights,
    squared weights of the system and its diagonal, confidence and
    observations; and those by scalars, step sizes, momenta and, of systems,
    log(2 / (mu rho)).
    """
    scalars, own = rows
    rho = scalars[1]
    a = problem.system(rho)
    by_square, by_diagonal, by_c, _, by_x, by_b, *by_steps = (
        cg.run_steps_backward(a, x, path, own, by_x)
    )
    shared, by_scale = [by_square, by_diagonal], torch.zeros_like(rho)
    if a.confidence is not None:
        by_c += by_diagonal + by_b * problem.observed
        by_scale = (by_c * a.confidence).sum((0, 1))
        shared += [by_c * (2 / (problem.mu * rho)), by_b * a.confidence]
    step = kernels('admm', x).admm_step_backward
    if dual is None:
        dual = _no_dual(problem.topology, x)
    operands = problem.weight, x, dual, scalars, by_b, by_dual
    by_weight, by_start, by_dual, by_scalars = step(problem.topology, *operands)
    row = by_scalars, *by_steps, by_scale
    return by_x + by_start, by_dual, [by_weight, *shared], row


def _run_backward(
    topology: Topology, given: Any, every: int, kept: Any, grads: Any
) -> tuple[Any, ...]:
    order, problem, x, dual, scalars, alpha, beta = _begin(topology, *given)
    topology = problem.topology
    forward = list(zip(scalars, cg.step_scalars(alpha, beta), strict=True))
    back = list(
        zip(scalars, cg.step_scalars_backward(alpha, beta), strict=True)
    )
    grad, grad_dual = numbers(*grads)
    (by_x,), (by_dual,) = take(order.node, grad), take(order.edge, grad_dual)
    by_x = torch.zeros_like(x) if by_x is None else by_x
    by_dual = order.turn(by_dual)
    by_dual = _no_dual(topology, x) if by_dual is None else by_dual
    is_soft, weight = problem.confidence is not None, problem.weight
    likes = weight, weight, *[x] * (3 if is_soft else 1)
    sums, by_rows = [torch.zeros_like(v) for v in likes], []
    count, num_steps = (len(scalars) - 1) // every, alpha.size(1)
    xs, duals = [x, *kept[:count]], [dual, *kept[count : 2 * count]]
    paths = kept[2 * count :]
    for first in range(count * every, -1, -every):
        x, dual, states = xs.pop(), duals.pop(), []
        for t in range(first, min(first + every, len(scalars))):
            start = x, dual
            if every == 1:
                path = paths[t * num_steps : (t + 1) * num_steps]
            else:
                x, dual, path = _iterate(problem, x, dual, forward[t], True)
            states.append((*start, path, back[t]))
        while states:
            by_x, by_dual, shared, row = _go_back(
                problem, by_x, by_dual, *states.pop()
            )
            by_rows.append(row)
            for total, part in zip(sums, shared, strict=True):
                total += part
    by_scalars, by_alpha, by_beta, by_scale = map(
        torch.stack, zip(*reversed(by_rows), strict=True)
    )
    by_rho = by_scalars[:, 1] - by_scale / scalars[:, 1]
    by_rho[:-1] += by_scalars[1:, 0]
    by_weight, by_square, by_diagonal, *by_data = sums
    to_edges = kernels('operators', x).to_edges
    by_square += to_edges(topology, by_diagonal.sum(1), False)
    by_weight.addcmul_(weight, by_square, value=2)
    return (
        *take(order.edge_number, by_weight),
        *_in_old_order(order, by_x, by_dual),
        *(take(order.number, *by_data) if is_soft else (None, None)),
        -by_scale.sum(0) / problem.mu if is_soft else None,
        by_rho,
        by_scalars[:, 2].clone(),  # results of an operator share no memory
        by_alpha,
        by_beta,
        None,
    )


_admm_steps = iterations(
    'admm_steps',
    'Tensor weight, Tensor x, Tensor? dual, Tensor? confidence, '
    'Tensor? observed, Tensor? mu, Tensor rho, Tensor relaxation, '
    'Tensor alpha, Tensor beta, Tensor? free',
    2,
    _run,
    _fake,
    _run_backward,
    composed_iterations,
)
