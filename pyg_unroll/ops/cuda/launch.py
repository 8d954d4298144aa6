"""Cutting the work of the Triton kernels, and running them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops.reference import accumulate_type

# Numbers of a tile: a few for each of the 128 threads of four warps.
_TILE = 1024
# Most rows of a tile: as many as threads.
_ROWS = 128
# Most lanes of a tile; longer rows are cut.
_LANES = 256


class Launch:
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


def csr(graph: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    """What kernels over rows read of a graph."""
    return graph.rowptr, graph.col, graph.edge_id


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """The tensors, or copies of those that are strided."""
    return [tensor.contiguous() for tensor in tensors]


def check_in_place(*tensors: Tensor | None) -> None:
    """Insists on memory that a kernel can write: a copy would take it."""
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous()


def expand_diagonals(
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
