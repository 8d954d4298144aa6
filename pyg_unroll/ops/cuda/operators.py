"""Triton kernels of the graph operators."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cuda import tiles


@triton.jit
def _laplacian(graph, size, weight, x, out, TILE: tl.constexpr):
    first, width = tl.program_id(1) * TILE.BF, size[1] * TILE.HEADS
    tile = tiles.tile_of(graph[0], size, first, TILE)
    at, here = tile[6], tile[7]
    mine = tiles.load(x, at, here)
    total = tiles.laplacian_of(graph, weight, x, tile, mine, width, TILE)
    tl.store(out + at, total, mask=here)


def laplacian(topology: Topology, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.operators.laplacian`."""
    weight, x = tiles.contiguous(weight, x)
    out = torch.empty_like(x)
    launch = tiles.Launch(*x.shape, x, weight)
    launch(_laplacian, tiles.csr(topology), weight, x, out)
    return out


@triton.jit
def _edge_dot(graph, size, a, b, out, TILE: tl.constexpr):
    """One program for all features of an edge."""
    num_edges, features = size
    edge, inside = tiles.edges_of(num_edges, TILE)
    i = tiles.load_index(graph[0], edge, inside, TILE)
    j = tiles.load_index(graph[1], edge, inside, TILE)
    width = features * TILE.HEADS
    total = tiles.zeros(a, TILE)
    for first in range(0, features, TILE.BF):
        place, _head, lanes = tiles.lanes_of(first, features, TILE)
        mask = inside & lanes
        at, other = i * width + place, j * width + place
        da = tiles.load(a, at, mask) - tiles.load(a, other, mask)
        total += da * (tiles.load(b, at, mask) - tiles.load(b, other, mask))
    head, has_head = tiles.heads_of(TILE)
    value = tiles.sum_features(total, TILE)
    tl.store(out + edge * TILE.HEADS + head, value, mask=inside & has_head)


def edge_dot(topology: Topology, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.operators.edge_dot`."""
    a, b = tiles.contiguous(a, b)
    out = a.new_empty((topology.num_edges, a.size(2)))
    launch = tiles.Launch(out.size(0), *a.shape[1:], a, out)
    ends = topology.src, topology.dst
    launch.run(_edge_dot, 1, ends, a, b, out)
    return out


@triton.jit
def _to_edges(graph, size, x, out, SIGNED: tl.constexpr, TILE: tl.constexpr):
    num_edges, features = size
    edge, inside = tiles.edges_of(num_edges, TILE)
    first, width = tl.program_id(1) * TILE.BF, features * TILE.HEADS
    place, _head, lanes = tiles.lanes_of(first, features, TILE)
    mask = inside & lanes
    i = tiles.load_index(graph[0], edge, inside, TILE)
    j = tiles.load_index(graph[1], edge, inside, TILE)
    one, other = (
        tiles.load(x, i * width + place, mask),
        tiles.load(x, j * width + place, mask),
    )
    value = one - other if SIGNED else one + other
    tl.store(out + edge * width + place, value, mask=mask)


def to_edges(topology: Topology, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_edges`."""
    (x,) = tiles.contiguous(x)
    num_edges, width = topology.num_edges, x.shape[1:].numel()
    out = x.new_empty((num_edges, *x.shape[1:]))
    launch = tiles.Launch(num_edges, width, 1, x, out)
    launch(_to_edges, (topology.src, topology.dst), x, out, signed)
    return out


@triton.jit
def _to_nodes(graph, size, z, out, SIGNED: tl.constexpr, TILE: tl.constexpr):
    rowptr, col, edge_id = graph
    first, width = tl.program_id(1) * TILE.BF, size[1] * TILE.HEADS
    tile = tiles.tile_of(rowptr, size, first, TILE)
    _start, count, node, _head, _lanes, place, at, here = tile
    total = tiles.zeros(z, TILE)
    for k in range(tl.max(count)):
        where, on, e, mask = tiles.entry(edge_id, tile, k, TILE)
        value = tiles.load(z, e * width + place, mask)
        if SIGNED:
            other = tiles.load_index(col, where, on, TILE)
            value = tl.where(other < node, -value, value)
        total += value
    tl.store(out + at, total, mask=here)


def to_nodes(topology: Topology, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_nodes`."""
    (z,) = tiles.contiguous(z)
    width = z.shape[1:].numel()
    out = z.new_empty((topology.num_nodes, *z.shape[1:]))
    launch = tiles.Launch(topology.num_nodes, width, 1, z, out)
    launch(_to_nodes, tiles.csr(topology), z, out, signed)
    return out


@triton.jit
def _log_degree(graph, size, distance, out, TILE: tl.constexpr):
    """Logarithms of sums, shifted by the smallest distance."""
    rowptr, edge_id = graph
    tile = tiles.tile_of(rowptr, size, 0, TILE)
    _start, count, _node, head, _lanes, _place, at, here = tile
    infinity = float('inf')
    total = tiles.zeros(distance, TILE)
    smallest = total + infinity
    for k in range(tl.max(count)):
        _at, _on, e, mask = tiles.entry(edge_id, tile, k, TILE)
        d = tiles.load(distance, e * TILE.HEADS + head, mask, infinity)
        smallest = tl.minimum(smallest, d)
    # Infinite if all distances are, and infinity less itself is no number.
    smallest = tl.where(smallest == infinity, 0.0, smallest)
    for k in range(tl.max(count)):
        _at, _on, e, mask = tiles.entry(edge_id, tile, k, TILE)
        d = tiles.load(distance, e * TILE.HEADS + head, mask, infinity)
        total += tl.exp(smallest - d)
    isolated = (count == 0)[:, None]
    value = tl.log(tl.where(isolated, 1.0, total)) - smallest
    tl.store(out + at, value, mask=here)


def log_degree(topology: Topology, distance: Tensor) -> Tensor:
    """See :func:`.reference.operators.log_degree`."""
    (distance,) = tiles.contiguous(distance)
    heads = distance.size(1)
    out = distance.new_empty((topology.num_nodes, heads))
    launch = tiles.Launch(topology.num_nodes, 1, heads, distance, out)
    launch(_log_degree, (topology.rowptr, topology.edge_id), distance, out)
    return out


@triton.jit
def _log_degree_backward(
    graph, size, distance, log_degree, grad, out, TILE: tl.constexpr
):
    edge, inside = tiles.edges_of(size[0], TILE)
    _place, head, lanes = tiles.lanes_of(0, size[1], TILE)
    mask = inside & lanes
    at = edge * TILE.HEADS + head
    d = tiles.load(distance, at, mask)
    i = tiles.load_index(graph[0], edge, inside, TILE) * TILE.HEADS + head
    j = tiles.load_index(graph[1], edge, inside, TILE) * TILE.HEADS + head
    one = tl.exp(-d - tiles.load(log_degree, i, mask)) * tiles.load(
        grad, i, mask
    )
    other = tl.exp(-d - tiles.load(log_degree, j, mask)) * tiles.load(
        grad, j, mask
    )
    tl.store(out + at, -(one + other), mask=mask)


def log_degree_backward(
    topology: Topology, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """See :func:`.reference.operators.log_degree_backward`."""
    arrays = tiles.contiguous(distance, log_degree, grad)
    out = torch.empty_like(arrays[0])
    launch = tiles.Launch(topology.num_edges, 1, distance.size(1), *arrays)
    launch(_log_degree_backward, (topology.src, topology.dst), *arrays, out)
    return out
