"""Tiles of images, which overlap by the halo that they need."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypeAlias

import torch

# Along one dimension, the window of a tile, the part of the image that it is
# for, and the place of that part in the tile.
Window: TypeAlias = tuple[slice, slice, slice]

# Tiles at once: more would have to be smaller, and compute more pixels twice.
_MAX_WORKERS = 2


def tiles_of(
    size: Sequence[int],
    first: Sequence[int],
    frame: Sequence[int],
    halo: int,
    max_pixels: int,
    workers: int,
    cell: int,
) -> Iterator[tuple[Window, Window]]:
    """Rows and columns of the tiles of a mirrored frame, see
    :func:`mirrored_frame`, of images of some size.

    Frames up to `max_pixels` are cut for several workers only. All tiles have
    one shape, so that what depends on it is made once, and consist of whole
    cells, as the halo does. Those of larger frames have at most three quarters
    of `max_pixels`, and all workers' together no more than that, if they are
    larger than their halo.
    """
    tile = _tile_size(frame, max_pixels, halo, workers, cell)
    rows, cols = (
        list(_windows(*dim, halo))
        for dim in zip(size, first, frame, tile, strict=True)
    )
    return product(rows, cols)


def mirrored_frame(
    size: Sequence[int], margin: int, phase: tuple[int, int], cell: int
) -> tuple[list[int], list[int]]:
    """Row and column at which mirrored images start, and their size in whole
    cells.
    """
    first = [start - margin for start in phase]
    return first, [
        whole(s + margin - f, cell) for s, f in zip(size, first, strict=True)
    ]


def mirror_lines(
    size: Sequence[int], phase: tuple[int, int], cell: int
) -> list[tuple[int, int]]:
    """First and last row, and column, about which a pattern is symmetric: the
    middle of a cell of odd size, any of a cell of 2 x 2.
    """
    if cell % 2 == 0:
        return [(0, s - 1) for s in size]
    first = [(start + cell // 2) % cell for start in phase]
    return [
        (f, s - 1 - (s - 1 - f) % cell)
        for s, f in zip(size, first, strict=True)
    ]


def whole(size: int, cell: int) -> int:
    """A size, or the next larger one of whole cells."""
    # ONNX rounds quotients towards zero: no negative ones.
    return (size + cell - 1) // cell * cell


def tile_workers(device: torch.device) -> int:
    """Number of tiles to work on at once, each with its share of the threads:
    one where autograd records, whose backward pass runs on all threads, and
    under autocast, which belongs to a thread.
    """
    belongs = torch.is_grad_enabled() or torch.is_autocast_enabled('cpu')
    if device.type != 'cpu' or belongs:
        return 1
    return min(torch.get_num_threads(), _MAX_WORKERS)


def _tile_size(
    frame: Sequence[int], max_pixels: int, halo: int, workers: int, cell: int
) -> Sequence[int]:
    """Shape of the tiles that the workers are done with first."""
    height, width = frame
    if height * width <= max_pixels:
        strip = _equal_parts(max(frame), workers, halo, cell)
        if 4 * strip > 3 * max(frame):  # little would be saved
            return frame
        return (strip, width) if height > width else (height, strip)
    # Beside a tile, there are the whole image and its result to be held.
    max_pixels = min(3 * max_pixels // 4, max_pixels // workers)
    smallest = 4 * halo + cell
    sizes: list[tuple[int, int, int, int]] = []
    for rows in range(1, height // cell + 1):
        tile_height = _equal_parts(height, rows, halo, cell)
        if rows > 1 and tile_height < smallest:
            break
        most = max_pixels // tile_height // cell * cell
        tile_width = max(most, smallest)
        cols = 1
        if tile_width < width:
            cols -= (tile_width - width) // (tile_width - 2 * halo)
        tile_width = _equal_parts(width, cols, halo, cell)
        area = tile_height * tile_width
        work = -(-rows * cols // workers) * area
        sizes.append((max(area, max_pixels), work, tile_height, tile_width))
    return min(sizes)[2:]


def _equal_parts(size: int, count: int, halo: int, cell: int) -> int:
    """Length, in whole cells, of so many parts that overlap by two halos."""
    return -(-(size + 2 * halo * (count - 1)) // (cell * count)) * cell


def _windows(
    size: int, first: int, length: int, tile: int, halo: int
) -> Iterator[Window]:
    """Tiles along one dimension of an image of some size, whose mirrored
    frame starts at `first`.
    """
    end = 0
    while end < length:
        begin, start = end, min(max(end - halo, 0), length - tile)
        end = length if start == length - tile else start + tile - halo
        start += first
        low, high = max(first + begin, 0), min(first + end, size)
        inner = slice(low - start, high - start)
        yield slice(start, start + tile), slice(low, high), inner
