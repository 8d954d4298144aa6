"""Stacks on images with unknown pixels: `domain='inpainting'`."""

import pytest
import torch
from skimage.data import astronaut
from torch_geometric.data import Batch

from pyg_unroll import UnrolledGLR, UnrolledGTV, data_to_image, image_to_data
from pyg_unroll.nn.models.inpainting_reader import InpaintingReader
from tests.nn.models.utils import psnr, silent_parameters

MODELS = (UnrolledGLR, UnrolledGTV)
SMALL = {
    'domain': 'inpainting',
    'guide': True,
    'hidden_channels': 8,
    'feature_channels': 4,
}


@pytest.fixture(scope='module')
def photo():
    pixels = torch.from_numpy(astronaut()[96:192, 160:260])
    return pixels.permute(2, 0, 1).float() / 255


def hide(image, share=0.3, seed=0):
    torch.manual_seed(seed)
    mask = torch.rand(image.shape[1:]) < share
    mask[0, 0] = True
    data = image_to_data(torch.where(mask, image, 0))
    data.mask = mask.flatten()
    return data


@pytest.mark.parametrize('cls', MODELS)
@pytest.mark.parametrize('size', [(1, 2), (5, 4), (33, 48)])
@pytest.mark.parametrize('guide', [True, False])
def test_known_pixels_are_exact(cls, size, guide, photo):
    data = hide(photo[:, : size[0], : size[1]])
    with torch.no_grad():
        out = cls(3, **SMALL | {'guide': guide})(data)
    assert out.shape == data.x.shape
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('cls', MODELS)
def test_unknown_values_do_not_matter(cls, photo):
    torch.manual_seed(0)
    model, data = cls(3, **SMALL), hide(photo[:, :40, :40])
    with torch.no_grad():
        out = model(data)
        for junk in (0.7, torch.nan):
            data.x = torch.where(data.mask[:, None], data.x, junk)
            assert torch.equal(model(data), out)
        data.mask = data.mask[:, None].expand(-1, 3)
        assert torch.equal(model(data), out)


@pytest.mark.parametrize('channels', [1, 2])
def test_masks_of_each_channel(channels, photo):
    model = UnrolledGLR(channels, **SMALL)
    data = image_to_data(photo[:channels, :30, :31])
    torch.manual_seed(0)
    data.mask = torch.rand(data.x.shape) < 0.5
    with torch.no_grad():
        out = model(data)
    assert torch.equal(out[data.mask], data.x[data.mask])


@pytest.mark.parametrize('cls', MODELS)
def test_tiles_equal_the_whole(cls):
    torch.manual_seed(1)
    image = torch.rand(3, 260, 301, dtype=torch.float64)
    model = cls(3, num_blocks=1, num_layers=2, **SMALL).double()
    data = hide(image)
    with torch.no_grad():
        whole = model(data)
        model.max_pixels = 1
        tiled = model(data)
        assert 4 * model.receptive_field < 260
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)


def test_batch_equals_loop(photo):
    parts = [hide(photo[:, :40, :44]), hide(photo[:, :31, :50], seed=1)]
    model = UnrolledGLR(3, **SMALL)
    with torch.no_grad():
        out = model(Batch.from_data_list(parts))
        loop = torch.cat([model(part) for part in parts])
        assert torch.equal(out, loop)
        same = Batch.from_data_list([parts[0], parts[0]])
        expected, mask = model(same), same.mask
        del same.mask
        same = image_to_data(data_to_image(same))
        same.mask = mask  # set on the batch
        assert torch.equal(model(same), expected)
        images = torch.stack([photo[:, :40, :44], photo[:, 9:49, 9:53]])
        masks = torch.rand(2, 1, 40, 44).expand_as(images) < 0.4
        both = model.restore(images, masks)
        one = model.restore(images[1:], masks[1:])
    torch.testing.assert_close(both[1:], one)


@pytest.mark.parametrize('share', [0.03, 0.3, 0.8])
def test_fill(share, photo):
    data = hide(photo, share)
    mask = data_to_image(data, data.mask[:, None].expand(-1, 3))[None]
    image = data_to_image(data)[None]
    out = InpaintingReader().fill(image, mask)
    assert torch.equal(out[mask], image[mask])
    # A weighted mean of known values at every pixel.
    known = photo[None].masked_select(mask)
    assert out.min() >= known.min() - 1e-6 and out.max() <= known.max() + 1e-6
    nearest = out.new_tensor(_nearest(image, mask))
    assert psnr(out, photo[None]) > psnr(nearest, photo[None]) + 0.5


def _nearest(image, mask):
    from scipy.ndimage import distance_transform_edt

    _, (row, col) = distance_transform_edt(
        ~mask[0, 0].numpy(), return_indices=True
    )
    return image.numpy()[..., row, col]


def test_fill_of_a_constant():
    flat = torch.full((1, 2, 37, 50), 0.25, dtype=torch.float64)
    torch.manual_seed(0)
    mask = torch.rand(1, 2, 37, 50) < 0.05
    out = InpaintingReader().fill(torch.where(mask, flat, 9), mask)
    torch.testing.assert_close(out, flat)


@pytest.mark.parametrize('cls', MODELS)
def test_gradients_reach_everything_that_matters(cls, photo):
    torch.manual_seed(0)
    model = cls(3, **SMALL)
    image = photo[None, :, :32, :32]
    mask = torch.rand(1, 1, 32, 32).expand_as(image) < 0.4
    out = model.estimates(torch.where(mask, image, 0), mask)[-1]
    (out - image).square().mean().backward()
    silent = silent_parameters(model)
    assert all('log_mu' in name for name in silent)


def test_wrong_data(photo):
    data = hide(photo[:, :8, :8])
    data.mask = data.mask.long()
    with pytest.raises(ValueError, match=r"'data.mask' must be boolean"):
        UnrolledGLR(3, **SMALL)(data)
    model, data = UnrolledGLR(3, **SMALL), hide(photo[:, :8, :8])
    mask, data.mask = data.mask, None
    with pytest.raises(ValueError, match="must have a 'mask'"):
        model(data)
    data.mask = mask[:-1]
    with pytest.raises(ValueError, match="must have a 'mask'"):
        model(data)
    data.mask = mask & False
    with pytest.raises(ValueError, match='no known entry'):
        model(data)
    soft = UnrolledGLR(3, **SMALL, fidelity='soft')
    data.mask = mask
    with pytest.raises(ValueError, match=r"'data\.noise_std' must be given"):
        soft(data)
    data.noise_std = 0.1
    with torch.no_grad():
        out = soft(data)
    assert not torch.equal(out[mask], data.x[mask])
    with pytest.raises(ValueError, match="domain='inpainting'"):
        UnrolledGLR(3).restore(photo[None], photo[None] > 0)


def test_batch_with_a_complete_image():
    torch.manual_seed(0)
    parts = [image_to_data(torch.rand(3, 8, 8)) for _ in range(2)]
    parts[0].mask = torch.ones(64).bool()
    parts[1].mask = torch.arange(64) % 3 == 0
    model = UnrolledGLR(3, 'inpainting', hidden_channels=8)
    out = model(Batch.from_data_list(parts))
    assert torch.equal(out[:64], parts[0].x)
