"""DNG files: what their tags say of the sensor, and LibRaw does not tell."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyg_unroll.imaging.files.srgb import Array

_RAW = (32803, 34892)  # photometric interpretations: CFA, LinearRaw
_VERSION = 50706  # the tag that makes a file DNG
_COLOURS = 'RGBCMYW'  # by the numbers of CFAPattern

# Tags of what is not read unless they say this.
_REFUSED = {
    50710: ('CFAPlaneColor', (0, 1, 2), 'its colours are not R, G, B'),
    50711: ('CFALayout', (1,), 'its sensor is staggered'),
    50975: ('RowInterleaveFactor', (1,), 'its rows are interleaved'),
    52547: ('ColumnInterleaveFactor', (1,), 'its columns are interleaved'),
}
# Tags of lists of corrections.
_OPCODES = {
    51008: 'OpcodeList1 (of the sensor)',
    51009: 'OpcodeList2 (of the sensor)',
    51022: 'OpcodeList3 (of the lens)',
}


@dataclass
class Sensor:
    """Values of a sensor, and what a file says of them.

    Args:
        pixels (numpy.ndarray): As stored, `[H, W]`.
        number (numpy.ndarray): Numbers of colours, a tile that repeats from
            the first pixel.
        black (numpy.ndarray): Black levels, a tile.
        white (numpy.ndarray): White levels, by number of the colour.
        row_black (numpy.ndarray): What rows add to black levels.
        column_black (numpy.ndarray): What columns add.
        crop (tuple): Rows and columns of the finished image.
        neutral (numpy.ndarray, optional): White as the sensor sees it, by
            number, where LibRaw does not tell.
        notes (list): What is left out.
    """

    pixels: Array
    number: Array
    black: Array
    white: Array
    row_black: Array = field(default_factory=lambda: np.zeros(1))
    column_black: Array = field(default_factory=lambda: np.zeros(1))
    crop: tuple[slice, slice] = (slice(None), slice(None))
    neutral: Array | None = None
    notes: list[str] = field(default_factory=list)


class Tags(dict[int, Array]):
    """Numbers of tags by their codes."""

    def get_integers(self, code: int, *default: int) -> list[int]:
        """Rounded, those of the specification if they are not there."""
        return [round(n) for n in self.get(code, np.array(default)).tolist()]


def is_plain_tiff(path: Path) -> bool:
    """Says whether a file is TIFF, and neither DNG nor of a camera, which
    tells its make and has several images, or one of raw pixels.
    """
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except tifffile.TiffFileError:
        return False
    with tiff:
        first = tiff.pages.first
        is_single = len(tiff.pages) == 1 and not first.pages
        is_picture = is_single and first.photometric not in _RAW
        return _VERSION not in first.tags and (
            is_picture or 271 not in first.tags
        )


def read_dng(path: Path, sensor: Sensor, full: Array) -> Sensor:
    """What LibRaw says of a sensor, and of all its pixels, mended by the tags
    of the file if it is a DNG.
    """
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except tifffile.TiffFileError:
        return sensor
    with tiff:
        first = tiff.pages.first.tags
        if _VERSION not in first:
            return sensor
        page = next((p for p in _pages(tiff) if p.shape == full.shape), None)
        if page is None:
            raise ValueError('its tags do not fit its sensor values')
        known = {tag.code: tag for tags in (first, page.tags) for tag in tags}
        tags = Tags((code, _numbers(tag)) for code, tag in known.items())
        if page.dtype.kind == 'f':  # LibRaw rounds it to 14 bits
            full = page.asarray()
            sensor.white[:] = 1
    for code, (name, read, problem) in _REFUSED.items():
        if tags.get_integers(code, *read) != list(read):
            raise ValueError(f'{problem} ({name})')
    sensor = _with_levels(_with_area(sensor, tags, full), tags)
    sensor.neutral = _neutral(tags)
    sensor.notes += _notes(tags)
    return sensor


def _pages(tiff: Any) -> Iterator[Any]:
    """Raw images of a file."""
    for top in tiff.pages:
        for page in (top, *(top.pages or ())):
            if page.photometric in _RAW:
                yield page


def _numbers(tag: Any) -> Array:
    """The numbers of a tag, none of a text."""
    if isinstance(tag.value, str):
        return np.zeros(0)
    value = list(tag.value) if isinstance(tag.value, bytes) else tag.value
    numbers = np.array(value, dtype=np.float64).ravel()
    is_rational = tag.dtype in (5, 10)
    return numbers[::2] / numbers[1::2] if is_rational else numbers


def _with_area(sensor: Sensor, tags: Tags, full: Array) -> Sensor:
    """The sensor inside its ActiveArea, where LibRaw has odd margins even."""
    height, width = full.shape
    top, left, bottom, right = tags.get_integers(50829, 0, 0, height, width)
    pixels = full[top:bottom, left:right]
    number = sensor.number
    if 33422 in tags:
        number = _tile(tags, 33422, 33421, 2).astype(int)
        if number.max() > 2:
            names = ''.join(_COLOURS[min(n, 6)] for n in np.unique(number))
            raise ValueError(f'its colours are {names}, not red, green, blue')
    column, row = tags.get_integers(50719, 0, 0)
    columns, rows = tags.get_integers(50720, *pixels.shape[::-1])
    crop = slice(row, row + rows), slice(column, column + columns)
    return replace(sensor, pixels=pixels, number=number, crop=crop)


def _with_levels(sensor: Sensor, tags: Tags) -> Sensor:
    """The sensor with levels of their own for places and colours."""
    if 50714 in tags:
        sensor = replace(sensor, black=_tile(tags, 50714, 50713, 1))
    white = tags.get(50717, sensor.white)
    if white.size not in (1, 3, 4):
        raise ValueError(f'its WhiteLevel has {white.size} values')
    return replace(
        sensor,
        white=np.resize(white, 4) if white.size != 3 else white[[0, 1, 2, 1]],
        column_black=tags.get(50715, sensor.column_black),
        row_black=tags.get(50716, sensor.row_black),
    )


def _tile(tags: Tags, code: int, size: int, default: int) -> Array:
    """A tag that repeats over the sensor."""
    shape = tags.get_integers(size, default, default)
    if tags[code].size != np.prod(shape):
        raise ValueError(
            f'its tag {code} has {tags[code].size} values for {shape} places'
        )
    return tags[code].reshape(shape)


def _neutral(tags: Tags) -> Array | None:
    """White as the sensor sees it, of its chromaticity."""
    matrix = tags.get(50722, tags.get(50721))  # ColorMatrix2 or 1
    if 50728 in tags or 50729 not in tags or matrix is None:
        return None
    x, y = tags[50729]
    white = matrix.reshape(3, 3) @ [x / y, 1, (1 - x - y) / y]
    return np.resize(white * tags.get(50727, np.ones(3)), 4)  # AnalogBalance


def _notes(tags: Tags) -> list[str]:
    """What is left out."""
    # A list begins with the count of its entries, in big-endian bytes.
    found = [n for c, n in _OPCODES.items() if c in tags and tags[c][:4].any()]
    notes = [f'corrections are left out: {", ".join(found)}'] if found else []
    scale = tags.get(50718, np.ones(2))
    if np.ptp(scale) > 0:
        notes.append(f'pixels are not square (DefaultScale {scale.tolist()})')
    return notes
