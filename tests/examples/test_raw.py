"""Camera files: a DNG file made here, read by LibRaw."""

import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from PIL import Image

from pyg_unroll import cfa_mask

rawpy = pytest.importorskip('rawpy', reason='needs the extra raw')

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


def rational(values):
    return tuple(n for v in np.ravel(values) for n in (round(v * 10000), 10000))


def decode(x):
    return np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)


def write_dng(path, image, pattern='RGGB', orientation=1, hot=()):
    """Writes the camera file of an sRGB image `[H, W, 3]`, some pixels hot."""
    forward = MATRIX @ XYZ
    forward /= forward.sum(1, keepdims=True)
    camera = decode(image) @ forward.T * NEUTRAL
    height, width = image.shape[:2]
    number = cfa_mask(pattern, height, width).byte().argmax(0).numpy()
    side = 6 if pattern == 'X-Trans' else 2
    colour = number[:side, :side].flatten().tolist()
    sensor = np.take_along_axis(camera, number[..., None], 2)[..., 0]
    sensor = (BLACK + sensor * (WHITE - BLACK)).round().astype(np.uint16)
    for row, col in hot:
        sensor[row, col] = WHITE
    tags = [
        (50706, 'B', 4, (1, 4, 0, 0), False),  # DNGVersion
        (50708, 's', 0, 'Test Camera', False),
        (33421, 'H', 2, (side, side), False),
        (33422, 'B', len(colour), tuple(colour), False),
        (274, 'H', 1, orientation, False),
        (50714, 'H', 1, BLACK, False),
        (50717, 'H', 1, WHITE, False),
        (50721, '2i', 9, rational(MATRIX), False),
        (50728, '2I', 3, rational(NEUTRAL), False),
        (50778, 'H', 1, 21, False),  # D65
    ]
    tifffile.imwrite(
        path, sensor, photometric=32803, extratags=tags, metadata=None
    )


@pytest.fixture(scope='module')
def photo():
    # Camera colours outside the sensor's range would be clipped.
    return 0.1 + 0.6 * skimage.data.astronaut()[180:280, 60:164] / 255


def psnr(path, truth):
    pixels = tifffile.imread(path)
    assert pixels.dtype == np.uint16
    assert pixels.shape == truth.shape
    return -10 * np.log10(np.mean((pixels / 65535 - truth) ** 2))


@pytest.mark.parametrize('pattern', ['RGGB', 'GBRG', 'X-Trans'])
def test_colours_come_back(run, pattern, photo, tmp_path):
    write_dng(tmp_path / 'photo.dng', photo, pattern)
    out = tmp_path / 'photo.tif'
    done = run('demosaic.py', tmp_path / 'photo.dng', '--out', out)
    assert done.returncode == 0, done.stderr
    assert 'Demosaic, GLR: ' in done.stdout
    assert psnr(out, photo) > 34


def test_orientation(run, photo, tmp_path):
    turned = np.rot90(photo)
    write_dng(tmp_path / 'photo.dng', turned, orientation=6)
    out = tmp_path / 'photo.tif'
    done = run('demosaic.py', tmp_path / 'photo.dng', '--out', out)
    assert done.returncode == 0, done.stderr
    assert psnr(out, photo) > 34


def test_hot_pixels(run, photo, tmp_path):
    places = [(20, 31), (55, 70), (56, 71), (90, 3)]
    write_dng(tmp_path / 'photo.dng', photo, hot=places)
    scores = []
    for options in ((), ('--fix-pixels',)):
        out = tmp_path / 'photo.tif'
        done = run(
            'demosaic.py', tmp_path / 'photo.dng', '--out', out, *options
        )
        assert done.returncode == 0, done.stderr
        scores.append(psnr(out, photo))
    assert 'defective pixels are filled in' in done.stdout
    assert scores[1] > scores[0] + 2 and scores[1] > 33


def test_noise(run, photo, tmp_path):
    write_dng(tmp_path / 'photo.dng', photo)
    out = tmp_path / 'photo.tif'
    for noise in (0, 5):
        done = run(
            *('demosaic.py', tmp_path / 'photo.dng', '--out', out),
            *('--noise', noise),
        )
        assert done.returncode == 0, done.stderr
        assert psnr(out, photo) > 28


def test_curve():
    from raw import decode, encode

    x = torch.linspace(-0.1, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(decode(encode(x)), x, atol=1e-6, rtol=0)
    assert float(encode(torch.tensor(0.5))) == pytest.approx(0.7354, abs=1e-4)
    assert (encode(x).diff() > 0).all()


def test_errors(refusal, photo, tmp_path):
    write_dng(tmp_path / 'photo.dng', photo)
    (tmp_path / 'broken.dng').write_bytes(b'no camera wrote this')
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / 'p.tif')
    (tmp_path / 'p.tif').rename(tmp_path / 'flat.dng')
    for arguments, problem in (
        ((tmp_path / 'nowhere.dng',), 'no such file'),
        ((tmp_path / 'broken.dng',), 'cannot read'),
        ((tmp_path / 'flat.dng',), 'cannot read'),
        ((tmp_path / 'photo.dng', '--out', tmp_path / 'x.png'), 'must be .tif'),
        ((tmp_path / 'photo.dng', '--noise', -1), '--noise must lie'),
        (('--fix-pixels',), '--fix-pixels needs a camera file'),
    ):
        assert problem in refusal('demosaic.py', *arguments)
