"""CPU kernels of the graph operators; see :mod:`.rows`."""

from __future__ import annotations

import math

import numpy as np

from pyg_unroll.ops.cpu.rows import (
    inlined,
    kernel,
    row_of_index,
    row_of_pixel,
    segment,
    set_base,
)
from pyg_unroll.ops.cpu.simd import (
    add,
    load,
    mul,
    put_heads,
    store,
    sub,
    window_size,
    zeros,
)


@kernel
def laplacian(first, last, base, index, tables, shape, lanes, w, x, out):
    """The product with the graph Laplacian."""
    rowptr, col, edge_id = index
    grid, starts, steps = tables
    node = first
    while node < last:
        end, inner, outer, row, image = segment(node, last, grid, lanes)
        set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                total = row_of_pixel(i, base, steps, w, x, shape, lanes)
            else:
                total = row_of_index(
                    i, rowptr, col, edge_id, w, x, shape, lanes
                )
            store(out, i * shape[0] + shape[1], total)
        node = end


@inlined
def _product(node, other, edge, a, b, same, is_first, out, shape, lanes):
    """Product of differences along one edge."""
    stride, offset, heads, head = shape
    here, there = node * stride + offset, other * stride + offset
    da = sub(load(a, here, lanes), load(a, there, lanes))
    db = da
    if not same:
        db = sub(load(b, here, lanes), load(b, there, lanes))
    put_heads(out, edge * heads + head, mul(da, db), is_first, lanes)


@kernel
def edge_dot(first, last, base, index, tables, shape, lanes, a, b, same, out):
    """Products of differences of the edges that start at each row."""
    rowptr, col, edge_id = index
    is_first = shape[1] == shape[3]  # block of features: the others add to it
    grid, starts, steps = tables
    size = window_size(lanes)
    node = first
    while node < last:
        end, inner, outer, row, image = segment(node, last, grid, lanes)
        set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                edge = base[size] + i * size
                for k in range(size):
                    j = i + steps[size - 1 - k]
                    _product(
                        i, j, edge + k, a, b, same, is_first, out, shape, lanes
                    )
                continue
            for entry in range(rowptr[i], rowptr[i + 1]):
                j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
                if j > i:
                    _product(
                        i, j, edge, a, b, same, is_first, out, shape, lanes
                    )
        node = end


@kernel
def to_edges(first, last, base, src, dst, sign, shape, lanes, x, out):
    """Difference (sign -1) or sum (sign 1) of each edge's endpoints."""
    stride, offset = shape[0], shape[1]
    for edge in range(first, last):
        i = load(x, np.int64(src[edge]) * stride + offset, lanes)
        j = load(x, np.int64(dst[edge]) * stride + offset, lanes)
        both = add(i, j) if sign > 0 else sub(i, j)
        store(out, edge * stride + offset, both)


@kernel
def to_nodes(first, last, base, index, sign, shape, lanes, z, out):
    """Sums the edges at each node; sign -1 subtracts where they end."""
    rowptr, col, edge_id = index
    stride, offset = shape[0], shape[1]
    for i in range(first, last):
        total = zeros(z, lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            block = load(z, np.int64(edge_id[entry]) * stride + offset, lanes)
            if sign < 0 and col[entry] < i:
                total = sub(total, block)
            else:
                total = add(total, block)
        store(out, i * stride + offset, total)


@kernel
def shifted_log_degree(first, last, base, index, heads, bound, d, out):
    """Corrects the logarithms of sums of exp(-d) that underflow, as they are
    below a bound: sums again, shifted by the node's smallest d.
    """
    rowptr, _, edge_id = index
    infinity = d.dtype.type(np.inf)
    for i in range(first, last):
        begin, end = rowptr[i], rowptr[i + 1]
        for h in range(heads):
            if out[i * heads + h] >= bound:
                continue
            if end == begin:
                out[i * heads + h] = 0
                continue
            least = infinity
            for entry in range(begin, end):
                value = d[np.int64(edge_id[entry]) * heads + h]
                least = min(least, value)
            total = d.dtype.type(0)
            for entry in range(begin, end):
                value = d[np.int64(edge_id[entry]) * heads + h]
                total += math.exp(least - value)
            out[i * heads + h] = math.log(total) - least
