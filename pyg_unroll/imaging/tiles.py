"""Large images in bounded memory, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
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
    """Restores mirrored images `[B, C, H, W]` tile by tile.

    Images up to `max_pixels`, their margin included, are not cut, and small
    ones of a batch share a tile. All tiles have one shape, so that what
    depends on it is made once, of at most three quarters of that size, if
    that is larger than their halo.
    """
    images = restorer.prepare(image, mask, noise_std)
    size = image.shape[-2:]
    first, (height, width) = mirrored_frame(
        size, restorer.margin, restorer.phase(mask)
    )
    halo = restorer.receptive_field
    tile = _tile_size(height, width, max_pixels, halo)
    rows, cols = (
        list(_windows(*sizes, halo))
        for sizes in zip(size, first, (height, width), tile, strict=True)
    )
    out = torch.empty_like(image, memory_format=torch.channels_last)
    step = max(max_pixels // (height * width), 1)
    for start in range(0, image.size(0), step):
        chosen = slice(start, start + step)
        some = [v if v.size(0) == 1 else v[chosen] for v in images]
        for (row, to_row, from_row), (col, to_col, from_col) in product(
            rows, cols
        ):
            part = restorer.run(*(mirrored(v, row, col) for v in some))
            out[chosen, :, to_row, to_col] = part[..., from_row, from_col]
    return out


def mirrored_frame(
    size: Sequence[int], margin: int, phase: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Row and column at which mirrored images start, and their even size."""
    first = [start - margin for start in phase]
    return first, [
        (s + margin - f + 1) // 2 * 2 for s, f in zip(size, first, strict=True)
    ]


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


def _windows(
    size: int, first: int, length: int, tile: int, halo: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Tiles along one dimension of an image of some size, whose mirrored
    frame starts at `first`: the window, the part of the image that it is for,
    and the place of that part in the tile.
    """
    end = 0
    while end < length:
        begin, start = end, min(max(end - halo, 0), length - tile)
        end = length if start == length - tile else start + tile - halo
        start += first
        low, high = max(first + begin, 0), min(first + end, size)
        inner = slice(low - start, high - start)
        yield slice(start, start + tile), slice(low, high), inner
