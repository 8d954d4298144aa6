"""The undirected edge set that all graph operators share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from pyg_unroll.checks import (
    check_edge_index,
    check_edge_weight,
    check_pairs,
    check_tensor,
)


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
        sign (torch.Tensor): :math:`+1` where the row is the edge's
            :attr:`src`, :math:`-1` where it is its :attr:`dst`, float32
            :math:`(2E)`.
        entry (torch.Tensor): The two columns of the original
            :obj:`edge_index` that hold each edge, int64 :math:`(E, 2)`.
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
    sign: Tensor
    entry: Tensor
    grid: tuple[int, ...] = ()

    @property
    def num_edges(self) -> int:
        """Number of undirected edges."""
        return self.src.size(0)

    @property
    def device(self) -> torch.device:
        """Device of the index tensors."""
        return self.src.device

    def pack(self) -> tuple[list[Tensor], list[int]]:
        """Returns tensors and numbers, as registered operators take them."""
        tensors = [self.src, self.dst, self.rowptr, self.col, self.edge_id]
        # PyTorch takes an empty list for one of tensors, hence the zero.
        return [*tensors, self.sign, self.entry], list(self.grid) or [0]

    @classmethod
    def unpack(cls, tensors: Sequence[Tensor], grid: Sequence[int]) -> Topology:
        """The inverse of :meth:`pack`."""
        src, dst, rowptr, col, edge_id, sign, entry = tensors
        return cls(
            num_nodes=rowptr.size(0) - 1,
            src=src,
            dst=dst,
            rowptr=rowptr,
            col=col,
            edge_id=edge_id,
            sign=sign,
            entry=entry,
            grid=tuple(grid) if len(grid) > 1 else (),
        )

    @property
    def edge_index(self) -> Tensor:
        r"""Both directions as int64 :math:`(2, 2E)`, in the original order."""
        out = self.src.new_empty((2, 2 * self.num_edges), dtype=torch.long)
        out[:, self.entry[:, 0]] = torch.stack([self.src, self.dst]).long()
        out[:, self.entry[:, 1]] = torch.stack([self.dst, self.src]).long()
        return out

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int,
        validate_args: bool = True,
    ) -> Topology:
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
        check_tensor('edge_index', edge_index, '[2, num_edges]')
        if isinstance(edge_index, EdgeIndex):
            edge_index = edge_index.as_tensor()
        if validate_args:
            check_edge_index(edge_index, num_nodes)
        row, col = edge_index.long()
        low, high = torch.minimum(row, col), torch.maximum(row, col)
        # The two directions of an edge become neighbours in sorted order.
        key = low * num_nodes + high
        key, order = torch.sort(key, stable=True)
        if validate_args:
            check_pairs(key, row[order] < col[order], num_nodes)
        pair = order.view(-1, 2)
        forward = (row < col)[pair]
        # The column i -> j with i < j comes first.
        entry = torch.where(forward[:, :1], pair, pair.flip(1))
        src, dst = row[entry[:, 0]], col[entry[:, 0]]
        return cls._build(src, dst, num_nodes, entry)

    @classmethod
    def from_pairs(cls, src: Tensor, dst: Tensor, num_nodes: int) -> Topology:
        r"""Builds the topology of unordered pairs that need no check.

        Args:
            src (torch.Tensor): Smaller endpoints :math:`(E)`.
            dst (torch.Tensor): Larger endpoints :math:`(E)`, each pair
                once, :obj:`src < dst`.
            num_nodes (int): Number of nodes.

        Its :attr:`edge_index` is sorted by row, then column.
        """
        return cls._build(src.long(), dst.long(), num_nodes, None)

    @classmethod
    def _build(
        cls, src: Tensor, dst: Tensor, num_nodes: int, entry: Tensor | None
    ) -> Topology:
        num_edges = src.size(0)
        row, col = torch.cat([src, dst]), torch.cat([dst, src])
        order = torch.argsort(row * num_nodes + col)
        index = index_type(num_nodes, num_edges)
        nodes = torch.arange(num_nodes + 1, device=row.device)
        # Columns smaller than the row come first, as the row is then `dst`.
        edge_id = torch.where(order < num_edges, order, order - num_edges)
        if entry is None:
            rank = torch.empty_like(order)
            rank[order] = torch.arange(2 * num_edges, device=row.device)
            entry = torch.stack([rank[:num_edges], rank[num_edges:]], dim=1)
        return cls(
            num_nodes=num_nodes,
            src=src.to(index),
            dst=dst.to(index),
            rowptr=torch.searchsorted(row[order], nodes).to(index),
            col=col[order].to(index),
            edge_id=edge_id.to(index),
            sign=1.0 - 2.0 * (order >= num_edges).float(),
            entry=entry,
        )

    def to(
        self, device: torch.device | str, non_blocking: bool = False
    ) -> Topology:
        """Moves the index tensors to a device."""
        tensors, grid = self.pack()
        moved = [x.to(device, non_blocking=non_blocking) for x in tensors]
        return Topology.unpack(moved, grid)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_nodes={self.num_nodes}, '
            f'num_edges={self.num_edges})'
        )

    # As PyG's data call it: a graph in `data.edge_index` goes where data go.
    def cuda(
        self,
        device: torch.device | str | None = None,
        non_blocking: bool = False,
    ) -> Topology:
        """Moves the index tensors to a CUDA device."""
        return self.to('cuda' if device is None else device, non_blocking)

    def cpu(self) -> Topology:
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
        check_edge_weight(edge_weight, 2 * self.num_edges)
        if not edge_weight.is_floating_point():
            edge_weight = edge_weight.to(torch.get_default_dtype())
        if edge_weight.dim() == 1:
            edge_weight = edge_weight.unsqueeze(-1)
        pairs = edge_weight[self.entry]
        if validate_args and self.num_edges > 0:
            rtol = torch.finfo(edge_weight.dtype).eps ** 0.5
            value = pairs.detach()
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
        edge_of = torch.empty_like(self.entry.view(-1))
        edge_of[self.entry.view(-1)] = torch.arange(
            self.num_edges, device=self.device
        ).repeat_interleave(2)
        return weight.index_select(0, edge_of)
