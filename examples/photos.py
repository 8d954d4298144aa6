"""Shared by the examples: photographs of a folder, and scores."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from pyg_unroll.imaging import to_unit_range

# Files that are read of a folder.
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp')


def photos_in(folder: Path) -> list[Path]:
    """The photographs of a folder, by name.

    Raises:
        ValueError: If there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is not a folder")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def psnr(out: Tensor, truth: Tensor) -> float:
    """PSNR (dB) of an image, clipped and rounded to 8 bits."""
    out = (out.clamp(0, 1) * 255).round() / 255
    test, true = (x.double().cpu().numpy() for x in (out, truth))
    return float(peak_signal_noise_ratio(true, test, data_range=1))


def strips(height: int, halo: int = 0) -> Iterator[tuple[slice, slice]]:
    """Rows of strips of an image, with as many more on both sides as there
    are, and the place of the strip in them.
    """
    count = max(height // 128, 1)
    bounds = [height * k // count for k in range(count + 1)]
    for start, stop in pairwise(bounds):
        first = max(start - halo, 0)
        rows = slice(first, min(stop + halo, height))
        yield rows, slice(start - first, stop - first)


def worst_region(out: Tensor, truth: Tensor, size: int) -> tuple[slice, slice]:
    """The square, at most `size` pixels wide, where an image is farthest from
    the original.
    """
    size = min(size, *truth.shape[1:])
    error = torch.empty(truth.shape[1:])
    for rows, _ in strips(len(error)):
        test, true = (to_unit_range(v[:, rows]) for v in (out, truth))
        error[rows] = (test - true).square().sum(0)
    local = F.avg_pool2d(error[None, None], size, stride=4)[0, 0]
    row, col = (4 * k for k in divmod(int(local.argmax()), local.size(1)))
    return slice(row, row + size), slice(col, col + size)
