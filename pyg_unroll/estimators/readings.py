"""Readings of sensors over time, of tables and of data."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData
from torch_geometric.utils import to_undirected

from pyg_unroll import checks
from pyg_unroll.estimators.inputs import (
    nearest_neighbors,
    read_columns,
    read_observations,
)
from pyg_unroll.estimators.tables import Target, is_frame, on_sphere, to_numpy
from pyg_unroll.graph import Topology, edges_of, resolve_graph
from pyg_unroll.solvers.problem import power_of_two

# Times at which two sensors must be known for a correlation.
LEAST_COMMON = 30
# Times that correlations are computed of, evenly spread.
_TIMES = 2000
# Sensors whose correlations with all are in memory at once.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Form:
    """The kind of a user's readings, which results are of, too."""

    scale: Tensor  # unit of readings, a power of two
    target: Target
    is_table: bool  # of times in rows; else data, of sensors in rows
    table: Any = None  # of pandas

    def give(self, value: Tensor) -> Any:
        """Results `[N, T]` in that kind."""
        value = value * self.scale
        if self.is_table:
            out = self.target.give(value.T.contiguous(), self.table)
            if self.table is not None:
                out.columns = self.table.columns
            return out
        return value.to(self.target.like)


@dataclass(frozen=True, eq=False)
class Readings:
    """Readings of sensors and the times between them."""

    x: Tensor  # in units of the form, zero where unknown, [N, T]
    mask: Tensor  # [N, T]
    time: Tensor  # of readings, in usual steps between them, [T]
    near: Topology  # sensors that are joined, or near each other
    place: Data | None  # what is known of the sensors' places
    names: list[Any]  # of sensors
    neighbors: int  # of each sensor
    form: 'Form'

    @classmethod
    def read(
        cls, X: Any, positions: Any, neighbors: int, geographic: bool
    ) -> Self:
        """Reads `Data`, or a table and the positions of its columns."""
        if not isinstance(X, BaseData):
            return cls._of_table(X, positions, neighbors, geographic)
        if positions is not None:
            raise ValueError(
                "'positions' must be None with data (got a "
                f"'{type(positions).__name__}'); set 'data.pos'"
            )
        x, mask = read_observations(X, series=True)
        count, steps = x.shape
        edges, near = edges_of(X), _no_edges(count)
        if edges is not None:
            near = resolve_graph(edges, None, count, torch.float64)[0].cpu()
        elif X.get('pos') is not None and count > 1:
            pos = read_columns(X, 'pos', count)
            pos = on_sphere(pos, 'data.pos') if geographic else pos
            near = nearest_neighbors(pos, neighbors)
        elif count > 1:
            raise ValueError(
                "'data' must have 'edge_index', or 'pos' of sensors (got "
                'neither); set one of them'
            )
        time = X.get('time')
        if time is None:
            time = torch.arange(steps)
        checks.check_shape('data.time', time, [steps])
        time = _in_steps(time.detach().cpu().double().numpy(), 'data.time')
        parts = ('pos', 'edge_index', 'edge_weight', 'adj_t')
        place = Data(**{k: X[k] for k in parts if X.get(k) is not None})
        target = Target(False, like=X.x.new_empty(0))
        form = Form(_scale(x, mask), target, is_table=False)
        sensors = near, place, [*range(count)], neighbors
        return cls(x / form.scale, mask, time, *sensors, form)

    @classmethod
    def _of_table(
        cls, X: Any, positions: Any, neighbors: int, geographic: bool
    ) -> Self:
        array = to_numpy(X)
        try:
            array = check_array(
                *(array,), dtype=np.float64, ensure_all_finite='allow-nan'
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                "'X' must be a table of numbers, of times in rows and sensors "
                f'in columns, NaN where not known: {error}'
            ) from error
        x = torch.from_numpy(np.array(array.T, order='C'))
        mask = ~x.isnan()
        if not bool(mask.any()):
            raise ValueError("'X' must have a known reading (got none)")
        names = [*X.columns] if is_frame(X) else [*range(len(x))]
        stamps = _stamps(X.index) if is_frame(X) else np.arange(x.size(1))
        near, place = _no_edges(len(x)), None
        if positions is not None and len(x) > 1:
            pos = _positions(positions, names)
            place = Data(pos=pos)
            pos = on_sphere(pos, 'positions') if geographic else pos
            near = nearest_neighbors(pos, neighbors)
        time = _in_steps(stamps, "the index of 'X'")
        x = torch.where(mask, x, 0)
        target = Target.of(X, is_vector=False)
        table = X if is_frame(X) else None
        form = Form(_scale(x, mask), target, True, table)
        sensors = near, place, names, neighbors
        return cls(x / form.scale, mask, time, *sensors, form)

    @property
    def silent(self) -> Tensor:
        """True at sensors without a reading, `[N]`."""
        return ~self.mask.any(1)

    @property
    def distance(self) -> Tensor:
        """Time from each entry to the nearest reading of its sensor, infinite
        if there is none, `[N, T]`.
        """
        none = torch.full_like(self.x, torch.inf)
        last = torch.where(self.mask, self.time, -none).cummax(1).values
        after = torch.where(self.mask, self.time, none).flip(1)
        after = after.cummin(1).values.flip(1)
        return (self.time - last).minimum(after - self.time)

    @cached_property
    def similar(self) -> Topology:
        """Each sensor joined to those it is most correlated with; where too
        little is known for that, those near it.
        """
        some = torch.linspace(0, len(self.time) - 1, _TIMES).long().unique()
        mask = self.mask[:, some].double()
        moves = (self.x[:, some] - self.level) * mask
        found = [
            _most_correlated(moves, mask, rows, self.neighbors)
            for rows in torch.arange(len(moves)).split(_ROWS)
        ]
        best, node = map(torch.cat, zip(*found, strict=True))
        src, rank = best.nonzero().T
        near, alone = self.near.edge_index, (best == 0).all(1)
        pairs = torch.cat(
            [torch.stack([src, node[src, rank]]), near[:, alone[near].any(0)]],
            1,
        )
        edges = to_undirected(pairs, num_nodes=len(self.x))
        return resolve_graph(edges, None, len(self.x), torch.float64)[0]

    @property
    def unit(self) -> Tensor:
        """Mean change of sensors from one reading to the next, the median of
        all where a sensor has fewer than two, `[N, 1]`.
        """
        both = self.mask[:, 1:] & self.mask[:, :-1]
        count = both.sum(1, keepdim=True)
        change = (self.x.diff(dim=1).abs() * both).sum(1, keepdim=True)
        mean = change / count.clamp(min=1)
        some = mean[mean > 0]
        usual = some.median() if len(some) else torch.ones(())
        return torch.where(count > 0, mean.clamp(min=usual / 10), usual)

    @property
    def level(self) -> Tensor:
        """Means of sensors, of all where one has no reading, `[N, 1]`."""
        count = self.mask.sum(1, keepdim=True)
        total = self.x.sum(1, keepdim=True)
        return torch.where(count > 0, total / count, total.sum() / count.sum())


def _most_correlated(
    moves: Tensor, mask: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Positive correlations of some sensors, zero for want of common times,
    and with which, the largest of each.
    """
    ours, known = moves[rows], mask[rows]
    square = ours.square() @ mask.T * (known @ moves.square().T)
    out = ours @ moves.T / square.clamp(min=1e-300).sqrt()
    out[torch.arange(len(rows)), rows] = 0
    out[(known @ mask.T < LEAST_COMMON) | (out <= 0)] = 0
    return out.topk(min(count, len(moves)))


def _positions(positions: Any, names: list[Any]) -> Tensor:
    """Coordinates of sensors `[N, P]`, in their order."""
    table = to_numpy(positions)
    if is_frame(table):
        missing = [name for name in names if name not in table.index]
        if missing:
            raise ValueError(
                f"'positions' must have a row for each column of 'X' (got "
                f'none for {missing[:5]}); its index are names of sensors, '
                f"and 'X' has times in rows and sensors in columns"
            )
        table = table.loc[names]
    pos = torch.from_numpy(check_array(table, dtype=np.float64, copy=True))
    if len(pos) != len(names):
        raise ValueError(
            f"'positions' must have a row for each of the {len(names)} columns "
            f"of 'X' (got {len(pos)}); 'X' has times in rows and sensors in "
            f'columns'
        )
    return pos


def _scale(x: Tensor, mask: Tensor) -> Tensor:
    """A unit in which known readings are of about unit size."""
    known = x[mask]
    spread = (known - known.mean()).abs().max()
    return power_of_two(torch.where(spread > 0, spread, known.abs().max()))


def _no_edges(count: int) -> Topology:
    edges = torch.empty((2, 0), dtype=torch.long)
    return resolve_graph(edges, None, count, torch.float64)[0]


def _stamps(index: Any) -> np.ndarray:
    """Times of a table's rows, as numbers."""
    import pandas as pd  # there if there is a frame

    if isinstance(index, pd.PeriodIndex):
        index = index.to_timestamp()
    if isinstance(index, (pd.DatetimeIndex, pd.TimedeltaIndex)):
        return (index - index[0]).total_seconds().to_numpy(np.float64)
    if pd.api.types.is_numeric_dtype(index):
        return index.to_numpy(np.float64)
    raise ValueError(
        "the index of 'X' must be times or numbers (got "
        f"'{index.dtype}'); convert it with 'pandas.to_datetime', or number "
        "the rows with 'reset_index(drop=True)'"
    )


def _in_steps(time: np.ndarray, name: str) -> Tensor:
    """Times, one apart as a rule; refused unless they increase."""
    step = np.diff(time)
    if not np.isfinite(time).all() or (step <= 0).any():
        raise ValueError(
            f'{name} must be increasing times without repetition; sort the '
            'readings, and keep one of each time'
        )
    usual = float(np.median(step)) if step.size else 1.0
    return torch.from_numpy((time - time[0]) / usual)
