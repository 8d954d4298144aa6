"""Mosaics that are stored as grey images."""

import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from PIL import Image

from pyg_unroll import cfa_mask, data_to_image
from pyg_unroll.imaging import CFA_PATTERNS, local_interpolation
from pyg_unroll.imaging.files import looks_like_mosaic, read_mosaic
from tests.dng_files import orient

pytest.importorskip('OpenImageIO', reason='needs the extra images')

PHOTO = skimage.data.astronaut()[180:280, 60:164]


def values_of(pattern, image=PHOTO):
    mask = cfa_mask(pattern, *image.shape[:2]).movedim(0, 2).numpy()
    return np.where(mask, image, 0).sum(2)


@pytest.mark.parametrize('pattern', CFA_PATTERNS)
@pytest.mark.parametrize(
    ('suffix', 'white', 'said'),
    [
        ('png', 255, None),
        ('png', 65535, None),
        ('png', 1023, 1023),
        ('tif', 4095, 4095),
        ('pgm', 1023, None),
        ('pgm', 65535, None),
    ],
)
def test_values(tmp_path, pattern, suffix, white, said):
    path = tmp_path / f'mosaic.{suffix}'
    values = values_of(pattern) / 255
    pixels = (values * white).round().astype('u1' if white < 256 else 'u2')
    if suffix == 'pgm':
        head = f'P5 104 100 {white}\n'.encode()
        path.write_bytes(head + pixels.astype('>u2').tobytes())
    elif suffix == 'tif':
        tifffile.imwrite(path, pixels, photometric='minisblack')
    else:
        Image.fromarray(pixels).save(path)
    photo = read_mosaic(path, pattern, said)
    assert photo.cfa == ('X-Trans' if pattern == 'X-Trans' else 'Bayer')
    np.testing.assert_allclose(photo.sensor[0], values, atol=1e-3)
    data = photo.to_data()
    image, mask = (data_to_image(data, v)[None] for v in (data.x, data.mask))
    out = photo.finish(local_interpolation(image, mask)[0])
    truth = torch.from_numpy(PHOTO / 255).movedim(2, 0)
    assert float((out - truth).square().mean()) < 10**-2.5


def test_upright(tmp_path):
    # The pattern is that of the pixels as they are stored.
    path = tmp_path / 'mosaic.tif'
    stored = values_of('GBRG', orient(PHOTO, 6)).astype('u1')
    tag = (274, 'H', 1, 6, False)
    tifffile.imwrite(path, stored, photometric='minisblack', extratags=[tag])
    photo = read_mosaic(path, 'GBRG')
    data = photo.to_data()
    image, mask = (data_to_image(data, v)[None] for v in (data.x, data.mask))
    out = photo.finish(local_interpolation(image, mask)[0])
    truth = torch.from_numpy(PHOTO / 255).movedim(2, 0)
    assert float((out - truth).square().mean()) < 10**-2.5


def test_refused(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / 'photo.png')
    Image.fromarray(PHOTO[..., 0]).save(tmp_path / 'grey.png')
    for name, options, problem in (
        ('none.png', ('RGGB',), 'it does not exist'),
        ('photo.png', ('RGGB',), 'several channels'),
        ('grey.png', ('RGGB', 99), 'not all between 0 and 99'),
        ('grey.png', ('RGGB', 0), "'white' must"),
        ('grey.png', ('RGBG',), "'pattern' must"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_mosaic(tmp_path / name, *options)


@pytest.mark.parametrize(
    'photo', [skimage.data.astronaut(), skimage.data.coffee()]
)
def test_signature(photo):
    grey = torch.from_numpy(photo.mean(2) / 255)[None]
    noise = torch.randn(grey.shape, generator=torch.Generator().manual_seed(0))
    for image in (grey, grey + 0.1 * noise, noise, grey[:, :2], grey[:, :, :2]):
        assert not looks_like_mosaic(image)
    for pattern in ('RGGB', 'GBRG'):
        assert looks_like_mosaic(
            torch.from_numpy(values_of(pattern, photo) / 255)[None]
        )
