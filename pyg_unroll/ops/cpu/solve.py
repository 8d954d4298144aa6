"""CPU kernels of conjugate gradients to a tolerance: three passes a step."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.cpu import simd
from pyg_unroll.ops.cpu.cg import diagonals, load_diagonal, mean_difference
from pyg_unroll.ops.cpu.launch import (
    BLOCK,
    CHUNK,
    empty,
    flat,
    launch,
    over_rows,
    parts_of,
    walks,
)
from pyg_unroll.ops.cpu.operators import (
    add_term,
    at,
    enter_line,
    laplacian_kernel,
    laplacian_row,
)
from pyg_unroll.ops.reference import solve as reference
from pyg_unroll.ops.reference.cg import Matrix


@simd.inlined
def _row(i, base, graph, place, lanes, value, x):
    """As `laplacian_row`, of the values of the entries; two sums, so that one
    need not wait for the other.
    """
    col = graph[1]
    k, last = np.int64(graph[0][i]), np.int64(graph[0][i + 1])
    even, odd = simd.zeros(x, lanes), simd.zeros(x, lanes)
    here = simd.load(x, at(i, place), lanes)
    if (last - k) % 2 == 1:
        j = np.int64(col[k])
        even, _ = add_term(even, here, j, k, place, lanes, value, x)
        k += 1
    while k < last:
        j = np.int64(col[k])
        even, _ = add_term(even, here, j, k, place, lanes, value, x)
        j = np.int64(col[k + 1])
        odd, _ = add_term(odd, here, j, k + 1, place, lanes, value, x)
        k += 2
    return even + odd


@simd.kernel
def _product(first, last, base, graph, place, lanes, w, signals, d, sums):
    """The weights are those of edges on a grid, of entries elsewhere."""
    mean, v, image = signals
    dot = simd.zeros(v, lanes)
    end = inner = outer = first
    for i in range(first, last):
        if i == end:
            end, inner, outer = enter_line(i, last, base, graph, lanes)
        if lanes.window > 0:
            is_inner = inner <= i < outer
            row = i, is_inner, base, graph, place, lanes
            total = laplacian_row(*row, w, mean)
        else:
            total = _row(i, base, graph, place, lanes, w, mean)
        here = at(i, place)
        this = simd.load(v, here, lanes)
        if d[1][1] > 0:
            c = load_diagonal(d[1], i, place, lanes)
            total = simd.fma(c, this, total)
        simd.store(image, here, total)
        dot = simd.fma(this, total, dot)
    simd.store(sums, place[1], dot)


def _product_by(weight: Tensor, a: Matrix, v: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`.reference.solve.Steps`."""
    image = empty(v.shape, v.dtype)
    signals = tuple(flat(mean_difference(a, v), v, image))
    arrays = *flat(weight), signals, diagonals(a)
    features = v.size(1)
    rows = a.topology, *v.shape[1:]
    dot = over_rows(_product, *rows, *arrays, sums=features)
    return image, dot.unsqueeze(0)


@simd.kernel
def _advance(first, last, base, graph, place, lanes, step, signals, d, sums):
    x, residual, v, image = signals
    s = simd.load(step, place[1], lanes)
    norm = simd.zeros(x, lanes)
    for i in range(first, last):
        here = at(i, place)
        change = simd.load(v, here, lanes)
        simd.store(x, here, simd.fma(s, change, simd.load(x, here, lanes)))
        change = simd.load(image, here, lanes)
        r = simd.fma(-s, change, simd.load(residual, here, lanes))
        simd.store(residual, here, r)
        d_i = load_diagonal(d[0], i, place, lanes)
        norm = simd.fma(r, r / d_i, norm)
    simd.store(sums, place[1], norm)


def advance(a: Matrix, *operands: Tensor) -> Tensor:
    """See :class:`.reference.solve.Steps`."""
    *signals, step = operands
    arrays = *flat(step), tuple(flat(*signals)), diagonals(a)
    features, heads = step.shape[1:]
    rows = a.topology, features, heads
    return over_rows(_advance, *rows, *arrays, sums=features).unsqueeze(0)


@simd.kernel
def _turn(first, last, base, graph, place, lanes, momentum, signals, d):
    v, residual = signals
    m = simd.load(momentum, place[1], lanes)
    for i in range(first, last):
        here = at(i, place)
        d_i = load_diagonal(d[0], i, place, lanes)
        z = simd.load(residual, here, lanes) / d_i
        simd.store(v, here, simd.fma(m, simd.load(v, here, lanes), z))


def turn(a: Matrix, v: Tensor, residual: Tensor, momentum: Tensor) -> None:
    """See :class:`.reference.solve.Steps`."""
    arrays = *flat(momentum), tuple(flat(v, residual)), diagonals(a)
    over_rows(_turn, a.topology, *v.shape[1:], *arrays)


@simd.kernel
def _solve(
    rows, base, graph, place, lanes, weights, signals, d, state, columns, limits
):
    """All steps of a block of columns; returns their number."""
    x, residual, v, image, mean, degree, sums = signals
    step, momentum, energy, reference = state
    tol, max_steps = limits
    work = 0, rows, base, graph, place, lanes
    num_steps = 0
    while num_steps < max_steps:
        is_done = True
        for c in range(columns[0], columns[1]):
            error = math.sqrt(energy[c]) / reference[c]
            is_done = is_done and not error > tol
        if is_done:
            break
        _turn(*work, momentum, (v, residual), d)
        if degree.size > 0:
            laplacian_kernel(*work, weights[1], v, degree, mean)
        _product(*work, weights[0], (mean, v, image), d, sums)
        for c in range(columns[0], columns[1]):
            step[c] = 0
            error = math.sqrt(energy[c]) / reference[c]
            if sums[c] > 0 and error > tol:
                step[c] = energy[c] / sums[c]
        _advance(*work, step, (x, residual, v, image), d, sums)
        for c in range(columns[0], columns[1]):
            momentum[c] = sums[c]
            if energy[c] > 0:
                momentum[c] /= energy[c]
            if step[c] != 0:
                energy[c] = sums[c]
        num_steps += 1
    return num_steps


def _solve_by_blocks(
    a: Matrix, weight: Tensor, residual: Tensor, tol: float, max_steps: int
) -> tuple[Tensor, float, int]:
    """See :func:`.reference.solve.conjugate_gradient`: each block of columns by
    one call, which is what small problems take their time with.
    """
    x, v = torch.zeros_like(residual), torch.zeros_like(residual)
    residual, image = residual.clone(), torch.empty_like(residual)
    mean = v if a.degree is None else torch.empty_like(v)
    degree = residual[:0] if a.degree is None else a.degree
    nothing = residual.new_zeros((1, *residual.shape[1:]))
    energy = advance(a, x, residual, v, v, nothing)
    tiny = torch.finfo(energy.dtype).tiny
    first = energy.sqrt().clamp(min=tiny**0.5)
    weights = tuple(flat(weight, a.weight))
    signals = flat(x, residual, v, image, mean, degree, nothing)
    state = flat(nothing.clone(), nothing.clone(), energy, first)
    rest = weights, tuple(signals), diagonals(a), tuple(state)
    graph, places = parts_of(a.topology, *residual.shape[1:])
    counts = [0] * len(places)

    def work(begin: int, end: int, scratch: Any) -> None:
        for k in range(begin, end):
            lanes, place = places[k]
            columns = place[1], place[1] + lanes.size
            limits = columns, (tol, max_steps)
            head = len(x), scratch, graph, place, lanes
            counts[k] = _solve(*head, *rest, *limits)

    launch(work, len(places), CHUNK)
    return x, float((energy.sqrt() / first).max()), max(counts)


def conjugate_gradient(
    a: Matrix,
    residual: Tensor,
    tol: float,
    max_steps: int,
    preconditioner: reference.Preconditioner | None = None,
) -> tuple[Tensor, float, int]:
    """See :func:`.reference.solve.conjugate_gradient`."""
    weight = a.weight
    if not walks(a.topology):  # entries of a row side by side
        entries, heads = a.topology.edge_id, weight.size(1)
        shape = (len(entries), heads)[: 1 + (heads > 1)]
        weight = empty(shape, weight.dtype)
        # Of one dimension it is several times faster.
        source = a.weight.view(-1, *shape[1:])
        torch.index_select(source, 0, entries, out=weight)
    width = min(residual[:1].numel(), BLOCK)
    is_small = len(residual) * width <= CHUNK
    if preconditioner is None and is_small:
        return _solve_by_blocks(a, weight, residual, tol, max_steps)
    steps = reference.Steps(partial(_product_by, weight), advance, turn)
    arguments = a, residual, tol, max_steps, preconditioner, steps
    return reference.conjugate_gradient(*arguments)
