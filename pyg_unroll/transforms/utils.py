"""Edges set in data and read from it, and batches taken apart."""

from __future__ import annotations

import copy
from itertools import accumulate

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import coalesce, is_sparse

from pyg_unroll.checks import check_indices
from pyg_unroll.graph import Topology, edges_of, read_edges, remember_topology


def set_graph(data: Data, topology: Topology, counts: list[int]) -> Data:
    """Replaces the edges of data, a transform's own shallow copy; a batch with
    so many undirected edges per example can be taken apart.
    """
    edge_index = topology.edge_index
    remember_topology(edge_index, topology)
    remove_edges(data)
    data.edge_index = edge_index
    if isinstance(data, Batch) and hasattr(data, '_slice_dict'):
        slices = torch.tensor([0, *accumulate(2 * count for count in counts)])
        _set_slices(data, 'edge_index', slices, data.ptr[:-1].cpu())
    return data


def remove_edges(data: Data) -> None:
    """Removes edges and all attributes of edges, in place."""
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
    """The examples of a batch, with node attributes set on it since."""
    parts = batch.to_data_list()
    sizes = batch.ptr.diff().tolist()
    for key in set(batch.keys()) - {*batch._slice_dict, 'batch', 'ptr'}:
        value = batch[key]
        if isinstance(value, Tensor) and batch.is_node_attr(key):
            values = value.split(sizes, batch.__cat_dim__(key, value))
            for part, own in zip(parts, values, strict=True):
                part[key] = own
    return parts


def sizes_of_examples(data: Data, num_nodes: int) -> list[int]:
    """Numbers of nodes of the examples of a batch, or of the only one."""
    ptr, batch = data.get('ptr'), data.get('batch')
    if ptr is not None:
        return ptr.diff().tolist()
    if batch is None:
        return [num_nodes]
    if batch.shape != (num_nodes,) or bool((batch.diff() < 0).any()):
        raise ValueError(
            f"'data.batch' must be sorted, one number for each of {num_nodes} "
            f'nodes (got {list(batch.shape)}); sort the nodes by it'
        )
    return batch.bincount().tolist()


def set_edge_weight(data: Data, edge_weight: Tensor) -> Data:
    """Sets `edge_weight`, one row per column of `edge_index`, in place."""
    data.edge_weight = edge_weight
    slices = getattr(data, '_slice_dict', {}).get('edge_index')
    if slices is not None:
        increment = torch.zeros(len(slices) - 1, dtype=torch.long)
        _set_slices(data, 'edge_weight', slices, increment)
    return data


def _set_slices(
    data: Batch, name: str, slices: Tensor, increment: Tensor
) -> None:
    """Records where the examples of a batch begin."""
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


def undirected_graph(
    data: Data, num_nodes: int
) -> tuple[Topology, Tensor, Tensor]:
    r"""Makes an undirected graph of the edges of any data.

    Parallel edges of one direction are added up (unweighted ones count once),
    as in an adjacency matrix; then an edge gets the mean of the directions
    that are there, so that a part of an undirected graph, sampled in one
    direction, has the weights of the whole.

    Returns:
        The graph without self-loops, its weights :math:`(E)`, and the weight
        of each node's self-loop :math:`(N)`, in float64.
    """
    edge_index, weight = _read_edges(data)
    if edge_index.numel() > 0 and not (
        0 <= int(edge_index.min()) and int(edge_index.max()) < num_nodes
    ):
        raise ValueError(
            f"'data' has edges between nodes {int(edge_index.min())} and "
            f"{int(edge_index.max())}, but 'data.x' has {num_nodes} rows; "
            f'give it one row per node'
        )
    if weight is None:
        row, col = coalesce(edge_index, num_nodes=num_nodes)
        weight = torch.ones(row.size(0), dtype=torch.double, device=row.device)
    else:
        (row, col), weight = coalesce(
            edge_index, weight.double(), num_nodes=num_nodes
        )
    is_loop = row == col
    loops = weight.new_zeros(num_nodes)
    loops = loops.index_add(0, row[is_loop], weight[is_loop])
    row, col, weight = (value[~is_loop] for value in (row, col, weight))
    pair = torch.minimum(row, col) * num_nodes + torch.maximum(row, col)
    pair, edge, count = pair.unique(return_inverse=True, return_counts=True)
    weight = weight.new_zeros(pair.numel()).index_add(0, edge, weight) / count
    topology = Topology.from_pairs(
        pair // num_nodes, pair % num_nodes, num_nodes
    )
    return topology, weight, loops


def _read_edges(data: Data) -> tuple[Tensor, Tensor | None]:
    """Edge indices, and one weight per edge if there are weights."""
    graph, weight = edges_of(data), data.get('edge_weight')
    if graph is None:
        raise ValueError(
            "'data' has no 'edge_index' and no sparse 'adj_t'; make edges of "
            "points with 'KNNGraph', or of pixels with 'GridGraph'"
        )
    if weight is not None:
        name = 'edge_weight'
    elif is_sparse(graph):  # which has its own
        name = 'adj_t' if data.get('edge_index') is None else 'edge_index'
    else:
        name, weight = 'edge_attr', data.get('edge_attr')
    if isinstance(graph, Topology):
        edge_index = graph.edge_index
        if weight is not None and weight.size(0) == graph.num_edges:
            weight = graph.directed_weight(weight)
    else:
        # Transposed if PyG's `adj_t`, but both directions will be the same.
        edge_index, weight = read_edges(graph, weight)
        check_indices(edge_index)
    edge_index = edge_index.as_subclass(Tensor).long()
    if weight is None:
        return edge_index, None
    count = edge_index.size(1)
    if weight.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"'data.{name}' must hold one weight per edge, [{count}] or "
            f'[{count}, 1] (got {list(weight.shape)}); set '
            f"'data.edge_weight', for example to ones"
        )
    weight = weight.view(-1)
    value = weight.detach()
    # Comparisons with NaN are false, hence the form of the test.
    bad = ~((value >= 0) & (value < float('inf')))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"'data.{name}' must be finite and non-negative (got "
            f'{float(value[first])} for edge {edge_index[:, first].tolist()}'
            f"); use a kernel such as 'exp(-distance)'"
        )
    return edge_index, weight
