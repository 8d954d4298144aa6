# mypy: allow-untyped-defs, allow-incomplete-defs
"""Cutting the work of the Triton kernels into tiles, and running them.

A program works on a tile: a block of rows (nodes or edges) times lanes, the
numbers of a row. Lanes run over a block of features and, innermost, heads,
both padded to powers of two. Sums over a row's entries follow the CSR order,
and only the program of a row, or of an edge's smaller endpoint, writes there:
no atomics, the same result each time.

Names in capitals are known at compile time: `HEADS`, the shape of a tile
(`BLOCK`, `BF`, `BH`) and the type of offsets (`INDEX`). Kernels take the
arrays of the graph, number of rows and of features, then the rest.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.reference.operators import accumulate_type

# Numbers of a tile: a few for each of the 128 threads of four warps.
_TILE = 1024
# Most rows of a tile: as many as threads.
_ROWS = 128
# Most lanes of a tile; longer rows are cut.
_LANES = 256


class Launch:
    """Cuts rows of features and heads into tiles, and runs a kernel on them.

    Args:
        rows (int): Number of nodes or edges.
        features (int): Number of features.
        heads (int): Number of heads.
        *tensors (torch.Tensor): All that is given to the kernel in floating
            point; their sizes tell whether offsets fit in 32 bits.
    """

    def __init__(
        self, rows: int, features: int, heads: int, *tensors: Tensor
    ) -> None:
        block_h = min(triton.next_power_of_2(max(heads, 1)), _LANES)
        block_f = triton.next_power_of_2(max(features, 1))
        block_f = min(block_f, _LANES // block_h)
        block = min(_TILE // (block_f * block_h), _ROWS)
        self.shape = rows, features
        self.programs = triton.cdiv(rows, block)
        self.firsts = range(0, features, block_f)
        self.head_blocks = triton.cdiv(heads, block_h)
        self.device_of = tensors[0]
        is_wide = max(tensor.numel() for tensor in tensors) >= 2**31
        self.meta = {
            'HEADS': heads,
            'BLOCK': block,
            'BF': block_f,
            'BH': block_h,
            'INDEX': tl.int64 if is_wide else tl.int32,
            'num_warps': 4,
        }

    def _run(
        self,
        kernel: Any,
        blocks: int,
        graph: tuple[Tensor, ...],
        *arguments: Any,
        **meta: bool,
    ) -> None:
        grid = (self.programs, blocks, self.head_blocks)
        if 0 in grid:
            return
        with torch.cuda.device_of(self.device_of):
            kernel[grid](*graph, *self.shape, *arguments, **meta, **self.meta)

    def __call__(
        self,
        kernel: Any,
        graph: tuple[Tensor, ...],
        *arguments: Any,
        **meta: bool,
    ) -> None:
        """Runs a kernel that cuts the features itself."""
        self._run(kernel, len(self.firsts), graph, *arguments, **meta)

    def whole(
        self, kernel: Any, graph: tuple[Tensor, ...], *arguments: Any
    ) -> None:
        """Runs a kernel that walks over all features of a row."""
        self._run(kernel, 1, graph, *arguments)

    def sums(
        self,
        kernel: Any,
        count: int,
        graph: tuple[Tensor, ...],
        *arguments: Any,
        **meta: bool,
    ) -> Tensor:
        """Runs a kernel that also adds to one number for each edge and head.

        One block of features after the other, as they add to the same.

        Returns:
            The sums over nodes and features, :math:`(count, H)`.
        """
        heads, of = self.meta['HEADS'], self.device_of
        partial = of.new_zeros(
            (len(self.firsts), self.programs, count, heads),
            dtype=accumulate_type(of.dtype),
        )
        for k, first in enumerate(self.firsts):
            self._run(kernel, 1, graph, partial[k], first, *arguments, **meta)
        return partial.sum((0, 1))


def csr(topology: Topology) -> tuple[Tensor, ...]:
    """The arrays that kernels over rows read of a graph."""
    return topology.rowptr, topology.col, topology.edge_id


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """The tensors, or copies of those that are strided."""
    return [tensor.contiguous() for tensor in tensors]


@triton.jit
def tile_of(
    rowptr,
    num_rows,
    features,
    first,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The tile of this program, from a feature on.

    First entry and number of entries of its rows, the rows as a column, head
    and existence of its lanes, the rows' offsets, their places, and which of
    these exist.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    start = tl.load(rowptr + row, mask=inside, other=0)
    end = tl.load(rowptr + row + 1, mask=inside, other=0)
    place, head, lanes = lanes_of(first, features, HEADS, BF, BH)
    node = row.to(INDEX)[:, None]
    at, here = node * (features * HEADS) + place, inside[:, None] & lanes
    return start, (end - start).to(tl.int32), node, head, lanes, place, at, here


@triton.jit
def lanes_of(
    first, features, HEADS: tl.constexpr, BF: tl.constexpr, BH: tl.constexpr
):
    """Place in a row, head and existence of each lane, as one row."""
    lane = tl.arange(0, BF * BH)
    head = tl.program_id(2) * BH + lane % BH
    feature = first + lane // BH
    inside = (feature < features) & (head < HEADS)
    if HEADS == BH:
        # The same number, but the compiler sees that it is contiguous.
        place = first * HEADS + lane
    else:
        place = feature * HEADS + head
    return place[None, :], head[None, :], inside[None, :]


@triton.jit
def edges_of(num_edges, BLOCK: tl.constexpr):
    """Edges of this program, and which of them exist."""
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return edge, edge < num_edges


@triton.jit
def heads_of(HEADS: tl.constexpr, BH: tl.constexpr):
    """Heads of this program as one row, and which of them exist."""
    head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    return head, head < HEADS


@triton.jit
def neighbour(col, edge_id, start, count, k, lanes, INDEX: tl.constexpr):
    """Entry `k` of each row: node and edge as columns, rows that have one as a
    column, and which of the lanes exist.
    """
    on = k < count
    j = load_index(col, start + k, on, INDEX)
    e = load_index(edge_id, start + k, on, INDEX)
    return j, e, on[:, None], on[:, None] & lanes


@triton.jit
def load_index(array, row, inside, INDEX: tl.constexpr):
    """Loads indices, as a column."""
    return tl.load(array + row, mask=inside, other=0).to(INDEX)[:, None]


@triton.jit
def load(array, place, mask, other=0):
    """Loads numbers in the type that they are summed in; zeros off the mask."""
    value = tl.load(array + place, mask=mask, other=other)
    if array.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def zeros(array, BLOCK: tl.constexpr, LANES: tl.constexpr):
    """A tile of zeros of the type that an array's numbers are summed in."""
    if array.dtype.element_ty == tl.float64:
        total = tl.zeros((BLOCK, LANES), tl.float64)
    else:
        total = tl.zeros((BLOCK, LANES), tl.float32)
    return total


@triton.jit
def load_scalar(scalars, k, head, HEADS: tl.constexpr):
    """Loads row `k` of one number for each head; ones where there is none."""
    return load(scalars + k * HEADS, head, head < HEADS, 1)


@triton.jit
def sum_features(
    value, BLOCK: tl.constexpr, BF: tl.constexpr, BH: tl.constexpr
):
    """Sums a tile over its features."""
    return tl.sum(tl.reshape(value, (BLOCK, BF, BH)), axis=1)


@triton.jit
def store_partial(
    partial,
    slot,
    value,
    HEADS: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
):
    """Writes the sum of a tile over rows and features to a row of `partial`."""
    total = tl.sum(tl.reshape(tl.sum(value, axis=0), (BF, BH)), axis=0)
    head = tl.program_id(2) * BH + tl.arange(0, BH)
    tl.store(partial + slot * HEADS + head, total, mask=head < HEADS)
