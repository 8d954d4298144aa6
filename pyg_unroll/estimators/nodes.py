"""Where the nodes of an estimator are, and how they are joined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, remove_self_loops

from pyg_unroll.estimators.problem import GraphName, InterpolationProblem
from pyg_unroll.graph import Topology, edges_of, resolve_graph
from pyg_unroll.transforms import KNNGraph


@dataclass
class Nodes:
    r"""Where nodes are, and how they are joined.

    Without edges, nodes at one place (with equal covariates) are one: their
    mean is what is known of it.

    Attributes:
        place (torch.Tensor): Place of each node :math:`(N)`.
        coordinates (torch.Tensor): Positions of places :math:`(M, P)`.
        features (torch.Tensor): Positions and covariates :math:`(M, D)`.
        graphs (dict): Edges and weights by name.
    """

    place: Tensor
    coordinates: Tensor
    features: Tensor
    graphs: dict[GraphName, tuple[Topology, Tensor]]

    @classmethod
    def read(cls, data: Data, covariates: str, neighbors: int) -> Nodes:
        """Reads positions, covariates and graphs, float64 on the CPU.

        Raises:
            ValueError: If something is missing, does not fit or is not finite.
        """
        count = int(data.x.size(0))
        if covariates != 'covariates' and data.get(covariates) is None:
            raise ValueError(
                f"'covariates' names {covariates!r}, which the data does not "
                f"have; set 'data.{covariates}'"
            )
        coordinates = _matrix(data, 'pos', count)
        features = torch.cat([coordinates, _matrix(data, covariates, count)], 1)
        if features.size(1) and not coordinates.size(1):
            raise ValueError(
                f"'data.{covariates}' is of use with positions only; set "
                f"'data.pos', too, or drop it"
            )
        place = torch.arange(count)
        if coordinates.size(1):
            place, first = _places(features, joined=edges_of(data) is None)
            coordinates, features = coordinates[first], features[first]
        graphs = _given_graphs(data, place, features.size(0))
        count = features.size(0)
        if coordinates.size(1) and count > 1:
            near = KNNGraph(min(neighbors, count - 1))
            topology = near.topology(Data(pos=coordinates))
            ones = torch.ones(topology.num_edges, dtype=torch.float64)
            graphs['nearest'] = topology, ones
        if not graphs and edges_of(data) is not None:
            raise ValueError(
                "'data.edge_index' has no edges between different places; add "
                "some, or set 'data.pos'"
            )
        if not graphs:
            raise ValueError(
                "'data' has neither 'edge_index' nor 'pos' of more than one "
                'place; set one of them'
            )
        return cls(place, coordinates, features, graphs)

    def match(self, fitted: Nodes) -> None:
        """Takes over the names of the graphs of others; raises a `ValueError`
        unless these have what the others had.
        """
        if 'given' in self.graphs:
            # Where all weights are equal, powers of them are the same.
            others: tuple[GraphName, ...] = ('unweighted', 'sharpened')
            for name in others:
                self.graphs.setdefault(name, self.graphs['given'])
        missing = sorted(fitted.graphs.keys() - self.graphs.keys())
        if missing:
            raise ValueError(
                f"'data' must have what 'fit' had: it lacks the graph(s) "
                f"{missing} (got {sorted(self.graphs)}); set 'edge_index', "
                f"'edge_weight' or 'pos'"
            )
        sizes = [
            (nodes.coordinates.size(1), nodes.features.size(1))
            for nodes in (fitted, self)
        ]
        if sizes[0] != sizes[1]:
            (space, total), (own_space, own_total) = sizes
            raise ValueError(
                f"'data' must have {space} coordinate(s) in 'pos' and "
                f"{total - space} covariate(s), as in 'fit' (got {own_space} "
                f'and {own_total - own_space})'
            )

    def problem(
        self, x: Tensor, mask: Tensor
    ) -> tuple[InterpolationProblem, Tensor]:
        r"""What is known of places.

        Args:
            x (torch.Tensor): Signals :math:`(N, F)`.
            mask (torch.Tensor): Nodes they are known at :math:`(N)`.

        Returns:
            The problem, and signals of places :math:`(M, F)`, zero where
            unknown.
        """
        size = self.features.size(0)
        count = torch.zeros(size, dtype=x.dtype)
        count.index_add_(0, self.place, mask.to(x.dtype))
        total = x.new_zeros((size, x.size(1)))
        total.index_add_(0, self.place, torch.where(mask.unsqueeze(1), x, 0))
        mean = total / count.clamp(min=1).unsqueeze(1)
        known = count.nonzero().squeeze(1)
        return InterpolationProblem(
            known, self.coordinates, self.features, self.graphs
        ), mean

    def twins(self, x: Tensor, mask: Tensor) -> Tensor:
        r"""Absolute errors of known nodes, each predicted by the mean of the
        other known ones at its place, :math:`(T, F)`.
        """
        _, mean = self.problem(x, mask)
        count = torch.bincount(self.place[mask], minlength=len(mean))
        shared = mask & (count[self.place] > 1)
        place = self.place[shared]
        factor = count[place] / (count[place] - 1)
        return (x[shared] - mean[place]).abs() * factor.unsqueeze(1)


def _places(features: Tensor, joined: bool) -> tuple[Tensor, Tensor]:
    """Place of each node, and the first node of each, sorted; if joined, nodes
    that are a millionth of the spread of all apart are at one place.
    """
    ordered = features.sort(0).values
    count = len(ordered)
    # Of the middle half: one point far away would join all others.
    spread = ordered[3 * count // 4] - ordered[count // 4]
    extent = (ordered[-1] - ordered[0]).clamp(min=1e-300)
    spread = torch.where(spread > 0, spread, extent)
    cell = ((features - ordered[0]) / spread * 1e6).round()
    if not joined:
        own = torch.arange(count, dtype=cell.dtype).unsqueeze(1)
        cell = torch.cat([cell, own], 1)
    unique, place = torch.unique(cell, dim=0, return_inverse=True)
    order = torch.arange(len(place) - 1, -1, -1)
    first = place.new_empty(len(unique)).scatter_(0, place[order], order)
    return place, first


def _given_graphs(
    data: Data, place: Tensor, size: int
) -> dict[GraphName, tuple[Topology, Tensor]]:
    """The data's own edges, of places; with other weights, too."""
    edges = edges_of(data)
    if edges is None:
        return {}
    topology, values = resolve_graph(
        edges, data.get('edge_weight'), len(place), torch.float64
    )
    if values.size(1) > 1:
        raise ValueError(
            f"'data.edge_weight' must be one number per edge (got "
            f'{values.size(1)}); choose one, or take their mean'
        )
    topology, weight = topology.cpu(), values[:, 0].detach().cpu()
    if not torch.equal(place, torch.arange(size)):
        # Places are sorted, and may be fewer than nodes.
        edge_index, joined = coalesce(
            *remove_self_loops(
                place[topology.edge_index], topology.directed_weight(weight)
            ),
            num_nodes=size,
            reduce='add',
        )
        topology, values = resolve_graph(
            edge_index, joined, size, torch.float64
        )
        weight = values[:, 0]
    graphs: dict[GraphName, tuple[Topology, Tensor]] = {}
    if topology.num_edges:
        graphs['given'] = topology, weight
        if bool((weight != weight[0]).any()):
            # What weights mean is not known: powers of them may say it better.
            graphs['unweighted'] = topology, torch.ones_like(weight)
            power = (weight / weight.max()) ** 3
            graphs['sharpened'] = topology, power.clamp(min=1e-6)
    return graphs


def _matrix(data: Data, name: str, count: int) -> Tensor:
    value = data.get(name)
    if value is None:
        return torch.zeros((count, 0), dtype=torch.float64)
    value = torch.as_tensor(value).detach().cpu().double()
    value = value.unsqueeze(1) if value.dim() == 1 else value
    if value.dim() != 2 or value.size(0) != count:
        raise ValueError(
            f"'data.{name}' must have shape [{count}, features], one row per "
            f'node (got {list(value.shape)})'
        )
    if not bool(value.isfinite().all()):
        node = int((~value.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"'data.{name}' must be finite at all nodes (got "
            f'{value[node].tolist()} at node {node}); fill it or drop it'
        )
    return value
