"""Kernels of the CPU backend, compiled by numba at their first call.

Arrays are flat. A node's numbers start at :obj:`node * stride + offset`, and
a kernel works on the block of lanes there; :mod:`.cpu` calls it for each block
of features and heads. A kernel does the rows from :obj:`first` to
:obj:`last`, releases the interpreter's lock and allocates nothing of size.

On a pixel grid, away from the borders, neighbours and edges are found by
arithmetic instead of read from an index. Either way a row is summed in the
order of its columns, hence the results are the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pyg_unroll.ops.simd import (
    add,
    add_heads,
    div,
    fma,
    load,
    load_heads,
    maximum,
    minimum,
    mul,
    neg,
    put_heads,
    store,
    sub,
    window_size,
    zero_where_equal,
    zeros,
)


def _compile(function: Any, **options: Any) -> Any:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write the cache
        return numba.njit(**options)(function)


def _kernel(function: Any) -> Any:
    return _compile(function, nogil=True, _nrt=False)


def _inlined(function: Any) -> Any:
    return numba.njit(function, forceinline=True, _nrt=False)


@_inlined
def _segment(node, last, grid, lanes):
    """Nodes of one image row: (end, inner start, inner end, row, image)."""
    if window_size(lanes) == 0:
        return last, last, last, 0, 0
    height, width, margin = grid[0], grid[1], grid[2]
    line = node // width
    image, row = line // height, line % height
    start = line * width
    end = min(last, start + width)
    if row < grid[3] or row >= height - grid[3]:
        return end, end, end, row, image
    inner = min(max(node, start + margin), end)
    return end, inner, max(inner, min(end, start + width - margin)), row, image


@_inlined
def _row(node, rowptr, col, edge_id, w, x, shape, lanes):
    """The row of the Laplacian at a node, by the index."""
    stride, offset, heads, head = shape
    total = zeros(x, lanes)
    here = load(x, node * stride + offset, lanes)
    for entry in range(rowptr[node], rowptr[node + 1]):
        other = load(x, np.int64(col[entry]) * stride + offset, lanes)
        weight = load_heads(w, np.int64(edge_id[entry]) * heads + head, lanes)
        total = fma(weight, sub(here, other), total)
    return total


@_inlined
def _pixel_row(node, base, steps, w, x, shape, lanes):
    """The row of the Laplacian at an inner pixel, by arithmetic."""
    stride, offset, heads, head = shape
    size = window_size(lanes)
    total = zeros(x, lanes)
    here = load(x, node * stride + offset, lanes)
    for k in range(size):
        edge = base[k] + node * size
        other = load(x, (node - steps[k]) * stride + offset, lanes)
        weight = load_heads(w, edge * heads + head, lanes)
        total = fma(weight, sub(here, other), total)
    for k in range(size - 1, -1, -1):
        edge = base[size] + node * size + size - 1 - k
        other = load(x, (node + steps[k]) * stride + offset, lanes)
        weight = load_heads(w, edge * heads + head, lanes)
        total = fma(weight, sub(here, other), total)
    return total


@_inlined
def _set_base(base, grid, starts, steps, row, image, needed, lanes):
    """First edge of each offset, so that edge = base + node * window."""
    size = window_size(lanes)
    if not needed:
        return
    first_node = image * grid[0] * grid[1]
    first_edge = image * grid[4]
    for k in range(size):
        # Backwards, from the pixel `steps[k]` before, in row `row - rows[k]`.
        source = row - grid[5 + k]
        base[k] = (
            first_edge
            + starts[source]
            - (first_node + steps[k]) * size
            + size
            - 1
            - k
        )
    base[size] = first_edge + starts[row] - first_node * size


@_inlined
def _row_and_edges(
    node, rowptr, col, edge_id, w, x, y, scale, out, shape, lanes
):
    """As `_row`; adds scale * <dx, dy> to each edge that starts here."""
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


@_inlined
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


@_inlined
def _load_diagonal(array, node, features, shape, lanes):
    """A diagonal's block: per node and head, or per feature, too."""
    stride, offset, heads, head = shape
    if features == 1:
        return load_heads(array, node * heads + head, lanes)
    return load(array, node * stride + offset, lanes)


@_kernel
def laplacian(first, last, base, index, tables, shape, lanes, w, x, out):
    """The product with the graph Laplacian."""
    rowptr, col, edge_id = index
    grid, starts, steps = tables
    node = first
    while node < last:
        end, inner, outer, row, image = _segment(node, last, grid, lanes)
        _set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                total = _pixel_row(i, base, steps, w, x, shape, lanes)
            else:
                total = _row(i, rowptr, col, edge_id, w, x, shape, lanes)
            store(out, i * shape[0] + shape[1], total)
        node = end


@_kernel
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
        end, inner, outer, row, image = _segment(node, last, grid, lanes)
        _set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                total = _pixel_row(i, base, steps, w, v, shape, lanes)
            else:
                total = _row(i, rowptr, col, edge_id, w, v, shape, lanes)
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


@_kernel
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
        end, inner, outer, row, image = _segment(node, last, grid, lanes)
        _set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
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


@_inlined
def _product(node, other, edge, a, b, same, is_first, out, shape, lanes):
    """Product of differences along one edge."""
    stride, offset, heads, head = shape
    here, there = node * stride + offset, other * stride + offset
    da = sub(load(a, here, lanes), load(a, there, lanes))
    db = da
    if not same:
        db = sub(load(b, here, lanes), load(b, there, lanes))
    put_heads(out, edge * heads + head, mul(da, db), is_first, lanes)


@_kernel
def edge_dot(first, last, base, index, tables, shape, lanes, a, b, same, out):
    """Products of differences of the edges that start at each row."""
    rowptr, col, edge_id = index
    is_first = shape[1] == shape[3]  # block of features: the others add to it
    grid, starts, steps = tables
    size = window_size(lanes)
    node = first
    while node < last:
        end, inner, outer, row, image = _segment(node, last, grid, lanes)
        _set_base(base, grid, starts, steps, row, image, inner < outer, lanes)
        for i in range(node, end):
            if inner <= i and i < outer:
                edge = base[size] + i * size
                for k in range(size):
                    j = i + steps[size - 1 - k]
                    _product(
                        i, j, edge + k, a, b, same, is_first, out, shape, lanes
                    )
                continue
            for entry in range(rowptr[i], rowptr[i + 1]):
                j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
                if j > i:
                    _product(
                        i, j, edge, a, b, same, is_first, out, shape, lanes
                    )
        node = end


@_kernel
def to_edges(first, last, base, src, dst, sign, shape, lanes, x, out):
    """Difference (sign -1) or sum (sign 1) of each edge's endpoints."""
    stride, offset = shape[0], shape[1]
    for edge in range(first, last):
        i = load(x, np.int64(src[edge]) * stride + offset, lanes)
        j = load(x, np.int64(dst[edge]) * stride + offset, lanes)
        both = add(i, j) if sign > 0 else sub(i, j)
        store(out, edge * stride + offset, both)


@_kernel
def to_nodes(first, last, base, index, sign, shape, lanes, z, out):
    """Sums the edges at each node; sign -1 subtracts where they end."""
    rowptr, col, edge_id = index
    stride, offset = shape[0], shape[1]
    for i in range(first, last):
        total = zeros(z, lanes)
        for entry in range(rowptr[i], rowptr[i + 1]):
            block = load(z, np.int64(edge_id[entry]) * stride + offset, lanes)
            if sign < 0 and col[entry] < i:
                total = sub(total, block)
            else:
                total = add(total, block)
        store(out, i * stride + offset, total)


@_inlined
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


@_kernel
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


@_kernel
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
