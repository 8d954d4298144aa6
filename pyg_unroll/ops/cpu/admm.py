"""CPU kernels of an iteration of ADMM."""

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cpu import simd
from pyg_unroll.ops.cpu.launch import flat, over_rows
from pyg_unroll.ops.cpu.operators import at, at_edge


@simd.inlined
def _load_scalars(scalars, place, lanes):
    """Penalty before, penalty, over-relaxation, and the inverse penalty."""
    heads, head = place[2], place[3]
    rho = simd.load_heads(scalars, heads + head, lanes)
    return (
        simd.load_heads(scalars, head, lanes),
        rho,
        simd.load_heads(scalars, 2 * heads + head, lanes),
        rho / rho / rho,
    )


@simd.inlined
def _edge_state(here, j, edge, forward, place, lanes, w, x, dual, scalars):
    """The state along one edge: see :func:`.reference.admm.admm_step`."""
    rho_previous, _, relaxation, inverse = scalars
    weight = simd.load_heads(w, at_edge(edge, place), lanes)
    d = here - simd.load(x, at(j, place), lanes)
    if not forward:
        d = -d
    flow = weight * d
    p = simd.fma(rho_previous, flow, simd.load(dual, at(edge, place), lanes))
    s = simd.fma(p, inverse, flow)
    clamped = simd.maximum(simd.minimum(s, inverse), -inverse)
    excess = s - clamped - flow
    target = simd.fma(relaxation, excess, flow)
    u = simd.fma(-p, inverse, target)
    return weight, d, flow, p, s, clamped, excess, target, u


@simd.kernel
def _admm_step(
    first, last, base, graph, place, lanes, w, x, dual, scalars, b, new_dual
):
    rowptr, col, edge_id = graph[:3]
    row = _load_scalars(scalars, place, lanes)
    rho = row[1]
    for i in range(first, last):
        total = simd.zeros(x, lanes)
        here = simd.load(x, at(i, place), lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            weight, _, _, p, _, _, _, target, u = _edge_state(
                here, j, edge, j > i, place, lanes, w, x, dual, row
            )
            if j > i:
                simd.store(new_dual, at(edge, place), simd.fma(-rho, target, p))
                total = simd.fma(weight, u, total)
            else:
                total = simd.fma(-weight, u, total)
        simd.store(b, at(i, place), total)


@simd.kernel
def _admm_step_backward(
    first, last, base, graph, place, lanes, w, inputs, grads, results, dots
):
    """The adjoint of `_admm_step`, computing again what it had computed."""
    rowptr, col, edge_id = graph[:3]
    x, dual, scalars = inputs
    grad_b, grad_new = grads
    grad_x, grad_w, grad_dual = results
    heads, head = place[2], place[3]
    row = _load_scalars(scalars, place, lanes)
    rho_previous, rho, relaxation, inverse = row
    sum_previous = simd.zeros(x, lanes)
    sum_rho = simd.zeros(x, lanes)
    sum_relaxation = simd.zeros(x, lanes)
    for i in range(first, last):
        total = simd.zeros(x, lanes)
        here = simd.load(x, at(i, place), lanes)
        grad_here = simd.load(grad_b, at(i, place), lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            weight, d, flow, p, s, clamped, excess, target, u = _edge_state(
                here, j, edge, j > i, place, lanes, w, x, dual, row
            )
            slope = grad_here - simd.load(grad_b, at(j, place), lanes)
            if j < i:
                slope = -slope
            grad_u = weight * slope
            grad_q = simd.load(grad_new, at(edge, place), lanes)
            grad_target = simd.fma(-rho, grad_q, grad_u)
            grad_p = simd.fma(-inverse, grad_u, grad_q)
            grad_excess = relaxation * grad_target
            grad_s = simd.zero_where_equal(s, clamped, grad_excess)
            grad_p = simd.fma(inverse, grad_s, grad_p)
            grad_flow = grad_target - grad_excess + grad_s
            grad_flow = simd.fma(rho_previous, grad_p, grad_flow)
            if j < i:
                total = simd.fma(-weight, grad_flow, total)
                continue
            total = simd.fma(weight, grad_flow, total)
            simd.store(grad_dual, at(edge, place), grad_p)
            change = simd.fma(u, slope, grad_flow * d)
            simd.add_heads(grad_w, at_edge(edge, place), change, lanes)
            sum_previous = simd.fma(grad_p, flow, sum_previous)
            sum_relaxation = simd.fma(grad_target, excess, sum_relaxation)
            scaled = p * inverse * inverse
            change = grad_s * (clamped * inverse)
            change = simd.fma(grad_u - grad_s, scaled, change)
            change = simd.fma(-target, grad_q, change)
            sum_rho = sum_rho + change
        simd.store(grad_x, at(i, place), total)
    simd.add_heads(dots, head, sum_previous, lanes)
    simd.add_heads(dots, heads + head, sum_rho, lanes)
    simd.add_heads(dots, 2 * heads + head, sum_relaxation, lanes)


def admm_step(
    topology: Topology, weight: Tensor, x: Tensor, dual: Tensor, scalars: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.admm.admm_step`."""
    b, new_dual = torch.empty_like(x), torch.empty_like(dual)
    arrays = flat(weight, x, dual, scalars, b, new_dual)
    over_rows(_admm_step, topology, *x.shape[1:], *arrays, walk=False)
    return b, new_dual


def admm_step_backward(
    topology: Topology, *operands: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`.reference.admm.admm_step_backward`."""
    weight, x, dual, scalars, *grads = operands
    grad_x, grad_old = torch.empty_like(x), torch.empty_like(dual)
    grad_weight = torch.zeros_like(weight)
    inputs = flat(x, dual, scalars)
    results = flat(grad_x, grad_weight, grad_old)
    arrays = map(tuple, (inputs, flat(*grads), results))
    grad_scalars = over_rows(
        _admm_step_backward,
        topology,
        *x.shape[1:],
        *flat(weight),
        *arrays,
        walk=False,
        sums=3,
    )
    return grad_weight, grad_x, grad_old, grad_scalars
