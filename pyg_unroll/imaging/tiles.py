"""Large images in bounded memory, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyg_unroll.imaging.filters import mirrored

if TYPE_CHECKING:
    from pyg_unroll.imaging.restorer import Restorer


def restore_in_tiles(
    restorer: Restorer,
    image: Tensor,
    mask: Tensor,
    noise_std: Tensor | float | None,
    max_pixels: int,
) -> Tensor:
    r"""Restores mirrored images tile by tile.

    All tiles have one shape, so that what depends on it is made once, and
    only what a tile needs is copied; small images of a batch share a tile.

    Args:
        restorer (Restorer): The restorer.
        image (torch.Tensor): Images :math:`(B, C, H, W)`.
        mask (torch.Tensor): True where known, :math:`(B, C, H, W)` or
            :math:`(1, C, H, W)`.
        noise_std (torch.Tensor or float or None): See the restorer.
        max_pixels (int): Images up to this size, their mirrored margin
            included, are not cut; tiles have at most three quarters of it, if
            that is larger than their halo.

    Returns:
        Images :math:`(B, C, H, W)`, channels last in memory.
    """
    images = restorer.prepare(image, mask, noise_std)
    size = image.shape[-2:]
    first, (height, width) = mirrored_frame(
        size, restorer.margin, restorer.phase(mask)
    )
    halo = restorer.receptive_field
    tile_height, tile_width = _tile_size(height, width, max_pixels, halo)
    out = torch.empty_like(image, memory_format=torch.channels_last)
    step = max(max_pixels // (height * width), 1)
    for start in range(0, image.size(0), step):
        chosen = slice(start, start + step)
        some = [v if v.size(0) == 1 else v[chosen] for v in images]
        for rows in _cut(height, tile_height, halo):
            for cols in _cut(width, tile_width, halo):
                row, col = first[0] + rows[0], first[1] + cols[0]
                window = (
                    slice(row, row + tile_height),
                    slice(col, col + tile_width),
                )
                part = restorer.run(*(mirrored(v, *window) for v in some))
                (to_row, from_row), (to_col, from_col) = (
                    _inner(cut, start, length)
                    for cut, start, length in zip(
                        (rows, cols), first, size, strict=True
                    )
                )
                inner = part[..., from_row, from_col]
                out[chosen, :, to_row, to_col] = inner
    return out


def mirrored_frame(
    size: Sequence[int], margin: int, phase: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Row and column at which mirrored images start, and their even size."""
    first = [start - margin for start in phase]
    return first, [
        (s + margin - f + 1) // 2 * 2 for s, f in zip(size, first, strict=True)
    ]


def _inner(
    cut: tuple[int, int, int], first: int, size: int
) -> tuple[slice, slice]:
    """Where a tile's result goes in the image, and where it is in the tile."""
    start = first + cut[0]
    begin, end = max(first + cut[1], 0), min(first + cut[2], size)
    return slice(begin, end), slice(begin - start, end - start)


def _tile_size(
    height: int, width: int, max_pixels: int, halo: int
) -> tuple[int, int]:
    """Shape of the tiles that compute the fewest pixels twice, of at most
    three quarters of `max_pixels` if they can.
    """
    if height * width <= max_pixels:
        return height, width
    # Beside a tile, there are the whole image and its result to be held.
    max_pixels = 3 * max_pixels // 4
    smallest = 4 * halo + 2
    sizes: list[tuple[int, int, int, int]] = []
    rows, tile_height = 1, height
    while rows == 1 or (tile_height >= smallest and 2 * rows <= height):
        tile_width = max(max_pixels // tile_height // 2 * 2, smallest)
        cols = 1
        if tile_width < width:
            cols -= (tile_width - width) // (tile_width - 2 * halo)
        tile_width = _equal_parts(width, cols, halo)
        area = tile_height * tile_width
        work = rows * cols * area
        sizes.append((max(area, max_pixels), work, tile_height, tile_width))
        rows += 1
        tile_height = _equal_parts(height, rows, halo)
    return min(sizes)[2:]


def _equal_parts(size: int, count: int, halo: int) -> int:
    """Even length of so many parts that overlap by two halos."""
    return -(-(size + 2 * halo * (count - 1)) // (2 * count)) * 2


def _cut(size: int, tile: int, halo: int) -> list[tuple[int, int, int]]:
    """Start of each tile, and first and last + 1 of what it is for."""
    if tile >= size:
        return [(0, 0, size)]
    cuts = []
    first = 0
    while first < size:
        start = min(max(first - halo, 0), size - tile)
        last = size if start == size - tile else start + tile - halo
        cuts.append((start, first, last))
        first = last
    return cuts
