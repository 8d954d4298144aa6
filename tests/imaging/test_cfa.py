import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from pyg_unroll import GraphDemosaic, cfa_mask, data_to_image, mosaic
from pyg_unroll.imaging import CFA_PATTERNS

# Fujifilm's 6 x 6 tile has 8 red, 20 green and 8 blue pixels.
TILES = {name: (2, (1, 2, 1)) for name in ('RGGB', 'BGGR', 'GRBG', 'GBRG')}
TILES['X-Trans'] = (6, (8, 20, 8))


def test_patterns():
    assert set(CFA_PATTERNS) == set(TILES)


@pytest.mark.parametrize('pattern', TILES)
@pytest.mark.parametrize('size', [(12, 18), (7, 5), (1, 1)])
def test_cfa_mask(pattern, size, device):
    mask = cfa_mask(pattern, *size, device)
    assert mask.shape == (3, *size) and mask.dtype == torch.bool
    assert mask.device.type == device.type
    assert bool((mask.sum(0) == 1).all())
    # It repeats.
    period, counts = TILES[pattern]
    whole = cfa_mask(pattern, 12, 18, device)
    assert torch.equal(mask, whole[:, : size[0], : size[1]])
    assert tuple(whole[:, :period, :period].sum((1, 2)).tolist()) == counts
    assert torch.equal(whole[:, period:], whole[:, :-period])


@pytest.mark.parametrize('pattern', ['RGGB', 'BGGR', 'GRBG', 'GBRG'])
def test_bayer_letters(pattern):
    mask = cfa_mask(pattern, 2, 2)
    corner = ['RGB'[int(k)] for k in mask.int().argmax(0).flatten()]
    assert ''.join(corner) == pattern


def test_bayer_against_colour_demosaicing():
    bayer = pytest.importorskip('colour_demosaicing.bayer')
    for pattern in ('RGGB', 'BGGR', 'GRBG', 'GBRG'):
        expected = bayer.masks_CFA_Bayer((6, 8), pattern)
        assert np.array_equal(cfa_mask(pattern, 6, 8).numpy(), expected)


def test_x_trans_sees_all_colours_in_rows_and_columns():
    # What the pattern was made for; Bayer does not have it.
    mask = cfa_mask('X-Trans', 6, 6)
    assert bool(mask.any(1).all()) and bool(mask.any(2).all())


@pytest.mark.parametrize('pattern', TILES)
def test_mosaic(pattern, device):
    image = torch.rand(3, 7, 9, device=device)
    data = mosaic(image, pattern)
    mask = cfa_mask(pattern, 7, 9, device)
    assert data.x.shape == data.mask.shape == (63, 3)
    assert (data.height, data.width, data.pattern) == (7, 9, pattern)
    assert torch.equal(data_to_image(data, data.mask), mask)
    assert torch.equal(data_to_image(data), image * mask)


@pytest.mark.parametrize('pattern', TILES)
def test_mosaic_of_raw_values(pattern):
    image = torch.rand(3, 7, 9)
    raw = (image * cfa_mask(pattern, 7, 9)).sum(0, keepdim=True)
    data, expected = mosaic(raw, pattern), mosaic(image, pattern)
    assert torch.equal(data.x, expected.x)
    assert torch.equal(data.mask, expected.mask)


@pytest.mark.parametrize(
    'dtype, limit', [(torch.uint8, 255), (torch.uint16, 65535)]
)
def test_mosaic_of_integers(dtype, limit):
    raw = torch.arange(20, dtype=torch.int32).view(1, 4, 5)
    data = mosaic((limit - raw).to(dtype))
    value = data.x[data.mask].double() * limit
    assert data.x.dtype == torch.float32
    torch.testing.assert_close(
        value, (limit - raw).flatten().double(), atol=1e-2, rtol=0
    )


def test_mosaic_of_batch():
    images = torch.rand(2, 3, 5, 4)
    batch = mosaic(images, 'GBRG')
    assert isinstance(batch, Batch) and batch.pattern == ['GBRG'] * 2
    for image, data in zip(images, batch.to_data_list(), strict=True):
        single = mosaic(image, 'GBRG')
        assert torch.equal(data.x, single.x)
        assert torch.equal(data.mask, single.mask)


def test_mosaic_keeps_gradients_and_input():
    image = torch.rand(3, 4, 4, requires_grad=True)
    before = image.detach().clone()
    mosaic(image).x.sum().backward()
    assert torch.equal(image.grad, cfa_mask('RGGB', 4, 4).float())
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    'image, pattern, match',
    [
        (torch.rand(3, 4, 4), 'RGB', "'pattern' must be one of.*RGGB"),
        (torch.rand(2, 4, 4), 'RGGB', r'got \[2, 4, 4\]'),
        (torch.rand(4, 4, 3), 'RGGB', 'permute an image'),
        (torch.rand(4, 4), 'RGGB', r'got \[4, 4\]'),
        (torch.full((3, 4, 4), torch.nan), 'RGGB', 'must be finite'),
        (torch.full((1, 4, 4), torch.inf), 'RGGB', 'must be finite'),
        (torch.ones(3, 4, 4).long(), 'RGGB', 'torch.int64'),
        (torch.empty(3, 0, 4), 'RGGB', 'empty'),
        (np.zeros((3, 4, 4)), 'RGGB', "'image' must"),
    ],
)
def test_wrong_mosaic(image, pattern, match):
    with pytest.raises(ValueError, match=match):
        mosaic(image, pattern)


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (('RGB', 2, 2), "'pattern' must be one of.*got 'RGB'"),
        (('RGGB', -1, 2), r"'height' must be a positive integer \(got -1\)"),
        (('RGGB', 2, 2.5), r"'width' must be a positive integer \(got 2\.5\)"),
    ],
)
def test_wrong_mask(args, match):
    with pytest.raises(ValueError, match=match):
        cfa_mask(*args)


@pytest.mark.parametrize('known', [[0, 1], [0, 1, 2]])
def test_one_colour_per_pixel(known):
    data = mosaic(torch.rand(3, 4, 4))
    colours = torch.zeros(3, dtype=torch.bool)
    colours[known] = True
    data.mask[6] = colours
    with pytest.raises(ValueError, match=r'at pixel \(1, 2\)'):
        GraphDemosaic()(data)
