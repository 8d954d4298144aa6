# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of :mod:`.cuda`.

A program works on a tile: a block of rows (nodes or edges) times lanes, the
numbers of a row. Lanes run over a block of features and, innermost, heads,
both padded to powers of two. Sums over a row's entries follow the CSR order,
and only the program of a row, or of an edge's smaller endpoint, writes there:
no atomics, the same result each time.

Names in capitals are known at compile time: `HEADS`, the shape of a tile
(`BLOCK`, `BF`, `BH`), the type of offsets (`INDEX`) and of sums (`ACC`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _block(num_rows, BLOCK: tl.constexpr):
    """Rows of this program, and which of them exist."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return row, row < num_rows


@triton.jit
def _entries(rowptr, row, inside):
    """First entry and number of entries of each row."""
    start = tl.load(rowptr + row, mask=inside, other=0)
    end = tl.load(rowptr + row + 1, mask=inside, other=0)
    return start, (end - start).to(tl.int32)


@triton.jit
def _lanes(
    first, features, HEADS: tl.constexpr, BF: tl.constexpr, BH: tl.constexpr
):
    """Place in a row, head and existence of each lane, as one row."""
    lane = tl.arange(0, BF * BH)
    head = tl.program_id(2) * BH + lane % BH
    feature = first + lane // BH
    inside = (feature < features) & (head < HEADS)
    if HEADS == BH:
        # The same number, but the compiler sees that it is contiguous.
        place = first * HEADS + lane
    else:
        place = feature * HEADS + head
    return place[None, :], head[None, :], inside[None, :]


@triton.jit
def _index(array, row, inside, INDEX: tl.constexpr):
    """Loads indices, as a column."""
    return tl.load(array + row, mask=inside, other=0).to(INDEX)[:, None]


@triton.jit
def _load(array, place, mask, ACC: tl.constexpr):
    return tl.load(array + place, mask=mask, other=0).to(ACC)


@triton.jit
def _diagonal(
    array,
    row,
    place,
    head,
    mask,
    width,
    HEADS: tl.constexpr,
    IS_SHARED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Loads `[N, 1, H]` (shared) or `[N, F, H]`; ones off the mask."""
    if IS_SHARED:
        at = row * HEADS + head
    else:
        at = row * width + place
    return tl.load(array + at, mask=mask, other=1).to(ACC)


@triton.jit
def _scalar(array, head, HEADS: tl.constexpr, ACC: tl.constexpr):
    """Loads one number for each head; ones where there is no head."""
    return tl.load(array + head, mask=head < HEADS, other=1).to(ACC)


@triton.jit
def _sum_features(
    value, BLOCK: tl.constexpr, BF: tl.constexpr, BH: tl.constexpr
):
    return tl.sum(tl.reshape(value, (BLOCK, BF, BH)), axis=1)


@triton.jit
def _store_partial(
    partial,
    slot,
    value,
    HEADS: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
):
    """Writes the sum of a tile over rows and features to a row of `partial`."""
    total = tl.sum(tl.reshape(tl.sum(value, axis=0), (BF, BH)), axis=0)
    head = tl.program_id(2) * BH + tl.arange(0, BH)
    tl.store(partial + slot * HEADS + head, total, mask=head < HEADS)


@triton.jit
def to_edges(
    src,
    dst,
    x,
    out,
    num_edges,
    features,
    SIGNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.to_edges`."""
    edge, inside = _block(num_edges, BLOCK)
    first = tl.program_id(1) * BF
    place, _, lanes = _lanes(first, features, HEADS, BF, BH)
    width, mask = features * HEADS, inside[:, None] & lanes
    i = _index(src, edge, inside, INDEX)
    j = _index(dst, edge, inside, INDEX)
    one = _load(x, i * width + place, mask, ACC)
    other = _load(x, j * width + place, mask, ACC)
    value = one - other if SIGNED else one + other
    at = edge.to(INDEX)[:, None] * width + place
    tl.store(out + at, value, mask=mask)


@triton.jit
def to_nodes(
    rowptr,
    edge_id,
    sign,
    z,
    out,
    num_nodes,
    features,
    SIGNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.to_nodes`."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, _, lanes = _lanes(first, features, HEADS, BF, BH)
    width = features * HEADS
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        e = _index(edge_id, start + k, on, INDEX)
        value = _load(z, e * width + place, mask, ACC)
        if SIGNED:
            value *= _load(sign, start + k, on, ACC)[:, None]
        total += value
    at = row.to(INDEX)[:, None] * width + place
    tl.store(out + at, total, mask=inside[:, None] & lanes)


@triton.jit
def laplacian(
    rowptr,
    col,
    edge_id,
    weight,
    x,
    out,
    num_nodes,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.laplacian`."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, head, lanes = _lanes(first, features, HEADS, BF, BH)
    width = features * HEADS
    at = row.to(INDEX)[:, None] * width + place
    mine = _load(x, at, inside[:, None] & lanes, ACC)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = _index(col, start + k, on, INDEX)
        e = _index(edge_id, start + k, on, INDEX)
        w = _load(weight, e * HEADS + head, mask, ACC)
        other = _load(x, j * width + place, mask, ACC)
        total += tl.where(mask, w * (mine - other), 0.0)
    tl.store(out + at, total, mask=inside[:, None] & lanes)


@triton.jit
def edge_dot(
    src,
    dst,
    a,
    b,
    out,
    num_edges,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.edge_dot`."""
    edge, inside = _block(num_edges, BLOCK)
    i = _index(src, edge, inside, INDEX)
    j = _index(dst, edge, inside, INDEX)
    width = features * HEADS
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for first in range(0, features, BF):
        place, _, lanes = _lanes(first, features, HEADS, BF, BH)
        mask = inside[:, None] & lanes
        at, other = i * width + place, j * width + place
        da = _load(a, at, mask, ACC) - _load(a, other, mask, ACC)
        db = _load(b, at, mask, ACC) - _load(b, other, mask, ACC)
        total += da * db
    head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    tl.store(
        out + edge.to(INDEX)[:, None] * HEADS + head,
        _sum_features(total, BLOCK, BF, BH),
        mask=inside[:, None] & (head < HEADS),
    )


@triton.jit
def cg_step(
    rowptr,
    col,
    edge_id,
    weight,
    diagonal,
    confidence,
    x,
    residual,
    direction,
    out,
    alpha,
    beta,
    alpha_next,
    num_nodes,
    features,
    SHARED_DIAGONAL: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    SHARED_CONFIDENCE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.cg_step`."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, head, lanes = _lanes(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    v = _load(direction, at, here, ACC)
    image = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = _index(col, start + k, on, INDEX)
        e = _index(edge_id, start + k, on, INDEX)
        w = _load(weight, e * HEADS + head, mask, ACC)
        other = _load(direction, j * width + place, mask, ACC)
        image += tl.where(mask, w * (v - other), 0.0)
    if HAS_CONFIDENCE:
        image += v * _diagonal(
            confidence,
            node,
            place,
            head,
            here,
            width,
            HEADS,
            SHARED_CONFIDENCE,
            ACC,
        )
    d = _diagonal(
        diagonal, node, place, head, here, width, HEADS, SHARED_DIAGONAL, ACC
    )
    r = _load(residual, at, here, ACC)
    r -= _scalar(alpha, head, HEADS, ACC) * image
    new = r / d + _scalar(beta, head, HEADS, ACC) * v
    estimate = _load(x, at, here, ACC)
    estimate += _scalar(alpha_next, head, HEADS, ACC) * new
    tl.store(residual + at, r, mask=here)
    tl.store(out + at, new, mask=here)
    tl.store(x + at, estimate, mask=here)


@triton.jit
def cg_step_backward(
    rowptr,
    col,
    edge_id,
    weight,
    diagonal,
    confidence,
    q,
    direction,
    previous,
    grad_direction,
    grad_x,
    alpha,
    beta,
    beta_previous,
    grad_weight,
    sum_diagonal,
    sum_confidence,
    out,
    partial,
    num_nodes,
    features,
    first,
    SHARED_DIAGONAL: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    SHARED_CONFIDENCE: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    SUM_CONFIDENCE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.reference.cg_step_backward`; one block of features."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    place, head, lanes = _lanes(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    a = _scalar(alpha, head, HEADS, ACC)
    one_head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    has_head = one_head < HEADS
    step = _scalar(alpha, one_head, HEADS, ACC)
    mine = _load(q, at, here, ACC)
    v = _load(direction, at, here, ACC)
    image = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = _index(col, start + k, on, INDEX)
        e = _index(edge_id, start + k, on, INDEX)
        w = _load(weight, e * HEADS + head, mask, ACC)
        dq = mine - _load(q, j * width + place, mask, ACC)
        image += tl.where(mask, w * dq, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on[:, None] & (j > node)
        owned = is_src & lanes
        dv = v - _load(direction, j * width + place, owned, ACC)
        dot = tl.where(owned, dq * dv, 0.0)
        dot = _sum_features(dot, BLOCK, BF, BH)
        edge, has_edge = e * HEADS + one_head, is_src & has_head
        value = _load(grad_weight, edge, has_edge, ACC) - step * dot
        tl.store(grad_weight + edge, value, mask=has_edge)
    if HAS_CONFIDENCE:
        image += mine * _diagonal(
            confidence,
            node,
            place,
            head,
            here,
            width,
            HEADS,
            SHARED_CONFIDENCE,
            ACC,
        )
    if SUM_CONFIDENCE:
        value = _load(sum_confidence, at, here, ACC) - a * mine * v
        tl.store(sum_confidence + at, value, mask=here)
    slope = _load(grad_x, at, here, ACC) - image
    g = _load(grad_direction, at, here, ACC)
    g = _scalar(beta, head, HEADS, ACC) * g + a * slope
    tl.store(grad_direction + at, g, mask=here)
    d = _diagonal(
        diagonal, node, place, head, here, width, HEADS, SHARED_DIAGONAL, ACC
    )
    tl.store(out + at, mine + g / d, mask=here)
    slot = tl.program_id(0) * 2
    # Lanes off the mask hold zeros: all that they load is zero.
    _store_partial(partial, slot, slope * v, HEADS, BF, BH)
    change = v
    if HAS_PREVIOUS:
        u = _load(previous, at, here, ACC)
        change -= _scalar(beta_previous, head, HEADS, ACC) * u
        _store_partial(partial, slot + 1, g * u, HEADS, BF, BH)
    value = _load(sum_diagonal, at, here, ACC) + g * change
    tl.store(sum_diagonal + at, value, mask=here)


@triton.jit
def _shrink(difference, w, dual, rho_previous, rho, relaxation):
    """The steps of ADMM on an edge: flow, p, s, shrunk and target."""
    flow = w * difference
    p = dual + rho_previous * flow
    s = flow + p / rho
    limit = 1.0 / rho
    shrunk = s - tl.minimum(tl.maximum(s, -limit), limit)
    target = relaxation * shrunk + (1.0 - relaxation) * flow
    return flow, p, s, shrunk, target


@triton.jit
def admm_step(
    rowptr,
    col,
    edge_id,
    weight,
    x,
    dual,
    rho_previous,
    rho,
    relaxation,
    residual,
    new_dual,
    num_nodes,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.cuda.admm_step`."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    first = tl.program_id(1) * BF
    place, head, lanes = _lanes(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    before = _scalar(rho_previous, head, HEADS, ACC)
    penalty = _scalar(rho, head, HEADS, ACC)
    relax = _scalar(relaxation, head, HEADS, ACC)
    mine = _load(x, at, here, ACC)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = _index(col, start + k, on, INDEX)
        e = _index(edge_id, start + k, on, INDEX)
        w = _load(weight, e * HEADS + head, mask, ACC)
        edge = e * width + place
        old = _load(dual, edge, mask, ACC)
        difference = mine - _load(x, j * width + place, mask, ACC)
        difference = tl.where(j > node, difference, -difference)
        _, p, _, _, target = _shrink(difference, w, old, before, penalty, relax)
        value = w * (target - p / penalty)
        value = tl.where(j > node, value, -value)
        total += tl.where(mask, value, 0.0)
        # The row of the smaller endpoint sees to the edge.
        tl.store(new_dual + edge, p - penalty * target, mask=mask & (j > node))
    tl.store(residual + at, total, mask=here)


@triton.jit
def admm_step_backward(
    rowptr,
    col,
    edge_id,
    weight,
    x,
    dual,
    rho_previous,
    rho,
    relaxation,
    grad_residual,
    grad_dual,
    grad_x,
    grad_weight,
    grad_old_dual,
    partial,
    num_nodes,
    features,
    first,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.cuda.admm_step_backward`; one block of features."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    place, head, lanes = _lanes(first, features, HEADS, BF, BH)
    width, node = features * HEADS, row.to(INDEX)[:, None]
    at, here = node * width + place, inside[:, None] & lanes
    one_head = tl.program_id(2) * BH + tl.arange(0, BH)[None, :]
    has_head = one_head < HEADS
    before = _scalar(rho_previous, head, HEADS, ACC)
    penalty = _scalar(rho, head, HEADS, ACC)
    relax = _scalar(relaxation, head, HEADS, ACC)
    square = penalty * penalty
    mine = _load(x, at, here, ACC)
    my_grad = _load(grad_residual, at, here, ACC)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    grad_before = tl.zeros((BLOCK, BF * BH), ACC)
    grad_penalty = tl.zeros((BLOCK, BF * BH), ACC)
    grad_relax = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        mask = on[:, None] & lanes
        j = _index(col, start + k, on, INDEX)
        e = _index(edge_id, start + k, on, INDEX)
        w = _load(weight, e * HEADS + head, mask, ACC)
        edge = e * width + place
        old = _load(dual, edge, mask, ACC)
        gq = _load(grad_dual, edge, mask, ACC)
        difference = mine - _load(x, j * width + place, mask, ACC)
        difference = tl.where(j > node, difference, -difference)
        r = my_grad - _load(grad_residual, j * width + place, mask, ACC)
        r = tl.where(j > node, r, -r)
        flow, p, s, shrunk, target = _shrink(
            difference, w, old, before, penalty, relax
        )
        gu = w * r
        gt = gu - penalty * gq
        limit = 1.0 / penalty
        # The slope of the soft threshold, and its sign.
        gs = tl.where(tl.abs(s) > limit, relax * gt, 0.0)
        push = tl.where(s > 0, gs, -gs)
        gp = gq + (gs - gu) / penalty
        gflow = gs + (1.0 - relax) * gt + before * gp
        value = w * gflow
        value = tl.where(j > node, value, -value)
        total += tl.where(mask, value, 0.0)
        # The row of the smaller endpoint sees to the edge.
        is_src = on[:, None] & (j > node)
        owned = is_src & lanes
        grad_before += tl.where(owned, gp * flow, 0.0)
        slope = ((gu - gs) * p + push) / square - target * gq
        grad_penalty += tl.where(owned, slope, 0.0)
        grad_relax += tl.where(owned, gt * (shrunk - flow), 0.0)
        tl.store(grad_old_dual + edge, gp, mask=owned)
        dot = (target - p / penalty) * r + gflow * difference
        dot = _sum_features(tl.where(owned, dot, 0.0), BLOCK, BF, BH)
        head_edge, has_edge = e * HEADS + one_head, is_src & has_head
        dot += _load(grad_weight, head_edge, has_edge, ACC)
        tl.store(grad_weight + head_edge, dot, mask=has_edge)
    tl.store(grad_x + at, total, mask=here)
    slot = tl.program_id(0) * 3
    _store_partial(partial, slot, grad_before, HEADS, BF, BH)
    _store_partial(partial, slot + 1, grad_penalty, HEADS, BF, BH)
    _store_partial(partial, slot + 2, grad_relax, HEADS, BF, BH)


@triton.jit
def log_degree(
    rowptr,
    edge_id,
    distance,
    out,
    num_nodes,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.cuda.log_degree`."""
    row, inside = _block(num_nodes, BLOCK)
    start, count = _entries(rowptr, row, inside)
    _, head, lanes = _lanes(0, features, HEADS, BF, BH)
    smallest = tl.full((BLOCK, BF * BH), float('inf'), ACC)
    for k in range(tl.max(count)):
        on = k < count
        e = _index(edge_id, start + k, on, INDEX)
        at, mask = e * HEADS + head, on[:, None] & lanes
        d = tl.load(distance + at, mask=mask, other=float('inf')).to(ACC)
        smallest = tl.minimum(smallest, d)
    # Infinite if all distances are, and infinity less itself is no number.
    smallest = tl.where(smallest == float('inf'), 0.0, smallest)
    total = tl.zeros((BLOCK, BF * BH), ACC)
    for k in range(tl.max(count)):
        on = k < count
        e = _index(edge_id, start + k, on, INDEX)
        at, mask = e * HEADS + head, on[:, None] & lanes
        d = tl.load(distance + at, mask=mask, other=float('inf')).to(ACC)
        total += tl.exp(smallest - d)
    isolated = (count == 0)[:, None]
    value = tl.log(tl.where(isolated, 1.0, total)) - smallest
    at = row.to(INDEX)[:, None] * HEADS + head
    tl.store(out + at, value, mask=inside[:, None] & lanes)


@triton.jit
def log_degree_backward(
    src,
    dst,
    distance,
    log_degree,
    grad,
    out,
    num_edges,
    features,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """See :func:`.cuda.log_degree_backward`."""
    edge, inside = _block(num_edges, BLOCK)
    _, head, lanes = _lanes(0, features, HEADS, BF, BH)
    mask = inside[:, None] & lanes
    at = edge.to(INDEX)[:, None] * HEADS + head
    d = _load(distance, at, mask, ACC)
    i = _index(src, edge, inside, INDEX) * HEADS + head
    j = _index(dst, edge, inside, INDEX) * HEADS + head
    one = tl.exp(-d - _load(log_degree, i, mask, ACC))
    other = tl.exp(-d - _load(log_degree, j, mask, ACC))
    one *= _load(grad, i, mask, ACC)
    other *= _load(grad, j, mask, ACC)
    tl.store(out + at, -(one + other), mask=mask)
