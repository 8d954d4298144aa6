"""Rows of a graph for the CPU kernels, which numba compiles at first call.

Arrays are flat. A node's numbers start at :obj:`node * stride + offset`, and
a kernel works on the block of lanes there; :mod:`.launch` calls it for each
block of features and heads. A kernel does the rows from :obj:`first` to
:obj:`last`, releases the interpreter's lock and allocates nothing of size.

On a pixel grid, away from the borders, neighbours and edges are found by
arithmetic instead of read from an index. Either way a row is summed in the
order of its columns, hence the results are the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pyg_unroll.ops.cpu.simd import (
    fma,
    load,
    load_heads,
    sub,
    window_size,
    zeros,
)


def _compile(function: Any, **options: Any) -> Any:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write the cache
        return numba.njit(**options)(function)


def kernel(function: Any) -> Any:
    """Compiles what is called from Python, without the interpreter's lock."""
    return _compile(function, nogil=True, _nrt=False)


def inlined(function: Any) -> Any:
    """Compiles what kernels are made of."""
    return numba.njit(function, forceinline=True, _nrt=False)


@inlined
def segment(node, last, grid, lanes):
    """Nodes of one image row: (end, inner start, inner end, row, image)."""
    if window_size(lanes) == 0:
        return last, last, last, 0, 0
    height, width, margin = grid[0], grid[1], grid[2]
    line = node // width
    image, row = line // height, line % height
    start = line * width
    end = min(last, start + width)
    if row < grid[3] or row >= height - grid[3]:
        return end, end, end, row, image
    inner = min(max(node, start + margin), end)
    return end, inner, max(inner, min(end, start + width - margin)), row, image


@inlined
def row_of_index(node, rowptr, col, edge_id, w, x, shape, lanes):
    """The row of the Laplacian at a node, by the index."""
    stride, offset, heads, head = shape
    total = zeros(x, lanes)
    here = load(x, node * stride + offset, lanes)
    for entry in range(rowptr[node], rowptr[node + 1]):
        other = load(x, np.int64(col[entry]) * stride + offset, lanes)
        weight = load_heads(w, np.int64(edge_id[entry]) * heads + head, lanes)
        total = fma(weight, sub(here, other), total)
    return total


@inlined
def row_of_pixel(node, base, steps, w, x, shape, lanes):
    """The row of the Laplacian at an inner pixel, by arithmetic."""
    stride, offset, heads, head = shape
    size = window_size(lanes)
    total = zeros(x, lanes)
    here = load(x, node * stride + offset, lanes)
    for k in range(size):
        edge = base[k] + node * size
        other = load(x, (node - steps[k]) * stride + offset, lanes)
        weight = load_heads(w, edge * heads + head, lanes)
        total = fma(weight, sub(here, other), total)
    for k in range(size - 1, -1, -1):
        edge = base[size] + node * size + size - 1 - k
        other = load(x, (node + steps[k]) * stride + offset, lanes)
        weight = load_heads(w, edge * heads + head, lanes)
        total = fma(weight, sub(here, other), total)
    return total


@inlined
def set_base(base, grid, starts, steps, row, image, needed, lanes):
    """First edge of each offset, so that edge = base + node * window."""
    size = window_size(lanes)
    if not needed:
        return
    first_node = image * grid[0] * grid[1]
    first_edge = image * grid[4]
    for k in range(size):
        # Backwards, from the pixel `steps[k]` before, in row `row - rows[k]`.
        source = row - grid[5 + k]
        base[k] = (
            first_edge
            + starts[source]
            - (first_node + steps[k]) * size
            + size
            - 1
            - k
        )
    base[size] = first_edge + starts[row] - first_node * size
