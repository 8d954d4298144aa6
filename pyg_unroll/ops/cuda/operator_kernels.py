# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of the graph operators; see :mod:`.tiles`."""

from __future__ import annotations

import triton
import triton.language as tl

from pyg_unroll.ops.cuda.tiles import (
    entries_of,
    lanes_of,
    load,
    load_index,
    rows_of,
    sum_features,
)


@triton.jit
def to_edges(
    src,
    dst,
    x,
    out,
    num_edges,
    features,
    SIGNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.to_edges`."""
    edge, inside = rows_of(num_edges, BLOCK)
    first = tl.program_id(1) * BF
    place, _, lanes = lanes_of(first, features, HEADS, BF, BH)
    width, mask = features * HEADS, inside[:, None] & lanes
    i = load_index(src, edge, inside, INDEX)
    j = load_index(dst, edge, inside, INDEX)
    one = load(x, i * width + place, mask, ACC)
    other = load(x, j * width + place, mask, ACC)
    value = one - other if SIGNED else one + other
    at = edge.to(INDEX)[:, None] * width + place
    tl.store(out + at, value, mask=mask)


@triton.jit
def to_nodes(
    rowptr,
    edge_id,
    sign,
    z,
    out,
    num_nodes,
    features,
    SIGNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.to_nodes`."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, _, lanes = lanes_of(first, features, HEADS, BF, BH)
    width = features * HEADS
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        e = load_index(edge_id, start + k, on, INDEX)
        value = load(z, e * width + place, mask, ACC)
        if SIGNED:
            value *= load(sign, start + k, on, ACC)[:, None]
        total += value
    at = row.to(INDEX)[:, None] * width + place
    tl.store(out + at, total, mask=inside[:, None] & lanes)


@triton.jit
def laplacian(
    rowptr,
    col,
    edge_id,
    weight,
    x,
    out,
    num_nodes,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.laplacian`."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, head, lanes = lanes_of(first, features, HEADS, BF, BH)
    width = features * HEADS
    at = row.to(INDEX)[:, None] * width + place
    mine = load(x, at, inside[:, None] & lanes, ACC)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = load_index(col, start + k, on, INDEX)
        e = load_index(edge_id, start + k, on, INDEX)
        w = load(weight, e * HEADS + head, mask, ACC)
        other = load(x, j * width + place, mask, ACC)
        total += tl.where(mask, w * (mine - other), 0.0)
    tl.store(out + at, total, mask=inside[:, None] & lanes)


@triton.jit
def edge_dot(
    src,
    dst,
    a,
    b,
    out,
    num_edges,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.edge_dot`."""
    edge, inside = rows_of(num_edges, BLOCK)
    i = load_index(src, edge, inside, INDEX)
    j = load_index(dst, edge, inside, INDEX)
    width = features * HEADS
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for first in range(0, features, BF):
        place, _, lanes = lanes_of(first, features, HEADS, BF, BH)
        mask = inside[:, None] & lanes
        at, other = i * width + place, j * width + place
        da = load(a, at, mask, ACC) - load(a, other, mask, ACC)
        db = load(b, at, mask, ACC) - load(b, other, mask, ACC)
        total += da * db
    head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    tl.store(
        out + edge.to(INDEX)[:, None] * HEADS + head,
        sum_features(total, BLOCK, BF, BH),
        mask=inside[:, None] & (head < HEADS),
    )


@triton.jit
def log_degree(
    rowptr,
    edge_id,
    distance,
    out,
    num_nodes,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.log_degree`."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    _, head, lanes = lanes_of(0, features, HEADS, BF, BH)
    smallest = tl.full((BLOCK, BF * BH), float('inf'), ACC)
    for k in range(tl.max(count)):
        on = k < count
        e = load_index(edge_id, start + k, on, INDEX)
        at, mask = e * HEADS + head, on[:, None] & lanes
        d = tl.load(distance + at, mask=mask, other=float('inf')).to(ACC)
        smallest = tl.minimum(smallest, d)
    # Infinite if all distances are, and infinity less itself is no number.
    smallest = tl.where(smallest == float('inf'), 0.0, smallest)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        e = load_index(edge_id, start + k, on, INDEX)
        at, mask = e * HEADS + head, on[:, None] & lanes
        d = tl.load(distance + at, mask=mask, other=float('inf')).to(ACC)
        total += tl.exp(smallest - d)
    isolated = (count == 0)[:, None]
    value = tl.log(tl.where(isolated, 1.0, total)) - smallest
    at = row.to(INDEX)[:, None] * HEADS + head
    tl.store(out + at, value, mask=inside[:, None] & lanes)


@triton.jit
def log_degree_backward(
    src,
    dst,
    distance,
    log_degree,
    grad,
    out,
    num_edges,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.log_degree_backward`."""
    edge, inside = rows_of(num_edges, BLOCK)
    _, head, lanes = lanes_of(0, features, HEADS, BF, BH)
    mask = inside[:, None] & lanes
    at = edge.to(INDEX)[:, None] * HEADS + head
    d = load(distance, at, mask, ACC)
    i = load_index(src, edge, inside, INDEX) * HEADS + head
    j = load_index(dst, edge, inside, INDEX) * HEADS + head
    one = tl.exp(-d - load(log_degree, i, mask, ACC))
    other = tl.exp(-d - load(log_degree, j, mask, ACC))
    one *= load(grad, i, mask, ACC)
    other *= load(grad, j, mask, ACC)
    tl.store(out + at, -(one + other), mask=mask)
