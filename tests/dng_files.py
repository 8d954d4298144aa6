"""DNG files of known pictures, written tag by tag."""

import numpy as np
import tifffile

BLACK, WHITE = 512, 15360
NEUTRAL = np.array([0.5, 1.0, 0.625])  # white, as the sensor sees it
# Camera colours of XYZ, rows that differ.
MATRIX = np.array([[0.9, -0.2, -0.1], [-0.4, 1.3, 0.1], [-0.1, 0.2, 0.7]])
XYZ = np.array(
    [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
)
TILES = {
    'RGGB': ('RG', 'GB'),
    'BGGR': ('BG', 'GR'),
    'GRBG': ('GR', 'BG'),
    'GBRG': ('GB', 'RG'),
    'X-Trans': ('GBGGRG', 'RGRBGB', 'GBGGRG', 'GRGGBG', 'BGBRGR', 'GRGGBG'),
    'quad': ('RRGG', 'RRGG', 'GGBB', 'GGBB'),
    'columns': ('RB', 'GG'),
    'diagonal': ('RGB', 'GBR', 'BRG'),
}
# Types of tags.
BYTE, SHORT, LONG, FRACTION, SIGNED = 'B', 'H', 'I', '2I', '2i'


def rational(values):
    return tuple(n for v in np.ravel(values) for n in (round(v * 10000), 10000))


def decode(x):
    return np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)


def tile_of(pattern):
    return np.array([['RGB'.index(c) for c in row] for row in TILES[pattern]])


def spread(tile, height, width):
    """A tile over an image."""
    tile = np.atleast_2d(tile)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    return tile[rows % tile.shape[0], columns % tile.shape[1]]


def orient(image, orientation):
    """The sensor's view of an upright picture, by the words of Exif."""
    return {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.swapaxes(0, 1),
        6: np.rot90(image),
        7: image.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(image, -1),
    }[orientation]


def camera_colours(image):
    """What a sensor sees of an sRGB image `[H, W, 3]`, white as in NEUTRAL."""
    forward = MATRIX @ XYZ
    forward /= forward.sum(1, keepdims=True)
    return decode(image) @ forward.T * NEUTRAL


def write_dng(
    path,
    image,
    pattern='RGGB',
    orientation=1,
    hot=(),
    black=BLACK,
    white=WHITE,
    tags=None,
    dtype=np.uint16,
    margins=(0, 0, 0, 0),
):
    """Writes the camera file of an sRGB image `[H, W, 3]`, some pixels hot,
    with black and white levels `[H, W]`, `tags` of other values or None, and
    `margins` around it: top, left, bottom, right.
    """
    height, width = image.shape[:2]
    tile = tile_of(pattern)
    number = spread(tile, height, width)[..., None]
    sensor = np.take_along_axis(camera_colours(image), number, 2)[..., 0]
    sensor = black + sensor * (white - black)
    for row, col in hot:
        sensor[row, col] = WHITE
    if np.dtype(dtype).kind == 'u':
        sensor = sensor.round()
    top, left, bottom, right = margins
    sensor = np.pad(sensor, ((top, bottom), (left, right))).astype(dtype)
    known = {
        50706: (BYTE, (1, 4, 0, 0)),  # DNGVersion
        50708: ('s', 'Test Camera'),
        33421: (SHORT, tile.shape),
        33422: (BYTE, tuple(tile.flatten().tolist())),
        274: (SHORT, (orientation,)),
        50714: (SHORT, (BLACK,)),
        50717: (SHORT, (WHITE,)),
        50721: (SIGNED, rational(MATRIX)),
        50728: (FRACTION, rational(NEUTRAL)),
        50778: (SHORT, (21,)),  # D65
    }
    if any(margins):
        known[50829] = LONG, (top, left, top + height, left + width)
    known.update(tags or {})
    tifffile.imwrite(
        path,
        sensor,
        photometric=32803,
        extratags=[tag(code, *pair) for code, pair in known.items() if pair],
        metadata=None,
    )


def write_monochrome_dng(path, image):
    """Writes the camera file of a grey image `[H, W]`."""
    _write_linear(path, BLACK + decode(image) * (WHITE - BLACK), 'minisblack')


def write_linear_dng(path, image):
    """Writes finished colours."""
    _write_linear(path, decode(image) * WHITE, 'rgb')


def _write_linear(path, pixels, photometric):
    tags = [
        tag(50706, BYTE, (1, 4, 0, 0)),
        tag(50708, 's', 'Test Camera'),
        tag(50714, SHORT, (BLACK,)),
        tag(50717, SHORT, (WHITE,)),
    ]
    pixels = pixels.round().astype(np.uint16)
    options = {'extratags': tags, 'metadata': None}
    tifffile.imwrite(path, pixels, photometric=photometric, **options)
    with tifffile.TiffFile(path, mode='r+') as tiff:
        # The writer wants three channels.
        tiff.pages[0].tags[262].overwrite(34892)


def tag(code, kind, values):
    """A tag as tifffile writes it."""
    if kind == 's':
        return code, kind, 0, values, False
    return code, kind, len(values) // (len(kind)), tuple(values), False
