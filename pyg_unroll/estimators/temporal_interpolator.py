"""Interpolation of missing sensor readings over time."""

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Self

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll import checks
from pyg_unroll.estimators.inputs import (
    nearest_neighbors,
    read_columns,
    read_observations,
)
from pyg_unroll.graph import Topology, edges_of, resolve_graph
from pyg_unroll.ops import divergence
from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.solvers import glr
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient
from pyg_unroll.threads import one_thread
from pyg_unroll.transforms import TemporalProduct, from_product

TIME_WEIGHTS = tuple(4.0**k for k in range(6))
NOISE = (0.0, 0.1, 0.3, 1.0)
# Held-out readings below which none of these is chosen.
LEAST_HELD = 10
# Common times below which the variance of a difference is not estimated.
LEAST_SHARED = 10
# Variance of a difference, relative to that of the readings, below which it
# is rounding.
_SAME = 1e-6


class TemporalInterpolator(BaseEstimator):
    r"""Interpolates missing readings of sensors from their neighbours and
    from the times before and after.

    Readings less their sensor's level are smooth on the product of the sensor
    graph and time (:class:`~pyg_unroll.transforms.TemporalProduct`):

    .. math::
        \arg\min_{\mathbf{Z}} \sum_{\textrm{known}} (z_{it} - y_{it})^2 + \mu
        \left( \sum_{\{i,j\}, t} w_{ij} (z_{it} - z_{jt})^2 + \omega
        \sum_{i,t} (z_{it} - z_{i,t+1})^2 \right)

    The weight of an edge between sensors is the inverse variance of their
    difference at times when both are known, the maximum-likelihood estimate.
    The weight :math:`\omega` of time and the noise :math:`\omega \mu` (zero
    holds the readings) are those that predict a held-out tenth of the known
    readings best.

    Args:
        neighbors (int, optional): Neighbours of each sensor if the data has
            positions only. (default: :obj:`8`)
        seed (int, optional): Seed of the held-out readings.
            (default: :obj:`0`)

    Attributes:
        report_ (dict[str, float]): The weight of time, the noise, and the
            error of held-out readings (RMSE, NaN if too few are known).

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` with :obj:`x`
          :math:`(N, T)`, :obj:`mask`, True where known, :math:`(N, T)` (where
          :obj:`x` is not NaN if absent), and an undirected :obj:`edge_index`
          (empty if sensors have no neighbours) or :obj:`pos` :math:`(N, P)`;
          weights of edges are not used
        - **output:** readings :math:`(N, T)`, known ones unchanged

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> x = torch.linspace(0, 6, 50).sin() + torch.arange(20.0).view(20, 1)
        >>> data = Data(x=x, mask=torch.rand(20, 50) < 0.5)
        >>> data.pos = torch.rand(20, 2)
        >>> filled = TemporalInterpolator().fit(data).predict()
        >>> bool((filled - x).abs().mean() < 0.1)
        True
    """

    _checks: ClassVar[checks.Checks] = {
        'neighbors': checks.check_positive,
        'seed': checks.check_count,
    }

    def __init__(self, neighbors: int = 8, seed: int = 0) -> None:
        self.neighbors = neighbors
        self.seed = seed

    @one_thread()
    def fit(self, data: Data) -> Self:
        """Chooses the weights by the known readings.

        Args:
            data (Data): See the class.

        Raises:
            ValueError: If shapes or types do not fit, values are not finite,
                nothing is known, or there is neither a graph nor positions.
        """
        checks.check_parameters(self._checks, self.get_params())
        readings = self._read(data)
        mask = readings.mask
        generator = torch.Generator().manual_seed(self.seed)
        known = mask.flatten().nonzero().squeeze(1)
        order = torch.randperm(known.numel(), generator=generator)
        held = known[order[: known.numel() // 10]]
        seen = mask.flatten().index_fill(0, held, False).view_as(mask)
        part = replace(readings, mask=seen)

        @cache
        def error(time_weight: float, noise: float) -> float:
            change = part.fill(time_weight, noise, tol=1e-3) - readings.x
            return float(change.flatten()[held].square().mean().sqrt())

        weight, noise, best = TIME_WEIGHTS[3], 0.0, float('nan')
        if held.numel() >= LEAST_HELD:
            weight = min(TIME_WEIGHTS, key=lambda w: error(w, NOISE[1]))
            noise = min(NOISE, key=lambda n: error(weight, n))
            near = (0.5 * weight, weight, 2 * weight)
            weight = min(near, key=lambda w: error(w, noise))
            best = error(weight, noise)
        self.report_ = {'time_weight': weight, 'noise': noise, 'error': best}
        self._fitted = readings
        return self

    @one_thread()
    def predict(self, data: Data | None = None) -> Tensor:
        """Predicts missing readings.

        Args:
            data (Data, optional): Other sensors or times; those of
                :meth:`fit` if :obj:`None`. (default: :obj:`None`)

        Returns:
            Readings :math:`(N, T)` in the type of :obj:`data.x`.

        Raises:
            ValueError: If it was not fitted, or for other data as
                :meth:`fit`.

        Warns:
            ConvergenceWarning: If the system was not solved to its tolerance.
        """
        if not hasattr(self, 'report_'):
            raise NotFittedError(f"{type(self).__name__}: call 'fit' first")
        readings = self._fitted if data is None else self._read(data)
        settings = self.report_['time_weight'], self.report_['noise']
        out = readings.fill(*settings, tol=1e-6)
        return torch.where(readings.mask, readings.x, out).to(readings.like)

    def _read(self, data: Data) -> '_Readings':
        x, mask = read_observations(data, series=True)
        count, edges = len(x), edges_of(data)
        if edges is None and count == 1:
            edges = torch.empty((2, 0), dtype=torch.long)
        if edges is None:
            pos = read_columns(data, 'pos', count)
            topology = nearest_neighbors(pos, self.neighbors)
        else:
            topology, _ = resolve_graph(edges, None, count, torch.float64)
        return _Readings(x, mask, topology.cpu(), data.x.new_empty(0))


@dataclass(frozen=True, eq=False)
class _Readings:
    """Readings of sensors, and their graph."""

    x: Tensor  # zero where unknown, [N, T]
    mask: Tensor  # [N, T]
    topology: Topology
    like: Tensor  # empty, of the type of the user's readings

    def fill(self, time_weight: float, noise: float, tol: float) -> Tensor:
        """All readings `[N, T]`, known ones smoothed if there is noise."""
        if bool(self.mask.all()):
            return self.x
        level, weight = self._sensors()
        graph = TemporalProduct(time_weight)(
            Data(
                x=torch.where(self.mask, self.x - level, 0),
                mask=self.mask,
                edge_index=self.topology.edge_index,
                edge_weight=self.topology.directed_weight(weight),
            )
        )
        out = glr(
            *(graph.x, graph.edge_index, graph.edge_weight, graph.mask),
            fidelity='soft' if noise else 'hard',
            mu=noise / time_weight if noise else 1.0,
            tol=tol,
            fill='mean',
        )
        return level + from_product(graph, out.x).squeeze(-1)

    def _sensors(self) -> tuple[Tensor, Tensor]:
        """Levels of sensors `[N, 1]`, and weights of edges `[E]`: the inverse
        variance of the difference of two sensors, one on average.
        """
        x, mask, topology = self.x, self.mask, self.topology
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
