# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of the graph operators."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cuda.launch import (
    Launch,
    contiguous,
    csr,
    edges_of,
    heads_of,
    lanes_of,
    load,
    load_index,
    neighbour,
    sum_features,
    tile_of,
    zeros,
)


@triton.jit
def _laplacian(
    rowptr,
    col,
    edge_id,
    num_nodes,
    features,
    weight,
    x,
    out,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The product with the graph Laplacian."""
    first, width = tl.program_id(1) * BF, features * HEADS
    start, count, _node, head, lanes, place, at, here = tile_of(
        rowptr, num_nodes, features, first, HEADS, BLOCK, BF, BH, INDEX
    )
    mine = load(x, at, here)
    total = zeros(x, BLOCK, BF * BH)
    for k in range(tl.max(count)):
        j, e, _on, mask = neighbour(col, edge_id, start, count, k, lanes, INDEX)
        w = load(weight, e * HEADS + head, mask)
        other = load(x, j * width + place, mask)
        total += tl.where(mask, w * (mine - other), 0.0)
    tl.store(out + at, total, mask=here)


def laplacian(topology: Topology, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.operators.laplacian`."""
    weight, x = contiguous(weight, x)
    out = torch.empty_like(x)
    launch = Launch(*x.shape, x, weight)
    launch(_laplacian, csr(topology), weight, x, out)
    return out


@triton.jit
def _edge_dot(
    src,
    dst,
    num_edges,
    features,
    a,
    b,
    out,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Products of differences, summed over all features."""
    edge, inside = edges_of(num_edges, BLOCK)
    i = load_index(src, edge, inside, INDEX)
    j = load_index(dst, edge, inside, INDEX)
    width = features * HEADS
    total = zeros(a, BLOCK, BF * BH)
    for first in range(0, features, BF):
        place, _head, lanes = lanes_of(first, features, HEADS, BF, BH)
        mask = inside[:, None] & lanes
        at, other = i * width + place, j * width + place
        da = load(a, at, mask) - load(a, other, mask)
        total += da * (load(b, at, mask) - load(b, other, mask))
    head, has_head = heads_of(HEADS, BH)
    value = sum_features(total, BLOCK, BF, BH)
    at = edge.to(INDEX)[:, None] * HEADS + head
    tl.store(out + at, value, mask=inside[:, None] & has_head)


def edge_dot(topology: Topology, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.operators.edge_dot`."""
    a, b = contiguous(a, b)
    out = a.new_empty((topology.num_edges, a.size(2)))
    launch = Launch(out.size(0), *a.shape[1:], a, out)
    launch.whole(_edge_dot, (topology.src, topology.dst), a, b, out)
    return out


@triton.jit
def _to_edges(
    src,
    dst,
    num_edges,
    features,
    x,
    out,
    SIGNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Differences or sums of the edges' endpoints."""
    edge, inside = edges_of(num_edges, BLOCK)
    first, width = tl.program_id(1) * BF, features * HEADS
    place, _head, lanes = lanes_of(first, features, HEADS, BF, BH)
    mask = inside[:, None] & lanes
    one = load(x, load_index(src, edge, inside, INDEX) * width + place, mask)
    other = load(x, load_index(dst, edge, inside, INDEX) * width + place, mask)
    value = one - other if SIGNED else one + other
    at = edge.to(INDEX)[:, None] * width + place
    tl.store(out + at, value, mask=mask)


def to_edges(topology: Topology, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_edges`."""
    (x,) = contiguous(x)
    num_edges, width = topology.num_edges, x.shape[1:].numel()
    out = x.new_empty((num_edges, *x.shape[1:]))
    launch = Launch(num_edges, width, 1, x, out)
    launch(_to_edges, (topology.src, topology.dst), x, out, SIGNED=signed)
    return out


@triton.jit
def _to_nodes(
    rowptr,
    edge_id,
    sign,
    num_nodes,
    features,
    z,
    out,
    SIGNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Sums of the edges at each node."""
    first, width = tl.program_id(1) * BF, features * HEADS
    start, count, _node, _head, lanes, place, at, here = tile_of(
        rowptr, num_nodes, features, first, HEADS, BLOCK, BF, BH, INDEX
    )
    total = zeros(z, BLOCK, BF * BH)
    for k in range(tl.max(count)):
        on = k < count
        e = load_index(edge_id, start + k, on, INDEX)
        value = load(z, e * width + place, on[:, None] & lanes)
        if SIGNED:
            value *= load(sign, start + k, on)[:, None]
        total += value
    tl.store(out + at, total, mask=here)


def to_nodes(topology: Topology, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_nodes`."""
    (z,) = contiguous(z)
    width = z.shape[1:].numel()
    out = z.new_empty((topology.num_nodes, *z.shape[1:]))
    launch = Launch(topology.num_nodes, width, 1, z, out)
    graph = topology.rowptr, topology.edge_id, topology.sign
    launch(_to_nodes, graph, z, out, SIGNED=signed)
    return out


@triton.jit
def _log_degree(
    rowptr,
    edge_id,
    num_nodes,
    features,
    distance,
    out,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Logarithms of sums, shifted by the smallest distance."""
    start, count, _node, head, lanes, _place, at, here = tile_of(
        rowptr, num_nodes, features, 0, HEADS, BLOCK, BF, BH, INDEX
    )
    infinity = float('inf')
    total = zeros(distance, BLOCK, BF * BH)
    smallest = total + infinity
    for k in range(tl.max(count)):
        on = k < count
        e = load_index(edge_id, start + k, on, INDEX)
        mask = on[:, None] & lanes
        d = load(distance, e * HEADS + head, mask, infinity)
        smallest = tl.minimum(smallest, d)
    # Infinite if all distances are, and infinity less itself is no number.
    smallest = tl.where(smallest == infinity, 0.0, smallest)
    for k in range(tl.max(count)):
        on = k < count
        e = load_index(edge_id, start + k, on, INDEX)
        mask = on[:, None] & lanes
        d = load(distance, e * HEADS + head, mask, infinity)
        total += tl.exp(smallest - d)
    isolated = (count == 0)[:, None]
    value = tl.log(tl.where(isolated, 1.0, total)) - smallest
    tl.store(out + at, value, mask=here)


def log_degree(topology: Topology, distance: Tensor) -> Tensor:
    """See :func:`.reference.operators.log_degree`."""
    (distance,) = contiguous(distance)
    heads = distance.size(1)
    out = distance.new_empty((topology.num_nodes, heads))
    launch = Launch(topology.num_nodes, 1, heads, distance, out)
    launch(_log_degree, (topology.rowptr, topology.edge_id), distance, out)
    return out


@triton.jit
def _log_degree_backward(
    src,
    dst,
    num_edges,
    features,
    distance,
    log_degree,
    grad,
    out,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    BF: tl.constexpr,
    BH: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The adjoint of `_log_degree`."""
    edge, inside = edges_of(num_edges, BLOCK)
    _place, head, lanes = lanes_of(0, features, HEADS, BF, BH)
    mask = inside[:, None] & lanes
    at = edge.to(INDEX)[:, None] * HEADS + head
    d = load(distance, at, mask)
    i = load_index(src, edge, inside, INDEX) * HEADS + head
    j = load_index(dst, edge, inside, INDEX) * HEADS + head
    one = tl.exp(-d - load(log_degree, i, mask)) * load(grad, i, mask)
    other = tl.exp(-d - load(log_degree, j, mask)) * load(grad, j, mask)
    tl.store(out + at, -(one + other), mask=mask)


def log_degree_backward(
    topology: Topology, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """See :func:`.reference.operators.log_degree_backward`."""
    arrays = contiguous(distance, log_degree, grad)
    out = torch.empty_like(arrays[0])
    launch = Launch(topology.num_edges, 1, distance.size(1), *arrays)
    launch(_log_degree_backward, (topology.src, topology.dst), *arrays, out)
    return out
