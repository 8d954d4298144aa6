"""Tiles of images, which overlap by the halo that they need, and threads that
work on them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from typing import TypeAlias, TypeVar

import torch

_T = TypeVar('_T')

# Along one dimension, the window of a tile, the part of the image that it is
# for, and the place of that part in the tile.
Window: TypeAlias = tuple[slice, slice, slice]

# More tiles at once would take more memory, and smaller ones more work.
_MAX_WORKERS = 4


def tiles_of(
    size: Sequence[int],
    first: Sequence[int],
    frame: Sequence[int],
    halo: int,
    max_pixels: int,
    workers: int,
) -> Iterator[tuple[Window, Window]]:
    """Rows and columns of the tiles of a mirrored frame, see
    :func:`mirrored_frame`, of images of some size.

    Frames up to `max_pixels` are cut for several workers only. All tiles have
    one shape, so that what depends on it is made once, of at most three
    quarters of that size, if that is larger than their halo.
    """
    tile = _tile_size(frame, max_pixels, halo, workers)
    rows, cols = (
        list(_windows(*dim, halo))
        for dim in zip(size, first, frame, tile, strict=True)
    )
    return product(rows, cols)


def mirrored_frame(
    size: Sequence[int], margin: int, phase: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Row and column at which mirrored images start, and their even size."""
    first = [start - margin for start in phase]
    return first, [
        (s + margin - f + 1) // 2 * 2 for s, f in zip(size, first, strict=True)
    ]


def tile_workers(device: torch.device) -> int:
    """Number of tiles to work on at once, each with its share of the threads:
    one where autograd records, whose backward pass runs on all threads.
    """
    if device.type != 'cpu' or torch.is_grad_enabled():
        return 1
    return min(torch.get_num_threads(), _MAX_WORKERS)


def run_all(
    work: Callable[[_T], None], jobs: Iterable[_T], workers: int
) -> None:
    """Does jobs on threads of their own.

    PyTorch's own threads meet after each operation, which takes several times
    as long while another program needs one of the cores.
    """
    if workers == 1:
        for job in jobs:
            work(job)
        return
    threads = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def do(job: _T) -> None:
        # Both belong to a thread.
        torch.set_num_threads(threads // workers)
        with torch.inference_mode() if inference else torch.no_grad():
            work(job)

    futures = [_pool(workers, os.getpid()).submit(do, job) for job in jobs]
    try:
        for future in futures:
            future.result()  # raises what the work raised
    finally:
        for future in futures:
            future.cancel()
        # New threads take the number that was last set.
        torch.set_num_threads(threads)


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    # Threads do not survive a fork, hence one pool for each process.
    return ThreadPoolExecutor(workers, 'pyg_unroll-tiles')


def _tile_size(
    frame: Sequence[int], max_pixels: int, halo: int, workers: int
) -> Sequence[int]:
    """Shape of the tiles that the workers are done with first."""
    height, width = frame
    if height * width <= max_pixels:
        strip = _equal_parts(max(frame), workers, halo)
        if 4 * strip > 3 * max(frame):  # little would be saved
            return frame
        return (strip, width) if height > width else (height, strip)
    # Beside a tile, there are the whole image and its result to be held.
    max_pixels = 3 * max_pixels // 4
    smallest = 4 * halo + 2
    sizes: list[tuple[int, int, int, int]] = []
    for rows in range(1, height // 2 + 1):
        tile_height = _equal_parts(height, rows, halo)
        if rows > 1 and tile_height < smallest:
            break
        tile_width = max(max_pixels // tile_height // 2 * 2, smallest)
        cols = 1
        if tile_width < width:
            cols -= (tile_width - width) // (tile_width - 2 * halo)
        tile_width = _equal_parts(width, cols, halo)
        area = tile_height * tile_width
        work = -(-rows * cols // workers) * area
        sizes.append((max(area, max_pixels), work, tile_height, tile_width))
    return min(sizes)[2:]


def _equal_parts(size: int, count: int, halo: int) -> int:
    """Even length of so many parts that overlap by two halos."""
    return -(-(size + 2 * halo * (count - 1)) // (2 * count)) * 2


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
