"""Cutting the work of the Triton kernels into tiles, and running them.

A program works on a tile: a block of rows (nodes or edges) times lanes, the
numbers of a row. Lanes run over a block of features and, innermost, heads,
both padded to powers of two. Sums over a row's entries follow the CSR order,
and only the program of a row, or of an edge's smaller endpoint, writes there:
no atomics, the same result each time.

Kernels take the arrays of the graph, its numbers of rows and of features,
operands, and in capitals constants of compilation: a :class:`Tile` and flags.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.reference.operators import accumulate_type

if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 4):
    raise ImportError(f'Triton {triton.__version__} is older than 3.4')
# Numbers of a tile: a few for each of the 128 threads of four warps.
_TILE = 1024
# Most rows of a tile: as many as threads.
_ROWS = 128
# Most lanes of a tile; longer rows are cut.
_LANES = 256


class Tile(NamedTuple):
    """A tile is `BLOCK` rows of `BF` features and `BH` of `HEADS` heads."""

    HEADS: int
    BLOCK: int
    BF: int
    BH: int
    INDEX: tl.dtype  # of offsets


class Launch:
    """Cuts rows of features and heads into tiles, and runs a kernel on them.

    Rows are nodes or edges; tensors are all that the kernel is given in
    floating point: their sizes tell whether offsets fit in 32 bits.
    """

    def __init__(
        self, rows: int, features: int, heads: int, *tensors: Tensor
    ) -> None:
        block_h = min(triton.next_power_of_2(max(heads, 1)), _LANES)
        block_f = triton.next_power_of_2(max(features, 1))
        block_f = min(block_f, _LANES // block_h)
        block = min(_TILE // (block_f * block_h), _ROWS)
        self.size, self.heads = (rows, features), heads
        self.programs = triton.cdiv(rows, block)
        self.firsts = range(0, features, block_f)
        self.head_blocks = triton.cdiv(heads, block_h)
        self.device_of = tensors[0]
        is_wide = max(tensor.numel() for tensor in tensors) >= 2**31
        index = tl.int64 if is_wide else tl.int32
        sizes = heads, block, block_f, block_h, index
        self.tile = Tile(*map(tl.constexpr, sizes))

    def run(
        self, kernel: Any, blocks: int, graph: Any, *arguments: Any
    ) -> None:
        """Runs a kernel on so many blocks of features side by side."""
        grid = (self.programs, blocks, self.head_blocks)
        if 0 in grid:
            return
        with torch.cuda.device_of(self.device_of):
            kernel[grid](graph, self.size, *arguments, TILE=self.tile)

    def __call__(self, kernel: Any, *arguments: Any) -> None:
        """Runs a kernel that cuts the features itself."""
        self.run(kernel, len(self.firsts), *arguments)

    def sums(
        self, kernel: Any, count: int, graph: Any, *arguments: Any
    ) -> Tensor:
        """Runs a kernel that also adds to one number for each edge and head.

        One block of features after the other, as they add to the same.
        Returns sums over nodes and features, :math:`(count, H)`.
        """
        of, blocks = self.device_of, len(self.firsts)
        shape = (blocks, self.programs, count, self.heads)
        partial = of.new_zeros(shape, dtype=accumulate_type(of.dtype))
        for into, first in zip(partial, self.firsts, strict=True):
            self.run(kernel, 1, graph, into, first, *arguments)
        return partial.sum((0, 1))


def csr(topology: Topology) -> tuple[Tensor, ...]:
    """The arrays that kernels over rows read of a graph."""
    return topology.rowptr, topology.col, topology.edge_id


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """The tensors, or copies of those that are strided."""
    return [tensor.contiguous() for tensor in tensors]


@triton.jit
def lanes_of(first, features, TILE: tl.constexpr):
    """Place in a row, head and existence of each lane, as one row."""
    lane = tl.arange(0, TILE.BF * TILE.BH)
    head = tl.program_id(2) * TILE.BH + lane % TILE.BH
    feature = first + lane // TILE.BH
    inside = (feature < features) & (head < TILE.HEADS)
    if TILE.HEADS == TILE.BH:
        # The same number, but the compiler sees that it is contiguous.
        place = first * TILE.HEADS + lane
    else:
        place = feature * TILE.HEADS + head
    return place[None, :], head[None, :], inside[None, :]


@triton.jit
def tile_of(rowptr, size, first, TILE: tl.constexpr):
    """The tile of this program, from a feature on.

    First entry and number of entries of its rows, the rows as a column, head
    and existence of its lanes, their places in a row, places of all numbers,
    and which of these exist.
    """
    num_rows, features = size
    row = tl.program_id(0) * TILE.BLOCK + tl.arange(0, TILE.BLOCK)
    inside = row < num_rows
    start = tl.load(rowptr + row, mask=inside, other=0)
    end = tl.load(rowptr + row + 1, mask=inside, other=0)
    place, head, lanes = lanes_of(first, features, TILE)
    node = row.to(TILE.INDEX)[:, None]
    at = node * (features * TILE.HEADS) + place
    here = inside[:, None] & lanes
    return start, (end - start).to(tl.int32), node, head, lanes, place, at, here


@triton.jit
def edges_of(num_edges, TILE: tl.constexpr):
    """Edges of this program as a column, and which of them exist."""
    edge = tl.program_id(0) * TILE.BLOCK + tl.arange(0, TILE.BLOCK)
    return edge.to(TILE.INDEX)[:, None], (edge < num_edges)[:, None]


@triton.jit
def heads_of(TILE: tl.constexpr):
    """Heads of this program as one row, and which of them exist."""
    head = tl.program_id(2) * TILE.BH + tl.arange(0, TILE.BH)[None, :]
    return head, head < TILE.HEADS


@triton.jit
def load_index(array, place, inside, TILE: tl.constexpr):
    """Loads indices; zeros off the mask."""
    return tl.load(array + place, mask=inside, other=0).to(TILE.INDEX)


@triton.jit
def entry(edge_id, tile, k, TILE: tl.constexpr):
    """Entry `k` of each row as columns: its place, which rows have one, its
    edge; and which of the lanes exist.
    """
    start, count, _node, _head, lanes, _place, _at, _here = tile
    at, on = (start + k)[:, None], (k < count)[:, None]
    return at, on, load_index(edge_id, at, on, TILE), on & lanes


@triton.jit
def load(array, place, mask, other=0):
    """Loads numbers in the type that they are summed in; zeros off the mask."""
    value = tl.load(array + place, mask=mask, other=other)
    if array.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def neighbour(graph, weight, tile, k, TILE: tl.constexpr):
    """Entry `k` of each row as columns: node, edge, weights, which rows have
    one; and which of the lanes exist.
    """
    _rowptr, col, edge_id = graph
    at, on, e, mask = entry(edge_id, tile, k, TILE)
    w = load(weight, e * TILE.HEADS + tile[3], mask)
    return load_index(col, at, on, TILE), e, w, on, mask


@triton.jit
def zeros(array, TILE: tl.constexpr):
    """A tile of zeros of the type that an array's numbers are summed in."""
    if array.dtype.element_ty == tl.float64:
        total = tl.zeros((TILE.BLOCK, TILE.BF * TILE.BH), tl.float64)
    else:
        total = tl.zeros((TILE.BLOCK, TILE.BF * TILE.BH), tl.float32)
    return total


@triton.jit
def laplacian_of(graph, weight, x, tile, mine, width, TILE: tl.constexpr):
    """The product with the graph Laplacian on a tile."""
    _start, count, _node, _head, _lanes, place, _at, _here = tile
    total = zeros(x, TILE)
    for k in range(tl.max(count)):
        j, _e, w, _on, mask = neighbour(graph, weight, tile, k, TILE)
        other = load(x, j * width + place, mask)
        total += tl.where(mask, w * (mine - other), 0.0)
    return total


@triton.jit
def load_scalar(scalars, k, head, TILE: tl.constexpr):
    """Loads row `k` of one number for each head; ones where there is none."""
    return load(scalars + k * TILE.HEADS, head, head < TILE.HEADS, 1)


@triton.jit
def sum_features(value, TILE: tl.constexpr):
    """Sums a tile over its features."""
    return tl.sum(tl.reshape(value, (TILE.BLOCK, TILE.BF, TILE.BH)), axis=1)


@triton.jit
def store_partial(partial, slot, value, TILE: tl.constexpr):
    """Writes the sum of a tile over rows and features to a row of `partial`."""
    total = tl.sum(
        tl.reshape(tl.sum(value, axis=0), (TILE.BF, TILE.BH)), axis=0
    )
    head = tl.program_id(2) * TILE.BH + tl.arange(0, TILE.BH)
    tl.store(partial + slot * TILE.HEADS + head, total, mask=head < TILE.HEADS)
