# mypy: allow-untyped-defs, allow-incomplete-defs
"""Tiles of numbers for the Triton kernels.

A program works on a tile: a block of rows (nodes or edges) times lanes, the
numbers of a row. Lanes run over a block of features and, innermost, heads,
both padded to powers of two. Sums over a row's entries follow the CSR order,
and only the program of a row, or of an edge's smaller endpoint, writes there:
no atomics, the same result each time.

Names in capitals are known at compile time: `HEADS`, the shape of a tile
(`BLOCK`, `BF`, `BH`), the type of offsets (`INDEX`) and of sums (`ACC`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(num_rows, BLOCK: tl.constexpr):
    """Rows of this program, and which of them exist."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return row, row < num_rows


@triton.jit
def entries_of(rowptr, row, inside):
    """First entry and number of entries of each row."""
    start = tl.load(rowptr + row, mask=inside, other=0)
    end = tl.load(rowptr + row + 1, mask=inside, other=0)
    return start, (end - start).to(tl.int32)


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
def load_index(array, row, inside, INDEX: tl.constexpr):
    """Loads indices, as a column."""
    return tl.load(array + row, mask=inside, other=0).to(INDEX)[:, None]


@triton.jit
def load(array, place, mask, ACC: tl.constexpr):
    """Loads numbers; zeros off the mask."""
    return tl.load(array + place, mask=mask, other=0).to(ACC)


@triton.jit
def load_diagonal(
    array,
    row,
    place,
    head,
    mask,
    width,
    HEADS: tl.constexpr,
    IS_SHARED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Loads `[N, 1, H]` (shared) or `[N, F, H]`; ones off the mask."""
    if IS_SHARED:
        at = row * HEADS + head
    else:
        at = row * width + place
    return tl.load(array + at, mask=mask, other=1).to(ACC)


@triton.jit
def load_scalar(array, head, HEADS: tl.constexpr, ACC: tl.constexpr):
    """Loads one number for each head; ones where there is no head."""
    return tl.load(array + head, mask=head < HEADS, other=1).to(ACC)


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
