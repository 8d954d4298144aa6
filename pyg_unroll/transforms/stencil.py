"""The topology of a pixel grid, by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyg_unroll.graph import Topology, index_type

# Pixels whose neighbours are listed at once: bounds the memory for it.
_PIXELS = 2**18


def stencil_topology(
    num_images: int,
    height: int,
    width: int,
    offsets: Sequence[tuple[int, int]],
    device: torch.device,
) -> Topology:
    r"""Connects the pixels of images that follow each other.

    Nothing is sorted: neighbours are listed in the order of their nodes, and
    the number of an edge follows from how many start before it.

    Args:
        num_images (int): Number of images.
        height (int): Rows of each.
        width (int): Columns of each.
        offsets (list[tuple[int, int]]): The positive half of the window,
            (row, column), ascending.
        device (torch.device): Where to build it.

    Returns:
        The topology, its edges sorted by (src, dst).
    """
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False):
        return _Stencil(height, width, offsets, device).topology(num_images)


class _Stencil:
    def __init__(
        self,
        height: int,
        width: int,
        offsets: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        self.height, self.width, self.offsets = height, width, offsets
        self.device, self.size = device, len(offsets)
        # All neighbours in ascending order: backwards first.
        window = [(-row, -col) for row, col in reversed(offsets)]
        window += offsets
        row, col = torch.tensor(window, device=device).view(-1, 2).T
        self.step = row * width + col
        line, column = self._range(height), self._range(width)
        self.rows = _inside(line.unsqueeze(1) + row, height)
        self.columns = _inside(column.unsqueeze(1) + col, width)
        forward = slice(self.size, None)
        # First edge, and first entry of the CSR, of each pixel.
        self.first_edge = _starts(
            self.rows[:, forward], self.columns[:, forward]
        )
        self.rowptr = _starts(self.rows, self.columns)

    def _range(self, *bounds: int) -> Tensor:
        return torch.arange(*bounds, device=self.device)

    def topology(self, num_images: int) -> Topology:
        """Lists one image after the other."""
        num_pixels = self.height * self.width
        num_edges = int(self.first_edge[-1])
        index = index_type(num_pixels * num_images, num_edges * num_images)
        ends = torch.empty(2, num_edges, dtype=index, device=self.device)
        entries = ends.new_empty(2, 2 * num_edges)
        sign = ends.new_empty((2 * num_edges,), dtype=torch.float32)
        entry = ends.new_empty((num_edges, 2), dtype=torch.long)
        lines = max(_PIXELS // self.width, 1)
        for top in range(0, self.height, lines):
            bottom = min(top + lines, self.height)
            self._list(top, bottom, ends, entries, sign, entry)

        def repeat(value: Tensor, step: int) -> Tensor:
            if num_images == 1:
                return value
            shift = step * self._range(num_images).to(value.dtype)
            shift = shift.view(-1, *(1,) * value.dim())
            return (value + shift).flatten(0, 1)

        rowptr = repeat(self.rowptr[:-1].to(index), 2 * num_edges)
        return Topology(
            num_nodes=num_pixels * num_images,
            src=repeat(ends[0], num_pixels),
            dst=repeat(ends[1], num_pixels),
            rowptr=torch.cat(
                [rowptr, rowptr.new_tensor([2 * num_edges * num_images])]
            ),
            col=repeat(entries[0], num_pixels),
            edge_id=repeat(entries[1], num_edges),
            sign=sign.repeat(num_images),
            entry=repeat(entry, 2 * num_edges),
            grid=(
                self.height,
                self.width,
                *(k for o in self.offsets for k in o),
            ),
        )

    def _list(
        self,
        top: int,
        bottom: int,
        ends: Tensor,
        entries: Tensor,
        sign: Tensor,
        entry: Tensor,
    ) -> None:
        """Writes what belongs to the pixels of some lines."""
        size, width = self.size, self.width
        nodes = self._range(top * width, bottom * width)
        exists = self.rows[top:bottom, None] & self.columns
        chosen = exists.flatten().nonzero().view(-1)
        slot = chosen % (2 * size)
        node = nodes[chosen // (2 * size)]
        other = node + self.step[slot]
        edge = self._edges(top, bottom).take(chosen)
        first, end = self.rowptr[[top * width, bottom * width]].tolist()
        entries[0, first:end] = other
        entries[1, first:end] = edge
        forward = slot >= size
        sign[first:end] = 2.0 * forward - 1.0
        starting, arriving = forward.nonzero().view(-1), (~forward).nonzero()
        own = slice(*self.first_edge[[top * width, bottom * width]].tolist())
        ends[0, own] = node[starting]
        ends[1, own] = other[starting]
        entry[own, 0] = first + starting
        entry[edge[arriving], 1] = first + arriving

    def _edges(self, top: int, bottom: int) -> Tensor:
        """The edge to each neighbour of each pixel, where there is one."""
        size, width = self.size, self.width
        # Edges that come from before start in the lines above.
        above = max(top - max((row for row, _ in self.offsets), default=0), 0)
        first = self.first_edge[above * width : bottom * width]
        number = first.view(-1, width).clone()
        out = number.new_zeros((bottom - top, width, 2 * size))
        for k, (row, col) in enumerate(self.offsets):
            out[..., size + k] = number[top - above :]
            # Pixels whose predecessor by this offset is in the image.
            begin, left = max(top, row), max(col, 0)
            right = width + min(col, 0)
            if begin < bottom and left < right:
                out[begin - top :, left:right, size - 1 - k] = number[
                    begin - row - above : bottom - row - above,
                    left - col : right - col,
                ]
            starts = self.rows[above:bottom, None, size + k]
            number += starts & self.columns[:, size + k]
        return out


def _inside(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


def _starts(rows: Tensor, columns: Tensor) -> Tensor:
    """Running number of neighbours before each pixel, and in all."""
    # In floating point, as devices have no product of integer matrices; in
    # double precision, which autocast leaves alone.
    count = (rows.double() @ columns.double().T).flatten()
    start = count.new_zeros((count.numel() + 1,), dtype=torch.long)
    torch.cumsum(count, 0, dtype=torch.long, out=start[1:])
    return start
