r"""The graph operators that everything else calls.

Each operator is registered once through :mod:`torch.library`, so that
:meth:`torch.compile` and :meth:`torch.export` see one opaque operation, and
has its autograd rule here, once for all backends. Every rule is written with
the operators themselves, hence any order of derivative exists, and only the
operands are saved: nothing of size edges x features. The work is done by the
backend of the operands' device, see :mod:`.backend`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.checks import check_tensor
from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import Ints, Tensors, arrays, backend

_define = torch.library.custom_op


@_define('pyg_unroll::to_edges', mutates_args=())
def _to_edges(graph: Tensors, grid: Ints, x: Tensor, signed: bool) -> Tensor:
    return backend(x).to_edges(arrays(graph, grid), x, signed)


@_define('pyg_unroll::to_nodes', mutates_args=())
def _to_nodes(graph: Tensors, grid: Ints, z: Tensor, signed: bool) -> Tensor:
    return backend(z).to_nodes(arrays(graph, grid), z, signed)


@_define('pyg_unroll::laplacian', mutates_args=())
def _laplacian(graph: Tensors, grid: Ints, weight: Tensor, x: Tensor) -> Tensor:
    return backend(x).laplacian(arrays(graph, grid), weight, x)


@_define('pyg_unroll::edge_dot', mutates_args=())
def _edge_dot(graph: Tensors, grid: Ints, a: Tensor, b: Tensor) -> Tensor:
    return backend(a).edge_dot(arrays(graph, grid), a, b)


@_define('pyg_unroll::log_degree', mutates_args=())
def _log_degree(graph: Tensors, grid: Ints, distance: Tensor) -> Tensor:
    return backend(distance).log_degree(arrays(graph, grid), distance)


@_define('pyg_unroll::log_degree_backward', mutates_args=())
def _log_degree_grad(
    graph: Tensors,
    grid: Ints,
    distance: Tensor,
    log_degree: Tensor,
    grad: Tensor,
) -> Tensor:
    operands = distance, log_degree, grad
    ops = backend(distance)
    return ops.log_degree_backward(arrays(graph, grid), *operands)


@_to_edges.register_fake
def _(graph: Tensors, grid: Ints, x: Tensor, signed: bool) -> Tensor:
    return x.new_empty((graph[0].size(0), *x.shape[1:]))


@_to_nodes.register_fake
def _(graph: Tensors, grid: Ints, z: Tensor, signed: bool) -> Tensor:
    return z.new_empty((graph[2].size(0) - 1, *z.shape[1:]))


@_laplacian.register_fake
def _(graph: Tensors, grid: Ints, *args: Tensor) -> Tensor:
    return torch.empty_like(args[-1], memory_format=torch.contiguous_format)


@_edge_dot.register_fake
def _(graph: Tensors, grid: Ints, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((graph[0].size(0), a.size(2)))


@_log_degree.register_fake
def _(graph: Tensors, grid: Ints, distance: Tensor) -> Tensor:
    return distance.new_empty((graph[2].size(0) - 1, distance.size(1)))


@_log_degree_grad.register_fake
def _(graph: Tensors, grid: Ints, *args: Tensor) -> Tensor:
    return torch.empty_like(args[0], memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, ctx.grid, *operands = inputs
    ctx.save_for_backward(*graph, *operands)


def _save_graph(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, ctx.grid, _, ctx.signed = inputs
    ctx.save_for_backward(*graph)


def _no_grads(graph: Sequence[Tensor]) -> tuple[Any, None]:
    return [None] * len(graph), None


def _to_edges_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial x = B' \partial z`, the adjoint."""
    graph = list(ctx.saved_tensors)
    out = _to_nodes(graph, ctx.grid, grad, ctx.signed)
    return *_no_grads(graph), out, None


def _to_nodes_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial z = B \partial x`, the adjoint."""
    graph = list(ctx.saved_tensors)
    out = _to_edges(graph, ctx.grid, grad, ctx.signed)
    return *_no_grads(graph), out, None


def _laplacian_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial w = edge\_dot(x, g)`, :math:`\partial x = L_w g`."""
    *graph, weight, x = ctx.saved_tensors
    grad_weight = grad_x = None
    if ctx.needs_input_grad[2]:
        grad_weight = _edge_dot(graph, ctx.grid, x, grad)
    if ctx.needs_input_grad[3]:
        grad_x = _laplacian(graph, ctx.grid, weight, grad)
    return *_no_grads(graph), grad_weight, grad_x


def _edge_dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial a = L_c b`, :math:`\partial b = L_c a` for grad `c`."""
    *graph, a, b = ctx.saved_tensors
    grad_a = grad_b = None
    if ctx.needs_input_grad[2]:
        grad_a = _laplacian(graph, ctx.grid, grad, b)
    if ctx.needs_input_grad[3]:
        grad_b = _laplacian(graph, ctx.grid, grad, a)
    return *_no_grads(graph), grad_a, grad_b


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    graph, ctx.grid, distance = inputs
    ctx.save_for_backward(*graph, distance, output)


def _log_degree_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    r""":math:`\partial d = -e^{-d_{ij}} (e^{-l_i} g_i + e^{-l_j} g_j)`."""
    *graph, distance, log_degree = ctx.saved_tensors
    if not torch.is_grad_enabled():
        operands = distance, log_degree, grad
        out = _log_degree_grad(graph, ctx.grid, *operands)
        return *_no_grads(graph), out
    out = torch.zeros_like(distance)
    for end in graph[:2]:
        share = torch.exp(-distance - log_degree.index_select(0, end))
        out = out - share * grad.index_select(0, end)
    return *_no_grads(graph), out


_to_edges.register_autograd(_to_edges_backward, setup_context=_save_graph)
_to_nodes.register_autograd(_to_nodes_backward, setup_context=_save_graph)
_laplacian.register_autograd(_laplacian_backward, setup_context=_save)
_edge_dot.register_autograd(_edge_dot_backward, setup_context=_save)
_log_degree.register_autograd(_log_degree_backward, setup_context=_save_all)


def _check(
    topology: Topology, name: str, value: Tensor, what: str, dim: int
) -> None:
    if not isinstance(topology, Topology):
        raise ValueError(
            f"'topology' must be a 'Topology' (got "
            f"'{type(topology).__name__}'); make it with "
            f"'Topology.from_edge_index(edge_index, num_nodes)'"
        )
    rows = topology.num_nodes if what == 'node' else topology.num_edges
    shape = f'[{rows}, heads]' if dim == 2 else f'[{rows}, features, heads]'
    check_tensor(name, value, shape)
    if value.dim() != dim or value.size(0) != rows:
        raise ValueError(
            f"'{name}' must have shape {shape}, one row per {what} (got "
            f'{list(value.shape)})'
        )
    if not value.is_floating_point():
        raise ValueError(
            f"'{name}' must be floating point (got {value.dtype}); convert "
            f"it with '.float()'"
        )


def _check_same(first: str, a: Tensor, second: str, b: Tensor) -> None:
    heads = a.size(-1), b.size(-1)
    if a.dtype != b.dtype or heads[0] != heads[1]:
        raise ValueError(
            f"'{first}' and '{second}' must agree in type and heads (got "
            f'{a.dtype} with {heads[0]} and {b.dtype} with {heads[1]})'
        )


def gradient(topology: Topology, x: Tensor) -> Tensor:
    r"""Differences along the edges, :math:`z_{ij} = x_i - x_j`.

    Args:
        topology (Topology): The graph.
        x (torch.Tensor): Node signals :math:`(N, F, H)`.

    Returns:
        Edge signals :math:`(E, F, H)`, with :math:`i < j`.

    Raises:
        ValueError: If :obj:`x` has another shape or is not floating point.
    """
    _check(topology, 'x', x, 'node', 3)
    return _to_edges(*topology.operands, x, True)


def divergence(topology: Topology, z: Tensor) -> Tensor:
    r"""Sums edge signals with their signs, the adjoint of :func:`gradient`.

    Args:
        topology (Topology): The graph.
        z (torch.Tensor): Edge signals :math:`(E, F, H)`.

    Returns:
        Node signals :math:`(N, F, H)`.

    Raises:
        ValueError: If :obj:`z` has another shape or is not floating point.
    """
    _check(topology, 'z', z, 'undirected edge', 3)
    return _to_nodes(*topology.operands, z, True)


def laplacian(topology: Topology, weight: Tensor, x: Tensor) -> Tensor:
    r"""The graph Laplacian :math:`(L x)_i = \sum_j w_{ij} (x_i - x_j)`.

    Its derivatives are :func:`edge_dot` by :obj:`weight` and the Laplacian
    itself by :obj:`x`. Row sums are exactly zero.

    Args:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        x (torch.Tensor): Node signals :math:`(N, F, H)`.

    Returns:
        Node signals :math:`(N, F, H)`.

    Raises:
        ValueError: If shapes, heads or types do not fit.
    """
    _check(topology, 'weight', weight, 'undirected edge', 2)
    _check(topology, 'x', x, 'node', 3)
    _check_same('weight', weight, 'x', x)
    return _laplacian(*topology.operands, weight, x)


def edge_dot(topology: Topology, a: Tensor, b: Tensor) -> Tensor:
    r"""Products of differences :math:`\sum_f (a_i - a_j)_f (b_i - b_j)_f`.

    Args:
        topology (Topology): The graph.
        a (torch.Tensor): Node signals :math:`(N, F, H)`.
        b (torch.Tensor): Node signals :math:`(N, F, H)`.

    Returns:
        Edge signals :math:`(E, H)`.

    Raises:
        ValueError: If shapes, heads or types do not fit.
    """
    _check(topology, 'a', a, 'node', 3)
    _check(topology, 'b', b, 'node', 3)
    _check_same('a', a, 'b', b)
    if a.size(1) != b.size(1):
        raise ValueError(
            f"'a' and 'b' must have the same number of features (got "
            f'{a.size(1)} and {b.size(1)})'
        )
    return _edge_dot(*topology.operands, a, b)


def degree(topology: Topology, weight: Tensor) -> Tensor:
    r"""Node degrees :math:`D_i = \sum_j w_{ij}`.

    Args:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.

    Returns:
        Degrees :math:`(N, H)`.

    Raises:
        ValueError: If :obj:`weight` has another shape or type.
    """
    _check(topology, 'weight', weight, 'undirected edge', 2)
    return _to_nodes(*topology.operands, weight, False)


def endpoint_sum(topology: Topology, x: Tensor) -> Tensor:
    r"""Sums of both endpoints :math:`x_i + x_j`, the adjoint of `degree`.

    Args:
        topology (Topology): The graph.
        x (torch.Tensor): One value per node and head, :math:`(N, H)`.

    Returns:
        Edge signals :math:`(E, H)`.

    Raises:
        ValueError: If :obj:`x` has another shape or type.
    """
    _check(topology, 'x', x, 'node', 2)
    return _to_edges(*topology.operands, x, False)


def log_degree(topology: Topology, distance: Tensor) -> Tensor:
    r"""Logarithmic degrees :math:`\log \sum_j \exp(-d_{ij})`.

    As in a softmax, large distances do not underflow.

    Args:
        topology (Topology): The graph.
        distance (torch.Tensor): Distances :math:`d_{ij} \ge 0` along the
            edges, :math:`(E, H)`.

    Returns:
        One value per node and head, zero at isolated nodes, :math:`(N, H)`.

    Raises:
        ValueError: If :obj:`distance` has another shape or type.
    """
    _check(topology, 'distance', distance, 'undirected edge', 2)
    return _log_degree(*topology.operands, distance)
