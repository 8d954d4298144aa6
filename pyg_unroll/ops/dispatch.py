r"""The graph operators as PyTorch knows them, called by :mod:`.operators`.

Each operator is registered once through :mod:`torch.library`, so that
:meth:`torch.compile` and :meth:`torch.export` see one opaque operation, and
has its autograd rule here, once for all backends. Every rule is written with
the operators themselves, hence any order of derivative exists, and only the
operands are saved: nothing of size edges x features. The work is done by the
backend of the operands' device, see :mod:`.backend`.
"""

from typing import Any

import torch
from torch import Tensor

from pyg_unroll.ops.backend import Ints, Tensors, arrays, backend
from pyg_unroll.ops.fused import no_grads, save_operands

_define = torch.library.custom_op


@_define('pyg_unroll::to_edges', mutates_args=())
def to_edges(graph: Tensors, grid: Ints, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_edges`."""
    return backend(x).to_edges(arrays(graph, grid), x, signed)


@_define('pyg_unroll::to_nodes', mutates_args=())
def to_nodes(graph: Tensors, grid: Ints, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_nodes`."""
    return backend(z).to_nodes(arrays(graph, grid), z, signed)


@_define('pyg_unroll::laplacian', mutates_args=())
def laplacian(graph: Tensors, grid: Ints, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.laplacian`."""
    return backend(x).laplacian(arrays(graph, grid), weight, x)


@_define('pyg_unroll::edge_dot', mutates_args=())
def edge_dot(graph: Tensors, grid: Ints, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.edge_dot`."""
    return backend(a).edge_dot(arrays(graph, grid), a, b)


@_define('pyg_unroll::log_degree', mutates_args=())
def log_degree(graph: Tensors, grid: Ints, distance: Tensor) -> Tensor:
    """See :func:`.reference.log_degree`."""
    return backend(distance).log_degree(arrays(graph, grid), distance)


@_define('pyg_unroll::log_degree_backward', mutates_args=())
def log_degree_grad(
    graph: Tensors,
    grid: Ints,
    distance: Tensor,
    log_degree: Tensor,
    grad: Tensor,
) -> Tensor:
    """See :func:`.reference.log_degree_backward`."""
    operands = distance, log_degree, grad
    ops = backend(distance)
    return ops.log_degree_backward(arrays(graph, grid), *operands)


@to_edges.register_fake
def _(graph: Tensors, grid: Ints, x: Tensor, signed: bool) -> Tensor:
    return x.new_empty((graph[0].size(0), *x.shape[1:]))


@to_nodes.register_fake
def _(graph: Tensors, grid: Ints, z: Tensor, signed: bool) -> Tensor:
    return z.new_empty((graph[2].size(0) - 1, *z.shape[1:]))


@laplacian.register_fake
def _(graph: Tensors, grid: Ints, *args: Tensor) -> Tensor:
    return torch.empty_like(args[-1], memory_format=torch.contiguous_format)


@edge_dot.register_fake
def _(graph: Tensors, grid: Ints, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((graph[0].size(0), a.size(2)))


@log_degree.register_fake
def _(graph: Tensors, grid: Ints, distance: Tensor) -> Tensor:
    return distance.new_empty((graph[2].size(0) - 1, distance.size(1)))


@log_degree_grad.register_fake
def _(graph: Tensors, grid: Ints, *args: Tensor) -> Tensor:
    return torch.empty_like(args[0], memory_format=torch.contiguous_format)


def _save_graph(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, ctx.grid, _, ctx.signed = inputs
    ctx.save_for_backward(*graph)


def _to_edges_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial x = B' \partial z`, the adjoint."""
    graph = list(ctx.saved_tensors)
    out = to_nodes(graph, ctx.grid, grad, ctx.signed)
    return *no_grads(graph), out, None


def _to_nodes_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial z = B \partial x`, the adjoint."""
    graph = list(ctx.saved_tensors)
    out = to_edges(graph, ctx.grid, grad, ctx.signed)
    return *no_grads(graph), out, None


def _laplacian_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial w = edge\_dot(x, g)`, :math:`\partial x = L_w g`."""
    *graph, weight, x = ctx.saved_tensors
    grad_weight = grad_x = None
    if ctx.needs_input_grad[2]:
        grad_weight = edge_dot(graph, ctx.grid, x, grad)
    if ctx.needs_input_grad[3]:
        grad_x = laplacian(graph, ctx.grid, weight, grad)
    return *no_grads(graph), grad_weight, grad_x


def _edge_dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial a = L_c b`, :math:`\partial b = L_c a` for grad `c`."""
    *graph, a, b = ctx.saved_tensors
    grad_a = grad_b = None
    if ctx.needs_input_grad[2]:
        grad_a = laplacian(graph, ctx.grid, grad, b)
    if ctx.needs_input_grad[3]:
        grad_b = laplacian(graph, ctx.grid, grad, a)
    return *no_grads(graph), grad_a, grad_b


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, ctx.grid, distance = inputs
    ctx.save_for_backward(*graph, distance, output)


def _log_degree_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial d = -e^{-d_{ij}} (e^{-l_i} g_i + e^{-l_j} g_j)`."""
    *graph, distance, log_degree = ctx.saved_tensors
    if not torch.is_grad_enabled():
        operands = distance, log_degree, grad
        out = log_degree_grad(graph, ctx.grid, *operands)
        return *no_grads(graph), out
    out = torch.zeros_like(distance)
    for end in graph[:2]:
        share = torch.exp(-distance - log_degree.index_select(0, end))
        out = out - share * grad.index_select(0, end)
    return *no_grads(graph), out


to_edges.register_autograd(_to_edges_backward, setup_context=_save_graph)
to_nodes.register_autograd(_to_nodes_backward, setup_context=_save_graph)
laplacian.register_autograd(_laplacian_backward, setup_context=save_operands)
edge_dot.register_autograd(_edge_dot_backward, setup_context=save_operands)
log_degree.register_autograd(_log_degree_backward, setup_context=_save_all)
