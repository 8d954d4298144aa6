"""Cutting the work of the CPU kernels, and running them on threads.

Threads are those of a pool. PyTorch's OpenMP threads, borrowed through
ctypes, were no faster (a demosaiced image took 223 ms against 162 ms on two
quiet cores), and wait for work at full speed.

A kernel takes the first and the last of its rows (nodes or edges), scratch,
arrays of the graph, and for each block of features and heads its place: the
numbers of a row, the first of the block, the heads, and the first of these.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cpu.simd import Lanes
from pyg_unroll.ops.order import is_scattered
from pyg_unroll.ops.reference.operators import accumulate_type
from pyg_unroll.threads import pool

# Numbers of a block: as many as the vector registers hold.
BLOCK = 64
# Numbers that one call of a kernel works on: enough to outweigh the call.
CHUNK = 2**17
# Entries of far neighbours that are on their way from memory at a time.
_AHEAD = 32
# Numbers that a kernel keeps of a pixel's window.
SCRATCH = 256

_Kernel = Callable[..., None]
Place: TypeAlias = tuple[int, int, int, int] | Lanes
NO_GRID = (np.zeros(5, np.int64), *(np.empty(0, np.int64),) * 2)


def launch(
    kernel: _Kernel,
    rows: int,
    width: int,
    *arguments: Any,
    steps: range | None = None,
    partial: Any = None,
) -> None:
    """Calls a kernel on chunks of rows, with a row of `partial` for each.

    Of several steps, each may read what the one before wrote to other rows: a
    kernel takes the first and the last of those that it does at once.
    """
    step = max(CHUNK // width, 1)
    chunks = list(enumerate(pairwise([*range(0, rows, step), rows])))
    count = max(min(torch.get_num_threads(), len(chunks)), 1)
    spans: list[tuple[Any, ...]] = [()]
    if steps is not None:
        size = len(steps) if len(chunks) <= 1 else 1
        spans = [((k, k + size),) for k in steps[::size]]

    def work(k: int, span: tuple[Any, ...]) -> None:
        scratch = np.empty(SCRATCH, np.int64)
        # Neighbouring chunks to one thread, for its caches.
        mine = slice(*(len(chunks) * t // count for t in (k, k + 1)))
        for number, chunk in chunks[mine]:
            last = () if partial is None else (partial[number],)
            kernel(*chunk, scratch, *arguments, *span, *last)

    submit = pool(torch.get_num_threads(), 'pyg_unroll', os.getpid()).submit
    for span in spans:
        futures = [submit(work, k, span) for k in range(1, count)]
        work(0, span)
        for future in futures:
            future.result()  # raises what the work raised


def over_rows(
    kernel: _Kernel,
    topology: Topology,
    features: int,
    heads: int,
    *arrays: Any,
    walk: bool = True,
    steps: range | None = None,
    sums: int = 0,
) -> Tensor:
    """Runs a kernel on the rows of nodes.

    It finds its way on pixel grids without an index if it can :obj:`walk`.
    Returns the numbers per head that it sums over all, :math:`(sums, H)`.
    """
    graph, places = parts_of(topology, features, heads, walk)
    partial = None
    if sums:
        chunks = topology.num_nodes * features * heads // CHUNK * 2 + 2
        partial = np.zeros((chunks, sums * heads), arrays[0].dtype)
    for lanes, place in places:
        work = topology.num_nodes, lanes.size
        rest = (graph, place, lanes, *arrays)
        launch(kernel, *work, *rest, steps=steps, partial=partial)
    if partial is None:
        return torch.empty(0)
    return torch.from_numpy(partial.sum(0).reshape(sums, heads))


def parts_of(
    topology: Topology, features: int, heads: int, walk: bool = True
) -> tuple[tuple[Any, ...], list[tuple[Lanes, Place]]]:
    """The graph as kernels take it; the blocks of a row and their places."""
    index = flat(topology.rowptr, topology.col, topology.edge_id)
    tables = _tables_of(topology) if walk else NO_GRID
    ahead = _AHEAD if is_scattered(topology) else 0
    window = tables[2].size // 2
    return (*index, *tables), blocks(features, heads, window, ahead)


@lru_cache(maxsize=256)
def blocks(
    features: int, heads: int, window: int = 0, ahead: int = 0
) -> list[tuple[Lanes, Place]]:
    """Cuts a row's numbers into blocks and gives their places."""
    if 0 < features * heads <= BLOCK:
        lanes = Lanes(features, heads, window, ahead)
        return [(lanes, lanes)]
    columns = [(h, min(BLOCK, heads - h)) for h in range(0, heads, BLOCK)]
    step = max(BLOCK // max(heads, 1), 1)
    return [
        (
            Lanes(min(step, features - f), size, window, ahead),
            (features * heads, f * heads + h, heads, h),
        )
        for f in range(0, features, step)
        for h, size in columns
    ]


def _tables_of(topology: Topology) -> tuple[Any, Any, Any]:
    sizes = topology.num_nodes, topology.num_edges
    return _grid_tables(topology.grid, *sizes)


def walks(topology: Topology) -> bool:
    """Whether kernels find their way without an index."""
    return bool(_tables_of(topology)[2].size)


@lru_cache(maxsize=64)
def _grid_tables(
    grid: tuple[int, ...], num_nodes: int, num_edges: int
) -> tuple[Any, Any, Any]:
    """The tables by which kernels walk a pixel grid: see `enter_line`."""
    if not grid:
        return NO_GRID
    height, width = grid[:2]
    offsets = list(zip(grid[2::2], grid[3::2], strict=True))
    size = len(offsets)
    rows = max(row for row, _ in offsets)
    columns = max(abs(col) for _, col in offsets)
    if 2 * size > SCRATCH or width <= 4 * columns or height <= 2 * rows:
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
    forward = np.array([row * width + col for row, col in offsets])
    images = num_nodes // (height * width)
    head = [height, width, 2 * columns, rows, num_edges // max(images, 1)]
    table = np.array(head + [row for row, _ in offsets[::-1]])
    steps = np.concatenate([-forward[::-1], forward])
    return (table, starts.astype(np.int64), steps)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for results.

    NumPy asks the system for large pages, PyTorch does not: the first write to
    those takes a quarter of the time (5 ms against 18 for 46 MiB).
    """
    size = torch.Size(shape).numel()
    spare = 64 // dtype.itemsize
    array = np.empty(size + spare, torch.empty(0, dtype=dtype).numpy().dtype)
    first = -array.ctypes.data % 64 // dtype.itemsize
    return torch.from_numpy(array[first : first + size]).view(shape)


def flat(*tensors: Tensor) -> list[Any]:
    """As arrays of one dimension that share their memory."""
    return [tensor.detach().numpy().reshape(-1) for tensor in tensors]


def addresses(tensors: Sequence[Tensor]) -> Any:
    """Where tensors begin, for kernels that take any number of them."""
    return np.array([tensor.data_ptr() for tensor in tensors])


def as_first(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, and of the type that kernels use for the first."""
    dtype = accumulate_type(tensors[0].dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]
