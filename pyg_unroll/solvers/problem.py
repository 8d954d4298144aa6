"""The problem that a solver solves, and its result."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor

from pyg_unroll.checks import (
    Checks,
    check_between,
    check_choice,
    check_positive,
)
from pyg_unroll.graph import Topology, resolve_graph
from pyg_unroll.inputs import Fidelity, Observations, read_signal
from pyg_unroll.solvers.ordering import local_order


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


def warn_unconverged(
    solver: str, residual: float, num_steps: int, tol: float
) -> None:
    """Makes a missed tolerance visible."""
    warnings.warn(
        f"'{solver}' reached {residual:.1e} instead of the tolerance "
        f"{tol:.1e} in {num_steps} steps; raise 'max_steps' or 'tol'",
        ConvergenceWarning,
        stacklevel=4,
    )


def check_fill(name: str, fill: Any) -> None:
    """Raises a `ValueError` unless cut-off entries can take this value."""
    is_number = isinstance(fill, Real) and math.isfinite(fill)
    if fill is not None and fill != 'mean' and not is_number:
        raise ValueError(
            f"'{name}' must be a finite number, 'mean' or None (got {fill!r})"
        )


# Checks of the arguments that all solvers have.
CHECKS: Checks = {
    'tol': check_between,
    'max_steps': check_positive,
    'fill': check_fill,
}


@dataclass(frozen=True, eq=False)
class SmoothnessProblem:
    r"""A signal to fit and a graph on which it is to be smooth, in float64.

    Attributes:
        signal (Observations): Observations :math:`(N, F, 1)`.
        topology (Topology): The graph.
        weight (torch.Tensor): Weights :math:`(E, 1)`.
        mu (torch.Tensor): Weight of the prior, a scalar.
        start (torch.Tensor): Known entries, and the mean of them elsewhere,
            :math:`(N, F, 1)`.
        dtype (torch.dtype): Type of the user's signal.
        order (torch.Tensor or None): The user's number of each node
            :math:`(N)`; the same if :obj:`None`.
    """

    signal: Observations
    topology: Topology
    weight: Tensor
    mu: Tensor
    start: Tensor
    dtype: torch.dtype
    order: Tensor | None = None

    @classmethod
    def read(
        cls,
        x: Any,
        edge_index: Any,
        edge_weight: Tensor | None,
        mask: Tensor | None,
        confidence: Tensor | None,
        fidelity: str,
        mu: float | Tensor,
        fill: float | str | None,
    ) -> SmoothnessProblem:
        """Checks the arguments of a solver; see there for their meaning."""
        check_choice('fidelity', fidelity, get_args(Fidelity))
        dtype = getattr(x, 'dtype', torch.float64)
        is_float = isinstance(x, Tensor) and x.is_floating_point()
        read = read_signal(x.double() if is_float else x, mask, confidence)
        x = read.x
        # Entries that are not observed have no meaning here; NaN is usual.
        signal = Observations.of(
            replace(read, x=read.fill(0)), cast(Fidelity, fidelity)
        )
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
        lost = unreachable(topology, weight.detach()[:, 0], known)
        mean = _known_mean(y, known)
        if bool(lost.any()):
            y = torch.where(lost, _fill_value(lost, fill, mean), y)
            free = (~lost).unsqueeze(-1)
            if signal.free is not None:
                free = free & signal.free
            signal = replace(signal, x=y.unsqueeze(-1), free=free)
        start = torch.where(known | lost, y, mean.detach()).unsqueeze(-1)
        return cls(
            signal, topology, weight, _read_mu(mu, x), start, dtype
        )._reorder()

    def _reorder(self) -> SmoothnessProblem:
        """The same problem, its neighbours near each other in memory."""
        found = local_order(self.topology)
        if found is None:
            return self
        topology, node, edge = found
        parts = {
            name: value[node]
            for name in ('x', 'free', 'confidence')
            if (value := getattr(self.signal, name)) is not None
        }
        return replace(
            self,
            signal=replace(self.signal, **parts),
            topology=topology,
            weight=self.weight[edge],
            start=self.start[node],
            order=node,
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
            x = torch.empty_like(x).index_copy(0, self.order, x)
        converged = residual <= tol
        if not converged:
            warn_unconverged(solver, residual, num_steps, tol)
        return SolverResult(x.to(self.dtype), residual, num_steps, converged)


def unreachable(topology: Topology, weight: Tensor, known: Tensor) -> Tensor:
    """Entries, `[N, F]`, that no path of positive weights `[E]` joins to a
    known one.
    """
    # Late, as parts of SciPy take longer to load than all of the package.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    joined = (weight > 0)[topology.edge_id].cpu().numpy()
    col, rowptr = topology.col.cpu().numpy(), topology.rowptr.cpu().numpy()
    graph = csr_array(
        (joined, col, rowptr),
        shape=(topology.num_nodes, topology.num_nodes),
        copy=not joined.all(),  # the next line works in place
    )
    graph.eliminate_zeros()
    count, label = connected_components(graph, directed=False)
    component = torch.from_numpy(label).long().to(known.device)
    reached = known.new_zeros((count, known.size(1)), dtype=torch.long)
    reached.index_add_(0, component, known.long())
    return reached[component] == 0


def _fill_value(
    lost: Tensor, fill: float | str | None, mean: Tensor
) -> Tensor | float:
    if fill is None:
        nodes = lost.any(1).nonzero().view(-1).tolist()
        shown = ', '.join(str(node) for node in nodes[:5])
        more = ', ...' if len(nodes) > 5 else ''
        raise ValueError(
            f"'mask' has no known entry in the connected component of "
            f'{len(nodes)} node(s) ({shown}{more}), whose values cannot be '
            f'interpolated; connect the graph (weights that underflow to zero '
            f"cut it), observe one of them, or pass 'fill' (a number or "
            f"'mean')"
        )
    return mean if fill == 'mean' else float(fill)


def _known_mean(x: Tensor, known: Tensor) -> Tensor:
    """Mean of each feature's known entries, `[F]`, zero if there are none."""
    return torch.where(known, x, 0).sum(0) / known.sum(0).clamp(min=1)


def _read_mu(mu: float | Tensor, x: Tensor) -> Tensor:
    if isinstance(mu, Tensor) and mu.numel() != 1:
        raise ValueError(
            f"'mu' must be one number (got shape {list(mu.shape)}); solve for "
            f'each'
        )
    check_between('mu', mu.item() if isinstance(mu, Tensor) else mu)
    return torch.as_tensor(mu, dtype=torch.float64, device=x.device)
