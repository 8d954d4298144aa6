"""Inputs of the estimators: observations, positions, covariates, graphs."""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import scatter

from pyg_unroll.checks import check_finite, check_one_graph
from pyg_unroll.estimators.tables import on_sphere
from pyg_unroll.graph import Topology, edges_of, resolve_graph
from pyg_unroll.inputs import FillWarning, read_signal
from pyg_unroll.solvers.problem import unreachable
from pyg_unroll.transforms import KNNGraph

# Edges and their weights of the graphs 'given', 'unweighted', 'sharpened' and
# 'nearest', as far as there are such.
Graphs: TypeAlias = dict[str, tuple[Topology, Tensor]]

# Ratio of extents above which axes have units of their own.
_APART = 30


def read_observations(
    data: Data, series: bool = False
) -> tuple[Tensor, Tensor]:
    """Copies of a signal, float64 and zero where unknown, and its mask, both
    `[N, F]` on the CPU. Of time series, some times may have no known entry.
    """
    check_one_graph(data)
    x, mask = _on_cpu(data.get('x')), _on_cpu(data.get('mask'))
    if isinstance(x, Tensor):
        if x.numel() == 0:
            raise ValueError(
                f"'data.x' must have at least one entry (got {list(x.shape)})"
            )
        mask = ~x.isnan() if mask is None else mask
        x = x.unsqueeze(1) if x.dim() == 1 and not series else x
    some = series and isinstance(mask, Tensor) and bool(mask.any())
    signal = read_signal(x, mask, name='data.x', allow_unknown=some)
    return signal.fill(0).double(), signal.observed.clone()


def read_columns(data: Data, name: str, num_nodes: int) -> Tensor:
    """An attribute of all nodes, float64 `[N, D]`; `D = 0` without one."""
    value = data.get(name)
    if value is None:
        return torch.zeros((num_nodes, 0), dtype=torch.float64)
    value = _on_cpu(torch.as_tensor(value))
    value = value.unsqueeze(1) if value.dim() == 1 else value
    if value.dim() != 2 or value.size(0) != num_nodes or value.is_complex():
        raise ValueError(
            f"'data.{name}' must be real, of shape [{num_nodes}, features], "
            f'one row per node (got {value.dtype} of {list(value.shape)})'
        )
    check_finite(f'data.{name}', value)
    return value.double()


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def nearest_neighbors(pos: Tensor, neighbors: int) -> Topology:
    """The graph of nearest neighbours, for want of edges."""
    if pos.size(0) < 2 or pos.size(1) == 0:
        raise ValueError(
            "'data' must have 'edge_index', or 'pos' of more than one site "
            '(got neither); set one of them'
        )
    near = KNNGraph(min(neighbors, pos.size(0) - 1))
    unit = axis_units(pos)
    if bool((unit != unit[0]).any()):
        pos = pos * unit
    return near.topology(Data(pos=pos))


def axis_units(pos: Tensor) -> Tensor:
    """Inverse units of axes `[P]`: the largest extent, which they share unless
    their extents are so far apart that they measure different things.
    """
    ordered = pos.sort(0).values
    extent = ordered[-1] - ordered[0]
    # Bounded by the interquartile range, for outliers.
    quarter = len(ordered) // 4
    middle = ordered[-1 - quarter] - ordered[quarter]
    extent = torch.where(middle > 0, extent.minimum(10 * middle), extent)
    on_sphere = bool((pos.norm(dim=1) - 1).abs().max() < 1e-9)
    some = extent[extent > 0]
    if on_sphere or not len(some) or some.max() < _APART * some.min():
        extent = extent.max().expand_as(extent) if len(extent) else extent
    return 1 / torch.where(extent > 0, extent, 1)


@dataclass
class Sites:
    """Distinct locations of nodes, with observations and graphs.

    Without edges, nodes of equal position and covariates share a site.
    """

    x: Tensor  # observations of nodes, zero where unknown, [N, F]
    mask: Tensor  # [N, F]
    like: Tensor  # empty, of the type of the user's signal
    site: Tensor  # site of each node, [N]
    features: Tensor  # positions, then covariates, of sites, [M, P + D]
    num_coordinates: int
    graphs: Graphs

    @classmethod
    def read(
        cls,
        data: Data,
        covariates: str,
        neighbors: int,
        geographic: bool = False,
    ) -> Self:
        """Reads all of it, float64 on the CPU."""
        x, mask = read_observations(data)
        count, edges = len(x), edges_of(data)
        if covariates != 'covariates' and data.get(covariates) is None:
            raise ValueError(
                f"'covariates' names {covariates!r}, which the data does not "
                f"have; set 'data.{covariates}'"
            )
        pos = read_columns(data, 'pos', count)
        pos = on_sphere(pos, 'data.pos') if geographic else pos
        features = torch.cat([pos, read_columns(data, covariates, count)], 1)
        site = torch.arange(count)
        if pos.size(1):
            site, first = _group(features, merge=edges is None)
            pos, features = pos[first], features[first]
        graphs: Graphs = {}
        if edges is not None:
            graphs = _given_graphs(data, site)
        if edges is None or (pos.size(1) and len(pos) > 1):
            near = nearest_neighbors(pos, neighbors)
            graphs['nearest'] = near, pos.new_ones(near.num_edges)
        if not graphs:
            raise ValueError(
                "'data.edge_index' has no edges between different sites; add "
                "some, or set 'data.pos'"
            )
        elif not features.size(1):
            _warn_of_lost(graphs, mask)
        like = data.x.new_empty(0)
        return cls(x, mask, like, site, features, pos.size(1), graphs)

    @classmethod
    def of_points(
        cls, features: Tensor, num_coordinates: int, x: Tensor
    ) -> Self:
        """Places of features `[N, D]` with observations `[N, F]`, NaN where
        there is none.
        """
        site, first = _group(features, merge=True)
        mask = ~x.isnan()
        return cls(
            torch.where(mask, x, 0),
            mask,
            x.new_empty(0),
            site,
            features[first],
            num_coordinates,
            {},
        )

    def at(self, features: Tensor) -> Self:
        """Other places, which nothing is known of."""
        x = self.x.new_zeros((len(features), self.x.size(1)))
        site = torch.arange(len(features))
        return replace(
            self, x=x, mask=x.bool(), site=site, features=features, graphs={}
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of signals, coordinates and covariates."""
        space, total = self.num_coordinates, self.features.size(1)
        return self.x.size(1), space, total - space

    def match(self, fitted: Self) -> None:
        """Adds the graphs that equal weights have in common; raises a
        `ValueError` unless there is all that the fit had.
        """
        if self.sizes != fitted.sizes:
            raise ValueError(
                f"'data' must have as many features of 'x', coordinates and "
                f"covariates as in 'fit', {fitted.sizes} (got {self.sizes})"
            )
        if 'given' in self.graphs:
            for name in ('unweighted', 'sharpened'):
                self.graphs.setdefault(name, self.graphs['given'])
        missing = sorted(fitted.graphs.keys() - self.graphs.keys())
        if missing:
            raise ValueError(
                f"'data' must have what 'fit' had: it lacks the graph(s) "
                f"{missing} (got {sorted(self.graphs)}); set 'edge_index', "
                f"'edge_weight' or 'pos'"
            )

    def average(self, features: Tensor) -> 'SiteSignal':
        """Means of features over the known nodes of each site."""
        x, mask = self.x[:, features], self.mask[:, features]
        if not bool((mask == mask[:, :1]).all()):
            raise ValueError(
                f"'data.mask' must be the same for features that were known "
                f'at the same nodes in fit ({features.tolist()})'
            )
        size = len(self.features)
        count = torch.bincount(self.site[mask[:, 0]], minlength=size)
        mean = scatter(x, self.site, 0, size) / count.clamp(min=1).unsqueeze(1)
        return SiteSignal(self, count.nonzero().squeeze(1), mean)

    def replicate_errors(self, features: Tensor) -> Tensor:
        """Absolute errors of known nodes, each predicted by the mean of the
        others of its site, `[T, F]`.
        """
        mean = self.average(features).y
        mask = self.mask[:, features[0]]
        count = torch.bincount(self.site[mask], minlength=len(mean))
        shared = mask & (count[self.site] > 1)
        site = self.site[shared]
        factor = count[site] / (count[site] - 1)
        error = self.x[shared][:, features] - mean[site]
        return error.abs() * factor.unsqueeze(1)


@dataclass(eq=False)
class SiteSignal:
    """Signals of some sites."""

    sites: Sites
    known: Tensor  # indices of the known sites, [K]
    y: Tensor  # zero where unknown, [M, F]
    # The signal that was observed, if it was at other places than these.
    source: 'SiteSignal | None' = None

    @property
    def observed(self) -> 'SiteSignal':
        """The signal that was observed."""
        return self.source or self

    @property
    def values(self) -> Tensor:
        """Observations `[K, F]`."""
        return self.observed.y[self.observed.known]

    def columns(self, chosen: slice) -> 'SiteSignal':
        """Some of the signals."""
        return replace(self, y=self.y[:, chosen])

    def part(self, keep: Tensor) -> 'SiteSignal':
        """The same without observations that are not kept."""
        y = torch.zeros_like(self.y)
        y[self.known[keep]] = self.y[self.known[keep]]
        return replace(self, known=self.known[keep], y=y)

    def at(self, sites: Sites) -> 'SiteSignal':
        """The same signal, to be predicted at other sites."""
        y = self.y.new_zeros((len(sites.features), self.y.size(1)))
        return SiteSignal(sites, self.known[:0], y, self)


def same_place(features: Tensor) -> Tensor:
    """Distances in each feature below which places are the same: a millionth
    of the spread.
    """
    ordered = features.sort(0).values
    count = len(ordered)
    # Interquartile: an outlier would merge all other nodes.
    spread = ordered[3 * count // 4] - ordered[count // 4]
    extent = (ordered[-1] - ordered[0]).clamp(min=1e-300)
    return torch.where(spread > 0, spread, extent) / 1e6


def _group(features: Tensor, merge: bool) -> tuple[Tensor, Tensor]:
    """Site of each node, and the first node of each site, sorted; merging
    nodes less than a millionth of the spread apart.
    """
    count = len(features)
    cell = ((features - features.amin(0)) / same_place(features)).round()
    if not merge:
        own = torch.arange(count, dtype=cell.dtype).unsqueeze(1)
        cell = torch.cat([cell, own], 1)
    unique, site = torch.unique(cell, dim=0, return_inverse=True)
    order = torch.arange(len(site) - 1, -1, -1)
    first = site.new_empty(len(unique)).scatter_(0, site[order], order)
    return site, first


def _warn_of_lost(graphs: Graphs, mask: Tensor) -> None:
    """Warns of nodes that only the mean of the others is known of."""
    topology, weight = next(iter(graphs.values()))
    lost = unreachable(topology, weight, mask).any(1).nonzero().squeeze(1)
    if len(lost):
        warnings.warn(
            f'{len(lost)} node(s) are not joined to a known one '
            f'({lost[:5].tolist()}): they get the mean; add edges, set '
            f"'data.pos', or leave them out",
            FillWarning,
            stacklevel=5,
        )


def _given_graphs(data: Data, site: Tensor) -> Graphs:
    """Edges of the data between sites, with variants of their weights."""
    topology, values = resolve_graph(
        edges_of(data), data.get('edge_weight'), len(site), torch.float64
    )
    if values.size(1) > 1:
        raise ValueError(
            f"'data.edge_weight' must be one number per edge (got "
            f'{values.size(1)}); choose one, or take their mean'
        )
    topology, weight = topology.cpu(), values[:, 0].detach().cpu().clone()
    if not torch.equal(site, torch.arange(len(site))):  # sites are sorted
        topology, values = resolve_graph(
            site[topology.edge_index],
            topology.directed_weight(weight),
            len(site),
            torch.float64,
        )
        weight = values[:, 0]
    if not topology.num_edges:
        return {}
    graphs: Graphs = {'given': (topology, weight)}
    if bool((weight != weight[0]).any()):
        # The scale of given weights is unknown: offer powers 0 and 3 of them.
        graphs['unweighted'] = topology, torch.ones_like(weight)
        power = (weight / weight.max()) ** 3
        graphs['sharpened'] = topology, power.clamp(min=1e-6)
    return graphs
