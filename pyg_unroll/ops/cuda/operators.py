"""The graph operators by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops.cuda import operator_kernels as kernels
from pyg_unroll.ops.cuda.launch import Launch, contiguous, csr


def to_edges(graph: Arrays, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_edges`."""
    (x,) = contiguous(x)
    num_edges, width = graph.src.size(0), x.shape[1:].numel()
    out = x.new_empty((num_edges, *x.shape[1:]))
    launch = Launch(num_edges, width, 1, x, out)
    launch(kernels.to_edges, graph.src, graph.dst, x, out, SIGNED=signed)
    return out


def to_nodes(graph: Arrays, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_nodes`."""
    (z,) = contiguous(z)
    num_nodes, width = graph.rowptr.size(0) - 1, z.shape[1:].numel()
    out = z.new_empty((num_nodes, *z.shape[1:]))
    launch = Launch(num_nodes, width, 1, z, out)
    rest = (graph.edge_id, graph.sign, z, out)
    launch(kernels.to_nodes, graph.rowptr, *rest, SIGNED=signed)
    return out


def laplacian(graph: Arrays, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.laplacian`."""
    weight, x = contiguous(weight, x)
    out = torch.empty_like(x)
    launch = Launch(*x.shape, x, weight)
    launch(kernels.laplacian, *csr(graph), weight, x, out)
    return out


def edge_dot(graph: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.edge_dot`."""
    a, b = contiguous(a, b)
    out = a.new_empty((graph.src.size(0), a.size(2)))
    launch = Launch(out.size(0), *a.shape[1:], a, out)
    launch.whole(kernels.edge_dot, graph.src, graph.dst, a, b, out)
    return out


def log_degree(graph: Arrays, distance: Tensor) -> Tensor:
    """See :func:`.reference.log_degree`."""
    (distance,) = contiguous(distance)
    num_nodes, heads = graph.rowptr.size(0) - 1, distance.size(1)
    out = distance.new_empty((num_nodes, heads))
    launch = Launch(num_nodes, 1, heads, distance, out)
    arrays = (graph.rowptr, graph.edge_id, distance, out)
    launch(kernels.log_degree, *arrays)
    return out


def log_degree_backward(
    graph: Arrays, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """See :func:`.reference.log_degree_backward`."""
    arrays = contiguous(distance, log_degree, grad)
    out = torch.empty_like(arrays[0])
    launch = Launch(graph.src.size(0), 1, distance.size(1), *arrays)
    edges = (graph.src, graph.dst)
    launch(kernels.log_degree_backward, *edges, *arrays, out)
    return out
