"""Triton kernels of an iteration of ADMM."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cuda import tiles


@triton.jit
def _edge_state(difference, w, dual, rho_previous, rho, relaxation):
    """The state along one edge: see :func:`.reference.admm.admm_step`."""
    flow = w * difference
    p = dual + rho_previous * flow
    s = flow + p / rho
    limit = 1.0 / rho
    shrunk = s - tl.minimum(tl.maximum(s, -limit), limit)
    target = relaxation * shrunk + (1.0 - relaxation) * flow
    return flow, p, s, shrunk, target


@triton.jit
def _admm_step(graph, size, operands, results, TILE: tl.constexpr):
    first, width = tl.program_id(1) * TILE.BF, size[1] * TILE.HEADS
    weight, x, dual, scalars = operands
    b, new_dual = results
    tile = tiles.tile_of(graph[0], size, first, TILE)
    _start, count, node, head, _lanes, place, at, here = tile
    rho_previous = tiles.load_scalar(scalars, 0, head, TILE)
    rho = tiles.load_scalar(scalars, 1, head, TILE)
    relaxation = tiles.load_scalar(scalars, 2, head, TILE)
    mine = tiles.load(x, at, here)
    total = tiles.zeros(x, TILE)
    for k in range(tl.max(count)):
        j, e, w, _on, mask = tiles.neighbour(graph, weight, tile, k, TILE)
        edge = e * width + place
        old = tiles.load(dual, edge, mask)
        difference = mine - tiles.load(x, j * width + place, mask)
        difference = tl.where(j > node, difference, -difference)
        _flow, p, _s, _shrunk, target = _edge_state(
            difference, w, old, rho_previous, rho, relaxation
        )
        value = w * (target - p / rho)
        value = tl.where(j > node, value, -value)
        total += tl.where(mask, value, 0.0)
        # The row of the smaller endpoint sees to the edge.
        tl.store(new_dual + edge, p - rho * target, mask=mask & (j > node))
    tl.store(b + at, total, mask=here)


def admm_step(topology: Topology, *operands: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.admm.admm_step`."""
    operands = tuple(tiles.contiguous(*operands))
    _, x, dual, _ = operands
    results = torch.empty_like(x), torch.empty_like(dual)
    launch = tiles.Launch(*x.shape, x, dual)
    launch(_admm_step, tiles.csr(topology), operands, results)
    return results


@triton.jit
def _admm_step_backward(
    graph, size, sums, first, operands, results, TILE: tl.constexpr
):
    """The adjoint of `_admm_step`; one block of features."""
    weight, x, dual, scalars, grad_b, grad_new = operands
    grad_weight, grad_x, grad_dual = results
    width = size[1] * TILE.HEADS
    tile = tiles.tile_of(graph[0], size, first, TILE)
    _start, count, node, head, lanes, place, at, here = tile
    one_head, has_head = tiles.heads_of(TILE)
    rho_previous = tiles.load_scalar(scalars, 0, head, TILE)
    rho = tiles.load_scalar(scalars, 1, head, TILE)
    relaxation = tiles.load_scalar(scalars, 2, head, TILE)
    mine, my_grad = tiles.load(x, at, here), tiles.load(grad_b, at, here)
    total = tiles.zeros(x, TILE)
    sum_previous = total
    sum_rho = total
    sum_relaxation = total
    for k in range(tl.max(count)):
        j, e, w, on, mask = tiles.neighbour(graph, weight, tile, k, TILE)
        edge, there = e * width + place, j * width + place
        old, gq = tiles.load(dual, edge, mask), tiles.load(grad_new, edge, mask)
        difference = mine - tiles.load(x, there, mask)
        difference = tl.where(j > node, difference, -difference)
        r = my_grad - tiles.load(grad_b, there, mask)
        r = tl.where(j > node, r, -r)
        flow, p, s, shrunk, target = _edge_state(
            difference, w, old, rho_previous, rho, relaxation
        )
        gu = w * r
        gt = gu - rho * gq
        # The slope of the soft threshold, and its sign.
        gs = tl.where(tl.abs(s) > 1.0 / rho, relaxation * gt, 0.0)
        push = tl.where(s > 0, gs, -gs)
        gp = gq + (gs - gu) / rho
        gflow = gs + (1.0 - relaxation) * gt + rho_previous * gp
        value = w * gflow
        value = tl.where(j > node, value, -value)
        total += tl.where(mask, value, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on & (j > node)
        owned = is_src & lanes
        sum_previous += tl.where(owned, gp * flow, 0.0)
        slope = ((gu - gs) * p + push) / (rho * rho) - target * gq
        sum_rho += tl.where(owned, slope, 0.0)
        sum_relaxation += tl.where(owned, gt * (shrunk - flow), 0.0)
        tl.store(grad_dual + edge, gp, mask=owned)
        dot = (target - p / rho) * r + gflow * difference
        dot = tiles.sum_features(tl.where(owned, dot, 0.0), TILE)
        head_edge, has_edge = e * TILE.HEADS + one_head, is_src & has_head
        dot += tiles.load(grad_weight, head_edge, has_edge)
        tl.store(grad_weight + head_edge, dot, mask=has_edge)
    tl.store(grad_x + at, total, mask=here)
    slot = tl.program_id(0) * 3
    tiles.store_partial(sums, slot, sum_previous, TILE)
    tiles.store_partial(sums, slot + 1, sum_rho, TILE)
    tiles.store_partial(sums, slot + 2, sum_relaxation, TILE)


def admm_step_backward(
    topology: Topology, *operands: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`.reference.admm.admm_step_backward`."""
    operands = tuple(tiles.contiguous(*operands))
    weight, x, dual, *_ = operands
    launch = tiles.Launch(*x.shape, x, dual)
    # Blocks of features add to the first.
    grad_weight, grad_x = torch.zeros_like(weight), torch.empty_like(x)
    grads = grad_weight, grad_x, torch.empty_like(dual)
    kernel, graph = _admm_step_backward, tiles.csr(topology)
    return *grads, launch.sums(kernel, 3, graph, operands, grads)
