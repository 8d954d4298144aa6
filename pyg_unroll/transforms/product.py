"""The topology of a Cartesian product, by arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.graph import Topology, index_type


def product_topology(space: Topology, time: Topology) -> Topology:
    r"""Joins :math:`(i, t)` to :math:`(j, t)` for each edge
    :math:`\{i, j\}` of one graph, and to :math:`(i, s)` for each edge
    :math:`\{s, t\}` of the other.

    Nothing is sorted: how many neighbours come before one follows from the
    rows of both factors.

    Args:
        space (Topology): A graph of :math:`N` nodes and :math:`E` edges.
        time (Topology): A graph of :math:`T` nodes.

    Returns:
        The topology; node :math:`(i, t)` is row :math:`i T + t`. Edge
        :math:`e` of :obj:`space` at :math:`t` is edge :math:`e T + t`; after
        all of these come those of :obj:`time`, one node of :obj:`space` after
        the other.
    """
    num_steps = time.num_nodes
    num_spatial = space.num_edges * num_steps
    num_nodes = space.num_nodes * num_steps
    num_edges = num_spatial + space.num_nodes * time.num_edges
    index = index_type(num_nodes, num_edges)
    node, step = (
        torch.arange(graph.num_nodes, device=space.device)
        for graph in (space, time)
    )
    row, rank = _rows(space)
    time_row, time_rank = _rows(time)
    degrees, time_degrees = space.rowptr.diff(), time.rowptr.diff()
    # Where the row of each node begins, [N, T].
    rowptr = num_steps * space.rowptr[:-1].long() + 2 * time.num_edges * node
    start = rowptr.unsqueeze(1) + step * degrees.unsqueeze(1)
    start = start + time.rowptr[:-1]
    # Neighbours in time come between those of smaller and of larger row.
    after = space.col > row
    before = torch.zeros_like(node).index_add_(0, row, (~after).long())
    position = start[row] + rank.unsqueeze(1)
    position += after.unsqueeze(1) * time_degrees
    time_position = start[:, time_row] + before.unsqueeze(1) + time_rank

    def place(spatial: Tensor, temporal: Tensor, dtype: torch.dtype) -> Tensor:
        out = spatial.new_empty((2 * num_edges,), dtype=dtype)
        out[position] = spatial.to(dtype)
        out[time_position] = temporal.to(dtype)
        return out

    def at_each_step(nodes: Tensor) -> Tensor:
        return num_steps * nodes.long().unsqueeze(1) + step

    def at_each_node(steps: Tensor) -> Tensor:
        return num_steps * node.unsqueeze(1) + steps

    def ends(spatial: Tensor, temporal: Tensor) -> Tensor:
        parts = at_each_step(spatial), at_each_node(temporal)
        return torch.cat([part.flatten() for part in parts]).to(index)

    own = num_spatial + time.num_edges * node.unsqueeze(1) + time.edge_id
    edge_id = place(at_each_step(space.edge_id), own, index)
    sign = place(
        space.sign.unsqueeze(1).expand_as(position),
        time.sign.expand_as(time_position),
        torch.float32,
    )
    entry = edge_id.new_empty((num_edges, 2), dtype=torch.long)
    entry[edge_id.long(), (sign < 0).long()] = torch.arange(
        2 * num_edges, device=space.device
    )
    total = start.new_tensor([2 * num_edges])
    return Topology(
        num_nodes=num_nodes,
        src=ends(space.src, time.src),
        dst=ends(space.dst, time.dst),
        rowptr=torch.cat([start.flatten(), total]).to(index),
        col=place(at_each_step(space.col), at_each_node(time.col), index),
        edge_id=edge_id,
        sign=sign,
        entry=entry,
    )


def _rows(topology: Topology) -> tuple[Tensor, Tensor]:
    """Row of each CSR entry, and its place in the row."""
    nodes = torch.arange(topology.num_nodes, device=topology.device)
    row = nodes.repeat_interleave(topology.rowptr.diff())
    entries = torch.arange(row.numel(), device=topology.device)
    return row, entries - topology.rowptr[row]
