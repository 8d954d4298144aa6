"""Graphs of sensors that report over time.

Edges of the product come from the rows of both factors: a sort adds a third
to transform and `solvers.glr` of 1000 sensors at 500 times, 1.0 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pyg_unroll.checks import (
    Checks,
    check_between,
    check_data,
    check_parameters,
    check_tensor,
    is_integer,
    optional,
)
from pyg_unroll.graph import (
    Topology,
    edges_of,
    index_type,
    remember_topology,
    resolve_graph,
)
from pyg_unroll.transforms.utils import examples_of, remove_edges


def _check_period(name: str, value: Any) -> None:
    if not is_integer(value) or value < 2:
        raise ValueError(
            f"'{name}' must be an integer of at least 2, the number of time "
            f'steps after which the signal repeats (got {value!r})'
        )


def _check_names(name: str, value: Any) -> None:
    if isinstance(value, str):
        raise ValueError(
            f"'{name}' must be a list of names (got {value!r}); write "
            f'[{value!r}]'
        )


@functional_transform('temporal_product')
class TemporalProduct(BaseTransform):
    r"""Makes one graph of a sensor graph and its time steps, their Cartesian
    product (functional name: :obj:`temporal_product`).

    Node :math:`(i, t)` is sensor :math:`i` at time :math:`t`, in row
    :math:`i T + t`. It is joined to the neighbours of the sensor at the same
    time and to the same sensor at the times before and after, so that

    .. math::
        \mathbf{L} = \mathbf{L}_{\textrm{sensors}} \otimes \mathbf{I}_T +
        \omega \, \mathbf{I}_N \otimes \mathbf{L}_{\textrm{path}},

    and any layer or solver interpolates in space and time. Edges are computed
    by arithmetic on the device of the data, sorted by row, and layers need
    not sort them again. The way back is :func:`from_product`.

    .. code-block:: python

        from pyg_unroll import TemporalProduct, from_product, solvers

        graph = TemporalProduct(time_weight=4.0)(data)
        result = solvers.glr(
            graph.x, graph.edge_index, graph.edge_weight, graph.mask
        )
        x = from_product(graph, result.x)

    Args:
        time_weight (float, optional): Weight :math:`\omega` of edges between
            consecutive times; that of edges between sensors is one if the
            data has no weights. (default: :obj:`1.0`)
        period (int, optional): Also joins times :math:`t` and :math:`t +`
            :obj:`period`, for example the same hour of the next day.
            (default: :obj:`None`)
        period_weight (float, optional): Weight of those edges;
            :obj:`time_weight` if :obj:`None`. (default: :obj:`None`)
        attrs (list[str], optional): Attributes beside :obj:`x` that vary over
            time; :obj:`mask`, if there is one, if :obj:`None`.
            (default: :obj:`None`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with signals :obj:`x`
          :math:`(N, T)` or :math:`(N, T, F)`, an undirected
          :obj:`edge_index` :math:`(2, |\mathcal{E}|)` or :obj:`adj_t`,
          symmetric :obj:`edge_weight` :math:`(|\mathcal{E}|)` or
          :math:`(|\mathcal{E}|, H)` *(optional)*, and :obj:`attrs`
          :math:`(N)`, :math:`(N, T)` or :math:`(N, T, F)`
        - **output:** :obj:`x` :math:`(N T, F)`, :obj:`edge_index`,
          :obj:`edge_weight`, :obj:`attrs` :math:`(N T)` or :math:`(N T, F)`,
          the number of the time :obj:`time_step` :math:`(N T)` and the number
          of times :obj:`num_time_steps`. Other attributes of nodes are
          repeated for each time, other attributes of edges left out, and
          those of the graph kept.

    Raises:
        ValueError: If an argument is not one of the above, the graph is not
            undirected, or shapes do not fit.
    """

    _checks: ClassVar[Checks] = {
        'time_weight': check_between,
        'period': optional(_check_period),
        'period_weight': optional(check_between),
        'attrs': _check_names,
    }

    def __init__(
        self,
        time_weight: float = 1.0,
        period: int | None = None,
        period_weight: float | None = None,
        attrs: Sequence[str] | None = None,
    ) -> None:
        check_parameters(self._checks, locals())
        if period is None and period_weight is not None:
            raise ValueError("'period_weight' was given without a 'period'")
        self.time_weight = time_weight
        self.period = period
        self.period_weight = period_weight
        self.attrs = attrs

    def forward(self, data: Data) -> Data:
        """Returns the data of the product graph."""
        if isinstance(data, Batch):
            return Batch.from_data_list(
                [self(example) for example in examples_of(data)]
            )
        check_data(data)
        x = data.get('x')
        if not isinstance(x, Tensor) or x.dim() not in (2, 3):
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"'data.x' must have shape [num_sensors, time_steps] or "
                f'[num_sensors, time_steps, features] (got {got})'
            )
        num_sensors, num_steps = x.shape[:2]
        signals = {'x': x if x.dim() == 3 else x.unsqueeze(-1)}
        for name in self._names(data):
            signals[name] = _varying(data, name, x)
        edge_index, edge_weight = self._edges(data, x)
        remove_edges(data)
        # All at once: the first that is repeated changes the number of nodes.
        repeated = {
            key: _repeat(data, key, num_steps)
            for key in data.keys()
            if data.is_node_attr(key) and key not in signals
        }
        for key, value in repeated.items():
            data[key] = value
        for key, value in signals.items():
            data[key] = value.flatten(0, 1)
        data.edge_index, data.edge_weight = edge_index, edge_weight
        steps = torch.arange(num_steps, device=x.device)
        data.time_step = steps.repeat(num_sensors)
        data.num_time_steps = num_steps
        if 'num_nodes' in data:
            data.num_nodes = num_sensors * num_steps
        return data

    def _names(self, data: Data) -> Sequence[str]:
        if self.attrs is None:
            return ['mask'] if data.get('mask') is not None else []
        for name in self.attrs:
            if not isinstance(data.get(name), Tensor):
                raise ValueError(
                    f"'attrs' names {name!r}, which is no tensor of the data"
                )
        return self.attrs

    def _edges(self, data: Data, x: Tensor) -> tuple[Tensor, Tensor]:
        edges = edges_of(data)
        if edges is None:
            raise ValueError(
                "'data' has no 'edge_index' of the sensors; make one with "
                "'KNNGraph', or an empty one for sensors on their own"
            )
        weight = data.get('edge_weight')
        dtype = weight.dtype if weight is not None else x.dtype
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        space, spatial = resolve_graph(edges, weight, x.size(0), dtype)
        time, temporal = self._time(x.size(1), spatial)
        topology = product_topology(space, time)
        joined = torch.cat(
            [
                spatial.repeat_interleave(x.size(1), 0),
                temporal.repeat(x.size(0), spatial.size(1)),
            ]
        )
        if weight is None or weight.dim() == 1:
            joined = joined.squeeze(1)
        edge_index = topology.edge_index
        remember_topology(edge_index, topology)
        return edge_index, topology.directed_weight(joined)

    def _time(self, num_steps: int, like: Tensor) -> tuple[Topology, Tensor]:
        """Edges between times, and their weights `[E, 1]`."""
        if self.period is not None and self.period >= num_steps:
            raise ValueError(
                f"'period' must be smaller than the number of time steps "
                f'(got {self.period} for {num_steps})'
            )
        lags = {1: self.time_weight}
        if self.period is not None:
            own = self.period_weight
            lags[self.period] = self.time_weight if own is None else own
        step = torch.arange(num_steps, device=like.device)
        src = torch.cat([step[:-lag] for lag in lags])
        dst = torch.cat([step[lag:] for lag in lags])
        weight = torch.cat(
            [
                like.new_full((num_steps - lag, 1), value)
                for lag, value in lags.items()
            ]
        )
        return Topology.from_pairs(src, dst, num_steps), weight

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(time_weight={self.time_weight}, '
            f'period={self.period})'
        )


def from_product(data: Data, x: Tensor | None = None) -> Tensor:
    r"""Signals on the nodes of :class:`TemporalProduct`, by sensor and time.

    Args:
        data (Data or Batch): Output of :class:`TemporalProduct`.
        x (torch.Tensor, optional): Signals :math:`(N T)` or :math:`(N T, F)`;
            :obj:`data.x` if :obj:`None`. (default: :obj:`None`)

    Returns:
        Signals :math:`(N, T)` or :math:`(N, T, F)`; the sensors of a batch
        follow each other.

    Raises:
        ValueError: If the data is no such product, the shape of the signals
            does not fit, or the examples of a batch differ in their number of
            times (take it apart with
            :meth:`~torch_geometric.data.Batch.to_data_list` then).
    """
    x = data.x if x is None else x
    if data.get('num_time_steps') is None:
        raise ValueError(
            "'data' has no 'num_time_steps'; make it with 'TemporalProduct'"
        )
    steps = torch.as_tensor(data.num_time_steps).view(-1).tolist()
    if len(set(steps)) != 1:
        raise ValueError(
            f"'data' holds products of {sorted(set(steps))} time steps; take "
            f"it apart with 'data.to_data_list()'"
        )
    shapes = f'[{data.num_nodes}] or [{data.num_nodes}, features]'
    check_tensor('x', x, shapes)
    if x.dim() not in (1, 2) or x.size(0) != data.num_nodes:
        raise ValueError(f"'x' must have shape {shapes} (got {list(x.shape)})")
    return x.unflatten(0, (-1, steps[0]))


def _varying(data: Data, name: str, x: Tensor) -> Tensor:
    """An attribute that varies over time, `[N, T]` or `[N, T, F]`."""
    value: Tensor = data[name]
    if value.shape == x.shape[:1]:
        return value.unsqueeze(1).expand(x.shape[:2])
    if value.shape not in (x.shape[:2], x.shape):
        raise ValueError(
            f"'data.{name}' must have shape {list(x.shape[:1])}, "
            f"{list(x.shape[:2])} or that of 'data.x', {list(x.shape)} (got "
            f'{list(value.shape)})'
        )
    return value


def _repeat(data: Data, key: str, num_steps: int) -> Any:
    """An attribute of the sensors at each time."""
    value = data[key]
    if isinstance(value, Tensor):
        return value.repeat_interleave(num_steps, data.__cat_dim__(key, value))
    if isinstance(value, (list, tuple)):
        return [item for item in value for _ in range(num_steps)]
    raise ValueError(
        f"'data.{key}' holds one value per node, but is no tensor or list "
        f"(got '{type(value).__name__}'); convert it with 'torch.as_tensor'"
    )


def product_topology(space: Topology, time: Topology) -> Topology:
    r"""Joins :math:`(i, t)` to :math:`(j, t)` for each edge
    :math:`\{i, j\}` of one graph, and to :math:`(i, s)` for each edge
    :math:`\{s, t\}` of the other.

    Node :math:`(i, t)` is row :math:`i T + t`. Edge :math:`e` of :obj:`space`
    at :math:`t` is edge :math:`e T + t`; the edges of :obj:`time` follow, one
    node of :obj:`space` after the other.
    """
    num_steps = time.num_nodes
    num_nodes = space.num_nodes * num_steps
    num_edges = space.num_edges * num_steps + space.num_nodes * time.num_edges
    index = index_type(num_nodes, num_edges)
    node, step = (
        torch.arange(graph.num_nodes, device=space.device)
        for graph in (space, time)
    )
    row, rank, place = _entries(space)
    time_row, time_rank, time_place = _entries(time)
    # First entry of the CSR of each node, [N, T].
    first = num_steps * space.rowptr[:-1].long() + 2 * time.num_edges * node
    start = first.unsqueeze(1) + step * space.rowptr.diff().unsqueeze(1)
    start = start + time.rowptr[:-1]
    # Neighbours in time come between those of smaller and of larger row.
    after = space.col > row
    before = torch.zeros_like(node).index_add_(0, row, (~after).long())
    position = start[row] + rank.unsqueeze(1)
    position += after.unsqueeze(1) * time.rowptr.diff()
    time_position = start[:, time_row] + before.unsqueeze(1) + time_rank
    entry = torch.cat(
        [
            position[place].transpose(1, 2).flatten(0, 1),
            time_position[:, time_place].flatten(0, 1),
        ]
    )

    def ends(spatial: Tensor, temporal: Tensor) -> Tensor:
        parts = (
            num_steps * spatial.long().unsqueeze(1) + step,
            num_steps * node.unsqueeze(1) + temporal,
        )
        return torch.cat([part.flatten() for part in parts]).to(index)

    src, dst = ends(space.src, time.src), ends(space.dst, time.dst)
    col = src.new_empty(2 * num_edges)
    col[entry] = torch.stack([dst, src], dim=1)
    edge_id = torch.empty_like(col)
    edge_id[entry] = torch.arange(
        num_edges, dtype=index, device=col.device
    ).unsqueeze(1)
    sign = col.new_ones(2 * num_edges, dtype=torch.float32)
    sign[entry[:, 1]] = -1.0
    return Topology(
        num_nodes=num_nodes,
        src=src,
        dst=dst,
        rowptr=torch.cat(
            [start.flatten(), start.new_tensor([2 * num_edges])]
        ).to(index),
        col=col,
        edge_id=edge_id,
        sign=sign,
        entry=entry,
    )


def _entries(topology: Topology) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each CSR entry, its place in the row, and the two entries of
    each edge, `[E, 2]`.
    """
    nodes = torch.arange(topology.num_nodes, device=topology.device)
    row = nodes.repeat_interleave(topology.rowptr.diff())
    entries = torch.arange(row.numel(), device=topology.device)
    place = torch.empty_like(topology.entry)
    place[topology.edge_id.long(), (topology.sign < 0).long()] = entries
    return row, entries - topology.rowptr[row], place
