"""Figures of the steps of a solver layer, for `LayerTrace`."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.explain.calls import LayerCall, Step
from pyg_unroll.explain.layer_trace import QUANTITIES, LayerTrace
from pyg_unroll.nn import GTVConv
from pyg_unroll.ops import degree, edge_dot, gradient
from pyg_unroll.ops.system import LaplacianSystem


@torch.no_grad()
def trace_call(call: LayerCall) -> LayerTrace:
    """Computes the figures of one call of a layer."""
    measure = _GTV(call) if isinstance(call.layer, GTVConv) else _GLR(call)
    values: dict[str, list[Tensor]] = {name: [] for name in QUANTITIES}
    previous = None
    for number, step in enumerate(call.steps()):
        for name, value in measure.step(step, previous, number).items():
            values[name].append(value)
        previous = step
    weight = call.weight.double()
    degrees = degree(call.topology, weight)
    squares = degree(call.topology, weight.square())
    effective = degrees.square() / squares.where(squares > 0, 1)
    return LayerTrace(
        name=call.name,
        prior='gtv' if isinstance(call.layer, GTVConv) else 'glr',
        shares=call.shares,
        degree=_quartiles(degrees),
        weight=_quartiles(weight),
        neighbours=effective.mean(0),
        **{name: torch.stack(rows) for name, rows in values.items()},
    )


def _quartiles(values: Tensor) -> Tensor:
    """Least value, quartiles and largest value of each column."""
    if values.size(0) == 0:
        return values.new_full((5, values.size(1)), float('nan'))
    ordered = values.sort(0).values
    rows = torch.linspace(0, values.size(0) - 1, 5).round().long()
    return ordered[rows.to(values.device)]


class _GLR:
    """Figures of GLR; signals are those of the heads, then the average."""

    def __init__(self, call: LayerCall) -> None:
        self.call, self.topology = call, call.topology
        self.shares, self.weight = call.shares, call.weight.double()
        self.mu = call.layer.log_mu.double().exp()
        # The same for all heads.
        signal = call.signal
        one = signal.samples.first_heads
        self.x = one(signal.x).double()
        self.free = self.confidence = None
        if signal.free is not None:
            self.free = one(signal.free)
            self.known = ~self.free
        else:
            assert signal.confidence is not None
            self.confidence = one(signal.confidence).double()
            self.known = self.confidence > 0

    def step(
        self, now: Step, before: Step | None, number: int
    ) -> dict[str, Tensor]:
        heads = now.heads.double()
        combined = now.combined.double().unsqueeze(-1)
        # The average on the graph of each head.
        spread = combined.expand_as(heads)
        energies = self.energy(heads), self.energy(spread)
        objectives = [
            energy if self.confidence is None else self.mu * energy
            for energy in energies
        ]
        both = torch.cat([heads, combined], -1)
        distance = both - self.x
        error = both.new_zeros(both.size(-1))
        if self.confidence is not None:
            error = (self.confidence * distance.square()).sum((0, 1))
        change = torch.full_like(error, float('nan'))
        if before is not None:
            old = torch.cat([before.heads, before.combined.unsqueeze(-1)], -1)
            change = (both - old).square().sum((0, 1)).sqrt()
        far = torch.where(self.known, distance.abs(), 0)
        residual = self.residual(now, before, number)
        return {
            'energy': self._columns(*energies),
            'objective': error + self._columns(*objectives),
            'residual': self._columns(residual, residual),
            'violation': far.amax((0, 1)),
            'change': change,
        }

    def _columns(self, heads: Tensor, combined: Tensor) -> Tensor:
        """Of each head, then the average by their shares."""
        return torch.cat([heads, (self.shares @ combined)[None]])

    def _system(self) -> LaplacianSystem:
        scale = self.confidence
        return LaplacianSystem.build(
            self.topology,
            self.weight,
            None if scale is None else scale / self.mu,
            self.free,
            getattr(self.call.layer, 'order', 1),
        )

    def energy(self, x: Tensor) -> Tensor:
        system = self._system()
        if system.degree is not None:
            return (x * system.prior(x)).sum((0, 1))
        return (self.weight * edge_dot(self.topology, x, x)).sum(0)

    def residual(self, now: Step, before: Step | None, number: int) -> Tensor:
        residual = self._system().residual(now.heads.double(), self.x)
        return residual.square().sum((0, 1)).sqrt()


class _GTV(_GLR):
    """The same of GTV."""

    def energy(self, x: Tensor) -> Tensor:
        size = gradient(self.topology, x).abs().sum(1)
        return (self.weight * size).sum(0)

    def residual(self, now: Step, before: Step | None, number: int) -> Tensor:
        layer = self.call.layer
        if before is None or before.dual is None or now.dual is None:
            return torch.full_like(self.shares, float('nan'))
        # The dual variable moves by the penalty times the residual.
        assert isinstance(layer, GTVConv)
        rho = layer.log_rho[number - 1].double().exp()
        moved = now.dual.double() - before.dual.double()
        return moved.square().sum((0, 1)).sqrt() / rho
