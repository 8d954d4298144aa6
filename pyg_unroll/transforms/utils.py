"""What the graph transforms share."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.graph import Topology
from pyg_unroll.layouts import remember_topology


def set_graph(data: Data, topology: Topology, counts: list[int]) -> Data:
    """Sets `edge_index`, and in a batch what is needed to take it apart.

    Args:
        data (Data): Changed in place: a transform's own shallow copy.
        topology (Topology): The edges.
        counts (list[int]): Number of undirected edges of each example.
    """
    edge_index = topology.edge_index
    remember_topology(edge_index, topology)
    data.edge_index = edge_index
    if isinstance(data, Batch) and hasattr(data, '_slice_dict'):
        slices = torch.tensor([0, *accumulate(2 * count for count in counts)])
        _set_slices(data, 'edge_index', slices, data.ptr[:-1].cpu())
    return data


def set_edge_weight(data: Data, edge_weight: Tensor) -> Data:
    """Sets `edge_weight`, one row per column of `edge_index`.

    Args:
        data (Data): Changed in place: a transform's own shallow copy.
        edge_weight (torch.Tensor): The weights.
    """
    data.edge_weight = edge_weight
    slices = getattr(data, '_slice_dict', {}).get('edge_index')
    if slices is not None:
        increment = torch.zeros(len(slices) - 1, dtype=torch.long)
        _set_slices(data, 'edge_weight', slices, increment)
    return data


def _set_slices(
    data: Batch, name: str, slices: Tensor, increment: Tensor
) -> None:
    """Says where the examples of a batch begin."""
    # The dictionaries are shared with the data that this is a copy of.
    data._slice_dict = {**data._slice_dict, name: slices}
    data._inc_dict = {**data._inc_dict, name: increment}


def join_topologies(parts: list[Topology]) -> Topology:
    """Puts graphs side by side, the nodes of each after those before."""
    start = [0, *accumulate(part.num_nodes for part in parts)]
    shifted = list(zip(parts, start[:-1], strict=True))
    return Topology.from_pairs(
        torch.cat([part.src.long() + first for part, first in shifted]),
        torch.cat([part.dst.long() + first for part, first in shifted]),
        start[-1],
    )
