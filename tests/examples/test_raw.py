"""Camera files: a DNG file made here, read by LibRaw."""

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image

from tests.dng_files import (
    spread,
    tile_of,
    write_dng,
    write_linear_dng,
    write_monochrome_dng,
)

rawpy = pytest.importorskip('rawpy', reason='needs the extra raw')


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


def test_without_filters(run, photo, tmp_path):
    grey = photo.mean(2, keepdims=True) + np.zeros(3)
    write_monochrome_dng(tmp_path / 'photo.dng', grey[..., 0])
    out = tmp_path / 'photo.tif'
    done = run('demosaic.py', tmp_path / 'photo.dng', '--out', out)
    assert done.returncode == 0, done.stderr
    assert 'nothing to demosaic' in done.stdout
    assert psnr(out, grey) > 60


@pytest.mark.parametrize(
    ('pattern', 'least', 'graph'),
    [('quad', 28, 27), ('columns', 30, 29), ('diagonal', 30, 29)],
)
def test_other_filters(run, photo, tmp_path, pattern, least, graph):
    write_dng(tmp_path / 'photo.dng', photo, pattern)
    out = tmp_path / 'photo.tif'
    for options, bound in (((), least), (('--untrained',), graph)):
        done = run(
            'demosaic.py', tmp_path / 'photo.dng', '--out', out, *options
        )
        assert done.returncode == 0, done.stderr
        assert 'GraphDemosaic, GLR' in done.stdout
        assert psnr(out, photo) > bound
    assert 'then Demosaic on a Bayer mosaic' not in done.stdout


@pytest.mark.parametrize('white', [255, 1023, 4095, 65535])
def test_mosaics_stored_grey(run, photo, tmp_path, white):
    number = spread(tile_of('GBRG'), *photo.shape[:2])[..., None]
    values = np.take_along_axis(photo, number, 2)[..., 0] * white
    pixels = values.round().astype(np.uint8 if white < 256 else np.uint16)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    out = tmp_path / 'photo.tif'
    done = run(
        *('demosaic.py', tmp_path / 'photo.png', '--cfa', 'GBRG'),
        *('--white', white, '--out', out),
    )
    assert done.returncode == 0, done.stderr
    assert psnr(out, photo) > 35
    done = run('demosaic.py', tmp_path / 'photo.png')
    assert 'looks like the mosaic of a sensor' in done.stderr


def test_errors(refusal, photo, tmp_path):
    write_dng(tmp_path / 'photo.dng', photo)
    (tmp_path / 'broken.dng').write_bytes(b'no camera wrote this')
    write_linear_dng(tmp_path / 'linear.dng', photo)
    write_dng(tmp_path / 'quad.dng', photo, 'quad')
    write_monochrome_dng(tmp_path / 'grey.dng', photo[..., 0])
    for arguments, problem in (
        ((tmp_path / 'nowhere.dng',), 'no such file'),
        ((tmp_path / 'broken.dng',), 'cannot read'),
        ((tmp_path / 'linear.dng',), 'it holds finished colours'),
        ((tmp_path / 'photo.dng', '--out', tmp_path / 'x.png'), 'must be .tif'),
        ((tmp_path / 'photo.dng', '--noise', -1), '--noise must lie'),
        (('--fix-pixels',), '--fix-pixels needs a camera file'),
        (('--cfa', 'RGGB'), '--cfa needs an image'),
        (('--white', 9), '--white needs --cfa'),
        (('--menon', '--pattern', 'X-Trans'), '--menon needs a photograph'),
        ((tmp_path / 'photo.dng', '--menon'), '--menon needs a photograph'),
        ((tmp_path / 'photo.dng', '--pattern', 'RGGB'), 'a photograph'),
        ((tmp_path / 'photo.dng', '--untrained', '--noise', 5), 'trained'),
        ((tmp_path / 'quad.dng', '--noise', 5), 'needs a Bayer or X-Trans'),
        ((tmp_path / 'quad.dng', '--fix-pixels'), 'needs a Bayer or X-Trans'),
        ((tmp_path / 'grey.dng', '--prior', 'gtv'), 'needs a sensor with'),
        ((tmp_path / 'grey.dng', '--num-views', 2), 'needs a sensor with'),
    ):
        assert problem in refusal('demosaic.py', *arguments)
