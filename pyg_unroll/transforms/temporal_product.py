"""Graphs of sensors that report over time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pyg_unroll import checks
from pyg_unroll.graph import (
    Topology,
    remember_topology,
    required_edges,
    resolve_graph,
)
from pyg_unroll.transforms.utils import examples_of, remove_edges


def _check_period(name: str, value: Any) -> None:
    if not checks.is_integer(value) or value < 2:
        raise ValueError(
            f"'{name}' must be an integer of at least 2, the number of time "
            f'steps after which the signal repeats (got {value!r})'
        )


def _check_weights(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        return checks.check_between(name, value)
    checks.check_shape(name, value, ['time_steps - 1'])
    checks.check_finite(name, value)
    if bool((value < 0).any()):
        raise ValueError(
            f"'{name}' must not be negative (its least value is "
            f'{float(value.min())})'
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

    and any layer or solver interpolates in space and time. Edges are
    sorted by row, and layers need not sort them again. The way back is
    :func:`from_product`.

    .. code-block:: python

        from pyg_unroll import TemporalProduct, from_product, solvers

        graph = TemporalProduct(time_weight=4.0)(data)
        result = solvers.glr(
            graph.x, graph.edge_index, graph.edge_weight, graph.mask
        )
        x = from_product(graph, result.x)

    Args:
        time_weight (float or torch.Tensor, optional): Weight :math:`\omega` of
            edges between consecutive times; that of edges between sensors is
            one if the data has no weights. A tensor :math:`(T - 1)` holds one
            for each step, such as the inverse of its duration.
            (default: :obj:`1.0`)
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

    def __init__(
        self,
        time_weight: float | Tensor = 1.0,
        period: int | None = None,
        period_weight: float | None = None,
        attrs: Sequence[str] | None = None,
    ) -> None:
        table = {
            'time_weight': _check_weights,
            'period': checks.optional(_check_period),
            'period_weight': checks.optional(checks.check_between),
            'attrs': _check_names,
        }
        checks.check_parameters(table, locals())
        if period is None and period_weight is not None:
            raise ValueError("'period_weight' was given without a 'period'")
        self.time_weight = time_weight
        self.period = period
        self.period_weight = period_weight
        self.attrs = attrs

    def forward(self, data: Data) -> Data:
        """Returns the data of the product graph."""
        if isinstance(data, Batch):
            return Batch.from_data_list(list(map(self, examples_of(data))))
        checks.check_data(data)
        x = data.get('x')
        shape = ['num_sensors', 'time_steps', 'features']
        checks.check_shape('data.x', x, shape[:2], shape)
        num_sensors, num_steps = x.shape[:2]
        signals = {'x': x if x.dim() == 3 else x.unsqueeze(-1)}
        attrs = self.attrs
        if attrs is None:
            attrs = [] if data.get('mask') is None else ['mask']
        for name in attrs:
            signals[name] = _varying(data, name, x)
        edge_index, edge_weight = self._edges(data, x)
        remove_edges(data)
        # All at once: the first that is repeated changes the number of nodes.
        values = {k: v.flatten(0, 1) for k, v in signals.items()}
        for key in data.keys():
            if data.is_node_attr(key) and key not in signals:
                values[key] = _repeat(data, key, num_steps)
        data.update(values)
        data.edge_index, data.edge_weight = edge_index, edge_weight
        steps = torch.arange(num_steps, device=x.device)
        data.time_step = steps.repeat(num_sensors)
        data.num_time_steps = num_steps
        if 'num_nodes' in data:
            data.num_nodes = num_sensors * num_steps
        return data

    def _edges(self, data: Data, x: Tensor) -> tuple[Tensor, Tensor]:
        cure = "make one of the sensors with 'KNNGraph', or an empty one"
        edges = required_edges(data, cure)
        weight = data.get('edge_weight')
        dtype = (x if weight is None else weight).dtype
        dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
        space, spatial = resolve_graph(edges, weight, x.size(0), dtype)
        num_sensors, num_steps = x.shape[:2]
        # Weights of edges between times so many steps apart.
        options: Any = {'dtype': spatial.dtype, 'device': space.device}
        steps = torch.as_tensor(self.time_weight, **options)
        if steps.dim() and len(steps) != num_steps - 1:
            raise ValueError(
                f"'time_weight' must have a value for each of the "
                f'{num_steps - 1} steps between times (got {len(steps)})'
            )
        gaps = {1: steps}
        if self.period is not None:
            if self.period >= num_steps:
                raise ValueError(
                    f"'period' must be smaller than the number of time steps "
                    f'(got {self.period} for {num_steps})'
                )
            own = self.period_weight
            if own is None and steps.dim():
                raise ValueError(
                    "'period_weight' must be given with a 'time_weight' for "
                    'each step (got None)'
                )
            gaps[self.period] = steps if own is None else steps.new_tensor(own)
        node = torch.arange(x.size(0) * num_steps, device=space.device)
        node = node.view(-1, num_steps)
        pairs = [node[torch.stack([space.src, space.dst]).long()].flatten(1)]
        weights = [spatial.repeat_interleave(num_steps, 0)]
        for gap, value in gaps.items():
            pair = torch.stack([node[:, :-gap], node[:, gap:]]).flatten(1)
            pairs.append(pair)
            value = value.expand(num_sensors, num_steps - gap).reshape(-1, 1)
            weights.append(value.expand(-1, spatial.size(1)))
        src, dst = torch.cat(pairs, 1)
        topology = Topology.from_pairs(src, dst, node.numel())
        joined = torch.cat(weights)
        if weight is None or weight.dim() == 1:
            joined = joined.squeeze(1)
        edge_index = topology.edge_index
        remember_topology(edge_index, topology)
        return edge_index, topology.directed_weight(joined)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(time_weight={self.time_weight}, '
            f'period={self.period})'
        )


def from_product(data: Data, x: Tensor | None = None) -> Tensor:
    r"""Signals on the nodes of :class:`TemporalProduct`, by sensor and time.

    Args:
        data (Data or Batch): What :class:`TemporalProduct` made.
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
    rows = data.num_nodes
    checks.check_shape('x', x, [rows], [rows, 'features'])
    return x.unflatten(0, (-1, steps[0]))


def _varying(data: Data, name: str, x: Tensor) -> Tensor:
    """An attribute that varies over time, `[N, T]` or `[N, T, F]`."""
    value = data.get(name)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"'attrs' names {name!r}, which is no tensor of the data"
        )
    shapes = [x.shape[:axes] for axes in range(1, x.dim() + 1)]
    checks.check_shape(f'data.{name}', value, *shapes)
    if value.dim() == 1:
        return value.unsqueeze(1).expand(x.shape[:2])
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
