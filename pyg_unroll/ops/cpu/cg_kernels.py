"""CPU kernels of a step of conjugate gradients; see :mod:`.rows`."""

from __future__ import annotations

import numpy as np

from pyg_unroll.ops.cpu.rows import (
    inlined,
    kernel,
    row_of_index,
    row_of_pixel,
    segment,
    set_base,
)
from pyg_unroll.ops.cpu.simd import (
    add,
    add_heads,
    div,
    fma,
    load,
    load_heads,
    mul,
    neg,
    store,
    sub,
    window_size,
    zeros,
)


@inlined
def _row_and_edges(
    node, rowptr, col, edge_id, w, x, y, scale, out, shape, lanes
):
    """As `row_of_index`; adds scale * <dx, dy> to edges that start here."""
    stride, offset, heads, head = shape
    total = zeros(x, lanes)
    here = load(x, node * stride + offset, lanes)
    here_y = load(y, node * stride + offset, lanes)
    for entry in range(rowptr[node], rowptr[node + 1]):
        other = np.int64(col[entry])
        edge = np.int64(edge_id[entry]) * heads + head
        dx = sub(here, load(x, other * stride + offset, lanes))
        total = fma(load_heads(w, edge, lanes), dx, total)
        if other > node:
            dy = sub(here_y, load(y, other * stride + offset, lanes))
            add_heads(out, edge, mul(scale, mul(dx, dy)), lanes)
    return total


@inlined
def _pixel_row_and_edges(node, base, steps, w, x, y, scale, out, shape, lanes):
    """As `_row_and_edges`, at an inner pixel."""
    stride, offset, heads, head = shape
    size = window_size(lanes)
    total = zeros(x, lanes)
    here = load(x, node * stride + offset, lanes)
    here_y = load(y, node * stride + offset, lanes)
    for k in range(size):
        edge = (base[k] + node * size) * heads + head
        dx = sub(here, load(x, (node - steps[k]) * stride + offset, lanes))
        total = fma(load_heads(w, edge, lanes), dx, total)
    for k in range(size - 1, -1, -1):
        edge = (base[size] + node * size + size - 1 - k) * heads + head
        other = (node + steps[k]) * stride + offset
        dx = sub(here, load(x, other, lanes))
        total = fma(load_heads(w, edge, lanes), dx, total)
        dy = sub(here_y, load(y, other, lanes))
        add_heads(out, edge, mul(scale, mul(dx, dy)), lanes)
    return total


@inlined
def _load_diagonal(array, node, features, shape, lanes):
    """A diagonal's block: per node and head, or per feature, too."""
    stride, offset, heads, head = shape
    if features == 1:
        return load_heads(array, node * heads + head, lanes)
    return load(array, node * stride + offset, lanes)


@kernel
def cg_step(
    first,
    last,
    base,
    index,
    tables,
    shape,
    lanes,
    w,
    v,
    new_v,
    x,
    residual,
    diagonal,
    diagonal_features,
    confidence,
    confidence_features,
    coefficients,
):
    """One step of conjugate gradients; see :func:`.reference.cg_step`."""
    rowptr, col, edge_id = index
    heads, head = shape[2], shape[3]
    alpha = load_heads(coefficients, head, lanes)
    beta = load_heads(coefficients, heads + head, lanes)
    alpha_next = load_heads(coefficients, 2 * heads + head, lanes)
    grid, starts, steps = tables
    node = first
    while node < last:
        end, inner, outer, row, image = segment(node, last, grid, lanes)
        set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                total = row_of_pixel(i, base, steps, w, v, shape, lanes)
            else:
                total = row_of_index(
                    i, rowptr, col, edge_id, w, v, shape, lanes
                )
            here = i * shape[0] + shape[1]
            old = load(v, here, lanes)
            if confidence_features > 0:
                c = _load_diagonal(
                    confidence, i, confidence_features, shape, lanes
                )
                total = fma(c, old, total)
            r = fma(neg(alpha), total, load(residual, here, lanes))
            store(residual, here, r)
            d = _load_diagonal(diagonal, i, diagonal_features, shape, lanes)
            new = fma(beta, old, div(r, d))
            store(new_v, here, new)
            store(x, here, fma(alpha_next, new, load(x, here, lanes)))
        node = end


@kernel
def cg_step_backward(
    first,
    last,
    base,
    index,
    tables,
    shape,
    lanes,
    w,
    q,
    new_q,
    v,
    u,
    grad_v,
    grad_x,
    diagonal,
    diagonal_features,
    confidence,
    confidence_features,
    coefficients,
    grad_w,
    sum_diagonal,
    sum_confidence,
    partial,
):
    """The adjoint; see :func:`.reference.cg_step_backward`."""
    rowptr, col, edge_id = index
    heads, head = shape[2], shape[3]
    alpha = load_heads(coefficients, head, lanes)
    beta = load_heads(coefficients, heads + head, lanes)
    beta_previous = load_heads(coefficients, 2 * heads + head, lanes)
    dot_alpha = zeros(w, lanes)
    dot_beta = zeros(w, lanes)
    grid, starts, steps = tables
    node = first
    while node < last:
        end, inner, outer, row, image = segment(node, last, grid, lanes)
        set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                total = _pixel_row_and_edges(
                    i,
                    base,
                    steps,
                    w,
                    q,
                    v,
                    neg(alpha),
                    grad_w,
                    shape,
                    lanes,
                )
            else:
                total = _row_and_edges(
                    i,
                    rowptr,
                    col,
                    edge_id,
                    w,
                    q,
                    v,
                    neg(alpha),
                    grad_w,
                    shape,
                    lanes,
                )
            here = i * shape[0] + shape[1]
            this_q, this_v = load(q, here, lanes), load(v, here, lanes)
            if confidence_features > 0:
                c = _load_diagonal(
                    confidence, i, confidence_features, shape, lanes
                )
                total = fma(c, this_q, total)
                change = mul(neg(alpha), mul(this_q, this_v))
                old = load(sum_confidence, here, lanes)
                store(sum_confidence, here, add(old, change))
            slope = sub(load(grad_x, here, lanes), total)
            dot_alpha = fma(slope, this_v, dot_alpha)
            new = mul(beta, load(grad_v, here, lanes))
            new = fma(alpha, slope, new)
            store(grad_v, here, new)
            previous = load(u, here, lanes)
            dot_beta = fma(new, previous, dot_beta)
            change = mul(new, sub(this_v, mul(beta_previous, previous)))
            old = load(sum_diagonal, here, lanes)
            store(sum_diagonal, here, add(old, change))
            d = _load_diagonal(diagonal, i, diagonal_features, shape, lanes)
            store(new_q, here, add(this_q, div(new, d)))
        node = end
    add_heads(partial, head, dot_alpha, lanes)
    add_heads(partial, heads + head, dot_beta, lanes)
