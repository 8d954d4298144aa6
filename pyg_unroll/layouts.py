"""Any of PyG's graph layouts to a topology, remembered between layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric.data import Data
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor, to_edge_index

from pyg_unroll.checks import can_read_values, check_edge_weight
from pyg_unroll.graph import Topology

# Topologies by the identity of the `edge_index` they were built from, so that
# a stack of layers sorts its edges once. Entries die with their key.
_CACHE: Any = WeakIdKeyDictionary()


def _cached_topology(
    key: Any, edge_index: Tensor, num_nodes: int, validate_args: bool
) -> Topology:
    if torch.compiler.is_compiling():
        return Topology.from_edge_index(edge_index, num_nodes, False)
    # An in-place change raises the version; inference tensors have none.
    if key.is_inference():
        return Topology.from_edge_index(edge_index, num_nodes, validate_args)
    stamp = (key._version, num_nodes)
    known = _CACHE.get(key)
    if known is not None and known[0] == stamp:
        topology, checked = known[1:]
        if checked or not validate_args:
            return topology
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False):
        topology = Topology.from_edge_index(
            edge_index, num_nodes, validate_args
        )
    _CACHE[key] = (stamp, topology, validate_args)
    return topology


def remember_topology(edge_index: Tensor, topology: Topology) -> None:
    """Tells the cache which topology an :obj:`edge_index` stands for."""
    if not edge_index.is_inference():
        stamp = (edge_index._version, topology.num_nodes)
        _CACHE[edge_index] = (stamp, topology, True)


def edges_of(data: Data) -> Any:
    """The graph of data, in whichever attribute and layout; or None."""
    edges = data.get('edge_index')
    return data.get('adj_t') if edges is None else edges


def read_edges(
    graph: Any, edge_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    r"""Indices and weights of any of PyG's graph layouts, not yet checked.

    Args:
        graph (torch.Tensor, EdgeIndex or SparseTensor): Indices
            :math:`(2, |\mathcal{E}|)` or a sparse adjacency matrix.
        edge_weight (torch.Tensor or None): Weights; those of the matrix if
            :obj:`None`.

    Returns:
        Indices :math:`(2, |\mathcal{E}|)`, and one weight for each column if
        there are weights.

    Raises:
        ValueError: If it is no such layout.
    """
    if isinstance(graph, SparseTensor):
        row, col, value = graph.coo()
        edge_index = torch.stack([row, col])
    elif is_torch_sparse_tensor(graph):
        if graph.layout == torch.sparse_coo:
            # `to_edge_index` marks its result as coalesced in place, which
            # has no derivative.
            matrix = graph.coalesce()
            edge_index, value = matrix.indices(), matrix.values()
        else:
            edge_index, value = to_edge_index(graph)
        edge_index = edge_index.long()
    elif isinstance(graph, Tensor):
        return graph, edge_weight
    else:
        raise ValueError(
            f"'edge_index' must be a tensor of shape [2, num_edges], an "
            f"'EdgeIndex', a sparse matrix or a 'Topology' (got "
            f"'{type(graph).__name__}')"
        )
    return edge_index, value if edge_weight is None else edge_weight


def resolve_graph(
    edge_index: Any,
    edge_weight: Tensor | None,
    num_nodes: int,
    dtype: torch.dtype,
    validate_args: bool = True,
) -> tuple[Topology, Tensor]:
    r"""Brings any PyG graph layout into a topology and weights per edge.

    Args:
        edge_index (torch.Tensor, EdgeIndex, SparseTensor or Topology): An
            undirected graph: :math:`(2, 2E)` indices, a sparse
            :math:`(N, N)` adjacency matrix (whose values are the weights if
            :obj:`edge_weight` is :obj:`None`), or a
            :class:`~pyg_unroll.graph.Topology`.
        edge_weight (torch.Tensor or None): Symmetric, non-negative weights,
            :math:`(2E)` or :math:`(2E, H)`; with a topology, :math:`(E)` or
            :math:`(E, H)`. All ones if :obj:`None`.
        num_nodes (int): Number of nodes.
        dtype (torch.dtype): Type that the weights are converted to.
        validate_args (bool, optional): Check the values of indices and
            weights, too. Skipped under :meth:`torch.compile` and in a CUDA
            graph. (default: :obj:`True`)

    Returns:
        The topology and the weights :math:`(E, H)`.

    Raises:
        ValueError: If the graph is not undirected, its size does not fit, or
            weights are asymmetric, negative or not finite.
    """
    validate_args = validate_args and can_read_values()
    if isinstance(edge_index, Topology):
        topology = edge_index
        columns = topology.num_edges
        if topology.num_nodes != num_nodes:
            raise ValueError(
                f"'edge_index' is a topology of {topology.num_nodes} nodes, "
                f"but 'x' has {num_nodes} rows"
            )
    else:
        key = edge_index
        edge_index, edge_weight = read_edges(key, edge_weight)
        if isinstance(key, SparseTensor):
            _check_square(tuple(key.sparse_sizes()), num_nodes)
            topology = Topology.from_edge_index(
                edge_index, num_nodes, validate_args
            )
        else:
            if is_torch_sparse_tensor(key):
                _check_square(tuple(key.shape), num_nodes)
            topology = _cached_topology(
                key, edge_index, num_nodes, validate_args
            )
        columns = 2 * topology.num_edges

    if edge_weight is None:
        weight = torch.ones(
            (topology.num_edges, 1), dtype=dtype, device=topology.device
        )
        return topology, weight

    check_edge_weight(edge_weight, columns)
    if not edge_weight.is_floating_point():
        edge_weight = edge_weight.to(dtype)
    if isinstance(edge_index, Topology):
        weight = edge_weight
        if weight.dim() == 1:
            weight = weight.unsqueeze(-1)
    else:
        # How symmetric they are is a matter of the type they were made in.
        weight = topology.undirected_weight(edge_weight, validate_args)
    weight = weight.to(dtype)
    if validate_args and weight.numel() > 0:
        _check_weights(topology, weight.detach())
    return topology, weight


def _check_square(shape: tuple[int, ...], num_nodes: int) -> None:
    if shape != (num_nodes, num_nodes):
        raise ValueError(
            f"'edge_index' is a sparse matrix of shape {list(shape)}, but 'x' "
            f'has {num_nodes} rows'
        )


def _check_weights(topology: Topology, weight: Tensor) -> None:
    # Comparisons with NaN are false, hence the form of the test.
    if bool((weight.amin() >= 0) & (weight.amax() < float('inf'))):
        return
    bad = ~((weight >= 0) & (weight < float('inf')))
    e, h = (int(k) for k in bad.nonzero()[0])
    raise ValueError(
        f"'edge_weight' must be finite and non-negative (got "
        f'{float(weight[e, h])} for edge ({int(topology.src[e])}, '
        f"{int(topology.dst[e])})); use a kernel such as 'exp(-distance)'"
    )
