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
from pyg_unroll.ops.registry import Operator


class SolverResult(NamedTuple):
    r"""Solution of a solver, with the evidence for it.

    Attributes:
        x (torch.Tensor): The signal :math:`(N, F)`.
        residual (float): The quantity that the tolerance bounds, the largest
            over features: for :func:`~pyg_unroll.solvers.glr` the relative
            residual, for :func:`~pyg_unroll.solvers.gtv` the relative
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
        lost = _lost(
            topology, weight.detach(), known.unsqueeze(-1), fill is not None
        ).squeeze(-1)
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
        return cls(signal, topology, weight, mu, start, x.dtype)._reorder()

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
        x, start = (
            value.index_select(0, node) for value in (signal.x, self.start)
        )
        return type(self)(
            Observations(x, free, confidence, signal.layout),
            found.topology,
            # Of one dimension it is several times faster.
            self.weight.squeeze(1).index_select(0, edge).unsqueeze(1),
            self.mu,
            start,
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
    component = components(topology, weight).long()
    count = int(component.max()) + 1 if component.numel() else 0
    reached = known.new_zeros((count, known.size(1)), dtype=torch.long)
    reached.index_add_(0, component, known.long())
    return reached[component] == 0


def _find_lost(
    topology: Topology, weight: Tensor, known: Tensor, allow: bool
) -> Tensor:
    """Entries that cannot be interpolated; refused if they are not allowed."""
    heads = zip(weight.unbind(1), known.unbind(2), strict=True)
    lost = torch.stack([unreachable(topology, *head) for head in heads], 2)
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
    return lost


# An operator, hence it sees values under transforms of `torch.func`, too.
_lost = Operator(
    'lost',
    'Tensor weight, Tensor known, bool allow',
    'Tensor',
    _find_lost,
    lambda topology, weight, known, allow: torch.empty_like(known),
)
