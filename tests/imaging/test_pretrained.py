"""The trained models that come with the package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.restoration import inpaint_biharmonic

import pyg_unroll.nn.models as models
from pyg_unroll import (
    GraphDemosaic,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    image_to_data,
    mosaic,
)

FOLDER = Path(models.__file__).parent / 'pretrained'
SHIPPED = [
    (cls, name)
    for cls in (UnrolledGLR, UnrolledGTV)
    for name in cls.pretrained_names()
]


def test_names():
    assert 'demosaic-bayer' in UnrolledGLR.pretrained_names()
    assert len(SHIPPED) == len(list(FOLDER.glob('*.safetensors')))


@pytest.mark.parametrize(('cls', 'name'), SHIPPED)
def test_files(cls, name):
    path = FOLDER / f'{cls.short_name}-{name}.safetensors'
    assert path.stat().st_size <= 1.5e6
    card = path.with_suffix('.md').read_text()
    for section in ('Data', 'Training', 'Scores', 'Limits'):
        assert f'## {section}' in card
    model = cls.from_pretrained(name)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) <= 320_000
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('cls', [UnrolledGLR, UnrolledGTV])
@pytest.mark.parametrize('pattern', ['RGGB', 'GRBG', 'GBRG', 'BGGR'])
def test_demosaic_bayer(cls, pattern):
    pixels = torch.from_numpy(astronaut()[140:281, 60:203])
    image = pixels.permute(2, 0, 1).float() / 255
    data = mosaic(image, pattern)
    scores = []
    for model in (
        cls.from_pretrained('demosaic-bayer'),
        GraphDemosaic(),
    ):
        with torch.no_grad():
            out = model(data)
        assert torch.equal(out[data.mask], data.x[data.mask])
        error = data_to_image(data, out) - image
        scores.append(float(-10 * error.square().mean().log10()))
    assert scores[0] > scores[1] + 0.2


def psnr(out, image):
    error = (out.clamp(0, 1) - image).square().mean()
    return float(-10 * error.log10())


@pytest.mark.parametrize(('sigma', 'gain'), [(10, 2), (20, 4), (50, 6)])
def test_demosaic_bayer_noisy(sigma, gain):
    pixels = torch.from_numpy(astronaut()[140:281, 60:203])
    image = pixels.permute(2, 0, 1).float() / 255
    torch.manual_seed(sigma)
    data = mosaic(image + sigma / 255 * torch.randn_like(image))
    plain, noisy = (
        UnrolledGLR.from_pretrained(name)
        for name in ('demosaic-bayer', 'demosaic-bayer-noisy')
    )
    with torch.no_grad():
        before = psnr(data_to_image(data, plain(data)), image)
        estimated = psnr(data_to_image(data, noisy(data)), image)
        data.noise_std = sigma / 255
        given = psnr(data_to_image(data, noisy(data)), image)
    assert given > before + gain
    assert estimated > given - 0.5


@pytest.mark.parametrize('cls', [UnrolledGLR, UnrolledGTV])
@pytest.mark.parametrize('share', [0.3, 0.5, 0.8])
def test_inpaint_random(cls, share):
    if 'inpaint-random' not in cls.pretrained_names():
        pytest.skip('no such weights')
    pixels = torch.from_numpy(astronaut()[140:281, 60:203])
    image = pixels.permute(2, 0, 1).float() / 255
    torch.manual_seed(0)
    mask = torch.rand(image.shape[1:]) < share
    data = image_to_data(torch.where(mask, image, 0))
    data.mask = mask.flatten()
    model = cls.from_pretrained('inpaint-random')
    with torch.no_grad():
        out = data_to_image(data, model(data))
    peer = inpaint_biharmonic(
        data_to_image(data).numpy(), ~mask.numpy(), channel_axis=0
    )
    assert torch.equal(out[:, mask], image[:, mask])
    assert psnr(out, image) > psnr(torch.from_numpy(peer), image) + 0.3


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_demosaic_bayer_tiles(dtype):
    pixels = torch.from_numpy(astronaut()[:300, :310])
    data = mosaic(pixels.permute(2, 0, 1).to(dtype) / 255)
    model = UnrolledGLR.from_pretrained('demosaic-bayer').to(dtype)
    with torch.no_grad():
        whole = model(data)
        model.max_pixels = 50_000
        tiled = model(data)
    atol = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(tiled, whole, rtol=0, atol=atol)


def test_file_keeps_type_and_settings(tmp_path):
    model = UnrolledGLR(3, 'mosaic', hidden_channels=np.int64(8)).double()
    model.num_views, model.max_pixels = 2, 5000
    model.save(tmp_path / 'model.safetensors')
    again = UnrolledGLR.load(tmp_path / 'model.safetensors')
    assert (again.num_views, again.max_pixels) == (2, 5000)
    data = mosaic(torch.rand(3, 12, 12, dtype=torch.float64))
    assert torch.equal(again(data), model(data))
    assert all(p.requires_grad for p in again.parameters())
