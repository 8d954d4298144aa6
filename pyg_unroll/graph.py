"""The undirected graph: one edge set, from any of PyG's layouts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_sparse, to_edge_index

from pyg_unroll import checks


def index_type(num_nodes: int, num_edges: int) -> torch.dtype:
    """The smaller type of integers that holds all indices of a graph."""
    is_small = max(2 * num_edges, num_nodes) < 2**31
    return torch.int32 if is_small else torch.int64


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    r"""One undirected edge set, in the forms that the graph operators need.

    Each unordered pair :math:`\{i, j\}`, :math:`i < j`, is stored once, so
    that an edge signal has :math:`E` rows where PyG's :obj:`edge_index` has
    :math:`2E` columns. Layers build the topology from an :obj:`edge_index`
    and remember it; pass one in place of :obj:`edge_index` to skip that, to
    give weights once per undirected edge, and under :meth:`torch.compile`.

    Attributes:
        num_nodes (int): Number of nodes :math:`N`.
        src (torch.Tensor): Smaller endpoint of each edge, int32
            :math:`(E)`.
        dst (torch.Tensor): Larger endpoint of each edge, int32 :math:`(E)`.
        rowptr (torch.Tensor): CSR row pointer over both directions, int32
            :math:`(N + 1)`.
        col (torch.Tensor): Neighbour of each CSR entry, int32 :math:`(2E)`.
        edge_id (torch.Tensor): Undirected edge of each CSR entry, int32
            :math:`(2E)`.
        columns (torch.Tensor, optional): The two columns of the original
            :obj:`edge_index` that hold each edge, int64 :math:`(E, 2)`;
            :obj:`None` where its columns are the CSR entries in order.
        grid (tuple[int, ...]): Of a pixel grid: height, width and the
            positive half of the window as (row, column) offsets in ascending
            order; the pixels of several images of this shape may follow each
            other, and edges are sorted by (src, dst). Empty for other graphs.
    """

    num_nodes: int
    src: Tensor
    dst: Tensor
    rowptr: Tensor
    col: Tensor
    edge_id: Tensor
    columns: Tensor | None = None
    grid: tuple[int, ...] = ()

    @property
    def num_edges(self) -> int:
        """Number of undirected edges."""
        return self.src.size(0)

    @property
    def device(self) -> torch.device:
        """Device of the index tensors."""
        return self.src.device

    @property
    def sign(self) -> Tensor:
        r""":math:`+1` where the row of a CSR entry is the edge's :attr:`src`,
        :math:`-1` where it is its :attr:`dst`, float32 :math:`(2E)`.
        """
        return 1.0 - 2.0 * self._is_back.float()

    @property
    def _is_back(self) -> Tensor:
        return self.dst.index_select(0, self.edge_id) != self.col

    @property
    def entry(self) -> Tensor:
        r"""The two columns of the original :obj:`edge_index` that hold each
        edge, int64 :math:`(E, 2)`.
        """
        if self.columns is not None:
            return self.columns
        out = self.src.new_empty((self.num_edges, 2), dtype=torch.long)
        place = 2 * self.edge_id.long() + self._is_back
        out.view(-1)[place] = torch.arange(place.size(0), device=self.device)
        return out

    def pack(self) -> tuple[list[Tensor], list[int]]:
        """Returns tensors and numbers, as registered operators take them."""
        tensors = [self.src, self.dst, self.rowptr, self.col, self.edge_id]
        tensors += [] if self.columns is None else [self.columns]
        # PyTorch takes an empty list for one of tensors, hence the zero.
        return tensors, list(self.grid) or [0]

    @classmethod
    def unpack(cls, tensors: Sequence[Tensor], grid: Sequence[int]) -> Self:
        """The inverse of :meth:`pack`."""
        src, dst, rowptr, col, edge_id, *columns = tensors
        own = tuple(grid) if any(grid) else ()
        rest = columns[0] if columns else None, own
        return cls(rowptr.size(0) - 1, src, dst, rowptr, col, edge_id, *rest)

    @property
    def edge_index(self) -> Tensor:
        r"""Both directions as int64 :math:`(2, 2E)`, in the original order."""
        out = self.src.new_empty((2, 2 * self.num_edges), dtype=torch.long)
        if self.columns is None:
            nodes = torch.arange(self.num_nodes, device=self.device)
            count = self.rowptr.diff()
            out[0] = nodes.repeat_interleave(count, output_size=out.size(1))
            out[1] = self.col
            return out
        out[:, self.columns[:, 0]] = torch.stack([self.src, self.dst]).long()
        out[:, self.columns[:, 1]] = torch.stack([self.dst, self.src]).long()
        return out

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, num_nodes: int, validate_args: bool = True
    ) -> Self:
        r"""Builds the topology of an undirected graph.

        Args:
            edge_index (torch.Tensor or EdgeIndex): Both directions of every
                edge, in any order, :math:`(2, 2E)`.
            num_nodes (int): Number of nodes.
            validate_args (bool, optional): Check that the graph is
                undirected, without self-loops or duplicate edges.
                (default: :obj:`True`)

        Raises:
            ValueError: If an index is out of range, or an edge is a
                self-loop, a duplicate or lacks its reverse; the message names
                the edge.
        """
        checks.check_tensor('edge_index', edge_index, '[2, num_edges]')
        if isinstance(edge_index, EdgeIndex):
            edge_index = edge_index.as_tensor()
        if validate_args:
            checks.check_edge_index(edge_index, num_nodes)
        edge_index = edge_index.long().contiguous()
        row, col = edge_index
        key = row * num_nodes + col
        if checks.can_read_values() and bool((key[1:] > key[:-1]).all()):
            is_edge = row < col
            src, dst = row[is_edge], col[is_edge]
            topology = cls.from_sorted_pairs(src, dst, num_nodes)
            if torch.equal(topology.edge_index, edge_index):
                return topology
        low, high = torch.minimum(row, col), torch.maximum(row, col)
        # The two directions of an edge follow each other, that from the
        # smaller end first.
        key = 2 * (low * num_nodes + high) + (row > col)
        key, order = torch.sort(key, stable=True)
        if validate_args and key.numel() > 0:
            checks.check_pairs(key, edge_index, order)
        columns = order.view(-1, 2)
        first = columns[:, 0]
        topology = cls.from_sorted_pairs(row[first], col[first], num_nodes)
        return replace(topology, columns=columns)

    @classmethod
    def from_pairs(cls, src: Tensor, dst: Tensor, num_nodes: int) -> Self:
        r"""Builds the topology of unordered pairs that need no check.

        Args:
            src (torch.Tensor): Smaller endpoints :math:`(E)`.
            dst (torch.Tensor): Larger endpoints :math:`(E)`, each pair
                once, :obj:`src < dst`.
            num_nodes (int): Number of nodes.

        Its :attr:`edge_index` is sorted by row, then column.
        """
        order = (src.long() * num_nodes + dst).argsort()
        topology = cls.from_sorted_pairs(src[order], dst[order], num_nodes)
        index = topology.src.dtype
        edge_id = order.to(index)[topology.edge_id]
        return replace(
            topology, src=src.to(index), dst=dst.to(index), edge_id=edge_id
        )

    @classmethod
    def from_sorted_pairs(
        cls, src: Tensor, dst: Tensor, num_nodes: int
    ) -> Self:
        """The same of pairs sorted by :obj:`src`, then :obj:`dst`."""
        index, device = index_type(num_nodes, src.size(0)), src.device
        src, dst = src.to(index).contiguous(), dst.to(index)
        ends, order = torch.sort(dst, stable=True)
        nodes = torch.arange(num_nodes + 1, device=device, dtype=index)
        starts_before = torch.searchsorted(src, nodes).to(index)
        ends_before = torch.searchsorted(ends, nodes).to(index)
        edge = torch.arange(src.size(0), device=device, dtype=index)
        col, edge_id = (src.new_empty(2 * src.size(0)) for _ in range(2))
        # The columns of a row: first the edges that end there, smaller ones,
        # then those that start there.
        place = (edge + starts_before.index_select(0, ends)).long()
        col[place], edge_id[place] = src[order], order.to(index)
        place = (edge + ends_before[1:].index_select(0, src)).long()
        col[place], edge_id[place] = dst, edge
        rowptr = starts_before + ends_before
        return cls(num_nodes, src, dst, rowptr, col, edge_id)

    def to(
        self, device: torch.device | str, non_blocking: bool = False
    ) -> Self:
        """Moves the index tensors to a device."""
        tensors, grid = self.pack()
        moved = [x.to(device, non_blocking=non_blocking) for x in tensors]
        return self.unpack(moved, grid)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_nodes={self.num_nodes}, '
            f'num_edges={self.num_edges})'
        )

    # As PyG's data call it: a graph in `data.edge_index` goes where data go.
    def cuda(self, device: Any = None, non_blocking: bool = False) -> Self:
        """Moves the index tensors to a CUDA device."""
        return self.to('cuda' if device is None else device, non_blocking)

    def cpu(self) -> Self:
        """Moves the index tensors to the CPU."""
        return self.to('cpu')

    def undirected_weight(
        self, edge_weight: Tensor, validate_args: bool = True
    ) -> Tensor:
        r"""Weights per column of :obj:`edge_index` to weights per edge.

        The mean of both directions, so that gradients stay symmetric.

        Args:
            edge_weight (torch.Tensor): Symmetric weights :math:`(2E)` or
                :math:`(2E, H)`.
            validate_args (bool, optional): Check for symmetry.
                (default: :obj:`True`)

        Returns:
            Weights :math:`(E, H)` (:math:`H = 1` for a vector).

        Raises:
            ValueError: If the shape does not fit or the weights are not
                symmetric.
        """
        dtype = torch.get_default_dtype()
        weight = _rows(edge_weight, 2 * self.num_edges, dtype)
        return self._mean_of_directions(weight, validate_args)

    def _mean_of_directions(
        self, edge_weight: Tensor, validate_args: bool
    ) -> Tensor:
        pairs = edge_weight[self.entry]
        value = pairs.detach()
        if validate_args and not torch.equal(value[:, 0], value[:, 1]):
            rtol = torch.finfo(edge_weight.dtype).eps ** 0.5
            error = (value[:, 0] - value[:, 1]).abs()
            # NaN in both directions is left to the check for finite weights.
            bad = (error > rtol * value.abs().amax(1)).any(-1)
            if bad.any():
                e = int(bad.nonzero()[0])
                i, j = int(self.src[e]), int(self.dst[e])
                raise ValueError(
                    f"'edge_weight' is not symmetric: edge ({i}, {j}) has "
                    f'{value[e, 0].tolist()} in one direction and '
                    f'{value[e, 1].tolist()} in the other. Graph-Laplacian '
                    f'layers need an undirected graph: average both '
                    f"directions with 'torch_geometric.utils.to_undirected("
                    f'edge_index, edge_weight, reduce="mean")\', and use '
                    f"'sym' or no normalization for learned graphs"
                )
        return pairs.mean(1)

    def directed_weight(self, weight: Tensor) -> Tensor:
        r"""Weights per edge to weights per column of :obj:`edge_index`.

        Args:
            weight (torch.Tensor): One row per undirected edge,
                :math:`(E, *)`.

        Returns:
            One row per column of :attr:`edge_index`, :math:`(2E, *)`.
        """
        if weight.size(0) != self.num_edges:
            raise ValueError(
                f"'weight' must have {self.num_edges} rows, one per undirected "
                f'edge (got {list(weight.shape)})'
            )
        if self.columns is None:
            return weight.index_select(0, self.edge_id)
        edge_of = torch.empty_like(self.columns.view(-1))
        edge_of[self.columns.view(-1)] = torch.arange(
            self.num_edges, device=self.device
        ).repeat_interleave(2)
        return weight.index_select(0, edge_of)


class _Remembered(NamedTuple):
    topology: Topology
    edge_index: Tensor
    version: int
    is_checked: bool


# Topologies by the identity of the `edge_index` that they were built from, so
# that a stack of layers sorts its edges once. An entry dies with its key and
# counts only while the key still holds the same numbers.
_REMEMBERED: Any = WeakIdKeyDictionary()


def remember_topology(
    key: Tensor,
    topology: Topology,
    edge_index: Tensor | None = None,
    is_checked: bool = True,
) -> None:
    """Remembers which topology an :obj:`edge_index` or a matrix stands for."""
    if not key.is_inference():  # such tensors count no changes
        copy = (key if edge_index is None else edge_index).detach().clone()
        _REMEMBERED[key] = _Remembered(topology, copy, key._version, is_checked)


def _topology_of(
    key: Tensor, edge_index: Tensor, num_nodes: int, validate_args: bool
) -> Topology:
    """Builds the topology of a tensor with these edges, or finds it again."""
    if torch.compiler.is_compiling():
        return Topology.from_edge_index(edge_index, num_nodes, False)
    if checks.is_batched(edge_index):
        raise ValueError(
            "'edge_index' must be one graph for all samples of 'torch.vmap'; "
            'give it as it is, not along a mapped dimension'
        )
    known = None if key.is_inference() else _REMEMBERED.get(key)
    if (
        known is not None
        and known.topology.num_nodes == num_nodes
        and known.version == key._version
        and (known.is_checked or not validate_args)
    ):
        # NumPy and others write past PyTorch's count of changes.
        if not checks.can_read_values() or torch.equal(
            known.edge_index, edge_index
        ):
            return known.topology
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False):
        build = Topology.from_edge_index
        topology = build(edge_index, num_nodes, validate_args)
    remember_topology(key, topology, edge_index, validate_args)
    return topology


def edges_of(data: Data) -> Any:
    """The graph of data, in whichever attribute and layout; or None."""
    edges = data.get('edge_index')
    return data.get('adj_t') if edges is None else edges


def required_edges(data: Data, cure: str) -> Any:
    """The same, or a `ValueError` that names the cure."""
    edges = edges_of(data)
    if edges is None:
        raise ValueError(f"'data' has no 'edge_index'; {cure}")
    return edges


def read_edges(
    graph: Any, edge_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Indices and weights, those of a matrix if None are given, of any of
    PyG's graph layouts, not yet checked.
    """
    if isinstance(graph, SparseTensor):
        row, col, value = graph.coo()
        edge_index = torch.stack([row, col])
    elif is_sparse(graph):
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
    r"""Brings any PyG graph layout into a topology and weights :math:`(E, H)`,
    all ones if there are none.

    Raises a `ValueError` if the graph is not undirected, its size does not fit,
    or weights are asymmetric, negative or not finite. Values are not checked
    under :meth:`torch.compile` and in a CUDA graph, and those of weights not
    where :func:`torch.vmap` maps over them.
    """
    validate_args = validate_args and checks.can_read_values()
    if isinstance(edge_index, Topology):
        topology = edge_index
        if topology.num_nodes != num_nodes:
            raise ValueError(
                f"'edge_index' is a topology of {topology.num_nodes} nodes, "
                f"but 'x' has {num_nodes} rows"
            )
    else:
        key = edge_index
        edge_index, edge_weight = read_edges(key, edge_weight)
        if is_sparse(key):
            is_own = isinstance(key, SparseTensor)  # of PyG, no tensor
            shape = list(key.sparse_sizes() if is_own else key.shape)
            if shape != [num_nodes, num_nodes]:
                raise ValueError(
                    f"'edge_index' is a sparse matrix of shape {shape}, but "
                    f"'x' has {num_nodes} rows"
                )
            key = edge_index if is_own else key
        topology = _topology_of(key, edge_index, num_nodes, validate_args)
    num_edges = topology.num_edges
    validate_args = validate_args and checks.can_read_values(edge_weight)
    if edge_weight is None:
        weight = torch.ones((num_edges, 1), dtype=dtype, device=topology.device)
        return topology, weight
    if topology is edge_index:
        weight = _rows(edge_weight, num_edges, dtype).to(dtype)
    else:
        # How symmetric they are is a matter of the type they were made in.
        weight = _rows(edge_weight, 2 * num_edges, dtype)
        weight = topology._mean_of_directions(weight, validate_args).to(dtype)
    if validate_args:
        checks.check_weights('edge_weight', weight, topology.src, topology.dst)
    return topology, weight


def _rows(edge_weight: Any, count: int, dtype: torch.dtype) -> Tensor:
    """Floating-point weights `[count, H]`, integers in the given type."""
    checks.check_edge_weight(edge_weight, count)
    weight: Tensor = edge_weight
    weight = weight if weight.is_floating_point() else weight.to(dtype)
    return weight.unsqueeze(-1) if weight.dim() == 1 else weight
