# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of a step of conjugate gradients; see :mod:`.tiles`."""

from __future__ import annotations

import triton
import triton.language as tl

from pyg_unroll.ops.cuda.tiles import (
    entries_of,
    lanes_of,
    load,
    load_diagonal,
    load_index,
    load_scalar,
    rows_of,
    store_partial,
    sum_features,
)


@triton.jit
def cg_step(
    rowptr,
    col,
    edge_id,
    weight,
    diagonal,
    confidence,
    x,
    residual,
    direction,
    out,
    alpha,
    beta,
    alpha_next,
    num_nodes,
    features,
    SHARED_DIAGONAL: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    SHARED_CONFIDENCE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.cg_step`."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, head, lanes = lanes_of(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    v = load(direction, at, here, ACC)
    image = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = load_index(col, start + k, on, INDEX)
        e = load_index(edge_id, start + k, on, INDEX)
        w = load(weight, e * HEADS + head, mask, ACC)
        other = load(direction, j * width + place, mask, ACC)
        image += tl.where(mask, w * (v - other), 0.0)
    if HAS_CONFIDENCE:
        image += v * load_diagonal(
            confidence,
            node,
            place,
            head,
            here,
            width,
            HEADS,
            SHARED_CONFIDENCE,
            ACC,
        )
    d = load_diagonal(
        diagonal, node, place, head, here, width, HEADS, SHARED_DIAGONAL, ACC
    )
    r = load(residual, at, here, ACC)
    r -= load_scalar(alpha, head, HEADS, ACC) * image
    new = r / d + load_scalar(beta, head, HEADS, ACC) * v
    estimate = load(x, at, here, ACC)
    estimate += load_scalar(alpha_next, head, HEADS, ACC) * new
    tl.store(residual + at, r, mask=here)
    tl.store(out + at, new, mask=here)
    tl.store(x + at, estimate, mask=here)


@triton.jit
def cg_step_backward(
    rowptr,
    col,
    edge_id,
    weight,
    diagonal,
    confidence,
    q,
    direction,
    previous,
    grad_direction,
    grad_x,
    alpha,
    beta,
    beta_previous,
    grad_weight,
    sum_diagonal,
    sum_confidence,
    out,
    partial,
    num_nodes,
    features,
    first,
    SHARED_DIAGONAL: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    SHARED_CONFIDENCE: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    SUM_CONFIDENCE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.cg_step_backward`; one block of features."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    place, head, lanes = lanes_of(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    a = load_scalar(alpha, head, HEADS, ACC)
    one_head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    has_head = one_head < HEADS
    step = load_scalar(alpha, one_head, HEADS, ACC)
    mine = load(q, at, here, ACC)
    v = load(direction, at, here, ACC)
    image = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = load_index(col, start + k, on, INDEX)
        e = load_index(edge_id, start + k, on, INDEX)
        w = load(weight, e * HEADS + head, mask, ACC)
        dq = mine - load(q, j * width + place, mask, ACC)
        image += tl.where(mask, w * dq, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on[:, None] & (j > node)
        owned = is_src & lanes
        dv = v - load(direction, j * width + place, owned, ACC)
        dot = tl.where(owned, dq * dv, 0.0)
        dot = sum_features(dot, BLOCK, BF, BH)
        edge, has_edge = e * HEADS + one_head, is_src & has_head
        value = load(grad_weight, edge, has_edge, ACC) - step * dot
        tl.store(grad_weight + edge, value, mask=has_edge)
    if HAS_CONFIDENCE:
        image += mine * load_diagonal(
            confidence,
            node,
            place,
            head,
            here,
            width,
            HEADS,
            SHARED_CONFIDENCE,
            ACC,
        )
    if SUM_CONFIDENCE:
        value = load(sum_confidence, at, here, ACC) - a * mine * v
        tl.store(sum_confidence + at, value, mask=here)
    slope = load(grad_x, at, here, ACC) - image
    g = load(grad_direction, at, here, ACC)
    g = load_scalar(beta, head, HEADS, ACC) * g + a * slope
    tl.store(grad_direction + at, g, mask=here)
    d = load_diagonal(
        diagonal, node, place, head, here, width, HEADS, SHARED_DIAGONAL, ACC
    )
    tl.store(out + at, mine + g / d, mask=here)
    slot = tl.program_id(0) * 2
    # Lanes off the mask hold zeros: all that they load is zero.
    store_partial(partial, slot, slope * v, HEADS, BF, BH)
    change = v
    if HAS_PREVIOUS:
        u = load(previous, at, here, ACC)
        change -= load_scalar(beta_previous, head, HEADS, ACC) * u
        store_partial(partial, slot + 1, g * u, HEADS, BF, BH)
    value = load(sum_diagonal, at, here, ACC) + g * change
    tl.store(sum_diagonal + at, value, mask=here)
