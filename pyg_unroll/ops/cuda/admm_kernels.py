# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of an iteration of ADMM; see :mod:`.tiles`."""

from __future__ import annotations

import triton
import triton.language as tl

from pyg_unroll.ops.cuda.tiles import (
    entries_of,
    lanes_of,
    load,
    load_index,
    load_scalar,
    rows_of,
    store_partial,
    sum_features,
)


@triton.jit
def _edge_state(difference, w, dual, rho_previous, rho, relaxation):
    """What ADMM computes along one edge: see :func:`.reference.admm_step`."""
    flow = w * difference
    p = dual + rho_previous * flow
    s = flow + p / rho
    limit = 1.0 / rho
    shrunk = s - tl.minimum(tl.maximum(s, -limit), limit)
    target = relaxation * shrunk + (1.0 - relaxation) * flow
    return flow, p, s, shrunk, target


@triton.jit
def admm_step(
    rowptr,
    col,
    edge_id,
    weight,
    x,
    dual,
    rho_previous,
    rho,
    relaxation,
    b,
    new_dual,
    num_nodes,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.admm_step`."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, head, lanes = lanes_of(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    before = load_scalar(rho_previous, head, HEADS, ACC)
    penalty = load_scalar(rho, head, HEADS, ACC)
    relax = load_scalar(relaxation, head, HEADS, ACC)
    mine = load(x, at, here, ACC)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = load_index(col, start + k, on, INDEX)
        e = load_index(edge_id, start + k, on, INDEX)
        w = load(weight, e * HEADS + head, mask, ACC)
        edge = e * width + place
        old = load(dual, edge, mask, ACC)
        difference = mine - load(x, j * width + place, mask, ACC)
        difference = tl.where(j > node, difference, -difference)
        _, p, _, _, target = _edge_state(
            difference, w, old, before, penalty, relax
        )
        value = w * (target - p / penalty)
        value = tl.where(j > node, value, -value)
        total += tl.where(mask, value, 0.0)
        # The row of the smaller endpoint sees to the edge.
        tl.store(new_dual + edge, p - penalty * target, mask=mask & (j > node))
    tl.store(b + at, total, mask=here)


@triton.jit
def admm_step_backward(
    rowptr,
    col,
    edge_id,
    weight,
    x,
    dual,
    rho_previous,
    rho,
    relaxation,
    grad_b,
    grad_dual,
    grad_x,
    grad_weight,
    grad_old_dual,
    partial,
    num_nodes,
    features,
    first,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.admm_step_backward`; one block of features."""
    row, inside = rows_of(num_nodes, BLOCK)
    start, count = entries_of(rowptr, row, inside)
    place, head, lanes = lanes_of(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    one_head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    has_head = one_head < HEADS
    before = load_scalar(rho_previous, head, HEADS, ACC)
    penalty = load_scalar(rho, head, HEADS, ACC)
    relax = load_scalar(relaxation, head, HEADS, ACC)
    square = penalty * penalty
    mine = load(x, at, here, ACC)
    my_grad = load(grad_b, at, here, ACC)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    grad_before = tl.zeros((BLOCK, BF * BH), ACC)
    grad_penalty = tl.zeros((BLOCK, BF * BH), ACC)
    grad_relax = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = load_index(col, start + k, on, INDEX)
        e = load_index(edge_id, start + k, on, INDEX)
        w = load(weight, e * HEADS + head, mask, ACC)
        edge = e * width + place
        old = load(dual, edge, mask, ACC)
        gq = load(grad_dual, edge, mask, ACC)
        difference = mine - load(x, j * width + place, mask, ACC)
        difference = tl.where(j > node, difference, -difference)
        r = my_grad - load(grad_b, j * width + place, mask, ACC)
        r = tl.where(j > node, r, -r)
        flow, p, s, shrunk, target = _edge_state(
            difference, w, old, before, penalty, relax
        )
        gu = w * r
        gt = gu - penalty * gq
        limit = 1.0 / penalty
        # The slope of the soft threshold, and its sign.
        gs = tl.where(tl.abs(s) > limit, relax * gt, 0.0)
        push = tl.where(s > 0, gs, -gs)
        gp = gq + (gs - gu) / penalty
        gflow = gs + (1.0 - relax) * gt + before * gp
        value = w * gflow
        value = tl.where(j > node, value, -value)
        total += tl.where(mask, value, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on[:, None] & (j > node)
        owned = is_src & lanes
        grad_before += tl.where(owned, gp * flow, 0.0)
        slope = ((gu - gs) * p + push) / square - target * gq
        grad_penalty += tl.where(owned, slope, 0.0)
        grad_relax += tl.where(owned, gt * (shrunk - flow), 0.0)
        tl.store(grad_old_dual + edge, gp, mask=owned)
        dot = (target - p / penalty) * r + gflow * difference
        dot = sum_features(tl.where(owned, dot, 0.0), BLOCK, BF, BH)
        head_edge, has_edge = e * HEADS + one_head, is_src & has_head
        dot += load(grad_weight, head_edge, has_edge, ACC)
        tl.store(grad_weight + head_edge, dot, mask=has_edge)
    tl.store(grad_x + at, total, mask=here)
    slot = tl.program_id(0) * 3
    store_partial(partial, slot, grad_before, HEADS, BF, BH)
    store_partial(partial, slot + 1, grad_penalty, HEADS, BF, BH)
    store_partial(partial, slot + 2, grad_relax, HEADS, BF, BH)
