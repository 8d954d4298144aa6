"""Inpainting of missing pixels by trained layers."""

import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch_geometric.data import Batch

from pyg_unroll import Inpaint, image_to_data
from tests.imaging.utils import holes, make, psnr

PRIORS = ('glr', 'gtv')


def hide(image, share=0.3, seed=0):
    torch.manual_seed(seed)
    mask = torch.rand(image.shape[1:]) < share
    mask[0, 0] = True
    data = image_to_data(torch.where(mask, image, 0))
    data.mask = mask.flatten()
    return data


@pytest.mark.parametrize('prior', PRIORS)
@pytest.mark.parametrize('size', [(1, 2), (5, 4), (33, 48)])
def test_known_pixels_are_exact(prior, size, photo):
    data = hide(photo[:, : size[0], : size[1]])
    with torch.no_grad():
        out = make(Inpaint, prior=prior)(data)
    assert out.shape == data.x.shape
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('prior', PRIORS)
def test_unknown_values_do_not_matter(prior, photo):
    model, data = make(Inpaint, prior=prior), hide(photo[:, :40, :40])
    with torch.no_grad():
        out = model(data)
        for junk in (0.7, torch.nan):
            data.x = torch.where(data.mask[:, None], data.x, junk)
            assert torch.equal(model(data), out)
        # Nor does the shape of the mask.
        for shape in ((-1, 1), (-1, 3)):
            data.mask = data.mask.view(len(data.x), -1)[:, :1].expand(shape)
            assert torch.equal(model(data), out)


@pytest.mark.parametrize('channels', [1, 2])
def test_masks_of_each_channel(channels, photo):
    model = make(Inpaint, channels=channels)
    data = image_to_data(photo[:channels, :30, :31])
    torch.manual_seed(0)
    data.mask = torch.rand(data.x.shape) < 0.5
    with torch.no_grad():
        out = model(data)
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert not torch.equal(out, data.x)


def test_defaults():
    model = Inpaint()
    assert len(model.blocks) == 2 and model.channels == 3
    assert model.fidelity == 'hard'


@pytest.mark.parametrize('share', [0.03, 0.3, 0.8])
def test_fill(share, photo):
    image, mask = holes(photo[None], share)
    out = Inpaint().first_estimate.fill(image, mask)[0]
    assert torch.equal(out[mask], image[mask])
    # A weighted mean of known values at every pixel.
    known = photo[None].masked_select(mask)
    assert out.min() >= known.min() - 1e-6 and out.max() <= known.max() + 1e-6
    nearest = out.new_tensor(_nearest(image, mask))
    assert psnr(out, photo[None]) > psnr(nearest, photo[None]) + 0.5


def _nearest(image, mask):
    _, (row, col) = distance_transform_edt(
        ~mask[0, 0].numpy(), return_indices=True
    )
    return image.numpy()[..., row, col]


def test_fill_of_a_constant():
    flat = torch.full((1, 2, 37, 50), 0.25, dtype=torch.float64)
    torch.manual_seed(0)
    mask = torch.rand(1, 2, 37, 50) < 0.05
    out = Inpaint().first_estimate.fill(torch.where(mask, flat, 9), mask)[0]
    torch.testing.assert_close(out, flat)


def test_noisy_samples(photo):
    model, data = make(Inpaint, fidelity='soft'), hide(photo[:, :20, :20])
    with pytest.raises(ValueError, match=r"'noise_std' must be given"):
        model(data)
    data.noise_std = 0.1
    with torch.no_grad():
        out = model(data)
    assert not torch.equal(out[data.mask], data.x[data.mask])


def test_batch_with_a_complete_image():
    parts = [image_to_data(torch.rand(3, 8, 8)) for _ in range(2)]
    parts[0].mask = torch.ones(64).bool()
    parts[1].mask = torch.arange(64) % 3 == 0
    out = make(Inpaint)(Batch.from_data_list(parts))
    assert torch.equal(out[:64], parts[0].x)
