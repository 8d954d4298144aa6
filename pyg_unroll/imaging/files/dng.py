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

_CODES = {
    'CFARepeatPatternDim': 33421,
    'CFAPattern': 33422,
    'CFAPlaneColor': 50710,
    'CFALayout': 50711,
    'BlackLevelRepeatDim': 50713,
    'BlackLevel': 50714,
    'BlackLevelDeltaH': 50715,
    'BlackLevelDeltaV': 50716,
    'WhiteLevel': 50717,
    'DefaultScale': 50718,
    'DefaultCropOrigin': 50719,
    'DefaultCropSize': 50720,
    'ColorMatrix1': 50721,
    'ColorMatrix2': 50722,
    'AnalogBalance': 50727,
    'AsShotNeutral': 50728,
    'AsShotWhiteXY': 50729,
    'ActiveArea': 50829,
    'RowInterleaveFactor': 50975,
    'OpcodeList1': 51008,
    'OpcodeList2': 51009,
    'OpcodeList3': 51022,
    'ColumnInterleaveFactor': 52547,
}
# What is not read unless a tag says this.
_REFUSED = {
    'CFAPlaneColor': ((0, 1, 2), 'its colours are not R, G, B'),
    'CFALayout': ((1,), 'its sensor is staggered'),
    'RowInterleaveFactor': ((1,), 'its rows are interleaved'),
    'ColumnInterleaveFactor': ((1,), 'its columns are interleaved'),
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


class Tags(dict[str, Array]):
    """Numbers of tags by their names."""

    def get_integers(self, name: str, *default: int) -> list[int]:
        """Rounded, those of the specification if they are not there."""
        return [round(n) for n in self.get(name, np.array(default)).tolist()]


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
        tags = Tags(
            (name, _numbers(known[code]))
            for name, code in _CODES.items()
            if code in known
        )
        if page.dtype.kind == 'f':  # LibRaw rounds it to 14 bits
            full = page.asarray()
            sensor.white[:] = 1
    for name, (read, problem) in _REFUSED.items():
        if tags.get_integers(name, *read) != list(read):
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
    """The numbers of a tag."""
    if isinstance(tag.value, bytes):
        return np.frombuffer(tag.value, np.uint8).astype(np.float64)
    numbers = np.array(tag.value, dtype=np.float64).ravel()
    is_rational = tag.dtype in (5, 10)
    return numbers[::2] / numbers[1::2] if is_rational else numbers


def _with_area(sensor: Sensor, tags: Tags, full: Array) -> Sensor:
    """The sensor inside its ActiveArea, where LibRaw has odd margins even."""
    height, width = full.shape
    top, left, bottom, right = tags.get_integers(
        'ActiveArea', 0, 0, height, width
    )
    pixels = full[top:bottom, left:right]
    number = sensor.number
    if 'CFAPattern' in tags:
        number = _tile(tags, 'CFAPattern', 'CFARepeatPatternDim', 2).astype(int)
        if number.max() > 2:
            names = ''.join(_COLOURS[min(n, 6)] for n in np.unique(number))
            raise ValueError(f'its colours are {names}, not red, green, blue')
    column, row = tags.get_integers('DefaultCropOrigin', 0, 0)
    columns, rows = tags.get_integers('DefaultCropSize', *pixels.shape[::-1])
    crop = slice(row, row + rows), slice(column, column + columns)
    return replace(sensor, pixels=pixels, number=number, crop=crop)


def _with_levels(sensor: Sensor, tags: Tags) -> Sensor:
    """The sensor with levels of their own for places and colours."""
    if 'BlackLevel' in tags:
        sensor = replace(
            sensor, black=_tile(tags, 'BlackLevel', 'BlackLevelRepeatDim', 1)
        )
    white = tags.get('WhiteLevel', sensor.white)
    if white.size not in (1, 3, 4):
        raise ValueError(f'its WhiteLevel has {white.size} values')
    return replace(
        sensor,
        white=np.resize(white, 4) if white.size != 3 else white[[0, 1, 2, 1]],
        column_black=tags.get('BlackLevelDeltaH', sensor.column_black),
        row_black=tags.get('BlackLevelDeltaV', sensor.row_black),
    )


def _tile(tags: Tags, name: str, size: str, default: int) -> Array:
    """A tag that repeats over the sensor."""
    shape = tags.get_integers(size, default, default)
    if tags[name].size == 1:
        return tags[name].reshape(1, 1)
    if tags[name].size != np.prod(shape):
        raise ValueError(
            f'its {name} has {tags[name].size} values for {shape} places'
        )
    return tags[name].reshape(shape)


def _neutral(tags: Tags) -> Array | None:
    """White as the sensor sees it, of its chromaticity."""
    matrix = tags.get('ColorMatrix2', tags.get('ColorMatrix1'))
    if 'AsShotNeutral' in tags or 'AsShotWhiteXY' not in tags or matrix is None:
        return None
    x, y = tags['AsShotWhiteXY']
    white = matrix.reshape(3, 3) @ [x / y, 1, (1 - x - y) / y]
    return np.resize(white * tags.get('AnalogBalance', np.ones(3)), 4)


def _notes(tags: Tags) -> list[str]:
    """What is left out."""
    # A list begins with the count of its entries, in big-endian bytes.
    lists = [f'OpcodeList{k}' for k in (1, 2, 3)]
    found = [name for name in lists if tags.get(name, np.zeros(0))[:4].any()]
    notes = []
    if found:
        notes = [f'corrections are left out: {", ".join(found)}']
    scale = tags.get('DefaultScale', np.ones(2))
    if np.ptp(scale) > 0:
        notes.append(f'pixels are not square (DefaultScale {scale.tolist()})')
    return notes
