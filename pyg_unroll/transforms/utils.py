"""Edges set in data and read from it, and batches taken apart."""

import copy
from itertools import accumulate

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.graph import Topology, remember_topology


def set_graph(data: Data, topology: Topology) -> Data:
    """Replaces all edges in place, so that batches can be taken apart; those
    of the topology are sorted by row.
    """
    edge_index = topology.edge_index
    remember_topology(edge_index, topology)
    remove_edges(data)
    data.edge_index = edge_index
    if isinstance(data, Batch) and hasattr(data, '_slice_dict'):
        slices = topology.rowptr[data.ptr].long().cpu()
        _set_slices(data, 'edge_index', slices, data.ptr[:-1].cpu())
    return data


def remove_edges(data: Data) -> None:
    """Removes edges and all attributes of edges in place."""
    names = {'edge_index', 'edge_attr', 'edge_weight', 'adj_t'}
    counted, graph = data, data.get('edge_index')
    if isinstance(graph, Topology):  # which PyG cannot count
        counted = copy.copy(data)
        counted.edge_index = graph.edge_index
    if counted.num_edges > 0:  # or any empty attribute is one of the edges
        names |= {key for key in data.keys() if counted.is_edge_attr(key)}
    for key in names & set(data.keys()):
        del data[key]


def examples_of(batch: Batch) -> list[Data]:
    """The examples of a batch, with what was set on its nodes since."""
    parts = batch.to_data_list()
    sizes = batch.ptr.diff().tolist()
    for key in set(batch.keys()) - {*batch._slice_dict, 'batch', 'ptr'}:
        value = batch[key]
        if isinstance(value, Tensor) and batch.is_node_attr(key):
            values = value.split(sizes, batch.__cat_dim__(key, value))
            for part, own in zip(parts, values, strict=True):
                part[key] = own
    return parts


def set_edge_weight(data: Data, edge_weight: Tensor) -> Data:
    """Sets `edge_weight` in place, one row per column of `edge_index`."""
    data.edge_weight = edge_weight
    slices = getattr(data, '_slice_dict', {}).get('edge_index')
    if slices is not None:
        _set_slices(data, 'edge_weight', slices, torch.zeros_like(slices[1:]))
    return data


def _set_slices(data: Batch, name: str, slices: Tensor, inc: Tensor) -> None:
    # The dictionaries are shared with the data that this is a copy of.
    data._slice_dict = {**data._slice_dict, name: slices}
    data._inc_dict = {**data._inc_dict, name: inc}


def join_graphs(ends: list[Tensor], sizes: list[int]) -> Topology:
    """Puts graphs side by side: edges `[2, E]` and number of nodes of each."""
    start = [0, *accumulate(sizes)]
    pairs = zip(ends, start[:-1], strict=True)
    src, dst = torch.cat([part.long() + first for part, first in pairs], 1)
    return Topology.from_sorted_pairs(src, dst, start[-1])
