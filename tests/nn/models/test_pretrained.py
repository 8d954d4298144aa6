"""The trained models that come with the package."""

from pathlib import Path

import pytest
import torch
from skimage.data import astronaut

import pyg_unroll.nn.models as models
from pyg_unroll import (
    GraphDemosaic,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
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


@pytest.mark.parametrize('pattern', ['RGGB', 'GRBG', 'GBRG', 'BGGR'])
def test_demosaic_bayer(pattern):
    pixels = torch.from_numpy(astronaut()[140:281, 60:203])
    image = pixels.permute(2, 0, 1).float() / 255
    data = mosaic(image, pattern)
    scores = []
    for model in (
        UnrolledGLR.from_pretrained('demosaic-bayer'),
        GraphDemosaic(),
    ):
        with torch.no_grad():
            out = model(data)
        assert torch.equal(out[data.mask], data.x[data.mask])
        error = data_to_image(data, out) - image
        scores.append(float(-10 * error.square().mean().log10()))
    assert scores[0] > scores[1] + 0.2


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
