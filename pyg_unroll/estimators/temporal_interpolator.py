"""Missing readings of sensors over time, without settings."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_count, check_data, check_positive
from pyg_unroll.estimators.observations import read_signal
from pyg_unroll.graph import Topology, edges_of, resolve_graph
from pyg_unroll.ops import divergence
from pyg_unroll.ops.system import LaplacianSystem
from pyg_unroll.solvers import glr
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient
from pyg_unroll.transforms import KNNGraph, TemporalProduct, from_product

TIME_WEIGHTS = tuple(4.0**k for k in range(6))
NOISE = (0.0, 0.1, 0.3, 1.0)
# Readings to choose among these by, a tenth of what is known.
LEAST_HELD = 10
# Times that two sensors must share for their difference to be believed.
LEAST_SHARED = 10
# Variance of a difference, relative to that of the readings, below which two
# sensors differ by a constant.
_SAME = 1e-6


class TemporalInterpolator:
    r"""Fills in missing readings of sensors from their neighbours and from
    the times before and after.

    Readings less their sensor's level are smooth on the product of the sensor
    graph and time (:class:`~pyg_unroll.transforms.TemporalProduct`):

    .. math::
        \arg\min_{\mathbf{Z}} \sum_{\textrm{known}} (z_{it} - y_{it})^2 + \mu
        \left( \sum_{\{i,j\}, t} w_{ij} (z_{it} - z_{jt})^2 + \omega
        \sum_{i,t} (z_{it} - z_{i,t+1})^2 \right)

    The weight of an edge between sensors is the inverse variance of their
    difference at times when both are known, the maximum-likelihood estimate.
    The weight :math:`\omega` of time and the noise :math:`\omega \mu` (zero
    holds the readings) predict a tenth of what is known best from the rest.

    Args:
        neighbors (int, optional): Neighbours of each sensor if the data has
            positions only. (default: :obj:`8`)
        seed (int, optional): Seed of what is held out. (default: :obj:`0`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` with :obj:`x`
          :math:`(N, T)`, :obj:`mask`, True where known, :math:`(N, T)` (where
          :obj:`x` is not NaN if absent), and an undirected :obj:`edge_index`
          or :obj:`pos` :math:`(N, P)`; weights of edges are not used
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

    def __init__(self, neighbors: int = 8, seed: int = 0) -> None:
        check_positive('neighbors', neighbors)
        check_count('seed', seed)
        self.neighbors = neighbors
        self.seed = seed
        self.report: dict[str, float] = {}
        self._data: Data | None = None

    def fit(self, data: Data) -> Self:
        """Chooses the weights from what is known.

        Afterwards, :obj:`report` holds the weight of time, the noise, and
        the error of held-out readings (RMSE, NaN if too few are known).

        Args:
            data (Data): See the class.

        Raises:
            ValueError: If shapes or types do not fit, values are not finite,
                nothing is known, or there is neither a graph nor positions.
        """
        x, mask = self._read(data)
        topology = self._edges(data)
        generator = torch.Generator().manual_seed(self.seed)
        known = mask.flatten().nonzero().squeeze(1)
        order = torch.randperm(known.numel(), generator=generator)
        held = known[order[: known.numel() // 10]]
        tried: dict[tuple[float, float], float] = {}
        best = TIME_WEIGHTS[3], 0.0
        if held.numel() >= LEAST_HELD:
            seen = mask.flatten().index_fill(0, held, False).view_as(mask)

            def error(setting: tuple[float, float]) -> float:
                if setting not in tried:
                    out = _fill(x, seen, topology, *setting, tol=1e-3)
                    change = (out - x).flatten()[held]
                    tried[setting] = float(change.square().mean().sqrt())
                return tried[setting]

            best = min(((w, NOISE[1]) for w in TIME_WEIGHTS), key=error)
            best = min(((best[0], noise) for noise in NOISE), key=error)
            near = [(best[0] * factor, best[1]) for factor in (0.5, 1, 2)]
            best = min(near, key=error)
        self.report = {
            'time_weight': best[0],
            'noise': best[1],
            'error': tried.get(best, float('nan')),
        }
        self._data = data.clone()
        return self

    def predict(self, data: Data | None = None) -> Tensor:
        """Fills in what is missing.

        Args:
            data (Data, optional): Other sensors or times; those of
                :meth:`fit` if :obj:`None`. (default: :obj:`None`)

        Returns:
            Readings :math:`(N, T)` in the type of :obj:`data.x`.

        Raises:
            ValueError: If it was not fitted, or the data does not fit.

        Warns:
            ConvergenceWarning: If the system was not solved to its tolerance.
        """
        if self._data is None:
            raise ValueError("call 'fit' first")
        data = self._data if data is None else data
        x, mask = self._read(data)
        out = _fill(
            *(x, mask, self._edges(data)),
            *(self.report['time_weight'], self.report['noise']),
            tol=1e-6,
        )
        return torch.where(mask, x, out).to(data.x)

    def _read(self, data: Data) -> tuple[Tensor, Tensor]:
        check_data(data)
        x = data.get('x')
        if not isinstance(x, Tensor) or x.dim() != 2:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"'data.x' must have shape [num_sensors, time_steps] (got "
                f'{got}); take several signals one by one'
            )
        x, mask = read_signal(data, allow_empty=True)
        if not bool(mask.any()):
            raise ValueError(
                "'data.x' has no known entry: there is nothing to interpolate "
                'from'
            )
        return x, mask

    def _edges(self, data: Data) -> Topology:
        edges = edges_of(data)
        count = data.x.size(0)
        if edges is not None:
            return resolve_graph(edges, None, count, torch.float64)[0].cpu()
        if data.get('pos') is None:
            raise ValueError(
                "'data' has neither 'edge_index' nor 'pos' of the sensors; set "
                "one of them, or an empty 'edge_index' for sensors on their "
                'own'
            )
        if count == 1:
            nothing = torch.empty(0, dtype=torch.long)
            return Topology.from_pairs(nothing, nothing, 1)
        near = KNNGraph(min(self.neighbors, count - 1))
        return near.topology(Data(pos=data.pos.cpu()))

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(neighbors={self.neighbors})'


def _fill(
    x: Tensor,
    mask: Tensor,
    topology: Topology,
    time_weight: float,
    noise: float,
    tol: float,
) -> Tensor:
    """All readings, known ones smoothed where there is noise, `[N, T]`."""
    if bool(mask.all()):
        return x
    level, weight = _sensors(x, mask, topology)
    graph = TemporalProduct(time_weight)(
        Data(
            x=torch.where(mask, x - level, 0),
            mask=mask,
            edge_index=topology.edge_index,
            edge_weight=topology.directed_weight(weight),
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


def _sensors(
    x: Tensor, mask: Tensor, topology: Topology
) -> tuple[Tensor, Tensor]:
    """Level of each sensor `[N, 1]`, and weight of each edge, the inverse
    variance of the difference of its sensors, one on average, `[E]`.
    """
    src, dst = topology.src.long(), topology.dst.long()
    both = mask[src] & mask[dst]
    count = both.sum(1)
    change = torch.where(both, x[src] - x[dst], 0)
    mean = change.sum(1) / count.clamp(min=1)
    change = torch.where(both, change - mean.unsqueeze(1), 0)
    square = change.square().sum(1) / count.clamp(min=1)
    # Below, sensors differ by constants, and the rest is rounding.
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
    # Levels of neighbours differ as their readings at the same times do, and
    # are, with little weight, the sensors' own means: those would depend on
    # the hours that are missing.
    trust = (weight * count).unsqueeze(1)
    system = LaplacianSystem.build(
        topology, trust, 1e-3 * known.double().unsqueeze(2)
    )
    right = 1e-3 * own.unsqueeze(2)
    right = right + divergence(topology, (trust * mean.unsqueeze(1))[:, None])
    level = conjugate_gradient(system, right, 1e-9, 10_000)[0].squeeze(-1)
    seen = mask.any(1)
    if not bool(seen.all()):
        level = glr(level, topology, None, seen, tol=1e-6, fill='mean').x
    return level, weight
