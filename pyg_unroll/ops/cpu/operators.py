"""The graph operators by CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops import reference
from pyg_unroll.ops.cpu import operator_kernels as kernels
from pyg_unroll.ops.cpu.launch import as_first, blocks, flat, launch, row_blocks


def to_edges(graph: Arrays, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_edges`."""
    (values,) = as_first(x)
    num_edges = graph.src.size(0)
    out = values.new_empty((num_edges, *x.shape[1:]))
    width = values[0].numel() if values.size(0) else 0
    arrays = flat(values, out)
    edges = flat(graph.src, graph.dst)
    for lanes, _, h in blocks(1, width) if width else ():
        place, sign = (width, h, width, h), -1 if signed else 1
        rest = (*edges, sign, place, lanes, *arrays)
        launch(kernels.to_edges, num_edges, lanes.heads, *rest)
    return out.to(x.dtype)


def to_nodes(graph: Arrays, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_nodes`."""
    (values,) = as_first(z)
    num_nodes = graph.rowptr.size(0) - 1
    out = values.new_empty((num_nodes, *z.shape[1:]))
    width = out[0].numel() if num_nodes else 0
    arrays = flat(values, out)
    index = tuple(flat(graph.rowptr, graph.col, graph.edge_id))
    for lanes, _, h in blocks(1, width) if width else ():
        place, sign = (width, h, width, h), -1 if signed else 1
        rest = (index, sign, place, lanes, *arrays)
        launch(kernels.to_nodes, num_nodes, lanes.heads, *rest)
    return out.to(z.dtype)


def laplacian(graph: Arrays, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.laplacian`."""
    values, weights = as_first(x, weight)
    out = torch.empty_like(values)
    arrays = flat(weights, values, out)
    for first, width in row_blocks(graph, x.shape):
        launch(kernels.laplacian, x.size(0), width, *first, *arrays)
    return out.to(x.dtype)


def edge_dot(graph: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.edge_dot`."""
    one, other = as_first(a, b)
    out = one.new_empty((graph.src.size(0), a.size(2)))
    if a.size(1) == 0:
        return out.zero_().to(a.dtype)
    arrays = (*flat(one, other), a is b, *flat(out))
    for first, width in row_blocks(graph, a.shape):
        launch(kernels.edge_dot, a.size(0), width, *first, *arrays)
    return out.to(a.dtype)


def log_degree(graph: Arrays, distance: Tensor) -> Tensor:
    """See :func:`.reference.log_degree`."""
    (values,) = as_first(distance)
    out = to_nodes(graph, values.neg().exp_(), False).log_()
    num_nodes, heads = out.shape
    index = tuple(flat(graph.rowptr, graph.col, graph.edge_id))
    rest = (index, heads, reference.LEAST_LOG, *flat(values, out))
    launch(kernels.shifted_log_degree, num_nodes, max(heads, 1), *rest)
    return out.to(distance.dtype)


def log_degree_backward(
    graph: Arrays, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """See :func:`.reference.log_degree_backward`."""
    operands = distance, log_degree, grad
    return reference.log_degree_backward(graph, *operands, to_edges)
