"""Camera files: DNG files of known pictures, read and interpolated."""

import warnings

import numpy as np
import pytest
import skimage.data
import tifffile
import torch

from pyg_unroll.imaging import data_to_image, local_interpolation
from pyg_unroll.imaging.files import is_raw, read_raw
from pyg_unroll.imaging.files.srgb import decode, encode
from tests.dng_files import (
    BLACK,
    BYTE,
    FRACTION,
    LONG,
    MATRIX,
    NEUTRAL,
    SHORT,
    SIGNED,
    XYZ,
    orient,
    rational,
    spread,
    tile_of,
    write_dng,
    write_monochrome_dng,
)

pytest.importorskip('rawpy', reason='needs the extra raw')

LEVELS = {
    '1 x 2': np.array([[500, 600]]),
    '2 x 2': np.array([[512, 700], [900, 2048]]),
    '4 x 4': 500 + 100 * np.arange(16).reshape(4, 4),
    '6 x 6': 500 + 50 * np.arange(36).reshape(6, 6),
}


@pytest.fixture(scope='module')
def photo():
    # Camera colours outside the sensor's range would be clipped.
    return 0.1 + 0.6 * skimage.data.astronaut()[180:280, 60:164] / 255


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'photo.dng'


def develop(path):
    """The finished picture, bilinear, `[H, W, 3]`."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        photo = read_raw(path)
    data = photo.to_data()
    image, mask = (data_to_image(data, v)[None] for v in (data.x, data.mask))
    return photo.finish(local_interpolation(image, mask)[0]).movedim(0, 2)


def psnr(picture, truth):
    assert tuple(picture.shape) == truth.shape
    return float(-10 * np.log10(np.mean((picture.numpy() - truth) ** 2)))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(photo, path, orientation):
    write_dng(path, orient(photo, orientation), orientation=orientation)
    assert psnr(develop(path), photo) > 28.2


@pytest.mark.parametrize(
    ('pattern', 'cfa', 'least'),
    [
        *((name, 'Bayer', 28.4) for name in ('RGGB', 'BGGR', 'GRBG', 'GBRG')),
        ('X-Trans', 'X-Trans', 27.2),
        ('quad', 'other', 24),
        ('columns', 'other', 28.3),
        ('diagonal', 'other', 28.3),
    ],
)
def test_colour_filter_arrays(photo, path, pattern, cfa, least):
    write_dng(path, photo, pattern)
    assert psnr(develop(path), photo) > least
    assert read_raw(path).cfa == cfa


@pytest.mark.parametrize('pattern', ['RGGB', 'X-Trans'])
@pytest.mark.parametrize('margins', [(1, 0, 0, 0), (0, 3, 1, 1), (5, 7, 2, 2)])
def test_active_area(photo, path, pattern, margins):
    write_dng(path, photo, pattern, margins=margins)
    assert psnr(develop(path), photo) > 27.2


@pytest.mark.parametrize('size', LEVELS)
@pytest.mark.parametrize('pattern', ['RGGB', 'X-Trans'])
def test_black_levels_of_places(photo, path, pattern, size):
    tile = LEVELS[size]
    tags = {
        50713: (SHORT, tile.shape),
        50714: (SHORT, tuple(tile.flatten().tolist())),
    }
    black = spread(tile, *photo.shape[:2])
    write_dng(
        path, photo, pattern, black=black, tags=tags, margins=(1, 1, 0, 0)
    )
    assert psnr(develop(path), photo) > 27.2
    # A black frame is black.
    write_dng(path, 0 * photo, pattern, black=black, tags=tags)
    assert not read_raw(path).sensor.any()


@pytest.mark.parametrize('code', [50715, 50716])
def test_black_levels_of_columns_and_rows(photo, path, code):
    delta = 10.0 * np.arange(photo.shape[50716 - code])
    tags = {code: (SIGNED, rational(delta))}
    black = BLACK + (delta if code == 50715 else delta[:, None])
    write_dng(path, photo, black=black, tags=tags)
    assert psnr(develop(path), photo) > 28.2


@pytest.mark.parametrize(
    ('black', 'tag'),
    [(0, None), (300, (LONG, (300,))), (511.5, (FRACTION, rational([511.5])))],
)
def test_black_level(photo, path, black, tag):
    write_dng(path, photo, black=black, tags={50714: tag})
    assert psnr(develop(path), photo) > 28.2


@pytest.mark.parametrize(
    ('white', 'tag'),
    [
        ((65535,) * 3, None),
        ((9000,) * 3, (LONG, (9000,))),
        ((15360, 15000, 14000), (SHORT, (15360, 15000, 14000))),
    ],
)
def test_white_level(photo, path, white, tag):
    white = np.array(white)[spread(tile_of('RGGB'), *photo.shape[:2])]
    write_dng(path, photo, white=white, tags={50717: tag})
    assert psnr(develop(path), photo) > 28.2


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'f2', 'f4'])
def test_types(photo, path, dtype):
    black, white = (10, 250) if dtype == 'u1' else (0, 1)
    if dtype == 'u2':
        black, white = 0, 65535
    tags = {50714: (SHORT, (black,)), 50717: (LONG, (white,))}
    write_dng(path, photo, black=black, white=white, tags=tags, dtype=dtype)
    assert psnr(develop(path), photo) > 28.2


def test_table_of_values(photo, path):
    # Stored are square roots.
    table = (np.arange(4096) ** 2 // 256).tolist()
    levels = {50714: (SHORT, (0,)), 50717: (LONG, (65500,))}
    write_dng(path, photo, black=0, white=65500, tags=levels)
    stored = np.sqrt(tifffile.imread(path) * 256.0).round()
    tags = {**levels, 50712: (SHORT, tuple(table))}
    write_dng(path, photo, black=0, white=65500, tags=tags)
    with tifffile.TiffFile(path, mode='r+') as tiff:
        start = tiff.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    pixels = stored.astype('<u2').tobytes()
    content[start : start + len(pixels)] = pixels
    path.write_bytes(content)
    assert psnr(develop(path), photo) > 28.2


def test_crop(photo, path):
    tags = {50719: (LONG, (4, 6)), 50720: (LONG, (90, 80))}
    turned = orient(photo, 6)
    write_dng(path, turned, orientation=6, tags=tags)
    inside = orient(turned[6:86, 4:94], 8)
    assert psnr(develop(path), inside) > 27.5


def test_white_by_chromaticity(photo, path):
    # D65 is white: what NEUTRAL says of another matrix.
    matrix = MATRIX * (NEUTRAL / (MATRIX @ XYZ).sum(1))[:, None]
    tags = {50721: (SIGNED, rational(matrix)), 50728: None}
    write_dng(
        path,
        photo,
        tags={**tags, 50729: (FRACTION, rational((0.3127, 0.3290)))},
    )
    assert psnr(develop(path), photo) > 28.2
    write_dng(path, photo, tags=tags)
    with pytest.warns(UserWarning, match='no white balance'):
        read_raw(path)


def test_without_filters(photo, path):
    grey = photo.mean(2, keepdims=True) + np.zeros(3)
    write_monochrome_dng(path, grey[..., 0])
    raw = read_raw(path)
    assert raw.cfa == 'monochrome'
    data = raw.to_data()
    assert data.mask.all()
    assert psnr(raw.finish(data_to_image(data)).movedim(0, 2), grey) > 60


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        ({'tags': {50711: (SHORT, (2,))}}, r'is staggered \(CFALayout\)'),
        ({'tags': {50975: (LONG, (2,))}}, 'rows are interleaved'),
        ({'tags': {52547: (LONG, (2,))}}, 'columns are interleaved'),
        ({'tags': {50710: (BYTE, (2, 1, 0))}}, 'CFAPlaneColor'),
        ({'tags': {33422: (BYTE, (0, 1, 1, 6))}}, 'its colours are RGW'),
        ({'tags': {50717: (SHORT, (100,))}}, '100 is not above .* 512'),
        ({'tags': {50717: (SHORT, (512,))}}, '512 is not above .* 512'),
        ({'tags': {50717: (SHORT, (0,))}}, '0 is not above .* 512'),
        ({'tags': {50717: (SHORT, (9, 9))}}, 'WhiteLevel has 2 values'),
        ({'tags': {50714: (SHORT, (9, 9))}}, 'BlackLevel has 2 values for'),
        ({'black': 0, 'white': 0}, 'values are zero'),
    ],
)
def test_refused(photo, path, options, problem):
    write_dng(path, photo, **options)
    with pytest.raises(ValueError, match=f"cannot read '.*{problem}"):
        read_raw(path)


@pytest.mark.parametrize('code', [51008, 51009, 51022])
def test_corrections_are_told(photo, path, code):
    write_dng(path, photo, tags={code: (BYTE, (0, 0, 0, 1) + (0,) * 20)})
    with pytest.warns(UserWarning, match='corrections are left out: Opcode'):
        read_raw(path)
    write_dng(path, photo, tags={code: (BYTE, (0, 0, 0, 0))})
    assert psnr(develop(path), photo) > 28.2  # without a warning


def test_pixels_that_are_not_square(photo, path):
    write_dng(path, photo, tags={50718: (FRACTION, rational([1, 2]))})
    with pytest.warns(UserWarning, match='not square'):
        read_raw(path)


def test_errors_of_libraw(photo, path):
    write_dng(path, photo)
    content = path.read_bytes()
    for cut in (20, 9000):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"photo.dng': Input/output error"):
            read_raw(path)


def test_content_says_what_a_file_is(photo, tmp_path):
    for suffix in ('.tif', '.jpg', ''):
        path = tmp_path / f'photo{suffix}'
        write_dng(path, photo)
        assert is_raw(path)
        assert psnr(develop(path), photo) > 28.2
    # To LibRaw, these are raw.
    path = tmp_path / 'scan.dng'
    for make in ({}, {'extratags': [(271, 's', 0, 'NIKON', False)]}):
        grey = np.zeros((40, 50), np.uint16)
        tifffile.imwrite(path, grey, photometric='minisblack', **make)
        assert not is_raw(path)
    assert is_raw(tmp_path / 'missing.nef')
    assert not is_raw(tmp_path / 'missing.png')


def test_tensors(photo, path):
    write_dng(path, photo, 'GBRG')
    raw = read_raw(path)
    assert raw.sensor.dtype == torch.float32
    assert raw.sensor.shape == (1, 100, 104)
    assert raw.tile.tolist() == [[1, 2], [0, 1]]


def test_transfer_function():
    x = np.linspace(-0.1, 1, 1001)
    np.testing.assert_allclose(decode(encode(x)), x, atol=1e-6)
    assert encode(np.array(0.5)) == pytest.approx(0.7354, abs=1e-4)
    assert (np.diff(encode(x)) > 0).all()
