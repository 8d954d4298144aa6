"""CPU kernels of the graph operators.

Arrays are flat. A kernel does rows on a block of lanes: see :mod:`.launch`.

On a pixel grid, away from the borders, neighbours and edges are found by
arithmetic instead of read from an index. Either way a row is summed in the
order of its columns, hence the results are the same bit for bit.
"""

import math
from functools import partial

import numpy as np
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cpu import simd
from pyg_unroll.ops.cpu.launch import (
    as_first,
    blocks,
    empty,
    flat,
    launch,
    over_rows,
)
from pyg_unroll.ops.reference import operators as reference


@simd.inlined
def at(row, place):
    """The first number of a row's block."""
    return row * place[0] + place[1]


@simd.inlined
def at_edge(edge, place):
    """The first number of an edge's heads."""
    return edge * place[2] + place[3]


@simd.inlined
def enter_line(node, last, base, graph, lanes):
    """Nodes of one image row: (end, inner start, inner end).

    Puts into `base` where the edges of inner pixels begin: the edge to
    neighbour `k` is `base[k] + node * window`.
    """
    size = lanes.window
    if size == 0:
        return last, last, last
    _, _, _, grid, starts, steps = graph
    height, width, margin = grid[0], grid[1], grid[2]
    line = node // width
    image, row = line // height, line % height
    end = min(last, line * width + width)
    if row < grid[3] or row >= height - grid[3]:
        return end, end, end
    inner = min(max(node, line * width + margin), end)
    outer = max(inner, min(end, line * width + width - margin))
    if inner < outer:
        # Edges start at the smaller endpoint: that of neighbour `k` before
        # a pixel is in row `row - grid[5 + k]`.
        first = image * grid[4] - image * height * width * size
        for k in range(size):
            start = first + starts[row - grid[5 + k]]
            base[k] = start + steps[k] * size + size - 1 - k
            base[size + k] = first + starts[row] + k
    return end, inner, outer


@simd.inlined
def add_term(total, here, other, edge, place, lanes, w, x):
    """Adds the weighted difference to a neighbour; the sum and difference."""
    difference = here - simd.load(x, at(other, place), lanes)
    weight = simd.load_heads(w, at_edge(edge, place), lanes)
    return simd.fma(weight, difference, total), difference


@simd.inlined
def later_block(entry, index, place, lanes, array):
    """Asks for the block of an entry to come, if blocks are far apart."""
    ahead, size = lanes.ahead, lanes.size
    if ahead > 0:
        later = np.int64(index[min(entry + ahead, len(index) - 1)])
        simd.prefetch(array, at(later, place))
        if size > 4:
            simd.prefetch(array, at(later, place) + size - 1)


@simd.inlined
def later_term(entry, graph, place, lanes, w, x):
    """The same of a term of the Laplacian."""
    _, col, edge_id = graph[:3]
    ahead = lanes.ahead
    if ahead > 0:
        later = edge_id[min(entry + ahead, len(col) - 1)]
        simd.prefetch(w, at_edge(np.int64(later), place))
    later_block(entry, col, place, lanes, x)


@simd.inlined
def laplacian_row(node, is_inner, base, graph, place, lanes, w, x):
    """The product with the graph Laplacian at a node."""
    rowptr, col, edge_id, _, _, steps = graph
    total = simd.zeros(x, lanes)
    here = simd.load(x, at(node, place), lanes)
    if is_inner:
        size = lanes.window
        for k in range(size):
            other, edge = node + steps[k], base[k] + node * size
            total, _ = add_term(total, here, other, edge, place, lanes, w, x)
        own = base[size] + node * size
        for k in range(size):
            other, edge = node + steps[size + k], own + k
            total, _ = add_term(total, here, other, edge, place, lanes, w, x)
    else:
        for entry in range(rowptr[node], rowptr[node + 1]):
            later_term(entry, graph, place, lanes, w, x)
            other, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            total, _ = add_term(total, here, other, edge, place, lanes, w, x)
    return total


@simd.kernel
def laplacian_kernel(
    first, last, base, graph, place, lanes, w, x, divisor, out
):
    """The product with the graph Laplacian, over a divisor if there is one."""
    end = inner = outer = first
    for i in range(first, last):
        if i == end:
            end, inner, outer = enter_line(i, last, base, graph, lanes)
        total = laplacian_row(
            i, inner <= i < outer, base, graph, place, lanes, w, x
        )
        if divisor.size > 0:
            d = simd.load_heads(divisor, at_edge(i, place), lanes)
            total = total / d
        simd.store(out, at(i, place), total)


def laplacian(
    topology: Topology, weight: Tensor, x: Tensor, divisor: Tensor | None = None
) -> Tensor:
    """See :func:`.reference.operators.laplacian`; divided, as by degrees."""
    values, weights = as_first(x, weight)
    out = empty(values.shape, values.dtype)
    (divisors,) = as_first(x[:0] if divisor is None else divisor)
    arrays = flat(weights, values, divisors, out)
    over_rows(laplacian_kernel, topology, *x.shape[1:], *arrays)
    return out.to(x.dtype)


@simd.inlined
def _put_product(node, other, edge, place, lanes, a, b, same, out):
    here, there = at(node, place), at(other, place)
    da = simd.load(a, here, lanes) - simd.load(a, there, lanes)
    db = da
    if not same:
        db = simd.load(b, here, lanes) - simd.load(b, there, lanes)
    is_first = place[1] == place[3]  # other blocks of features add to it
    simd.put_heads(out, at_edge(edge, place), da * db, is_first, lanes)


@simd.kernel
def _edge_dot(first, last, base, graph, place, lanes, a, b, same, out):
    """Products of differences of the edges that start at each row."""
    rowptr, col, edge_id, _, _, steps = graph
    size = lanes.window
    end = inner = outer = first
    for i in range(first, last):
        if i == end:
            end, inner, outer = enter_line(i, last, base, graph, lanes)
        if inner <= i < outer:
            own = base[size] + i * size
            for k in range(size):
                j = i + steps[size + k]
                _put_product(i, j, own + k, place, lanes, a, b, same, out)
            continue
        for entry in range(rowptr[i], rowptr[i + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            if j > i:
                _put_product(i, j, edge, place, lanes, a, b, same, out)


def edge_dot(topology: Topology, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.operators.edge_dot`."""
    one, other = as_first(a, b)
    out = empty((topology.num_edges, a.size(2)), one.dtype)
    if a.size(1) == 0:
        return out.zero_().to(a.dtype)
    arrays = (*flat(one, other), a is b, *flat(out))
    over_rows(_edge_dot, topology, *a.shape[1:], *arrays)
    return out.to(a.dtype)


@simd.kernel
def to_edges_kernel(first, last, base, ends, place, lanes, sign, x, out):
    """Difference (sign -1) or sum (sign 1) of each edge's endpoints."""
    src, dst = ends
    for edge in range(first, last):
        i = simd.load(x, at(np.int64(src[edge]), place), lanes)
        j = simd.load(x, at(np.int64(dst[edge]), place), lanes)
        simd.store(out, at(edge, place), i + j if sign > 0 else i - j)


def to_edges(topology: Topology, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_edges`."""
    (values,) = as_first(x)
    out = empty((topology.num_edges, *x.shape[1:]), values.dtype)
    ends = tuple(flat(topology.src, topology.dst))
    arrays = (-1 if signed else 1, *flat(values, out))
    for lanes, place in blocks(1, x.shape[1:].numel()):
        rest = (ends, place, lanes, *arrays)
        launch(to_edges_kernel, topology.num_edges, lanes.heads, *rest)
    return out.to(x.dtype)


@simd.kernel
def _to_nodes(first, last, base, graph, place, lanes, sign, z, out):
    """Sums the edges at each node; sign -1 subtracts where they end."""
    rowptr, col, edge_id = graph[:3]
    for i in range(first, last):
        total = simd.zeros(z, lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            later_block(entry, edge_id, place, lanes, z)
            block = simd.load(z, at(np.int64(edge_id[entry]), place), lanes)
            if sign < 0 and col[entry] < i:
                total = total - block
            else:
                total = total + block
        simd.store(out, at(i, place), total)


def to_nodes(topology: Topology, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_nodes`."""
    (values,) = as_first(z)
    out = empty((topology.num_nodes, *z.shape[1:]), values.dtype)
    arrays = (-1 if signed else 1, *flat(values, out))
    width = z.shape[1:].numel()
    over_rows(_to_nodes, topology, 1, width, *arrays, walk=False)
    return out.to(z.dtype)


@simd.kernel
def _shifted_log_degree(first, last, base, rowptr, edge_id, heads, d, out):
    """Corrects the logarithms of sums of exp(-d) that underflow, as they are
    below a bound: sums again, shifted by the node's smallest d.
    """
    for i in range(first, last):
        begin, end = rowptr[i], rowptr[i + 1]
        for h in range(heads):
            if out[i * heads + h] >= reference.LEAST_LOG:
                continue
            if end == begin:
                out[i * heads + h] = 0
                continue
            least = d.dtype.type(np.inf)
            for entry in range(begin, end):
                least = min(least, d[np.int64(edge_id[entry]) * heads + h])
            total = d.dtype.type(0)
            for entry in range(begin, end):
                value = d[np.int64(edge_id[entry]) * heads + h]
                total += math.exp(least - value)
            out[i * heads + h] = math.log(total) - least


def log_degree(topology: Topology, distance: Tensor) -> Tensor:
    """See :func:`.reference.operators.log_degree`."""
    (values,) = as_first(distance)
    out = to_nodes(topology, values.neg().exp_(), False).log_()
    heads, width = distance.size(1), max(distance.size(1), 1)
    index = flat(topology.rowptr, topology.edge_id)
    arrays = (*index, heads, *flat(values, out))
    launch(_shifted_log_degree, topology.num_nodes, width, *arrays)
    return out.to(distance.dtype)


log_degree_backward = partial(reference.log_degree_backward, spread=to_edges)
