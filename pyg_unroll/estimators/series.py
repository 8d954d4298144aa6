"""Candidates for readings over time: smooth series on a graph of sensors,
around a few common courses.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.estimators.courses import common_courses
from pyg_unroll.estimators.readings import Readings
from pyg_unroll.graph import Topology, resolve_graph
from pyg_unroll.ops import divergence
from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.solvers import glr
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient
from pyg_unroll.solvers.problem import check_convergence
from pyg_unroll.transforms import TemporalProduct

NOISE = (0.0, 0.1, 0.3, 1.0)
# Common times below which the variance of a difference is not estimated.
LEAST_SHARED = 10
# Variance of a difference, relative to that of the readings, below which it
# is rounding.
_SAME = 1e-6

# Error of filled readings.
Loss = Callable[[Tensor], float]


@dataclass
class SmoothSeries:
    """Readings that are smooth on the product of a graph and time, around
    courses that sensors share, or not.
    """

    graph: str  # 'near' or 'similar'
    courses: bool = False
    strength: float | None = None  # of courses; the first if None
    time_weight: float = 64.0
    noise: float = 0.1

    @property
    def name(self) -> str:
        """For reports."""
        return f'{self.graph}, courses' if self.courses else self.graph

    def tune(self, readings: Readings, loss: Loss) -> Tensor:
        """Chooses weights by the loss; returns filled readings `[N, T]`."""
        product = self._product(readings)
        centers = dict(self._centers(readings))
        # Of what predicts well alone: blends make the most of it.
        strength = min(centers, key=lambda s: loss(centers[s]))
        filled: dict[tuple[float, float], tuple[float, Tensor]] = {}

        def error(time_weight: float, noise: float) -> float:
            key = time_weight, noise
            if key not in filled:
                out = product.fill(readings, centers[strength], *key, 1e-3)
                filled[key] = loss(out), out
            return filled[key][0]

        weight, noise = self.time_weight, self.noise
        for factor in (4.0, 0.25):  # downhill
            while 1 <= factor * weight <= 1024 and error(
                factor * weight, noise
            ) < error(weight, noise):
                weight *= factor
        noise = min(NOISE, key=lambda n: error(weight, n))
        near = (0.5 * weight, weight, 2 * weight)
        weight = min(near, key=lambda w: error(w, noise))
        self.strength, self.time_weight, self.noise = strength, weight, noise
        return filled[weight, noise][1]

    def fill(self, readings: Readings, tol: float) -> Tensor:
        """All readings `[N, T]`, known ones smoothed if there is noise."""
        centers = self._centers(readings)
        center = next(c for s, c in centers if self.strength in (s, None))
        product = self._product(readings)
        return product.fill(readings, center, self.time_weight, self.noise, tol)

    def _centers(self, readings: Readings) -> Iterable[tuple[float, Tensor]]:
        """Signals that readings are smooth around, and their strengths."""
        if self.courses:
            return common_courses(readings)
        return [(0.0, torch.zeros_like(readings.x))]

    def _product(self, readings: Readings) -> 'Product':
        sensors = getattr(readings, self.graph)
        return Product.of(sensors, readings.time.diff())


@dataclass(frozen=True, eq=False)
class Product:
    """The graph of sensors at times."""

    sensors: Topology
    topology: Topology
    step: Tensor  # time from each reading to the next, [T - 1]
    # Of each edge, the edge of sensors, or the step, which it is a copy of.
    place: Tensor

    @classmethod
    def of(cls, sensors: Topology, step: Tensor) -> Self:
        """The product of a graph and a path of times."""
        count = sensors.num_edges
        number = torch.arange(count + len(step), dtype=torch.float64)
        nothing = step.new_empty((sensors.num_nodes, len(step) + 1))
        graph = TemporalProduct(number[count:])(
            Data(
                x=nothing,
                edge_index=sensors.edge_index,
                edge_weight=sensors.directed_weight(number[:count]),
            )
        )
        topology, place = resolve_graph(
            graph.edge_index, graph.edge_weight, nothing.numel(), number.dtype
        )
        return cls(sensors, topology, step, place.squeeze(1).long())

    def fill(
        self,
        readings: Readings,
        center: Tensor,
        time_weight: float,
        noise: float,
        tol: float,
    ) -> Tensor:
        """All readings `[N, T]`, smooth around others, known ones smoothed,
        too, if there is noise.
        """
        mask = readings.mask
        x = torch.where(mask, readings.x - center, 0)
        level, weight = _sensors(x, mask, self.sensors)
        weight = torch.cat([weight, time_weight / self.step])[self.place]
        # Zero is the start, and what nothing is known of.
        known = mask.reshape(-1, 1, 1)
        confidence: Tensor | None = None
        free: Tensor | None = None
        if noise:
            confidence = known.double() * (time_weight / noise)
        else:
            free = ~known
        start = torch.where(mask, x - level, 0).reshape(-1, 1, 1)
        system = LaplacianSystem.build(
            self.topology, weight.unsqueeze(1), confidence, free
        )
        right = system.residual(start, start)
        change, residual, num_steps = conjugate_gradient(
            system, right, tol, 10_000
        )
        check_convergence('TemporalInterpolator', residual, num_steps, tol)
        return center + level + (start + change).view(x.shape)


def _sensors(
    x: Tensor, mask: Tensor, topology: Topology
) -> tuple[Tensor, Tensor]:
    """Levels of sensors `[N, 1]`, and weights of edges `[E]`: the inverse
    variance of the difference of two sensors, one on average.
    """
    src, dst = topology.src.long(), topology.dst.long()
    both = mask[src] & mask[dst]
    count = both.sum(1)
    change = torch.where(both, x[src] - x[dst], 0)
    mean = change.sum(1) / count.clamp(min=1)
    change = torch.where(both, change - mean.unsqueeze(1), 0)
    square = change.square().sum(1) / count.clamp(min=1)
    known = mask.sum(1, keepdim=True)
    own = torch.where(mask, x, 0).sum(1, keepdim=True)
    moves = torch.where(mask, x - own / known.clamp(min=1), 0)
    least = _SAME * moves.square().sum() / known.sum()
    sure = (count >= LEAST_SHARED) & (square > least)
    weight = torch.ones_like(square)
    if bool(sure.any()):
        usual = square[sure].median()
        square = torch.where(count >= LEAST_SHARED, square, usual)
        weight = 1 / square.clamp(min=float(usual) / 100)
        weight = weight / weight.mean()
    # Least squares for the differences of neighbours at common times, which
    # do not depend on the missing hours; a sensor's own mean counts little.
    trust = (weight * count).unsqueeze(1)
    system = LaplacianSystem.build(
        topology, trust, 1e-3 * known.double().unsqueeze(2)
    )
    flow = trust * mean.unsqueeze(1)
    right = 1e-3 * own.unsqueeze(2) + divergence(topology, flow[:, None])
    level = conjugate_gradient(system, right, 1e-9, 10_000)[0].squeeze(-1)
    seen = mask.any(1)
    if not bool(seen.all()):
        level = glr(level, topology, None, seen, tol=1e-6, fill='mean').x
    return level, weight
