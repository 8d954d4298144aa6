"""Shared by the examples: reading photographs at full depth, and scores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from skimage.io import imread
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from pyg_unroll.imaging import to_unit_range

# Files that are read of a folder.
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp')


def load_image(path: str | Path) -> Tensor:
    r"""Reads an image of 8 or 16 bits, or of floating point, at full depth.

    Args:
        path (str or Path): A PNG, JPEG, WebP or TIFF file, or another that
            Pillow or scikit-image reads. Palettes become RGB; transparency is
            dropped, with a note on stderr.

    Returns:
        Image :math:`(C, H, W)`, float32 in :math:`[0, 1]`; grey images have
        one channel, others three.

    Raises:
        ValueError: If there is no such file, or it holds no image.
    """
    path = Path(path)
    if not path.is_file():
        problem = 'is a folder' if path.is_dir() else 'does not exist'
        raise ValueError(f"cannot read image '{path}': it {problem}")
    if path.stat().st_size == 0:
        raise ValueError(f"cannot read image '{path}': the file is empty")
    try:
        pixels = _to_channels(_read(path), path)
        image = to_unit_range(torch.from_numpy(pixels)).float()
        if image.numel() == 0:
            raise ValueError(f'it has no pixels (shape {list(image.shape)})')
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError('its values are not all between 0 and 1')
    except Exception as error:  # decoders raise errors of any kind
        raise ValueError(f"cannot read image '{path}': {error}") from error
    return image


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


def _read(path: Path) -> np.ndarray:
    """Pixels `[H, W]` or `[H, W, C]` in the type they are stored in."""
    try:
        image = Image.open(path)
    except Image.UnidentifiedImageError:
        if path.suffix.lower() in ('.tif', '.tiff'):
            return np.asarray(imread(path))  # floating point, for example
        raise ValueError('it is not an image file') from None
    with image:
        if image.format == 'TIFF' and max(_tiff_bits(image)) > 8:
            # Pillow reads the bits 9 to 16 of grey images only.
            return np.asarray(imread(path))
        if getattr(image, 'n_frames', 1) > 1:
            raise ValueError(f'it holds {image.n_frames} images, not one')
        if image.mode.startswith('I'):
            return np.asarray(image).astype(np.uint16)
        deep = _read_deep_png(image, path)
        return _read_shallow(image, path) if deep is None else deep


def _tiff_bits(image: Any) -> tuple[int, ...]:
    """Bits of each channel of a TIFF file."""
    bits = image.tag_v2.get(258, (1,))
    return bits if isinstance(bits, tuple) else (bits,)


def _read_deep_png(image: Any, path: Path) -> np.ndarray | None:
    """A PNG with several channels of 16 bits; None if it is not one.

    Pillow keeps the high bytes of such files. Told that their byte order is
    the other one, it keeps the low bytes.
    """
    tile = image.tile[0] if image.format == 'PNG' and image.tile else None
    if tile is None or tile[3] not in ('RGB;16B', 'RGBA;16B'):
        return None
    high = np.asarray(image).astype(np.uint16)
    with Image.open(path) as again:
        again.tile = [(*tile[:3], tile[3][:-1] + 'L')]
        low = np.asarray(again).astype(np.uint16)
    return high * 256 + low


def _read_shallow(image: Any, path: Path) -> np.ndarray:
    """An image of up to 8 bits, upright, in grey or RGB."""
    transparent = image.mode in ('LA', 'PA', 'RGBA', 'RGBa', 'La')
    if transparent or 'transparency' in image.info:
        _note_transparency(path)
    mode = 'L' if image.mode in ('1', 'L', 'LA', 'La') else 'RGB'
    return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def _to_channels(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Pixels `[C, H, W]` with one or three channels."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] > 4:
        raise ValueError(f'it is not one image (shape {list(pixels.shape)})')
    channels = pixels.shape[2]
    if channels in (2, 4):
        _note_transparency(path)
        pixels = pixels[..., : channels - 1]
    native = pixels.dtype.newbyteorder('=')
    return np.moveaxis(pixels, -1, 0).astype(native, order='C', copy=True)


def _note_transparency(path: Path) -> None:
    print(f"note: dropped the transparency of '{path}'", file=sys.stderr)
