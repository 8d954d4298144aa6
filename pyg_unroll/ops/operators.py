r"""The graph operators, with their derivatives.

:func:`laplacian` and :func:`edge_dot` are each other's derivative, and so are
the adjoint pairs :func:`gradient` and :func:`divergence`, :func:`degree` and
:func:`endpoint_sum`: only operands are kept, nothing of size edges x features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.checks import check_shape, check_signal
from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import kernels
from pyg_unroll.ops.reference.operators import log_degree_shares
from pyg_unroll.ops.registry import Operator, empty_like


def _register(
    name: str, operands: str, fake: Callable[..., Tensor], *derivative: Any
) -> Operator:
    """The kernel of this name, of the backend in use, as an operator."""

    def run(topology: Topology, *values: Any) -> Any:
        kernel = getattr(kernels('operators', values[0]), name)
        return kernel(topology, *values)

    return Operator(name, operands, 'Tensor', run, fake, *derivative)


def _keep_sign(ctx: Any, x: Tensor, signed: bool, out: Tensor) -> list[Tensor]:
    ctx.signed = signed
    return []


def _keep_two(ctx: Any, a: Tensor, b: Tensor, *_: Tensor) -> list[Tensor]:
    return [a, b]


def _bilinear(
    by_first: Callable[..., Tensor], by_second: Callable[..., Tensor]
) -> Callable[..., tuple[Tensor | None, Tensor | None]]:
    """The derivative of an operator of two operands, if they need one."""

    def derivative(
        ctx: Any, topology: Topology, kept: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        *_, needs_first, needs_second = ctx.needs_input_grad
        return (
            by_first(topology, *kept, grad) if needs_first else None,
            by_second(topology, *kept, grad) if needs_second else None,
        )

    return derivative


def _by_log_degree(
    ctx: Any, topology: Topology, kept: Any, grad: Tensor
) -> tuple[Tensor]:
    r""":math:`\partial d = -e^{-d_{ij}} (e^{-l_i} g_i + e^{-l_j} g_j)`."""
    distance, out = kept
    if torch.is_grad_enabled():
        return (log_degree_shares(topology, distance, out, grad),)
    return (_log_degree_backward(topology, distance, out, grad),)


to_edges: Operator = _register(
    'to_edges',
    'Tensor x, bool signed',
    lambda topology, x, _: x.new_empty((topology.num_edges, *x.shape[1:])),
    _keep_sign,
    lambda ctx, topology, _, grad: (to_nodes(topology, grad, ctx.signed), None),
)
to_nodes: Operator = _register(
    'to_nodes',
    'Tensor z, bool signed',
    lambda topology, z, _: z.new_empty((topology.num_nodes, *z.shape[1:])),
    _keep_sign,
    lambda ctx, topology, _, grad: (to_edges(topology, grad, ctx.signed), None),
)
_laplacian: Operator = _register(
    'laplacian',
    'Tensor weight, Tensor x',
    lambda topology, weight, x: empty_like(x),
    _keep_two,
    _bilinear(
        lambda topology, weight, x, grad: _edge_dot(topology, x, grad),
        lambda topology, weight, x, grad: _laplacian(topology, weight, grad),
    ),
)
_edge_dot: Operator = _register(
    'edge_dot',
    'Tensor a, Tensor b',
    lambda topology, a, b: a.new_empty((topology.num_edges, a.size(2))),
    _keep_two,
    _bilinear(
        lambda topology, a, b, grad: _laplacian(topology, grad, b),
        lambda topology, a, b, grad: _laplacian(topology, grad, a),
    ),
)
_log_degree = _register(
    'log_degree',
    'Tensor distance',
    lambda topology, d: d.new_empty((topology.num_nodes, d.size(1))),
    _keep_two,
    _by_log_degree,
)
_log_degree_backward = _register(
    'log_degree_backward',
    'Tensor distance, Tensor log_degree, Tensor grad',
    lambda topology, distance, log_degree, grad: empty_like(distance),
)


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
    shape = [rows, 'features', 'heads'] if dim == 3 else [rows, 'heads']
    check_shape(name, value, shape, note=f', one row per {what}')
    check_signal(name, value)


def _check_same(first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.dtype != b.dtype or a.size(-1) != b.size(-1):
        raise ValueError(
            f"'{first}' and '{second}' must agree in type and heads (got "
            f'{a.dtype} with {a.size(-1)} and {b.dtype} with {b.size(-1)})'
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
    return to_edges(topology, x, True)


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
    return to_nodes(topology, z, True)


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
    return _laplacian(topology, weight, x)


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
    return _edge_dot(topology, a, b)


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
    return to_nodes(topology, weight, False)


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
    return to_edges(topology, x, False)


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
    return _log_degree(topology, distance)
