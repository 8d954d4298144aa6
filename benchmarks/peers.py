"""Peers of the operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from pyg_unroll import Topology, ops

try:
    from torch_sparse import SparseTensor
except (ImportError, OSError):
    SparseTensor = None

warnings.filterwarnings('ignore', message='Sparse')

Function = Callable[[Tensor, Tensor], Tensor]


class DifferenceConv(MessagePassing):
    """The Laplacian as PyG's users write it: `sum_j w_ij (x_i - x_j)`."""

    def __init__(self) -> None:
        super().__init__(aggr='add', node_dim=0)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor
    ) -> Tensor:
        """Applies it to `[N, F, H]` with weights `[2E, H]`."""
        return self.propagate(edge_index, x=x, edge_weight=edge_weight)

    def message(self, x_i: Tensor, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """Weighs the difference."""
        return edge_weight.unsqueeze(1) * (x_i - x_j)


class EdgeConv(MessagePassing):
    """Edge signals in PyG: gradient, divergence, products of differences."""

    def __init__(self) -> None:
        super().__init__(aggr='add', node_dim=0)

    def gradient(
        self, x: Tensor, edge_index: Tensor, weight: Tensor | None
    ) -> Tensor:
        """(Weighted) differences, both directions, `[2E, F, H]`."""
        return self.edge_updater(edge_index, a=x, weight=weight)

    def dot(self, a: Tensor, b: Tensor, edge_index: Tensor) -> Tensor:
        """`sum_f (a_i - a_j) (b_i - b_j)`, both directions, `[2E, H]`."""
        difference = self.gradient(a, edge_index, None)
        other = self.gradient(b, edge_index, None)
        return (difference * other).sum(1)

    def divergence(
        self, z: Tensor, edge_index: Tensor, weight: Tensor, num_nodes: int
    ) -> Tensor:
        """The adjoint of the gradient for antisymmetric edge signals."""
        size = (num_nodes, num_nodes)
        return self.propagate(edge_index, z=z, weight=weight, size=size)

    def edge_update(
        self, a_i: Tensor, a_j: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Difference of the endpoints."""
        difference = a_i - a_j
        return difference if weight is None else weight[:, None] * difference

    def message(self, z: Tensor, weight: Tensor) -> Tensor:
        """Weighs the edge signal."""
        return weight.unsqueeze(1) * z


@dataclass(frozen=True)
class Peer:
    """One implementation of an operator, with operands in its own layout.

    Attributes:
        forward: Applies it.
        differentiable: Applies it to `operands`, gradients included.
        operands: The operands of the derivative.
        read: Brings what it returns to the layout of `pyg_unroll.ops`.
    """

    forward: Callable[[], Tensor]
    differentiable: Function | None = None
    operands: tuple[Tensor, ...] = ()
    read: Callable[[Tensor], Tensor] = field(default=lambda out: out)

    def train(self) -> tuple[Tensor, ...]:
        """Forward and backward, given a gradient of the result."""
        assert self.differentiable is not None
        leaves = [
            operand.detach().requires_grad_() for operand in self.operands
        ]
        out = self.differentiable(*leaves)
        return torch.autograd.grad(out, leaves, out.detach())


def laplacian_peers(
    topology: Topology, edge_index: Tensor, weight: Tensor, x: Tensor
) -> dict[str, Peer]:
    """The Laplacian by everyone who can compute it, ours first."""
    both = topology.directed_weight(weight)
    conv = DifferenceConv()
    peers = {
        'pyg_unroll': Peer(
            lambda: ops.laplacian(topology, weight, x),
            lambda w, a: ops.laplacian(topology, w, a),
            (weight, x),
        ),
        'PyG': Peer(
            lambda: conv(x, edge_index, both),
            lambda w, a: conv(a, edge_index, w),
            (both, x),
        ),
        'torch CSR': _folded(topology, weight, x, False),
    }
    if SparseTensor is not None:
        peers['torch_sparse'] = _folded(topology, weight, x, True)
    if x.device.type == 'cpu':
        peers['SciPy'] = _scipy(topology, weight, x)
    return peers


def edge_dot_peers(
    topology: Topology, edge_index: Tensor, a: Tensor, b: Tensor
) -> dict[str, Peer]:
    """Products of differences by everyone who can compute them."""
    conv, (src, dst) = EdgeConv(), (topology.src, topology.dst)
    first = topology.entry[:, 0]
    return {
        'pyg_unroll': Peer(lambda: ops.edge_dot(topology, a, b)),
        'PyG': Peer(
            lambda: conv.dot(a, b, edge_index), read=lambda z: z[first]
        ),
        'torch gather': Peer(
            lambda: ((a[src] - a[dst]) * (b[src] - b[dst])).sum(1)
        ),
    }


class CSRLaplacian(torch.autograd.Function):
    """`deg * x - A x` with a derivative by hand.

    That of PyTorch by the values of a CSR matrix makes it dense.
    """

    @staticmethod
    def forward(ctx: Any, graph: Any, value: Tensor, x: Tensor) -> Tensor:
        """Builds the matrix and its degrees, and applies it."""
        rowptr, col, row, size = graph
        matrix = _csr(rowptr, col, value, size)
        degree = value.new_zeros(size).index_add(0, row, value).unsqueeze(1)
        ctx.graph, ctx.matrix, ctx.degree = graph, matrix, degree
        ctx.save_for_backward(x)
        return degree * x - matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        """The matrix is symmetric."""
        _, col, row, _ = ctx.graph
        (x,) = ctx.saved_tensors
        grad_value = (grad[row] * (x[row] - x[col])).sum(1)
        return None, grad_value, ctx.degree * grad - ctx.matrix @ grad


def _csr(rowptr: Tensor, col: Tensor, value: Tensor, size: int) -> Tensor:
    return torch.sparse_csr_tensor(rowptr, col, value, (size, size))


def _sparse_tensor(
    rowptr: Tensor, col: Tensor, value: Tensor, size: int
) -> Any:
    return SparseTensor(
        rowptr=rowptr.long(),
        col=col.long(),
        value=value,
        sparse_sizes=(size, size),
        is_sorted=True,
        trust_data=True,
    )


def _folded(topology: Topology, weight: Tensor, x: Tensor, own: bool) -> Peer:
    """`deg * x - A x`, the heads as blocks on the diagonal of `A`.

    By torch_sparse, with its own derivative, or by PyTorch's CSR.
    """
    num_nodes, features, heads = x.shape
    entries, size = topology.col.numel(), heads * num_nodes
    shift = torch.arange(heads, device=x.device).unsqueeze(1)
    starts = (topology.rowptr[:-1] + shift * entries).flatten()
    rowptr = torch.cat([starts, starts.new_tensor([heads * entries])]).int()
    col = (topology.col + shift * num_nodes).flatten().int()
    row = torch.arange(size, device=x.device).int()
    row = row.repeat_interleave(rowptr.diff())
    value = weight[topology.edge_id].t().flatten()
    dense = x.permute(2, 0, 1).reshape(-1, features).contiguous()
    zeros = value.new_zeros(size)
    degree = zeros.index_add(0, row, value).unsqueeze(1)
    matrix = (_sparse_tensor if own else _csr)(rowptr, col, value, size)

    def differentiable(value: Tensor, x: Tensor) -> Tensor:
        if not own:
            graph = rowptr, col, row, size
            return CSRLaplacian.apply(graph, value, x)
        degree = zeros.index_add(0, row, value).unsqueeze(1)
        return degree * x - _sparse_tensor(rowptr, col, value, size) @ x

    return Peer(
        lambda: degree * dense - matrix @ dense,
        differentiable,
        (value, dense),
        lambda out: out.view(heads, num_nodes, features).permute(1, 2, 0),
    )


def _scipy(topology: Topology, weight: Tensor, x: Tensor) -> Peer:
    """`deg * x - A x`, head by head."""
    from scipy.sparse import csr_array

    rowptr, col = topology.rowptr.numpy(), topology.col.numpy()
    size = (topology.num_nodes, topology.num_nodes)
    heads = []
    for h in range(x.size(2)):
        value = weight[topology.edge_id, h].contiguous().numpy()
        matrix = csr_array((value, col, rowptr), shape=size)
        degree = matrix.sum(1)[:, None]
        heads.append((matrix, degree, x[:, :, h].contiguous().numpy()))
    return Peer(
        lambda: [degree * x - matrix @ x for matrix, degree, x in heads],
        read=lambda out: torch.stack([torch.from_numpy(o) for o in out], -1),
    )
