"""Camera files for `demosaic.py`: sensor values in, a finished image out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll import image_to_data

SUFFIXES = (
    *('.dng', '.nef', '.nrw', '.cr2', '.cr3', '.crw', '.arw', '.srf', '.raf'),
    *('.orf', '.rw2', '.pef', '.srw', '.raw', '.3fr', '.iiq', '.erf', '.kdc'),
)

# Linear sRGB to XYZ (D65), IEC 61966-2-1.
_XYZ_FROM_SRGB = np.array(
    [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
)

# Quarter turns, counterclockwise, by LibRaw's flip.
_TURNS = {0: 0, 3: 2, 5: 1, 6: 3}

# Colour filter arrays, by the size of their patterns.
_ARRAYS = {(2, 2): 'Bayer', (6, 6): 'X-Trans'}


@dataclass
class RawPhoto:
    """The content of a camera file.

    Args:
        data (Data): The mosaic: black level subtracted, white balanced, one is
            white, encoded as sRGB, like the photographs that the weights were
            trained on.
        cfa (str): The colour filter array, `Bayer`, `X-Trans` or `other`.
        matrix (numpy.ndarray): Linear sRGB from balanced camera colours.
        turns (int): Quarter turns, counterclockwise, that make it upright.
    """

    data: Data
    cfa: str
    matrix: np.ndarray
    turns: int

    def finish(self, image: Tensor) -> Tensor:
        """From camera colours to upright sRGB, `[3, H, W]` in `[0, 1]`."""
        linear = decode(image.clamp(0, 1).double())
        matrix = torch.from_numpy(self.matrix)
        linear = torch.einsum('dc,chw->dhw', matrix, linear)
        upright = torch.rot90(encode(linear), self.turns, (1, 2))
        return upright.clamp(0, 1).float()


def encode(linear: Tensor) -> Tensor:
    """The transfer function of sRGB, linear below zero."""
    high = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, high, 12.92 * linear)


def decode(encoded: Tensor) -> Tensor:
    """The inverse of `encode`."""
    high = ((encoded.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(encoded > 0.04045, high, encoded / 12.92)


def read_raw(path: Path) -> RawPhoto:
    """Reads a camera file.

    Raises:
        ValueError: If rawpy is missing, or the file is no mosaic of red, green
            and blue that it can read.
    """
    try:
        import rawpy
    except ImportError as error:
        raise ValueError(
            f"'{path}' is a camera file; install rawpy, or pyg_unroll[raw]"
        ) from error
    if not path.is_file():
        raise ValueError(f"cannot read '{path}': there is no such file")
    try:
        with rawpy.imread(str(path)) as raw:
            if raw.raw_type != rawpy.RawType.Flat:
                raise ValueError('it holds no mosaic')
            return _read(raw)
    except (rawpy.LibRawError, ValueError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error


def _read(raw: Any) -> RawPhoto:
    names = raw.color_desc.decode()
    number = raw.raw_colors_visible
    # A camera may have two greens with settings of their own.
    colour = np.array(['RGB'.find(name) for name in names])[number]
    if (colour < 0).any() or len(np.unique(colour)) != 3:
        raise ValueError(f'its colours are {names}, not red, green and blue')
    black = np.array(raw.black_level_per_channel, dtype=np.float64)[number]
    value = (raw.raw_image_visible - black) / (raw.white_level - black)
    balance = np.array(raw.camera_whitebalance, dtype=np.float64)
    if not (balance[:3] > 0).all():
        balance = np.array(raw.daylight_whitebalance, dtype=np.float64)
    if not (balance[:3] > 0).all():
        balance = np.ones(4)
    balance = np.where(balance > 0, balance, balance[1])
    # Nothing below one, or clipped highlights would not be white.
    value = np.minimum(value * (balance / balance.min())[number], 1)
    sensor = encode(torch.from_numpy(value)).float()
    mask = torch.from_numpy(colour) == torch.arange(3).view(3, 1, 1)
    data = image_to_data(torch.where(mask, sensor, 0))
    data.mask = image_to_data(mask).x
    # Of the file, or else of LibRaw's table of cameras.
    matrix = np.array(raw.color_matrix, dtype=np.float64)[:, :3]
    camera = np.array(raw.rgb_xyz_matrix, dtype=np.float64)[:3]
    if not np.allclose(matrix.sum(1), 1, atol=0.05):
        matrix = np.eye(3)
        if abs(np.linalg.det(camera)) > 1e-9:
            forward = camera @ _XYZ_FROM_SRGB
            # White stays white: the balance is done already.
            matrix = np.linalg.inv(forward / forward.sum(1, keepdims=True))
    return RawPhoto(
        data=data,
        cfa=_ARRAYS.get(raw.raw_pattern.shape, 'other'),
        matrix=matrix,
        turns=_TURNS.get(raw.sizes.flip, 0),
    )


def write_tiff(image: Tensor, path: Path) -> None:
    """Writes an image `[3, H, W]` in `[0, 1]` as TIFF of 16 bits."""
    pixels = (image * 65535).round().numpy().astype(np.uint16)
    tifffile.imwrite(
        path, np.moveaxis(pixels, 0, -1), photometric='rgb', compression='zlib'
    )
