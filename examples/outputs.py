"""Outputs: checks of `--out` before the work is done, and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

FIGURES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.pdf', '.svg')


def check_out(path: Path, suffixes: Sequence[str] = FIGURES) -> None:
    """Raises a `ValueError` if a file cannot be written, or has a suffix that
    says of no format.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"--out must be {' or '.join(suffixes)} (got '{path}')"
        )
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder '{path.parent}' for --out")
    if path.is_dir():
        raise ValueError(f"--out must be a file (got the folder '{path}')")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--out: no permission to write '{path}'")


def write_tiff(image: Tensor, path: Path) -> None:
    """Writes an image `[3, H, W]` in `[0, 1]` as TIFF of 16 bits."""
    from tifffile import imwrite

    pixels = (image * 65535).round().numpy().astype(np.uint16)
    pixels = np.moveaxis(pixels, 0, -1)
    imwrite(path, pixels, photometric='rgb', compression='zlib')
