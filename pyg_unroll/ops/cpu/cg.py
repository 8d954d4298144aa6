# mypy: allow-untyped-defs, allow-incomplete-defs
"""CPU kernels of a step of conjugate gradients."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.cpu import simd
from pyg_unroll.ops.cpu.launch import flat, over_rows
from pyg_unroll.ops.cpu.operators import (
    add_term,
    at,
    at_edge,
    enter_line,
    laplacian,
    laplacian_row,
)
from pyg_unroll.ops.reference.cg import Adjoint, Matrix


def _diagonals(a: Matrix) -> tuple[Any, int, Any, int]:
    """Preconditioner and confidence, each with its number of features, zero
    where there is none.
    """
    (diagonal,) = flat(a.diagonal)
    if a.confidence is None:
        return diagonal, a.diagonal.size(1), diagonal[:0], 0
    (confidence,) = flat(a.confidence)
    sizes = a.diagonal.size(1), a.confidence.size(1)
    return diagonal, sizes[0], confidence, sizes[1]


@simd.inlined
def _load_diagonal(array, node, features, place, lanes):
    if features == 1:
        return simd.load_heads(array, at_edge(node, place), lanes)
    return simd.load(array, at(node, place), lanes)


def mean_difference(a: Matrix, x: Tensor) -> Tensor:
    """See :func:`.reference.cg.mean_difference`."""
    if a.degree is None:
        return x
    return laplacian(a.topology, a.weight, x, a.degree)


@simd.kernel
def _cg_step(first, last, base, graph, place, lanes, w, signals, d, scalars):
    mean, v, new_v, x, residual = signals
    diagonal, diagonal_features, confidence, confidence_features = d
    heads, head = place[2], place[3]
    alpha = simd.load_heads(scalars, head, lanes)
    beta = simd.load_heads(scalars, heads + head, lanes)
    alpha_next = simd.load_heads(scalars, 2 * heads + head, lanes)
    end = inner = outer = first
    for i in range(first, last):
        if i == end:
            end, inner, outer = enter_line(i, last, base, graph, lanes)
        is_inner = inner <= i < outer
        total = laplacian_row(i, is_inner, base, graph, place, lanes, w, mean)
        here = at(i, place)
        old = simd.load(v, here, lanes)
        if confidence_features > 0:
            c = _load_diagonal(confidence, i, confidence_features, place, lanes)
            total = simd.fma(c, old, total)
        r = simd.fma(-alpha, total, simd.load(residual, here, lanes))
        simd.store(residual, here, r)
        d_i = _load_diagonal(diagonal, i, diagonal_features, place, lanes)
        new = simd.fma(beta, old, r / d_i)
        simd.store(new_v, here, new)
        estimate = simd.fma(alpha_next, new, simd.load(x, here, lanes))
        simd.store(x, here, estimate)


def cg_step(
    a: Matrix, x: Tensor, residual: Tensor, v: Tensor, scalars: Tensor
) -> Tensor:
    """See :func:`.reference.cg.cg_step`."""
    out = torch.empty_like(v)
    signals = tuple(flat(mean_difference(a, v), v, out, x, residual))
    arrays = (*flat(a.weight), signals, _diagonals(a), *flat(scalars))
    over_rows(_cg_step, a.topology, *x.shape[1:], *arrays)
    return out


@simd.inlined
def _add_to_edge(node, other, edge, place, lanes, dq, v, second, scale, out):
    """Adds the products of differences to an edge that starts here."""
    here, there = at(node, place), at(other, place)
    change = dq * (simd.load(v, here, lanes) - simd.load(v, there, lanes))
    q, mean_v = second
    if q.size > 0:
        dq = simd.load(q, here, lanes) - simd.load(q, there, lanes)
        dv = simd.load(mean_v, here, lanes) - simd.load(mean_v, there, lanes)
        change = simd.fma(dq, dv, change)
    simd.add_heads(out, at_edge(edge, place), scale * change, lanes)


@simd.inlined
def _row_and_edges(
    node, is_inner, base, graph, place, lanes, w, q, v, second, scale, out
):
    """As `laplacian_row`; changes the edges that start here."""
    rowptr, col, edge_id, _, _, steps = graph
    total = simd.zeros(q, lanes)
    here = simd.load(q, at(node, place), lanes)
    if is_inner:
        size = simd.window_size(lanes)
        for k in range(2 * size):
            j, edge = node + steps[k], base[k] + node * size
            total, dq = add_term(total, here, j, edge, place, lanes, w, q)
            if k >= size:
                _add_to_edge(
                    node, j, edge, place, lanes, dq, v, second, scale, out
                )
    else:
        for entry in range(rowptr[node], rowptr[node + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            total, dq = add_term(total, here, j, edge, place, lanes, w, q)
            if j > node:
                _add_to_edge(
                    node, j, edge, place, lanes, dq, v, second, scale, out
                )
    return total


@simd.kernel
def _cg_step_backward(
    first, last, base, graph, place, lanes, w, signals, d, scalars, sums, dots
):
    mean_q, q, new_q, v, u, grad_x, grad_v, second = signals
    diagonal, diagonal_features, confidence, confidence_features = d
    grad_w, sum_diagonal, sum_confidence, sum_degree = sums
    heads, head = place[2], place[3]
    alpha = simd.load_heads(scalars, head, lanes)
    beta = simd.load_heads(scalars, heads + head, lanes)
    beta_previous = simd.load_heads(scalars, 2 * heads + head, lanes)
    dot_alpha = simd.zeros(w, lanes)
    dot_beta = simd.zeros(w, lanes)
    end = inner = outer = first
    for i in range(first, last):
        if i == end:
            end, inner, outer = enter_line(i, last, base, graph, lanes)
        is_inner = inner <= i < outer
        row = i, is_inner, base, graph, place, lanes
        total = _row_and_edges(*row, w, mean_q, v, second, -alpha, grad_w)
        here = at(i, place)
        if sum_degree.size > 0:
            change = alpha * simd.load(mean_q, here, lanes)
            change = change * simd.load(second[1], here, lanes)
            old = simd.load(sum_degree, here, lanes)
            simd.store(sum_degree, here, old + change)
        this_q, this_v = simd.load(q, here, lanes), simd.load(v, here, lanes)
        if confidence_features > 0:
            c = _load_diagonal(confidence, i, confidence_features, place, lanes)
            total = simd.fma(c, this_q, total)
            change = -alpha * (this_q * this_v)
            old = simd.load(sum_confidence, here, lanes)
            simd.store(sum_confidence, here, old + change)
        slope = simd.load(grad_x, here, lanes) - total
        dot_alpha = simd.fma(slope, this_v, dot_alpha)
        new = beta * simd.load(grad_v, here, lanes)
        new = simd.fma(alpha, slope, new)
        simd.store(grad_v, here, new)
        previous = simd.load(u, here, lanes)
        dot_beta = simd.fma(new, previous, dot_beta)
        change = new * (this_v - beta_previous * previous)
        old = simd.load(sum_diagonal, here, lanes)
        simd.store(sum_diagonal, here, old + change)
        d_i = _load_diagonal(diagonal, i, diagonal_features, place, lanes)
        simd.store(new_q, here, this_q + new / d_i)
    simd.add_heads(dots, head, dot_alpha, lanes)
    simd.add_heads(dots, heads + head, dot_beta, lanes)


def cg_step_backward(
    a: Matrix, adjoint: Adjoint, v: Tensor, u: Tensor, scalars: Tensor
) -> Tensor:
    """See :func:`.reference.cg.cg_step_backward`."""
    q, out = adjoint.residual, torch.empty_like(adjoint.residual)
    nothing = q[:0]
    mean_q, second = q, (nothing, nothing)
    if a.degree is not None:
        mean_q, second = mean_difference(a, q), (q, mean_difference(a, v))
    signals: list[Any] = flat(
        mean_q, q, out, v, u, adjoint.x, adjoint.direction
    )
    signals.append(tuple(flat(*second)))
    optional = (
        nothing if total is None else total
        for total in (adjoint.confidence, adjoint.degree)
    )
    sums = flat(adjoint.weight, adjoint.diagonal, *optional)
    adjoint.residual = out
    return over_rows(
        _cg_step_backward,
        a.topology,
        *q.shape[1:],
        *flat(a.weight),
        tuple(signals),
        _diagonals(a),
        *flat(scalars),
        tuple(sums),
        sums=2,
    )
