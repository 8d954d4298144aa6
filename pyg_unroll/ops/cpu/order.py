"""CPU kernels that walk through a graph and number its nodes anew.

Neighbours lie anywhere in memory: lines are asked for some nodes ahead, without
which each takes several times as long.
"""

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cpu import simd
from pyg_unroll.ops.cpu.launch import as_first, blocks, empty, flat, launch
from pyg_unroll.ops.cpu.operators import at


@simd.inlined
def _prefetch_row(order, first, last, rowptr, col, edge_id):
    """The row of a node some places on in an order up to the last."""
    simd.prefetch(rowptr, np.int64(order[min(first + 32, last)]))
    entry = np.int64(rowptr[order[min(first + 16, last)]])
    for k in range(entry, entry + 32, 16):
        simd.prefetch(col, k)
        simd.prefetch(edge_id, k)


@simd.kernel
def _walk(rowptr, col, edge_id, weight, order, seen, label):
    """Breadth first along edges of positive weight, all if there are none."""
    last = count = 0
    for start in range(len(seen)):
        if seen[start]:
            continue
        seen[start] = True
        first, order[last] = last, start
        last += 1
        while first < last:
            _prefetch_row(order, first, last - 1, rowptr, col, edge_id)
            node = order[first]
            label[node] = count
            first += 1
            for entry in range(rowptr[node], rowptr[node + 1]):
                other = col[entry]
                if seen[other]:
                    continue
                if weight.size > 0 and not weight[edge_id[entry]] > 0:
                    continue
                seen[other] = True
                order[last] = other
                last += 1
        count += 1


def walk(
    topology: Topology, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.order.walk`; here breadth first."""
    index = topology.rowptr, topology.col, topology.edge_id
    shape = (topology.num_nodes,)
    order, label = (empty(shape, topology.rowptr.dtype) for _ in range(2))
    seen = torch.zeros(shape, dtype=torch.bool)
    weight = torch.empty(0) if weight is None else weight
    _walk(*flat(*index, weight, order, seen, label))
    return order, label


def components(topology: Topology, weight: Tensor) -> Tensor:
    """See :func:`.reference.order.components`."""
    return walk(topology, weight)[1]


@simd.kernel
def _move_rows(node, number, rowptr, col, edge_id, out):
    """Of each row first the neighbours before it, then those after it."""
    new_rowptr, new_col, new_edge_id = out
    first = 0
    for i in range(len(node)):
        _prefetch_row(node, i, len(node) - 1, rowptr, col, edge_id)
        new_rowptr[i] = first
        begin, end = rowptr[node[i]], rowptr[node[i] + 1]
        front, back = first, first + end - begin - 1
        for entry in range(begin, end):
            # Written to both ends: a branch would be guessed wrongly.
            j = number[col[entry]]
            new_col[front] = new_col[back] = j
            new_edge_id[front] = new_edge_id[back] = edge_id[entry]
            is_before = j < i
            front += is_before
            back -= 1 - is_before
        first += end - begin
    new_rowptr[len(node)] = first


@simd.kernel
def _number_edges(node, rowptr, col, edge_id, src, dst, edge, new, turned):
    """In the order of rows."""
    count = 0
    for i in range(len(node)):
        entry, end = rowptr[i], rowptr[i + 1]
        while entry < end and col[entry] < i:
            edge_id[entry] = new[edge_id[entry]]
            entry += 1
        while entry < end:
            src[count], dst[count] = i, col[entry]
            turned[count] = node[col[entry]] < node[i]
            edge[count] = edge_id[entry]
            new[edge_id[entry]] = edge_id[entry] = count
            count += 1
            entry += 1


def renumber(
    topology: Topology, node: Tensor, number: Tensor
) -> tuple[Topology, Tensor, Tensor, Tensor]:
    """See :func:`.reference.order.renumber`; here rows are not sorted."""
    index = topology.rowptr, topology.col, topology.edge_id
    rowptr, col, edge_id = (empty(v.shape, v.dtype) for v in index)
    _move_rows(*flat(node, number, *index), tuple(flat(rowptr, col, edge_id)))
    ends = topology.src
    src, dst, edge, new = (empty(ends.shape, ends.dtype) for _ in range(4))
    turned = empty(ends.shape, torch.bool)
    edges = src, dst, edge, new, turned
    _number_edges(*flat(node, rowptr, col, edge_id, *edges))
    local = Topology(topology.num_nodes, src, dst, rowptr, col, edge_id)
    return local, edge, new, turned


@simd.kernel
def _take(first, last, base, index, place, lanes, x, out):
    for i in range(first, last):
        later = np.int64(index[min(i + 16, len(index) - 1)])
        simd.prefetch(x, at(later, place))
        simd.prefetch(x, at(later, place) + lanes.size - 1)
        block = simd.load(x, at(np.int64(index[i]), place), lanes)
        simd.store(out, at(i, place), block)


def take(x: Tensor, index: Tensor) -> Tensor:
    """See :func:`.reference.order.take`; rows are asked for ahead."""
    if not x.is_floating_point():
        return x.index_select(0, index)
    (values,) = as_first(x)
    out = empty((len(index), *x.shape[1:]), values.dtype)
    arrays = flat(values, out)
    for lanes, place in blocks(1, x.shape[1:].numel()):
        rest = (*flat(index), place, lanes, *arrays)
        launch(_take, len(index), lanes.heads, *rest)
    return out.to(x.dtype)
