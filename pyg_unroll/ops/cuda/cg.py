# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of a step of conjugate gradients."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.ops.cuda.launch import (
    Launch,
    contiguous,
    csr,
    heads_of,
    load,
    load_scalar,
    neighbour,
    store_partial,
    sum_features,
    tile_of,
    zeros,
)
from pyg_unroll.ops.reference.cg import Adjoint, Matrix


@triton.jit
def _load_diagonal(
    array, node, head, at, here, HEADS: tl.constexpr, IS_SHARED: tl.constexpr
):
    """Loads `[N, 1, H]` (shared) or `[N, F, H]`; ones where there is none."""
    if IS_SHARED:
        at = node * HEADS + head
    return load(array, at, here, 1)


@triton.jit
def _cg_step(
    rowptr,
    col,
    edge_id,
    num_nodes,
    features,
    x,
    residual,
    v,
    new_v,
    scalars,
    weight,
    diagonal,
    confidence,
    SHARED_DIAGONAL: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    SHARED_CONFIDENCE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """One step, with the product on the way."""
    first, width = tl.program_id(1) * BF, features * HEADS
    start, count, node, head, lanes, place, at, here = tile_of(
        rowptr, num_nodes, features, first, HEADS, BLOCK, BF, BH, INDEX
    )
    mine = load(v, at, here)
    image = zeros(v, BLOCK, BF * BH)
    for k in range(tl.max(count)):
        j, e, _on, mask = neighbour(col, edge_id, start, count, k, lanes, INDEX)
        w = load(weight, e * HEADS + head, mask)
        other = load(v, j * width + place, mask)
        image += tl.where(mask, w * (mine - other), 0.0)
    if HAS_CONFIDENCE:
        image += mine * _load_diagonal(
            confidence, node, head, at, here, HEADS, SHARED_CONFIDENCE
        )
    d = _load_diagonal(diagonal, node, head, at, here, HEADS, SHARED_DIAGONAL)
    r = load(residual, at, here) - load_scalar(scalars, 0, head, HEADS) * image
    new = r / d + load_scalar(scalars, 1, head, HEADS) * mine
    estimate = load(x, at, here) + load_scalar(scalars, 2, head, HEADS) * new
    tl.store(residual + at, r, mask=here)
    tl.store(new_v + at, new, mask=here)
    tl.store(x + at, estimate, mask=here)


def cg_step(
    a: Matrix, x: Tensor, residual: Tensor, v: Tensor, scalars: Tensor
) -> Tensor:
    """See :func:`.reference.cg.cg_step`."""
    _check_in_place(x, residual)
    v, scalars = contiguous(v, scalars)
    matrix, meta = _read(a)
    out = torch.empty_like(v)
    launch = Launch(*x.shape, x, matrix[0])
    arrays = (x, residual, v, out, scalars, *matrix)
    launch(_cg_step, csr(a.topology), *arrays, **meta)
    return out


@triton.jit
def _cg_step_backward(
    rowptr,
    col,
    edge_id,
    num_nodes,
    features,
    dots,
    first,
    q,
    new_q,
    v,
    u,
    grad_x,
    grad_v,
    grad_weight,
    sum_diagonal,
    sum_confidence,
    scalars,
    weight,
    diagonal,
    confidence,
    SHARED_DIAGONAL: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    SHARED_CONFIDENCE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The adjoint of `_cg_step`; one block of features."""
    width = features * HEADS
    start, count, node, head, lanes, place, at, here = tile_of(
        rowptr, num_nodes, features, first, HEADS, BLOCK, BF, BH, INDEX
    )
    alpha = load_scalar(scalars, 0, head, HEADS)
    one_head, has_head = heads_of(HEADS, BH)
    step = load_scalar(scalars, 0, one_head, HEADS)
    mine, mine_v = load(q, at, here), load(v, at, here)
    image = zeros(q, BLOCK, BF * BH)
    for k in range(tl.max(count)):
        j, e, on, mask = neighbour(col, edge_id, start, count, k, lanes, INDEX)
        w = load(weight, e * HEADS + head, mask)
        dq = mine - load(q, j * width + place, mask)
        image += tl.where(mask, w * dq, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on & (j > node)
        owned = is_src & lanes
        dv = mine_v - load(v, j * width + place, owned)
        dot = sum_features(tl.where(owned, dq * dv, 0.0), BLOCK, BF, BH)
        edge, has_edge = e * HEADS + one_head, is_src & has_head
        value = load(grad_weight, edge, has_edge) - step * dot
        tl.store(grad_weight + edge, value, mask=has_edge)
    if HAS_CONFIDENCE:
        image += mine * _load_diagonal(
            confidence, node, head, at, here, HEADS, SHARED_CONFIDENCE
        )
        value = load(sum_confidence, at, here) - alpha * mine * mine_v
        tl.store(sum_confidence + at, value, mask=here)
    slope = load(grad_x, at, here) - image
    g = load_scalar(scalars, 1, head, HEADS) * load(grad_v, at, here)
    g += alpha * slope
    tl.store(grad_v + at, g, mask=here)
    d = _load_diagonal(diagonal, node, head, at, here, HEADS, SHARED_DIAGONAL)
    tl.store(new_q + at, mine + g / d, mask=here)
    slot = tl.program_id(0) * 2
    # Lanes off the mask hold zeros: all that they load is zero.
    store_partial(dots, slot, slope * mine_v, HEADS, BF, BH)
    before = load(u, at, here)
    store_partial(dots, slot + 1, g * before, HEADS, BF, BH)
    change = mine_v - load_scalar(scalars, 2, head, HEADS) * before
    value = load(sum_diagonal, at, here) + g * change
    tl.store(sum_diagonal + at, value, mask=here)


def cg_step_backward(
    a: Matrix, adjoint: Adjoint, v: Tensor, u: Tensor, scalars: Tensor
) -> Tensor:
    """See :func:`.reference.cg.cg_step_backward`."""
    sums = adjoint.weight, adjoint.diagonal, adjoint.confidence
    _check_in_place(adjoint.direction, *sums)
    q, v, u, x = contiguous(adjoint.residual, v, u, adjoint.x)
    adjoint.residual = torch.empty_like(q)
    matrix, meta = _read(a)
    signals = (q, adjoint.residual, v, u, x, adjoint.direction)
    arrays = (*signals, *sums, scalars.contiguous(), *matrix)
    launch = Launch(*q.shape, q, matrix[0])
    kernel, graph = _cg_step_backward, csr(a.topology)
    return launch.sums(kernel, 2, graph, *arrays, **meta)


def _check_in_place(*tensors: Tensor | None) -> None:
    """Insists on memory that a kernel can write: a copy would take it."""
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous()


def _read(a: Matrix) -> tuple[tuple[Any, ...], dict[str, bool]]:
    """Weight, diagonal and confidence, and which all features share."""
    confidence = a.confidence
    meta = {
        'SHARED_DIAGONAL': a.diagonal.size(1) == 1,
        'HAS_CONFIDENCE': confidence is not None,
        'SHARED_CONFIDENCE': confidence is None or confidence.size(1) == 1,
    }
    if confidence is not None:
        confidence = confidence.contiguous()
    return (*contiguous(a.weight, a.diagonal), confidence), meta
