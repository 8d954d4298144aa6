"""Camera files: a DNG file made here, read by LibRaw."""

import numpy as np
import pytest
import skimage.data
import tifffile

from tests.dng_files import write_dng, write_linear_dng

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


def test_errors(refusal, photo, tmp_path):
    write_dng(tmp_path / 'photo.dng', photo)
    (tmp_path / 'broken.dng').write_bytes(b'no camera wrote this')
    write_linear_dng(tmp_path / 'linear.dng', photo)
    for arguments, problem in (
        ((tmp_path / 'nowhere.dng',), 'no such file'),
        ((tmp_path / 'broken.dng',), 'cannot read'),
        ((tmp_path / 'linear.dng',), 'it holds finished colours'),
        ((tmp_path / 'photo.dng', '--out', tmp_path / 'x.png'), 'must be .tif'),
        ((tmp_path / 'photo.dng', '--noise', -1), '--noise must lie'),
        (('--fix-pixels',), '--fix-pixels needs a camera file'),
    ):
        assert problem in refusal('demosaic.py', *arguments)
