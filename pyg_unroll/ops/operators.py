"""The graph operators."""

from __future__ import annotations

from torch import Tensor

from pyg_unroll.checks import check_signal, check_tensor
from pyg_unroll.graph import Topology
from pyg_unroll.ops import dispatch


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
    check_signal(name, value)


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
    return dispatch.to_edges(*topology.operands, x, True)


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
    return dispatch.to_nodes(*topology.operands, z, True)


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
    return dispatch.laplacian(*topology.operands, weight, x)


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
    return dispatch.edge_dot(*topology.operands, a, b)


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
    return dispatch.to_nodes(*topology.operands, weight, False)


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
    return dispatch.to_edges(*topology.operands, x, False)


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
    return dispatch.log_degree(*topology.operands, distance)
