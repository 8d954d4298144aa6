"""CPU kernels of a step of conjugate gradients."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.cpu import simd
from pyg_unroll.ops.cpu.launch import addresses, flat, over_rows
from pyg_unroll.ops.cpu.operators import (
    add_term,
    at,
    at_edge,
    enter_line,
    laplacian,
    laplacian_row,
)
from pyg_unroll.ops.reference.cg import Adjoint, Directions, Matrix, State


def diagonals(a: Matrix) -> tuple[tuple[Any, int], ...]:
    """Preconditioner and confidence, each with its number of features, zero
    where there is none.
    """
    none = a.diagonal[:0, :0] if a.confidence is None else a.confidence
    return tuple((*flat(v), v.size(1)) for v in (a.diagonal, none))


@simd.inlined
def load_diagonal(diagonal, node, place, lanes):
    """Numbers of one of them, which features may share, at a node."""
    array, features = diagonal
    if features == 1:
        return simd.load_heads(array, at_edge(node, place), lanes)
    return simd.load(array, at(node, place), lanes)


def mean_difference(a: Matrix, x: Tensor) -> Tensor:
    """See :func:`.reference.cg.mean_difference`."""
    if a.degree is None:
        return x
    return laplacian(a.topology, a.weight, x, a.degree)


def _rounds(a: Matrix, count: int) -> list[range]:
    """Steps that one launch can do: a mean of differences is another pass."""
    if a.degree is None:
        return [range(count)]
    return [range(k, k + 1) for k in range(count)]


@simd.kernel
def _cg_steps(
    first, last, base, graph, place, lanes, w, signals, rest, d, scalars, steps
):
    x, residual, start, means = signals
    diagonal, confidence = d
    heads, head = place[2], place[3]
    for k in range(steps[0], steps[1]):
        alpha = simd.load_heads(scalars, 3 * k * heads + head, lanes)
        beta = simd.load_heads(scalars, (3 * k + 1) * heads + head, lanes)
        alpha_next = simd.load_heads(scalars, (3 * k + 2) * heads + head, lanes)
        new_v = simd.another(start, rest[k % rest.size])
        v = start
        if k > 0:
            v = simd.another(start, rest[(k - 1) % rest.size])
        mean = v
        if means.size > 0:
            mean = means
        end = inner = outer = first
        for i in range(first, last):
            if i == end:
                end, inner, outer = enter_line(i, last, base, graph, lanes)
            is_inner = inner <= i < outer
            total = laplacian_row(
                i, is_inner, base, graph, place, lanes, w, mean
            )
            here = at(i, place)
            old = simd.load(v, here, lanes)
            if confidence[1] > 0:
                c = load_diagonal(confidence, i, place, lanes)
                total = simd.fma(c, old, total)
            r = simd.fma(-alpha, total, simd.load(residual, here, lanes))
            simd.store(residual, here, r)
            d_i = load_diagonal(diagonal, i, place, lanes)
            new = simd.fma(beta, old, r / d_i)
            simd.store(new_v, here, new)
            estimate = simd.fma(alpha_next, new, simd.load(x, here, lanes))
            simd.store(x, here, estimate)


def cg_steps(
    a: Matrix, state: State, directions: Directions, scalars: Tensor
) -> None:
    """See :func:`.reference.cg.cg_steps`."""
    start, rest = directions
    for steps in _rounds(a, scalars.size(0)):
        means = start[:0]
        if a.degree is not None:
            means = mean_difference(a, directions.of(steps[0] - 1))
        signals = tuple(flat(*state, start, means))
        arrays = (*flat(a.weight), signals, addresses(rest), diagonals(a))
        over_rows(
            _cg_steps,
            a.topology,
            *start.shape[1:],
            *arrays,
            *flat(scalars),
            steps=steps,
        )


@simd.inlined
def _add_to_edge(node, other, edge, place, lanes, dq, v, second, scale, out):
    """Adds the products of differences to an edge that starts here."""
    here, there = at(node, place), at(other, place)
    change = dq * (simd.load(v, here, lanes) - simd.load(v, there, lanes))
    q, mean_v = second
    if mean_v.size > 0:
        dq = simd.load(q, here, lanes) - simd.load(q, there, lanes)
        dv = simd.load(mean_v, here, lanes) - simd.load(mean_v, there, lanes)
        change = simd.fma(dq, dv, change)
    simd.add_heads(out, at_edge(edge, place), scale * change, lanes)


@simd.inlined
def _row_and_edges(
    node, is_inner, base, graph, place, lanes, w, mean_q, v, second, scale, out
):
    """As `laplacian_row`; changes the edges that start here."""
    rowptr, col, edge_id, _, _, steps = graph
    total = simd.zeros(mean_q, lanes)
    here = simd.load(mean_q, at(node, place), lanes)
    if is_inner:
        size = lanes.window
        for k in range(2 * size):
            j, edge = node + steps[k], base[k] + node * size
            total, dq = add_term(total, here, j, edge, place, lanes, w, mean_q)
            if k >= size:
                _add_to_edge(
                    node, j, edge, place, lanes, dq, v, second, scale, out
                )
    else:
        for entry in range(rowptr[node], rowptr[node + 1]):
            j, edge = np.int64(col[entry]), np.int64(edge_id[entry])
            total, dq = add_term(total, here, j, edge, place, lanes, w, mean_q)
            if j > node:
                _add_to_edge(
                    node, j, edge, place, lanes, dq, v, second, scale, out
                )
    return total


@simd.kernel
def _cg_steps_backward(
    first,
    last,
    base,
    graph,
    place,
    lanes,
    w,
    signals,
    rest,
    d,
    scalars,
    sums,
    steps,
    dots,
):
    qs, start, grad_x, grad_v, means = signals
    count = rest.size
    diagonal, confidence = d
    grad_w, sum_diagonal, sum_confidence, sum_degree = sums
    heads, head = place[2], place[3]
    for step in range(steps[0], steps[1]):
        k = count - 1 - step  # at last -1, the first residual
        scalar = 3 * (k if k >= 0 else count) * heads + head
        alpha = simd.load_heads(scalars, scalar, lanes)
        beta = simd.load_heads(scalars, scalar + heads, lanes)
        beta_previous = simd.load_heads(scalars, scalar + 2 * heads, lanes)
        v = u = start
        if k >= 0:
            v = simd.another(start, rest[k])
            u = simd.another(start, rest[max(k - 1, 0)])
        q, new_q = qs
        if step % 2 == 1:
            new_q, q = qs
        mean_q = q
        if means[0].size > 0:
            mean_q = means[0]
        second = q, means[1]
        dot_alpha = simd.zeros(w, lanes)
        dot_beta = simd.zeros(w, lanes)
        end = inner = outer = first
        for i in range(first, last):
            if i == end:
                end, inner, outer = enter_line(i, last, base, graph, lanes)
            row = i, inner <= i < outer, base, graph, place, lanes
            total = _row_and_edges(*row, w, mean_q, v, second, -alpha, grad_w)
            here = at(i, place)
            if sum_degree.size > 0:
                change = alpha * simd.load(mean_q, here, lanes)
                change = change * simd.load(means[1], here, lanes)
                old = simd.load(sum_degree, here, lanes)
                simd.store(sum_degree, here, old + change)
            this_q = simd.load(q, here, lanes)
            this_v = simd.load(v, here, lanes)
            if confidence[1] > 0:
                c = load_diagonal(confidence, i, place, lanes)
                total = simd.fma(c, this_q, total)
                change = -alpha * (this_q * this_v)
                old = simd.load(sum_confidence, here, lanes)
                simd.store(sum_confidence, here, old + change)
            slope = simd.load(grad_x, here, lanes) - total
            dot_alpha = simd.fma(slope, this_v, dot_alpha)
            new = beta * simd.load(grad_v, here, lanes)
            new = simd.fma(alpha, slope, new)
            simd.store(grad_v, here, new)
            if k < 0:
                continue
            previous = simd.load(u, here, lanes)
            dot_beta = simd.fma(new, previous, dot_beta)
            change = new * (this_v - beta_previous * previous)
            old = simd.load(sum_diagonal, here, lanes)
            simd.store(sum_diagonal, here, old + change)
            d_i = load_diagonal(diagonal, i, place, lanes)
            simd.store(new_q, here, this_q + new / d_i)
        simd.add_heads(dots, 2 * step * heads + head, dot_alpha, lanes)
        simd.add_heads(dots, (2 * step + 1) * heads + head, dot_beta, lanes)


def cg_steps_backward(
    a: Matrix, adjoint: Adjoint, directions: Directions, scalars: Tensor
) -> Tensor:
    """See :func:`.reference.cg.cg_steps_backward`."""
    start, rest = directions
    count, nothing = len(rest), start[:0]
    qs = adjoint.residual, torch.empty_like(adjoint.residual)
    optional = (
        nothing if total is None else total
        for total in (adjoint.confidence, adjoint.degree)
    )
    sums = tuple(flat(adjoint.weight, adjoint.diagonal, *optional))
    dots: Any = 0
    for steps in _rounds(a, count + 1):
        means = [nothing, nothing]
        if a.degree is not None:
            k = steps[0]
            pair = qs[k % 2], directions.of(count - 1 - k)
            means = [mean_difference(a, v) for v in pair]
        signals = flat(start, adjoint.x, adjoint.direction)
        arrays = tuple(flat(*qs)), *signals, tuple(flat(*means))
        dots = dots + over_rows(
            _cg_steps_backward,
            a.topology,
            *start.shape[1:],
            *flat(a.weight),
            arrays,
            addresses(rest),
            diagonals(a),
            *flat(scalars),
            sums,
            steps=steps,
            sums=2 * (count + 1),
        )
    adjoint.residual = qs[count % 2]
    return dots[:-2].view(count, 2, -1).flip(0)
