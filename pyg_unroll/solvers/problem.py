"""The problem that a solver solves, and its result."""

import math
import warnings
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor

from pyg_unroll.checks import (
    can_read_values,
    check_between,
    check_choice,
    check_positive,
)
from pyg_unroll.graph import Topology, resolve_graph
from pyg_unroll.inputs import Fidelity, Observations, read_signal
from pyg_unroll.ops.order import components, local_order
from pyg_unroll.ops.reference.cg import Matrix
from pyg_unroll.ops.registry import Operator
from pyg_unroll.solvers.spanning_tree import caution, is_stiff


class SolverResult(NamedTuple):
    r"""Solution of a solver, with the evidence for it.

    Attributes:
        x (torch.Tensor): The signal :math:`(N, F)`.
        residual (float): The quantity that the tolerance bounds, the largest
            over features: for :func:`~pyg_unroll.solvers.glr` the relative
            residual, or where weights differ much in size a bound of the
            relative error, for :func:`~pyg_unroll.solvers.gtv` the relative
            duality gap, a bound of the distance to the optimum.
        num_steps (int): Number of iterations.
        converged (bool): Whether the tolerance was reached.
    """

    x: Tensor
    residual: float
    num_steps: int
    converged: bool


class ConvergenceWarning(RuntimeWarning):
    """A solver stopped before it reached its tolerance."""


def check_convergence(
    solver: str, residual: float, num_steps: int, tol: float
) -> bool:
    """Whether the tolerance was reached; warns if not."""
    if residual <= tol:
        return True
    warnings.warn(
        f"'{solver}' reached {residual:.1e} instead of the tolerance "
        f"{tol:.1e} in {num_steps} steps; raise 'max_steps' or 'tol'",
        ConvergenceWarning,
        stacklevel=4,
    )
    return False


def check_fill(name: str, fill: Any) -> None:
    """Raises a `ValueError` unless cut-off entries can take this value."""
    is_number = isinstance(fill, Real) and math.isfinite(fill)
    if fill is not None and fill != 'mean' and not is_number:
        raise ValueError(
            f"'{name}' must be a finite number, 'mean' or None (got {fill!r})"
        )


def check_range(name: str, *factors: float) -> None:
    """Raises a `ValueError` if a product is out of the range of float64."""
    if all(factors):
        size = sum(math.log10(abs(factor)) for factor in factors)
        if not abs(size) < _MOST_DIGITS:
            raise ValueError(
                f'{name} must lie between 1e-304 and 1e304 (got about '
                f'1e{size:.0f}); choose other units'
            )


# Sums of some numbers are still in the range of float64.
_MOST_DIGITS = 304

# Checks of the arguments that all solvers have.
CHECKS = {'tol': check_between, 'max_steps': check_positive, 'fill': check_fill}


@dataclass(frozen=True, eq=False)
class SmoothnessProblem:
    """A signal to fit and a graph on which it is to be smooth, in float64."""

    signal: Observations  # [N, F, 1]
    topology: Topology
    weight: Tensor  # [E, 1]
    mu: Tensor  # a scalar
    start: Tensor  # known entries, their mean elsewhere, [N, F, 1]
    part: Tensor  # number of each node's connected component, [N, 1]
    dtype: torch.dtype  # of the user's signal
    order: Tensor | None = None  # the user's number of each node, if another

    @classmethod
    def read(
        cls,
        x: Any,
        edge_index: Any,
        edge_weight: Tensor | None,
        mask: Tensor | None,
        confidence: Tensor | None,
        fidelity: Any,
        mu: float | Tensor,
        fill: float | str | None,
    ) -> Self:
        """Checks the arguments of a solver."""
        check_choice('fidelity', fidelity, get_args(Fidelity))
        is_float = isinstance(x, Tensor) and x.is_floating_point()
        read = read_signal(x.double() if is_float else x, mask, confidence)
        # Entries that are not observed have no meaning here; NaN is usual.
        signal = Observations.of(replace(read, x=read.fill(0)), fidelity)
        topology, weight = resolve_graph(
            edge_index, edge_weight, x.size(0), torch.float64
        )
        if weight.size(1) != 1:
            raise ValueError(
                f"'edge_weight' must have one value per edge (got "
                f'{weight.size(1)} heads); solve for each head'
            )
        known = read.observed
        if read.confidence is not None:
            known = known & (read.confidence > 0)
        y = signal.x.squeeze(-1)
        lost, part = _lost(
            topology, weight.detach(), known.unsqueeze(-1), fill is not None
        )
        lost = lost.squeeze(-1)
        mean = torch.where(known, y, 0).sum(0) / known.sum(0).clamp(min=1)
        if not can_read_values(lost) or bool(lost.any()):
            value = float(fill or 0) if fill != 'mean' else mean
            y = torch.where(lost, value, y)
            free = True if signal.free is None else signal.free
            free = ~lost.unsqueeze(-1) & free
            signal = replace(signal, x=y.unsqueeze(-1), free=free)
        start = torch.where(known | lost, y, mean.detach()).unsqueeze(-1)
        if isinstance(mu, Tensor) and mu.numel() != 1:
            raise ValueError(
                f"'mu' must be one number (got shape {list(mu.shape)}); solve "
                f'for each'
            )
        if can_read_values(mu):
            check_between('mu', mu.item() if isinstance(mu, Tensor) else mu)
        mu = torch.as_tensor(mu, dtype=torch.float64, device=x.device)
        problem = cls(signal, topology, weight, mu, start, part, x.dtype)
        if start.numel() and can_read_values(start, weight, mu):
            sizes = problem.sizes
            check_range("'x' times 'edge_weight'", *sizes[:2])
            if signal.confidence is not None:
                check_range("'mu' times 'edge_weight'", *sizes[1:])
        return problem._reorder()

    @property
    def sizes(self) -> tuple[float, float, float]:
        """Largest observation, largest weight, and `mu`."""
        low, high = self.signal.x.detach().aminmax()
        size = torch.maximum(-low, high)
        weight = self.weight.detach()
        largest = float(weight.aminmax()[1]) if len(weight) else 0.0
        return float(size), largest, float(self.mu.detach())

    def _reorder(self) -> Self:
        """The same problem, its neighbours near each other in memory."""
        found, signal = local_order(self.topology), self.signal
        node, edge = found.node, found.edge
        if node is None or edge is None:
            return self
        free, confidence = (
            None if value is None else value.index_select(0, node)
            for value in (signal.free, signal.confidence)
        )
        x, start, part = (
            value.index_select(0, node)
            for value in (signal.x, self.start, self.part)
        )
        return type(self)(
            Observations(x, free, confidence, signal.layout),
            found.topology,
            # Of one dimension it is several times faster.
            self.weight.squeeze(1).index_select(0, edge).unsqueeze(1),
            self.mu,
            start,
            part,
            self.dtype,
            node,
        )

    def result(
        self,
        solver: str,
        x: Tensor,
        residual: float,
        num_steps: int,
        tol: float,
    ) -> SolverResult:
        """The solution in the user's order, its held entries bit for bit."""
        if self.signal.free is not None:
            x = torch.where(self.signal.free, x, self.signal.x)
        x = x.squeeze(-1)
        if self.order is not None:
            x = torch.empty_like(x).index_copy(0, self.order.long(), x)
        converged = check_convergence(solver, residual, num_steps, tol)
        return SolverResult(x.to(self.dtype), residual, num_steps, converged)


def unreachable(topology: Topology, weight: Tensor, known: Tensor) -> Tensor:
    """True at entries `[N, F]` that no path of positive weight `[E]` joins to
    a known one `[N, F]`.
    """
    return _are_unreachable(components(topology, weight).long(), known)


def _are_unreachable(component: Tensor, known: Tensor) -> Tensor:
    count = int(component.max()) + 1 if component.numel() else 0
    reached = known.new_zeros((count, known.size(1)), dtype=torch.long)
    reached.index_add_(0, component, known.long())
    return reached[component] == 0


def _find_lost(
    topology: Topology, weight: Tensor, known: Tensor, allow: bool
) -> tuple[Tensor, Tensor]:
    """Entries that cannot be interpolated, refused if they are not allowed;
    and the number of each node's component.
    """
    part = [components(topology, w).long() for w in weight.unbind(1)]
    heads = zip(part, known.unbind(2), strict=True)
    lost = torch.stack([_are_unreachable(*head) for head in heads], 2)
    if not allow and bool(lost.any()):
        nodes = lost.flatten(1).any(1).nonzero().view(-1).tolist()
        shown = ', '.join(str(node) for node in nodes[:5])
        more = ', ...' if len(nodes) > 5 else ''
        raise ValueError(
            f"'mask' has no known entry in the connected component of "
            f'{len(nodes)} node(s) ({shown}{more}), whose values cannot be '
            f'interpolated; connect the graph (weights that underflow to zero '
            f"cut it), observe one of them, or pass 'fill' (a number or "
            f"'mean')"
        )
    return lost, torch.stack(part, 1)


# Operators, hence they see values under transforms of `torch.func`, too.
_lost = Operator(
    'lost',
    'Tensor weight, Tensor known, bool allow',
    '(Tensor, Tensor)',
    _find_lost,
    lambda topology, weight, known, allow: (
        torch.empty_like(known),
        known.new_empty((len(known), weight.size(1)), dtype=torch.long),
    ),
)


def _settle(
    topology: Topology,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    free: Tensor | None,
    part: Tensor,
    x: Tensor,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where they are needed, a start, and the range of the observations of each
    component, a power of two; nothing elsewhere.

    Of several components, the start is the mean of each; where a residual says
    too little of a system, it leaves out the observations, as nearly
    nothing but their mean may be left of them.
    """
    parts = Parts.of(part)
    system = Matrix(topology, weight, diagonal, confidence)
    is_even = caution(system) < torch.inf and not is_stiff(system)
    if is_even and parts.total < 2:
        return start[:0].clone(), start[:0].clone()
    trust = torch.zeros_like(start) if confidence is None else confidence
    trust = trust if free is None else torch.where(free, trust, 1.0)
    trust, x = trust.expand_as(start), x.expand_as(start)
    mean, unit = parts.center(trust, x)
    moves = trust == 0 if is_even else torch.ones_like(trust, dtype=torch.bool)
    moves = moves if free is None else moves & free
    return torch.where(moves, mean, start), power_of_two(unit)


class Parts(NamedTuple):
    """Connected components, and the number of that of each row."""

    total: int
    number: Tensor  # [N, H] or, of edges, [E, H]

    @classmethod
    def of(cls, number: Tensor) -> Self:
        """Counts them."""
        return cls(int(number.max()) + 1 if number.numel() else 0, number)

    def reduce(self, value: Tensor, how: Any) -> Tensor:
        """Sums, or smallest or largest, of values `[N, F, H]`."""
        if self.total == 1:
            out: Tensor = getattr(value, how)(0, keepdim=True)
            return out
        out = value.new_zeros((self.total, *value.shape[1:]))
        index = self.number.unsqueeze(1).expand_as(value)
        return out.scatter_reduce(0, index, value, how, include_self=False)

    def spread(self, value: Tensor) -> Tensor:
        """To each row the value of its component."""
        if self.total == 1:
            return value
        shape = len(self.number), *value.shape[1:]
        return value.gather(0, self.number.unsqueeze(1).expand(shape))

    def center(self, trust: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means of entries by their trust, and the range of those with some."""
        low, high = (
            self.reduce(torch.where(trust > 0, x, bound), how)
            for bound, how in ((torch.inf, 'amin'), (-torch.inf, 'amax'))
        )
        mean = self.reduce(trust * x, 'sum') / self.reduce(trust, 'sum')
        # Rounding does not move the mean of constants.
        mean = torch.minimum(torch.maximum(mean, low), high)
        return self.spread(mean), self.spread(high - low)


def power_of_two(size: Tensor) -> Tensor:
    """That below each positive number, and one for zero."""
    size = torch.where(size > 0, size, 1)
    return size / size.frexp().mantissa


settle = Operator(
    'settle',
    'Tensor weight, Tensor diagonal, Tensor? confidence, Tensor? free, '
    'Tensor part, Tensor x, Tensor start',
    '(Tensor, Tensor)',
    _settle,
    lambda *operands: (
        torch.empty_like(operands[-1]),
        torch.empty_like(operands[-1]),
    ),
)
