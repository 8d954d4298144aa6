"""Arguments that the solvers share, checked and in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from pyg_unroll.checks import (
    check_between,
    check_choice,
    check_positive,
    check_tensor,
)
from pyg_unroll.graph import Topology, resolve_graph
from pyg_unroll.inputs import Fidelity, Observations, read_signal
from pyg_unroll.solvers.components import fill_value, known_mean, unreachable
from pyg_unroll.solvers.ordering import local_order


@dataclass(frozen=True, eq=False)
class SmoothnessProblem:
    r"""A signal, a graph and where to start.

    Attributes:
        signal (Observations): Observations, float64 :math:`(N, F, 1)`.
        topology (Topology): The graph.
        weight (torch.Tensor): Weights, float64 :math:`(E, 1)`.
        mu (torch.Tensor): Weight of the prior, float64 scalar.
        start (torch.Tensor): Known entries, and the mean of them elsewhere,
            :math:`(N, F, 1)`.
        order (torch.Tensor or None): The user's number of each node
            :math:`(N)`; the same if :obj:`None`.
    """

    signal: Observations
    topology: Topology
    weight: Tensor
    mu: Tensor
    start: Tensor
    order: Tensor | None = None

    def finish(self, x: Tensor) -> Tensor:
        """Restores held entries bit for bit, drops the head axis, and gives
        the nodes in the user's order.
        """
        if self.signal.free is not None:
            x = torch.where(self.signal.free, x, self.signal.x)
        x = x.squeeze(-1)
        if self.order is None:
            return x
        return torch.empty_like(x).index_copy(0, self.order, x)

    def reorder(self) -> SmoothnessProblem:
        """The same with neighbours near each other in memory."""
        found = local_order(self.topology)
        if found is None:
            return self
        topology, node, edge = found
        signal = replace(
            self.signal,
            x=self.signal.x[node],
            free=_rows(self.signal.free, node),
            confidence=_rows(self.signal.confidence, node),
        )
        return SmoothnessProblem(
            signal,
            topology,
            self.weight[edge],
            self.mu,
            self.start[node],
            node,
        )


def read_problem(
    x: Tensor,
    edge_index: Any,
    edge_weight: Tensor | None,
    mask: Tensor | None,
    confidence: Tensor | None,
    fidelity: str,
    mu: float | Tensor,
    fill: float | str | None,
) -> SmoothnessProblem:
    """Checks the arguments of a solver; see there for their meaning.

    Raises:
        ValueError: If an argument has a wrong shape, type or value.
    """
    check_choice('fidelity', fidelity, get_args(Fidelity))
    check_tensor('x', x, '[num_nodes, features]')
    if x.dim() != 2:
        raise ValueError(
            f"'x' must have shape [num_nodes, features] (got {list(x.shape)}); "
            f"a single signal needs '.unsqueeze(-1)', several samples are "
            f'solved one by one'
        )
    if not isinstance(mu, Tensor):
        check_between('mu', mu)
    mu = torch.as_tensor(mu, dtype=torch.float64, device=x.device)
    if mu.numel() != 1 or not bool((mu > 0) & torch.isfinite(mu)):
        raise ValueError(
            f"'mu' must be one positive, finite number (got {mu.tolist()})"
        )
    x = x.double() if x.is_floating_point() else x
    read = read_signal(x, mask, confidence)
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
    known = _observed(signal)
    y = signal.x.squeeze(-1)
    lost = unreachable(topology, weight.detach()[:, 0], known)
    y = fill_value(y, known, lost, fill)
    if bool(lost.any()):
        open_ = (~lost).unsqueeze(-1)
        free = open_ if signal.free is None else signal.free & open_
        signal = replace(signal, x=y.unsqueeze(-1), free=free)
    mean = known_mean(y.detach(), known)
    start = torch.where(known | lost, y, mean).unsqueeze(-1)
    return SmoothnessProblem(signal, topology, weight, mu, start).reorder()


def check_budget(tol: float, max_steps: int) -> None:
    """Raises a `ValueError` unless both are positive."""
    check_between('tol', tol)
    check_positive('max_steps', max_steps)


def _rows(x: Tensor | None, node: Tensor) -> Tensor | None:
    # Of what is broadcast over the nodes, there is one row.
    return x if x is None or x.size(0) == 1 else x[node]


def _observed(signal: Observations) -> Tensor:
    """Entries with an observation, `[N, F]`."""
    if signal.confidence is not None:
        known = signal.confidence > 0
    else:
        assert signal.free is not None
        known = ~signal.free
    return known.expand_as(signal.x).squeeze(-1)
