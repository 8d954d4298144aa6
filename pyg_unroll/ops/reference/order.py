"""Walks through a graph, by SciPy."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.graph import Topology


def adjacency(topology: Topology, value: Any) -> Any:
    """SciPy's matrix of one value per CSR entry of a graph."""
    # Late, as parts of SciPy take longer to load than all of the package.
    from scipy.sparse import csr_matrix

    col, rowptr = topology.col.cpu().numpy(), topology.rowptr.cpu().numpy()
    shape = topology.num_nodes, topology.num_nodes
    return csr_matrix((value, col, rowptr), shape=shape)


def components(topology: Topology, weight: Tensor) -> Tensor:
    """Number of each node's connected component, joined by edges of positive
    weight `[E]`.
    """
    from scipy.sparse.csgraph import connected_components

    joined = (weight > 0)[topology.edge_id].cpu().numpy()
    graph = adjacency(topology, joined)
    if not joined.all():
        graph = graph.copy()  # shares the topology's memory
        graph.eliminate_zeros()
    label = connected_components(graph, directed=False)[1]
    return torch.from_numpy(label).to(weight.device)


def walk(topology: Topology) -> tuple[Tensor, Tensor]:
    """The nodes in an order that has neighbours near each other, that of
    Cuthill and McKee, reversed; and the number of each one's component.
    """
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    graph = adjacency(topology, np.ones(topology.col.size(0), np.int8))
    order = reverse_cuthill_mckee(graph, symmetric_mode=True).copy()
    node = torch.from_numpy(order).to(topology.device)
    return node, components(topology, torch.ones(topology.num_edges))


def renumber(
    topology: Topology, node: Tensor, number: Tensor
) -> tuple[Topology, Tensor, Tensor, Tensor]:
    """The same graph, its nodes in an order of the old ones, to which the new
    number of each is the inverse; of its edges the same two, and whether the
    old numbers of their ends are the other way round.
    """
    ends = torch.stack([topology.src, topology.dst]).long()
    (src, dst), end = number.long()[ends].sort(0)
    edge = (src * topology.num_nodes + dst).argsort()
    src, dst = src[edge], dst[edge]
    local = Topology.from_sorted_pairs(src, dst, topology.num_nodes)
    index = topology.src.dtype
    turned = end[0].bool()[edge]
    return local, edge.to(index), edge.argsort().to(index), turned


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor."""
    return x.index_select(0, index)
