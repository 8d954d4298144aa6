"""CPU kernels of an iteration of ADMM; see :mod:`.rows`."""

from __future__ import annotations

import numpy as np

from pyg_unroll.ops.cpu.rows import (
    inlined,
    kernel,
)
from pyg_unroll.ops.cpu.simd import (
    add,
    add_heads,
    fma,
    load,
    load_heads,
    maximum,
    minimum,
    mul,
    neg,
    store,
    sub,
    zero_where_equal,
    zeros,
)


@inlined
def _edge_state(here, other, forward, p, coefficients, heads, head, w, lanes):
    """What ADMM computes along one edge: see :func:`.reference.admm_step`."""
    rho_previous = load_heads(coefficients, head, lanes)
    inverse = load_heads(coefficients, 2 * heads + head, lanes)
    relaxation = load_heads(coefficients, 3 * heads + head, lanes)
    d = sub(here, other)
    if not forward:
        d = neg(d)
    flow = mul(w, d)
    p = fma(rho_previous, flow, p)
    s = fma(p, inverse, flow)
    clamped = maximum(minimum(s, inverse), neg(inverse))
    excess = sub(sub(s, clamped), flow)
    target = fma(relaxation, excess, flow)
    return d, flow, p, s, clamped, excess, target


@kernel
def admm_step(
    first,
    last,
    base,
    index,
    shape,
    lanes,
    w,
    x,
    dual,
    coefficients,
    b,
    new_dual,
):
    """One iteration along the edges; see :func:`.reference.admm_step`."""
    rowptr, col, edge_id = index
    stride, offset, heads, head = shape
    rho = load_heads(coefficients, heads + head, lanes)
    inverse = load_heads(coefficients, 2 * heads + head, lanes)
    for i in range(first, last):
        total = zeros(x, lanes)
        here = load(x, i * stride + offset, lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            weight = load_heads(w, edge * heads + head, lanes)
            _, _, p, _, _, _, target = _edge_state(
                here,
                load(x, j * stride + offset, lanes),
                j > i,
                load(dual, edge * stride + offset, lanes),
                coefficients,
                heads,
                head,
                weight,
                lanes,
            )
            u = fma(neg(p), inverse, target)
            if j > i:
                q = fma(neg(rho), target, p)
                store(new_dual, edge * stride + offset, q)
                total = fma(weight, u, total)
            else:
                total = fma(neg(weight), u, total)
        store(b, i * stride + offset, total)


@kernel
def admm_step_backward(
    first,
    last,
    base,
    index,
    shape,
    lanes,
    w,
    x,
    dual,
    coefficients,
    grad_b,
    grad_new,
    grad_x,
    grad_w,
    grad_dual,
    partial,
):
    """The adjoint of `admm_step`, computing again what it had computed."""
    rowptr, col, edge_id = index
    stride, offset, heads, head = shape
    rho_previous = load_heads(coefficients, head, lanes)
    rho = load_heads(coefficients, heads + head, lanes)
    inverse = load_heads(coefficients, 2 * heads + head, lanes)
    relaxation = load_heads(coefficients, 3 * heads + head, lanes)
    sum_previous = zeros(x, lanes)
    sum_rho = zeros(x, lanes)
    sum_relaxation = zeros(x, lanes)
    for i in range(first, last):
        total = zeros(x, lanes)
        here = load(x, i * stride + offset, lanes)
        grad_here = load(grad_b, i * stride + offset, lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            there = edge * stride + offset
            weight = load_heads(w, edge * heads + head, lanes)
            d, flow, p, s, clamped, excess, target = _edge_state(
                here,
                load(x, j * stride + offset, lanes),
                j > i,
                load(dual, there, lanes),
                coefficients,
                heads,
                head,
                weight,
                lanes,
            )
            slope = sub(grad_here, load(grad_b, j * stride + offset, lanes))
            if j < i:
                slope = neg(slope)
            grad_u = mul(weight, slope)
            grad_q = load(grad_new, there, lanes)
            grad_target = fma(neg(rho), grad_q, grad_u)
            grad_p = fma(neg(inverse), grad_u, grad_q)
            grad_excess = mul(relaxation, grad_target)
            grad_s = zero_where_equal(s, clamped, grad_excess)
            grad_p = fma(inverse, grad_s, grad_p)
            grad_flow = add(sub(grad_target, grad_excess), grad_s)
            grad_flow = fma(rho_previous, grad_p, grad_flow)
            if j < i:
                total = fma(neg(weight), grad_flow, total)
                continue
            total = fma(weight, grad_flow, total)
            store(grad_dual, there, grad_p)
            u = fma(neg(p), inverse, target)
            change = fma(u, slope, mul(grad_flow, d))
            add_heads(grad_w, edge * heads + head, change, lanes)
            sum_previous = fma(grad_p, flow, sum_previous)
            sum_relaxation = fma(grad_target, excess, sum_relaxation)
            scaled = mul(mul(p, inverse), inverse)
            change = mul(grad_s, mul(clamped, inverse))
            change = fma(sub(grad_u, grad_s), scaled, change)
            change = fma(neg(target), grad_q, change)
            sum_rho = add(sum_rho, change)
        store(grad_x, i * stride + offset, total)
    add_heads(partial, head, sum_previous, lanes)
    add_heads(partial, heads + head, sum_rho, lanes)
    add_heads(partial, 2 * heads + head, sum_relaxation, lanes)
