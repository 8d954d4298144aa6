"""Noise that nets never saw is smoothed on graphs of patches."""

import numpy as np
import pytest
import torch

from pyg_unroll import Demosaic, Inpaint, data_to_image, mosaic
from pyg_unroll.imaging import GuidedBlock, SelfEnsemble, Tiled, noise
from tests.imaging.utils import make, mosaics, psnr


def dense_solution(image, std):
    """The same problem by NumPy, one image `[C, H, W]`."""
    channels, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode='edge')
    laplacian = np.zeros((height * width,) * 2)
    for row, col in np.ndindex(height, width):
        patch = padded[:, row : row + 3, col : col + 3]
        for down, right in np.ndindex(5, 5):
            other = row + down - 2, col + right - 2
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            there = padded[:, other[0] : other[0] + 3, other[1] : other[1] + 3]
            variance = std[row, col] ** 2 + std[other] ** 2
            distance = np.mean((patch - there) ** 2) / variance
            weight = np.exp(-max(distance - 1, 0) / 0.4)
            i, j = row * width + col, other[0] * width + other[1]
            laplacian[i, i] += weight
            laplacian[i, j] -= weight
    trust = np.mean(std**2) / std.ravel() ** 2
    matrix = np.diag(trust) / 0.1 + laplacian
    right_side = trust[:, None] / 0.1 * image.reshape(channels, -1).T
    out = np.linalg.solve(matrix, right_side)
    return out.T.reshape(image.shape)


def test_equals_a_dense_solution(monkeypatch):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    std = 0.2 + 0.2 * torch.rand(2, 1, 8, 9, dtype=torch.float64)
    monkeypatch.setattr(noise, '_STEPS', 40)
    out = noise.smooth_noise(images, std)
    for k in range(2):
        expected = dense_solution(images[k].numpy(), std[k, 0].numpy())
        np.testing.assert_allclose(out[k].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_few_steps_suffice(dtype, photo, monkeypatch):
    torch.manual_seed(0)
    image = photo[None].to(dtype)
    std = torch.full_like(image[:, :1], 0.1)
    image = image + std * torch.randn_like(image)
    few = noise.smooth_noise(image, std)
    monkeypatch.setattr(noise, '_STEPS', 60)
    assert few.dtype == dtype
    error = (few - noise.smooth_noise(image, std)).abs()
    assert error.max() < 0.04
    assert error.mean() < 0.01


@pytest.mark.parametrize('level', [10, 20, 50])
@pytest.mark.parametrize('prior', ['glr', 'gtv'])
def test_weights_without_noise_are_better_when_told(photo, level, prior):
    torch.manual_seed(0)
    std = level / 255
    image, mask = mosaics(photo[None])
    image = torch.where(mask, image + std * torch.randn(1, 1, 96, 100), 0)
    model = Demosaic.from_pretrained('bayer', prior)
    with torch.no_grad():
        before, after = (
            psnr(model.restore(image, mask, *told)[0], photo)
            for told in ((), (std,))
        )
    # Goals on photographs are 3, 5 and 7 dB.
    assert after - before > {10: 2, 20: 3.5, 50: 6}[level]


def test_holes_of_noisy_images(photo):
    torch.manual_seed(0)
    mask = torch.rand(1, 1, 96, 100).expand(1, 3, -1, -1) < 0.5
    image = torch.where(mask, photo + 0.1 * torch.randn(3, 96, 100), 0)
    model = Inpaint.from_pretrained('random')
    with torch.no_grad():
        before, after = (
            model.restore(image, mask),
            model.restore(image, mask, 0.1),
        )
    assert psnr(after[0], photo) > psnr(before[0], photo) + 2


def test_no_noise_changes_nothing(photo):
    image, mask = mosaics(photo[None])
    model = make()
    with torch.no_grad():
        out = model.restore(image, mask, 0.0)
        torch.testing.assert_close(
            out, model.restore(image, mask), rtol=0, atol=1e-5
        )


def test_batch_equals_loop_in_any_unit(photo):
    model = make().double()
    image, mask = mosaics(photo[None, :, :40, :44].double())
    images = torch.cat([image, image.flip(2).roll(1, 2)])
    std = torch.tensor([0.05, 0.2], dtype=torch.float64)
    with torch.no_grad():
        both = model.restore(images, mask, std)
        for k in range(2):
            one = model.restore(1000 * images[k : k + 1], mask, 1000 * std[k])
            torch.testing.assert_close(one[0] / 1000, both[k])
        # Noise of each pixel.
        pixels = std.view(2, 1, 1, 1).expand(2, 1, 40, 44)
        torch.testing.assert_close(model.restore(images, mask, pixels), both)


def test_tiles_equal_the_whole():
    model = make(num_layers=2, num_blocks=1, dtype=torch.float64)
    torch.manual_seed(0)
    image, mask = mosaics(torch.rand(1, 3, 500, 30, dtype=torch.float64))
    with torch.no_grad():
        whole = model.restore(image, mask, 0.1)
        tiled = Tiled(model, 1).restore(image, mask, 0.1)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)


def test_data_and_views(photo):
    data = mosaic(photo[:, :30, :32], 'GBRG')
    model = make()
    with torch.no_grad():
        plain = model(data)
        data.noise_std = 0.1
        told = model(data)
        assert not torch.allclose(told, plain, atol=1e-3)
        assert SelfEnsemble(model, 2)(data).shape == told.shape
    assert not torch.equal(told[data.mask], data.x[data.mask])
    assert data_to_image(data, told).shape == (3, 30, 32)


def test_training_refuses_it():
    image, mask = mosaics(torch.rand(1, 3, 20, 20))
    for model in (make(), make(Inpaint, GuidedBlock)):
        with pytest.raises(ValueError, match=r"'noise_std' was given.*soft"):
            model.estimates(image, mask, 0.1)
