"""Triton kernels of a step of conjugate gradients."""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.ops.cuda import tiles
from pyg_unroll.ops.cuda.operators import laplacian
from pyg_unroll.ops.reference import cg as reference
from pyg_unroll.ops.reference.cg import Adjoint, Matrix, State


@triton.jit
def _load_diagonal(array, tile, TILE: tl.constexpr, IS_SHARED: tl.constexpr):
    """Loads `[N, 1, H]` (shared) or `[N, F, H]`; ones where there is none."""
    _start, _count, node, head, _lanes, _place, at, here = tile
    if IS_SHARED:
        at = node * TILE.HEADS + head
    return tiles.load(array, at, here, 1)


mean_difference = partial(reference.mean_difference, apply=laplacian)


@triton.jit
def _cg_step(
    graph,
    size,
    signals,
    scalars,
    matrix,
    confidence,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    x, residual, mean, v, new_v = signals
    weight, diagonal = matrix
    first, width = tl.program_id(1) * TILE.BF, size[1] * TILE.HEADS
    tile = tiles.tile_of(graph[0], size, first, TILE)
    head, at, here = tile[3], tile[6], tile[7]
    mine = tiles.load(v, at, here)
    center = tiles.load(mean, at, here)
    image = tiles.laplacian_of(graph, weight, mean, tile, center, width, TILE)
    if confidence is not None:
        image += mine * _load_diagonal(confidence, tile, TILE, SHARED[1])
    d = _load_diagonal(diagonal, tile, TILE, SHARED[0])
    r = (
        tiles.load(residual, at, here)
        - tiles.load_scalar(scalars, 0, head, TILE) * image
    )
    new = r / d + tiles.load_scalar(scalars, 1, head, TILE) * mine
    estimate = (
        tiles.load(x, at, here)
        + tiles.load_scalar(scalars, 2, head, TILE) * new
    )
    tl.store(residual + at, r, mask=here)
    tl.store(new_v + at, new, mask=here)
    tl.store(x + at, estimate, mask=here)


def cg_step(
    a: Matrix, state: State, v: Tensor, new: Tensor, scalars: Tensor
) -> None:
    """See :func:`.reference.cg.cg_step`."""
    _check_in_place(*state, new)
    v, scalars = tiles.contiguous(v, scalars)
    launch = tiles.Launch(*v.shape, v, a.weight)
    signals = *state, mean_difference(a, v), v, new
    launch(_cg_step, tiles.csr(a.topology), signals, scalars, *_read(a))


cg_steps = partial(reference.cg_steps, step=cg_step)


@triton.jit
def _cg_step_backward(
    graph,
    size,
    dots,
    first,
    signals,
    sums,
    sum_confidence,
    sum_degree,
    scalars,
    matrix,
    confidence,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The adjoint of `_cg_step`; one block of features."""
    mean_q, mean_v, q, new_q, v, u, grad_x, grad_v = signals
    grad_weight, sum_diagonal = sums
    weight, diagonal = matrix
    width = size[1] * TILE.HEADS
    tile = tiles.tile_of(graph[0], size, first, TILE)
    _start, count, node, head, lanes, place, at, here = tile
    alpha = tiles.load_scalar(scalars, 0, head, TILE)
    one_head, has_head = tiles.heads_of(TILE)
    step = tiles.load_scalar(scalars, 0, one_head, TILE)
    mine, mine_v = tiles.load(q, at, here), tiles.load(v, at, here)
    center, center_v = mine, mine_v
    if sum_degree is not None:
        center = tiles.load(mean_q, at, here)
        center_v = tiles.load(mean_v, at, here)
    image = tiles.zeros(q, TILE)
    for k in range(tl.max(count)):
        j, e, w, on, mask = tiles.neighbour(graph, weight, tile, k, TILE)
        dq = center - tiles.load(mean_q, j * width + place, mask)
        image += tl.where(mask, w * dq, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on & (j > node)
        owned = is_src & lanes
        dv = mine_v - tiles.load(v, j * width + place, owned)
        dot = dq * dv
        if sum_degree is not None:
            dq = mine - tiles.load(q, j * width + place, owned)
            dv = center_v - tiles.load(mean_v, j * width + place, owned)
            dot += dq * dv
        dot = tiles.sum_features(tl.where(owned, dot, 0.0), TILE)
        edge, has_edge = e * TILE.HEADS + one_head, is_src & has_head
        value = tiles.load(grad_weight, edge, has_edge) - step * dot
        tl.store(grad_weight + edge, value, mask=has_edge)
    if confidence is not None:
        image += mine * _load_diagonal(confidence, tile, TILE, SHARED[1])
        value = tiles.load(sum_confidence, at, here) - alpha * mine * mine_v
        tl.store(sum_confidence + at, value, mask=here)
    if sum_degree is not None:
        value = tiles.load(sum_degree, at, here) + alpha * center * center_v
        tl.store(sum_degree + at, value, mask=here)
    slope = tiles.load(grad_x, at, here) - image
    g = tiles.load_scalar(scalars, 1, head, TILE) * tiles.load(grad_v, at, here)
    g += alpha * slope
    tl.store(grad_v + at, g, mask=here)
    d = _load_diagonal(diagonal, tile, TILE, SHARED[0])
    tl.store(new_q + at, mine + g / d, mask=here)
    slot = tl.program_id(0) * 2
    # Lanes off the mask hold zeros: all that they load is zero.
    tiles.store_partial(dots, slot, slope * mine_v, TILE)
    before = tiles.load(u, at, here)
    tiles.store_partial(dots, slot + 1, g * before, TILE)
    change = mine_v - tiles.load_scalar(scalars, 2, head, TILE) * before
    value = tiles.load(sum_diagonal, at, here) + g * change
    tl.store(sum_diagonal + at, value, mask=here)


def cg_step_backward(
    a: Matrix, adjoint: Adjoint, v: Tensor, u: Tensor, scalars: Tensor
) -> Tensor:
    """See :func:`.reference.cg.cg_step_backward`."""
    sums = adjoint.weight, adjoint.diagonal
    optional = adjoint.confidence, adjoint.degree
    _check_in_place(adjoint.direction, *sums, *optional)
    q, v, u, x, scalars = tiles.contiguous(
        adjoint.residual, v, u, adjoint.x, scalars
    )
    out = adjoint.residual = torch.empty_like(q)
    means = mean_difference(a, q), mean_difference(a, v)
    signals = (*means, q, out, v, u, x, adjoint.direction)
    arguments = signals, sums, *optional, scalars, *_read(a)
    launch = tiles.Launch(*q.shape, q, a.weight)
    return launch.sums(_cg_step_backward, 2, tiles.csr(a.topology), *arguments)


cg_steps_backward = partial(reference.cg_steps_backward, step=cg_step_backward)


def _check_in_place(*tensors: Tensor | None) -> None:
    """Insists on memory that a kernel can write: a copy would take it."""
    assert all(v is None or v.is_contiguous() for v in tensors)


def _read(a: Matrix) -> tuple[Any, ...]:
    """Weight and diagonal, confidence, and which all features share."""
    matrix = tuple(tiles.contiguous(a.weight, a.diagonal))
    shared = a.diagonal.size(1) == 1
    if a.confidence is None:
        return matrix, None, (shared, True)
    confidence = a.confidence.contiguous()
    return matrix, confidence, (shared, confidence.size(1) == 1)
