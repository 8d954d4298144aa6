"""Large images in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

from torch import Tensor


def run_in_tiles(
    function: Callable[..., Tensor],
    images: tuple[Tensor, ...],
    max_pixels: int,
    halo: int,
) -> Tensor:
    r"""Applies a local function to images tile by tile.

    All tiles have one shape, so that what depends on it is made once.

    Args:
        function (callable): Takes the images, or the same tile of each, and
            returns images of that height and width.
        images (tuple[torch.Tensor]): Images :math:`(B, C, H, W)`; tiles of
            images of even size start at even rows and columns.
        max_pixels (int): Pixels of a tile; images up to this size are not
            cut. Tiles are always larger than their halo.
        halo (int): Even number of pixels that a tile overlaps the part of the
            result that it is for, at least the reach of the function.

    Returns:
        Images :math:`(B, C', H, W)`.
    """
    height, width = images[0].shape[-2:]
    if height * width <= max_pixels:
        return function(*images)
    smallest = 4 * halo + 2
    side = max(isqrt(max_pixels) // 2 * 2, smallest)
    tile_height = min(height, side)
    tile_width = min(width, max(max_pixels // tile_height // 2 * 2, smallest))
    out: Tensor | None = None
    for top, first_row, last_row in _cut(height, tile_height, halo):
        for left, first_col, last_col in _cut(width, tile_width, halo):
            rows = slice(top, top + tile_height)
            cols = slice(left, left + tile_width)
            part = function(*(image[..., rows, cols] for image in images))
            part = part[
                ...,
                first_row - top : last_row - top,
                first_col - left : last_col - left,
            ]
            if out is None:
                out = part.new_empty(*part.shape[:2], height, width)
            out[..., first_row:last_row, first_col:last_col] = part
    assert out is not None
    return out


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
