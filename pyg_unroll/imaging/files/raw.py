"""Camera files: sensor values in, a finished image out."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.imaging.cfa import CELLS, find_pattern
from pyg_unroll.imaging.files.dng import Sensor, is_plain_tiff, read_dng
from pyg_unroll.imaging.files.orientation import upright
from pyg_unroll.imaging.files.srgb import Array, decode, encode

_SUFFIXES = (
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

_ALL = 3  # the number of a colour that is all three: without a filter

_ROWS = 128  # that are worked on at once


@dataclass
class RawPhoto:
    r"""The content of a camera file: a mosaic, and the way from its colours to
    a picture.

    Args:
        sensor (torch.Tensor): The value of each pixel :math:`(1, H, W)`,
            float32: black level subtracted, white balanced, one is white,
            encoded as sRGB, like the photographs that trained weights know.
        tile (torch.Tensor): The colour filter array, which repeats from the
            first pixel: 0 red, 1 green, 2 blue, 3 no filter; unsigned integers
            of 8 bits.
        matrix (torch.Tensor): Linear sRGB from balanced camera colours.
        flip (int): What makes it upright: columns mirrored (1), rows mirrored
            (2), then transposed (4), added up.
        crop (tuple): Rows and columns of the sensor that make the picture.
    """

    sensor: Tensor
    tile: Tensor
    matrix: Tensor
    flip: int = 0
    crop: tuple[slice, slice] = (slice(None), slice(None))

    @property
    def cfa(self) -> str:
        """Name of the colour filter array, :obj:`'Bayer'` or
        :obj:`'X-Trans'` in any phase, :obj:`'monochrome'` or :obj:`'other'`.
        """
        if bool((self.tile == _ALL).all()):
            return 'monochrome'
        mask = _mask(self.tile.repeat(6, 6)).movedim(2, 0)[None]
        for name in CELLS:
            try:
                find_pattern(mask, [name])
            except ValueError:
                continue
            return name
        return 'other'

    def to_data(self) -> Data:
        """The mosaic as :func:`~pyg_unroll.imaging.mosaic` returns it, without
        :obj:`pos`.
        """
        height, width = self.sensor.shape[1:]
        rows, columns = self.tile.shape
        tile = self.tile.repeat(-(-height // rows), -(-width // columns))
        mask = _mask(tile[:height, :width])
        x = torch.where(mask, self.sensor.movedim(0, 2), 0)
        x, mask = (v.view(-1, 3) for v in (x, mask))
        return Data(x=x, mask=mask, height=height, width=width)

    def finish(self, image: Tensor) -> Tensor:
        r"""From camera colours to a picture.

        Args:
            image (torch.Tensor): All colours of the sensor :math:`(3, H, W)`.

        Returns:
            The upright picture, sRGB in :math:`[0, 1]`, float32.
        """
        rows, columns = self.crop
        colours = image[:, rows, columns].detach().cpu().numpy()
        matrix = self.matrix.numpy()
        out: Array = np.empty(colours.shape, np.float32)
        for top in range(0, out.shape[1], _ROWS):
            part = slice(None), slice(top, top + _ROWS)
            strip = colours[part].clip(0, 1).astype(np.float64)
            linear = np.einsum('dc,chw->dhw', matrix, decode(strip))
            out[part] = encode(linear).clip(0, 1)
        turned = np.moveaxis(upright(np.moveaxis(out, 0, 2), self.flip), 2, 0)
        return torch.from_numpy(np.ascontiguousarray(turned))


def read_raw(path: str | Path) -> RawPhoto:
    r"""Reads a camera file: the mosaic of its sensor, with what the file says
    of it.

    Args:
        path (str or Path): A file of a camera that LibRaw knows, such as DNG,
            NEF, CR3, ARW or RAF.

    Returns:
        The mosaic as :class:`RawPhoto`. Warnings tell what is left out.

    Raises:
        ImportError: If rawpy or tifffile (extra :obj:`raw`) are missing.
        ValueError: If there is no such file, it is no mosaic of red, green and
            blue, or its values have no meaning.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"cannot read '{path}': there is no such file")
    rawpy = _import_rawpy(path)
    try:
        with rawpy.imread(str(path)) as raw:
            sensor, photo = _read(raw, path)
    except (rawpy.LibRawError, ValueError) as error:
        problem = error.args[0] if error.args else error
        if isinstance(problem, bytes):  # as LibRaw has it
            problem = problem.decode(errors='replace')
        raise ValueError(f"cannot read '{path}': {problem}") from error
    for note in sensor.notes:
        warnings.warn(f"'{path}': {note}", stacklevel=2)
    return photo


def is_raw(path: str | Path) -> bool:
    """Says whether a camera wrote a file and LibRaw knows it, whatever its
    name; without rawpy, or the file, the name has to do.

    Args:
        path (str or Path): A file.
    """
    path = Path(path)
    found = map(find_spec, ('rawpy', 'tifffile'))
    if None in found or not path.is_file():
        return path.suffix.lower() in _SUFFIXES
    import rawpy

    try:
        with rawpy.imread(str(path)):
            # Some TIFF files of 16 bits are raw to LibRaw.
            return not is_plain_tiff(path)
    except rawpy.LibRawError:
        return False


def _import_rawpy(path: Path) -> Any:
    """LibRaw."""
    try:
        import rawpy
        import tifffile  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"'{path}' is a camera file, which needs rawpy and tifffile: pip "
            f"install 'pyg_unroll[raw]'"
        ) from error
    return rawpy


def _read(raw: Any, path: Path) -> tuple[Sensor, RawPhoto]:
    """The sensor as the file has it, and as nets know it."""
    if raw.raw_type.name != 'Flat':
        raise ValueError(
            'it holds finished colours, no mosaic: there is nothing to '
            'demosaic; a raw converter develops it'
        )
    sensor = read_dng(path, _by_libraw(raw), raw.raw_image)
    tile = _colours(sensor.number, raw)
    if not sensor.pixels.any():
        raise ValueError('all its sensor values are zero')
    black = sensor.black.max() + sensor.row_black.max()
    black = black + sensor.column_black.max()
    white = sensor.white[np.unique(sensor.number)].min()
    if not white > black:
        raise ValueError(
            f'its white level {white:g} is not above its black level {black:g}'
        )
    balance = _balance(raw, sensor)
    photo = RawPhoto(
        sensor=torch.from_numpy(_balanced(sensor, balance))[None],
        tile=torch.from_numpy(tile),
        matrix=torch.from_numpy(_matrix(raw)),
        flip=raw.sizes.flip,
        crop=sensor.crop,
    )
    return sensor, photo


def _by_libraw(raw: Any) -> Sensor:
    """The sensor as LibRaw has it."""
    if raw.raw_pattern is None:
        raise ValueError('its colour filter array is not known')
    rows, columns = raw.raw_pattern.shape
    number = raw.raw_colors_visible[:rows, :columns]
    if raw.num_colors == 1:
        number = np.zeros((1, 1), int)
    level = np.full(4, float(raw.white_level))
    own = np.array(raw.camera_white_level_per_channel or level, float)
    return Sensor(
        pixels=raw.raw_image_visible,
        number=number,
        black=np.array(raw.black_level_per_channel, float)[number],
        white=np.minimum(np.where(own > 0, own, level), level),
    )


def _colours(number: Array, raw: Any) -> Array:
    """The colours of a tile of numbers."""
    if raw.num_colors == 1:
        return np.full((1, 1), _ALL, np.uint8)
    names = raw.color_desc.decode()
    # A camera may have two greens with settings of their own.
    colours = np.array(['RGB'.find(name) for name in names])[number]
    if (colours < 0).any() or len(np.unique(colours)) != 3:
        raise ValueError(f'its colours are {names}, not red, green and blue')
    return colours.astype(np.uint8)


def _balance(raw: Any, sensor: Sensor) -> Array:
    """Factors of colours, by number, none below one, or clipped highlights
    would not be white.
    """
    balance = np.array(raw.camera_whitebalance, np.float64)
    if sensor.neutral is not None:
        balance = 1 / sensor.neutral
    if not (balance[:3] > 0).all() and raw.num_colors > 1:
        sensor.notes.append('it says no white balance: taken as daylight')
        balance = np.array(raw.daylight_whitebalance, np.float64)
    if not (balance[:3] > 0).all():
        balance = np.ones(4)
    balance = np.where(balance > 0, balance, balance[1])
    return balance / balance.min()


def _balanced(sensor: Sensor, balance: Array) -> Array:
    """Sensor values in units of white, balanced and encoded as sRGB."""
    height, width = sensor.pixels.shape
    out = np.empty((height, width), np.float32)
    row_black = np.broadcast_to(sensor.row_black, height)
    row, column = np.arange(height)[:, None], np.arange(width)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        number, black = (
            tile[row[rows] % tile.shape[0], column % tile.shape[1]]
            for tile in (sensor.number, sensor.black)
        )
        black = black + row_black[rows, None] + sensor.column_black
        value = (sensor.pixels[rows] - black) / (sensor.white[number] - black)
        out[rows] = encode(np.minimum(value * balance[number], 1))
    return out


def _matrix(raw: Any) -> Array:
    """Linear sRGB from balanced colours, of the file, or else of LibRaw's
    table of cameras.
    """
    matrix = np.array(raw.color_matrix, np.float64)[:, :3]
    if raw.num_colors > 1 and np.allclose(matrix.sum(1), 1, atol=0.05):
        return matrix
    camera = np.array(raw.rgb_xyz_matrix, np.float64)[:3]
    if abs(np.linalg.det(camera)) <= 1e-9:
        return np.eye(3)
    forward = camera @ _XYZ_FROM_SRGB
    # White stays white: the balance is done already.
    return np.linalg.inv(forward / forward.sum(1, keepdims=True))


def _mask(colours: Tensor) -> Tensor:
    """The colours that pixels `[H, W]` measure, `[H, W, 3]`."""
    number = torch.arange(3, dtype=torch.uint8)
    return (colours[..., None] == number) | (colours[..., None] == _ALL)
