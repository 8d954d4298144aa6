"""Cutting the work of the CPU kernels, and running them on threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops import threads
from pyg_unroll.ops.cpu.simd import Lanes
from pyg_unroll.ops.reference import accumulate_type

# Numbers of a block: as many as the vector registers hold.
_BLOCK = 64
# Numbers that one call of a kernel works on: enough to outweigh the call.
_CHUNK = 2**17
# Numbers that a kernel keeps of a pixel's window.
SCRATCH = 256

_Kernel = Callable[..., None]
NO_GRID = (np.zeros(5, np.int64), *(np.empty(0, np.int64),) * 2)


def launch(
    kernel: _Kernel,
    rows: int,
    width: int,
    *arguments: Any,
    partial: Any = None,
) -> None:
    """Calls a kernel on chunks of rows, with a row of `partial` for each."""
    step = max(_CHUNK // width, 1)
    bounds = [*range(0, rows, step), rows]
    chunks = list(enumerate(pairwise(bounds)))

    count = max(min(torch.get_num_threads(), len(chunks)), 1)

    def work(k: int) -> None:
        scratch = np.empty(SCRATCH, np.int64)
        # Neighbouring chunks to one thread, for its caches.
        mine = slice(*(len(chunks) * t // count for t in (k, k + 1)))
        for number, chunk in chunks[mine]:
            last = () if partial is None else (partial[number],)
            kernel(*chunk, scratch, *arguments, *last)

    threads.run(work, count)


def blocks(features: int, heads: int) -> list[tuple[Lanes, int, int]]:
    """Cuts a node's numbers: (size, first feature, first head)."""
    if heads > _BLOCK:
        columns = [(h, min(_BLOCK, heads - h)) for h in range(0, heads, _BLOCK)]
        return [
            (Lanes(1, size), f, h)
            for f in range(features)
            for h, size in columns
        ]
    if heads == 0:
        return []
    step = max(_BLOCK // heads, 1)
    return [
        (Lanes(min(step, features - f), heads), f, 0)
        for f in range(0, features, step)
    ]


@lru_cache(maxsize=64)
def grid_tables(
    grid: tuple[int, ...], num_nodes: int, num_edges: int
) -> tuple[Any, Any, Any]:
    """The tables by which kernels walk a pixel grid."""
    if not grid:
        return NO_GRID
    height, width = grid[:2]
    offsets = list(zip(grid[2::2], grid[3::2], strict=True))
    size = len(offsets)
    rows = max(row for row, _ in offsets)
    columns = max(abs(col) for _, col in offsets)
    if size >= SCRATCH or width <= 4 * columns or height <= 2 * rows:
        return NO_GRID
    # The number of edges that start at each pixel of a row, summed.
    line = np.arange(height)
    per_row = sum(
        (line + row < height) * (width - abs(col)) for row, col in offsets
    )
    before = sum(  # at the columns left of the first with the whole window
        np.sum(np.arange(columns) + col >= 0) * (line + row < height)
        for row, col in offsets
    )
    start = np.concatenate([[0], np.cumsum(per_row)])[:-1]
    starts = start + before - (line * width + columns) * size
    backwards = offsets[::-1]
    steps = np.array([row * width + col for row, col in backwards])
    images = num_nodes // (height * width)
    head = [height, width, 2 * columns, rows, num_edges // max(images, 1)]
    table = np.array(head + [row for row, _ in backwards])
    return (table, starts.astype(np.int64), steps)


def flat(*tensors: Tensor) -> list[Any]:
    """As arrays of one dimension that share their memory."""
    return [tensor.detach().reshape(-1).numpy() for tensor in tensors]


def as_first(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, and of the type that kernels use for the first."""
    dtype = accumulate_type(tensors[0].dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def row_blocks(graph: Arrays, shape: torch.Size, walk: bool = True) -> Any:
    """Yields the first arguments of a kernel over rows, for each block.

    If `walk`, the kernel finds its way on pixel grids.
    """
    features, heads = shape[1:]
    num_nodes, num_edges = graph.rowptr.size(0) - 1, graph.src.size(0)
    tables = grid_tables(graph.grid, num_nodes, num_edges) if walk else NO_GRID
    first = [tuple(flat(graph.rowptr, graph.col, graph.edge_id))]
    if walk:
        first.append(tables)
    for lanes, f, h in blocks(features, heads):
        place = (features * heads, f * heads + h, heads, h)
        lanes = replace(lanes, window=tables[2].size)
        yield (*first, place, lanes), lanes.features * lanes.heads


def partial_sums(x: Tensor, count: int) -> Any:
    """Room for some sums of each chunk and head."""
    chunks = x.numel() // _CHUNK * 2 + 2
    return np.zeros((chunks, count * x.size(2)), flat(x)[0].dtype)


def add_up(partial: Any, count: int) -> list[Tensor]:
    """The sums of all chunks per head, `[H]` each."""
    # Copies: outputs of a registered operator may not share memory.
    sums = partial.sum(0).reshape(count, -1)
    return [torch.from_numpy(row.copy()) for row in sums]


def diagonal_of(
    value: Tensor | None, like: Tensor | None = None
) -> tuple[Any, int]:
    """A diagonal's numbers, and how many features it tells apart."""
    if value is None:
        assert like is not None
        return flat(like)[0][:0], 0
    return flat(value)[0], value.size(1)
