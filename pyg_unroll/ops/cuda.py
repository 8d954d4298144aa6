"""The CUDA backend: Triton kernels of :mod:`.cuda_kernels` and
:mod:`.cuda_steps`.

The kernels also run on CPU tensors in Triton's interpreter, for tests, if
:obj:`TRITON_INTERPRET=1` is in the environment before Triton is imported.
Half precision is accumulated in float32. Results are deterministic.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops import cuda_kernels as kernels
from pyg_unroll.ops import cuda_steps as steps
from pyg_unroll.ops.reference import accumulate_type

# Numbers of a tile: a few for each of the 128 threads of four warps.
_TILE = 1024
# Most rows of a tile: as many as threads.
_ROWS = 128
# Most lanes of a tile; longer rows are cut.
_LANES = 256


class _Launch:
    """Cuts rows of features and heads into tiles, and runs a kernel on them.

    Args:
        rows (int): Number of nodes or edges.
        features (int): Number of features.
        heads (int): Number of heads.
        *tensors (torch.Tensor): All that is given to the kernel in floating
            point; their sizes tell whether offsets fit in 32 bits.
    """

    def __init__(
        self, rows: int, features: int, heads: int, *tensors: Tensor
    ) -> None:
        block_h = min(triton.next_power_of_2(max(heads, 1)), _LANES)
        block_f = triton.next_power_of_2(max(features, 1))
        block_f = min(block_f, _LANES // block_h)
        block = min(_TILE // (block_f * block_h), _ROWS)
        self.shape = rows, features
        self.programs = triton.cdiv(rows, block)
        self.firsts = range(0, features, block_f)
        self.head_blocks = triton.cdiv(heads, block_h)
        self.device_of = tensors[0]
        self.accumulate = accumulate_type(tensors[0].dtype)
        is_wide = max(tensor.numel() for tensor in tensors) >= 2**31
        is_double = self.accumulate == torch.float64
        self.meta = {
            'HEADS': heads,
            'BLOCK': block,
            'BF': block_f,
            'BH': block_h,
            'INDEX': tl.int64 if is_wide else tl.int32,
            'ACC': tl.float64 if is_double else tl.float32,
            'num_warps': 4,
        }

    def _run(
        self, kernel: Any, blocks: int, *arguments: Any, **meta: bool
    ) -> None:
        grid = (self.programs, blocks, self.head_blocks)
        if 0 in grid:
            return
        with torch.cuda.device_of(self.device_of):
            kernel[grid](*arguments, **meta, **self.meta)

    def __call__(self, kernel: Any, *arguments: Any, **meta: bool) -> None:
        """Runs a kernel that cuts the features itself."""
        blocks = len(self.firsts)
        self._run(kernel, blocks, *arguments, *self.shape, **meta)

    def whole(self, kernel: Any, *arguments: Any, **meta: bool) -> None:
        """Runs a kernel that walks over all features of a row."""
        self._run(kernel, 1, *arguments, *self.shape, **meta)

    def sums(
        self, kernel: Any, count: int, *arguments: Any, **meta: bool
    ) -> Tensor:
        """Runs a kernel that also adds to one number for each edge and head.

        One block of features after the other, as they add to the same.

        Returns:
            The sums over nodes and features, :math:`(count, H)`.
        """
        heads = self.meta['HEADS']
        partial = self.device_of.new_zeros(
            (len(self.firsts), self.programs, count, heads),
            dtype=self.accumulate,
        )
        for k, first in enumerate(self.firsts):
            rest = (partial[k], *self.shape, first)
            self._run(kernel, 1, *arguments, *rest, **meta)
        return partial.sum((0, 1))


def _csr(graph: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    return graph.rowptr, graph.col, graph.edge_id


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _check_in_place(*tensors: Tensor | None) -> None:
    # A copy would take what the kernel writes.
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous()


def _diagonals(
    diagonal: Tensor, confidence: Tensor | None, heads: int
) -> tuple[tuple[Tensor, Tensor | None], dict[str, bool]]:
    """Expands to all heads and tells which are shared by all features."""

    def expand(value: Tensor) -> Tensor:
        return value.expand(-1, -1, heads).contiguous()

    diagonal = expand(diagonal)
    confidence = None if confidence is None else expand(confidence)
    meta = {
        'SHARED_DIAGONAL': diagonal.size(1) == 1,
        'HAS_CONFIDENCE': confidence is not None,
        'SHARED_CONFIDENCE': confidence is None or confidence.size(1) == 1,
    }
    return (diagonal, confidence), meta


def to_edges(graph: Arrays, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_edges`."""
    (x,) = _contiguous(x)
    num_edges, width = graph.src.size(0), x.shape[1:].numel()
    out = x.new_empty((num_edges, *x.shape[1:]))
    launch = _Launch(num_edges, width, 1, x, out)
    launch(kernels.to_edges, graph.src, graph.dst, x, out, SIGNED=signed)
    return out


def to_nodes(graph: Arrays, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_nodes`."""
    (z,) = _contiguous(z)
    num_nodes, width = graph.rowptr.size(0) - 1, z.shape[1:].numel()
    out = z.new_empty((num_nodes, *z.shape[1:]))
    launch = _Launch(num_nodes, width, 1, z, out)
    rest = (graph.edge_id, graph.sign, z, out)
    launch(kernels.to_nodes, graph.rowptr, *rest, SIGNED=signed)
    return out


def laplacian(graph: Arrays, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.laplacian`."""
    weight, x = _contiguous(weight, x)
    out = torch.empty_like(x)
    launch = _Launch(*x.shape, x, weight)
    launch(kernels.laplacian, *_csr(graph), weight, x, out)
    return out


def edge_dot(graph: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.edge_dot`."""
    a, b = _contiguous(a, b)
    out = a.new_empty((graph.src.size(0), a.size(2)))
    launch = _Launch(out.size(0), *a.shape[1:], a, out)
    launch.whole(kernels.edge_dot, graph.src, graph.dst, a, b, out)
    return out


def cg_step(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    residual: Tensor,
    direction: Tensor,
    alpha: Tensor,
    beta: Tensor,
    alpha_next: Tensor,
) -> Tensor:
    """See :func:`.reference.cg_step`."""
    _check_in_place(x, residual)
    weight, direction = _contiguous(weight, direction)
    diagonals, meta = _diagonals(diagonal, confidence, x.size(2))
    out = torch.empty_like(direction)
    scalars = _contiguous(alpha, beta, alpha_next)
    arrays = (weight, *diagonals, x, residual, direction, out, *scalars)
    launch = _Launch(*x.shape, x, weight)
    launch(steps.cg_step, *_csr(graph), *arrays, **meta)
    return out


def cg_step_backward(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    q: Tensor,
    direction: Tensor,
    previous: Tensor | None,
    grad_direction: Tensor,
    grad_x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    beta_previous: Tensor,
    grad_weight: Tensor,
    sum_diagonal: Tensor,
    sum_confidence: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`.reference.cg_step_backward`."""
    _check_in_place(grad_direction, grad_weight, sum_diagonal, sum_confidence)
    weight, q, direction, grad_x = _contiguous(weight, q, direction, grad_x)
    diagonals, meta = _diagonals(diagonal, confidence, q.size(2))
    previous = None if previous is None else previous.contiguous()
    out = torch.empty_like(q)
    dots = _Launch(*q.shape, q, weight).sums(
        steps.cg_step_backward,
        2,
        *_csr(graph),
        weight,
        *diagonals,
        q,
        direction,
        previous,
        grad_direction,
        grad_x,
        *_contiguous(alpha, beta, beta_previous),
        grad_weight,
        sum_diagonal,
        sum_confidence,
        out,
        HAS_PREVIOUS=previous is not None,
        SUM_CONFIDENCE=sum_confidence is not None,
        **meta,
    )
    return out, dots[0], dots[1]


def admm_step(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.admm_step`."""
    weight, x, dual = _contiguous(weight, x, dual)
    scalars = _contiguous(rho_previous, rho, relaxation)
    b, new_dual = torch.empty_like(x), torch.empty_like(dual)
    launch = _Launch(*x.shape, x, dual)
    arrays = (weight, x, dual, *scalars, b, new_dual)
    launch(steps.admm_step, *_csr(graph), *arrays)
    return b, new_dual


def admm_step_backward(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
    grad_b: Tensor,
    grad_dual: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`.reference.admm_step_backward`."""
    weight, x, dual = _contiguous(weight, x, dual)
    grads = _contiguous(grad_b, grad_dual)
    scalars = _contiguous(rho_previous, rho, relaxation)
    launch = _Launch(*x.shape, x, dual)
    grad_x, grad_old_dual = torch.empty_like(x), torch.empty_like(dual)
    # Blocks of features add to it.
    grad_weight = torch.zeros_like(weight, dtype=launch.accumulate)
    out = (grad_x, grad_weight, grad_old_dual)
    arrays = (weight, x, dual, *scalars, *grads, *out)
    kernel = steps.admm_step_backward
    sums = launch.sums(kernel, 3, *_csr(graph), *arrays).to(rho.dtype)
    grad_weight = grad_weight.to(weight.dtype)
    return grad_x, grad_weight, grad_old_dual, sums[0], sums[1], sums[2]


def log_degree(graph: Arrays, distance: Tensor) -> Tensor:
    """See :func:`.reference.log_degree`."""
    (distance,) = _contiguous(distance)
    num_nodes, heads = graph.rowptr.size(0) - 1, distance.size(1)
    out = distance.new_empty((num_nodes, heads))
    launch = _Launch(num_nodes, 1, heads, distance, out)
    arrays = (graph.rowptr, graph.edge_id, distance, out)
    launch(kernels.log_degree, *arrays)
    return out


def log_degree_backward(
    graph: Arrays, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """See :func:`.reference.log_degree_backward`."""
    arrays = _contiguous(distance, log_degree, grad)
    out = torch.empty_like(arrays[0])
    launch = _Launch(graph.src.size(0), 1, distance.size(1), *arrays)
    edges = (graph.src, graph.dst)
    launch(kernels.log_degree_backward, *edges, *arrays, out)
    return out
