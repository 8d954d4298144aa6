"""Demosaicing of Bayer mosaics by trained layers."""

import copy
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric.data import Batch

from pyg_unroll import Demosaic, data_to_image, mosaic
from pyg_unroll.imaging import (
    DifferenceBlock,
    GuidedBlock,
    SelfEnsemble,
    Tiled,
    local_interpolation,
)
from pyg_unroll.testing import assert_same
from tests.imaging.utils import BLOCKS, make, make_blocks, mosaics, psnr

parametrize_blocks = pytest.mark.parametrize(('block', 'prior'), BLOCKS)


@pytest.mark.parametrize(
    ('pattern', 'block', 'prior'),
    [
        (pattern, *block)
        for pattern, block in zip(
            ('RGGB', 'GRBG', 'GBRG', 'BGGR'), BLOCKS, strict=True
        )
    ],
)
def test_samples_are_exact(pattern, block, prior, photo):
    data = mosaic(photo[:, :51, :48], pattern)
    before = data.clone()
    with torch.no_grad():
        out = make(block=block, prior=prior)(data)
    assert out.shape == data.x.shape
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert torch.isfinite(out).all()
    assert data.keys() == before.keys() and torch.equal(data.x, before.x)


@pytest.mark.parametrize('block', [DifferenceBlock, GuidedBlock])
def test_a_shifted_sensor_gives_a_shifted_image(block, photo):
    options = {'num_layers': 2, 'num_blocks': 1, 'steps': (4,)}
    model = make(block=block, dtype=torch.float64, **options)
    photo = photo.double()
    with torch.no_grad():
        whole = data_to_image(d := mosaic(photo, 'RGGB'), model(d))[:, 1:, 1:]
        part = data_to_image(d := mosaic(photo[:, 1:, 1:], 'BGGR'), model(d))
    inner = slice(model.receptive_field, -model.receptive_field)
    assert part[:, inner, inner].numel() > 1000
    torch.testing.assert_close(part[:, inner, inner], whole[:, inner, inner])


@parametrize_blocks
def test_an_untrained_model_starts_above_bilinear(block, prior, photo):
    model = make(block=block, prior=prior, strength=1.0)
    image, mask = mosaics(photo[None])
    with torch.no_grad():
        out = model.restore(image, mask)
    bilinear = local_interpolation(image, mask)
    assert psnr(out, photo) > psnr(bilinear, photo) + 3


def test_smooth_differences_are_found_by_layers(photo):
    # Fine luma, smooth chroma, as the layers assume. Without corrections of
    # the net they gain on their start.
    torch.manual_seed(0)
    model = Demosaic()
    assert len(model.blocks) == 2
    ramp = torch.linspace(-0.1, 0.1, photo.size(2)).expand_as(photo[0])
    image = 0.2 + 0.6 * photo[1] + torch.stack([ramp, 0 * ramp, -ramp])
    sensor, mask = mosaics(image[None])
    with torch.no_grad():
        out = model.restore(sensor, mask)
        start = model.first_estimate(sensor, mask)[0]
    assert psnr(out, image) > psnr(start, image) + 1


@pytest.mark.parametrize('junk', [0.7, math.nan])
def test_unknown_values_do_not_matter(junk, photo):
    model, data = make(), mosaic(photo[:, :40, :44])
    soft = make(fidelity='soft')
    with torch.no_grad():
        expected = model(data)
        image, mask = mosaics(photo[None, :, :40, :44])
        noisy = soft.restore(image, mask, 0.1)
        data.x = torch.where(data.mask, data.x, junk)
        assert torch.equal(model(data), expected)
        image = torch.where(mask, image, junk)
        assert torch.equal(soft.restore(image, mask, 0.1), noisy)
        batch = Batch.from_data_list([data, data])
        torch.testing.assert_close(
            model(batch), torch.cat([expected, expected])
        )


@pytest.mark.parametrize('size', [(2, 2), (3, 2), (5, 8)])
def test_smallest_images(size):
    data = mosaic(torch.rand(3, *size))
    with torch.no_grad():
        out = make()(data)
    assert torch.isfinite(out).all()
    assert torch.equal(out[data.mask], data.x[data.mask])


@pytest.mark.parametrize('prior', ['glr', 'gtv'])
def test_noisy_samples(prior, photo):
    model = make(fidelity='soft', prior=prior, dtype=torch.float64)
    clean = photo.double()[:, :50, :61]
    torch.manual_seed(2)
    data = mosaic(clean + 0.08 * torch.randn_like(clean), 'GRBG')
    data.noise_std = 0.08
    with torch.no_grad():
        out = model(data)
        assert not torch.equal(out[data.mask], data.x[data.mask])
        # Layers average, where the start keeps samples.
        assert psnr(data_to_image(data, out), clean) > 20
        data.noise_std = torch.tensor([0.08], dtype=torch.float64)
        assert torch.equal(model(data), out)
        data.noise_std = 0.01
        assert not torch.allclose(model(data), out)
        # Estimated if it is not given.
        del data.noise_std
        torch.testing.assert_close(model(data), out, atol=0.05, rtol=0)


def test_noise_of_a_batch(photo):
    model = make(fidelity='soft', dtype=torch.float64, num_blocks=1)
    clean = photo.double()[:, :24, :26]
    noisy = mosaic(clean + 0.08 * torch.randn_like(clean), 'GRBG')
    batch = Batch.from_data_list([noisy, mosaic(clean), noisy])
    with torch.no_grad():
        # One for each image, of two phases.
        batch.noise_std = torch.tensor([0.08, 0.0, 0.02], dtype=torch.float64)
        parts = model(batch).split([len(noisy.x)] * 3)
        for part, example, std in zip(
            parts, batch.to_data_list(), batch.noise_std, strict=True
        ):
            example.noise_std = float(std)
            torch.testing.assert_close(part, model(example), atol=1e-12, rtol=0)
        # One for all.
        batch.noise_std = 0.08
        torch.testing.assert_close(
            model(batch).split(len(noisy.x))[0], parts[0]
        )
    batch.noise_std = torch.ones(2)
    with pytest.raises(ValueError, match=r"'data.noise_std' must be.*got 2\)"):
        model(batch)


def test_noise_is_estimated(photo):
    estimate = make(fidelity='soft').first_estimate.noise_std
    torch.manual_seed(0)
    noise = torch.tensor([0.02, 0.2]).view(-1, 1, 1, 1)
    flat = 0.5 + noise * torch.randn(2, 3, 200, 301)
    found = estimate(*mosaics(flat))
    torch.testing.assert_close(found, noise.flatten(), rtol=0.05, atol=0)
    noisy = photo[None] + 0.1 * torch.randn(1, *photo.shape)
    assert abs(float(estimate(*mosaics(noisy))) - 0.1) < 0.015
    # A regular pattern is not noise.
    cell = torch.arange(64) // 2
    chart = ((cell[:, None] + cell) % 2).float().expand(1, 3, -1, -1)
    assert float(estimate(*mosaics(chart))) < 1e-6
    grain = 0.1 * torch.randn(chart.shape)
    found = float(estimate(*mosaics(chart + grain)))
    assert found == pytest.approx(0.1, rel=0.15)
    with pytest.raises(ValueError, match='6 x 6'):
        estimate(*mosaics(photo[None, :, :5, :9]))


def test_errors(photo):
    model = make()
    with pytest.raises(ValueError, match=r'of Bayer sensors.*GraphDemosaic'):
        model(mosaic(photo, 'X-Trans'))
    with pytest.raises(ValueError, match='at least 2 x 2'):
        model.restore(photo[None, :, :1, :9], photo[None, :, :1, :9] > -1)
    with pytest.raises(ValueError, match='must work on 3 channels'):
        Demosaic(make_blocks(channels=1))
    with pytest.raises(ValueError, match="'num_layers' must be even"):
        DifferenceBlock(num_layers=5)
    for name in ('fidelity', 'channels'):
        with pytest.raises(TypeError, match=f"argument '{name}'"):
            DifferenceBlock(**{name: 3})


@pytest.mark.parametrize('num_layers', [2, 4])
def test_feature_nets_of_any_depth_learn(num_layers):
    torch.manual_seed(0)
    options = {'hidden_channels': 4, 'num_layers': num_layers}
    model = Demosaic([DifferenceBlock(**options)]).double()
    image, mask = mosaics(torch.rand(1, 3, 8, 8, dtype=torch.double))
    weights = model.blocks[0].features.body[0].weight

    def loss():
        return model.estimates(image, mask)[-1].square().mean()

    loss().backward()
    losses = []
    with torch.no_grad():
        for change in (1e-5, -2e-5):
            weights[0, 0, 1, 1] += change
            losses.append(float(loss()))
    slope = (losses[0] - losses[1]) / 2e-5
    assert abs(float(weights.grad[0, 0, 1, 1]) - slope) < 1e-4 * abs(slope)


SIZES = (70, 96), (81, 74), (96, 73), (67, 131), (128, 68)


def test_estimates_compile_once_for_all_sizes():
    model = Demosaic(make_blocks(DifferenceBlock, 1, num_layers=2)).eval()
    counter = CompileCounterWithBackend('eager')
    torch.compiler.reset()
    compiled = torch.compile(
        model.estimates, fullgraph=True, dynamic=True, backend=counter
    )
    counts = set()
    # PyTorch chooses other convolutions for less than 64 x 64 pixels.
    for height, width in ((70, 96), (82, 74), (96, 72), (66, 130), (128, 68)):
        image, mask = mosaics(torch.rand(1, 3, height, width))
        with torch.no_grad():
            results = compiled(image, mask), model.estimates(image, mask)
        assert_same(*results)
        counts.add(counter.frame_count)
    assert len(counts) == 1, counts  # all of them at the first size


def test_restore_compiles_once_for_all_sizes():
    model = Demosaic(make_blocks(DifferenceBlock, 1, num_layers=2)).eval()
    ensemble = SelfEnsemble(Tiled(model), 2)
    images = [mosaics(torch.rand(1, 3, *s)) for s in SIZES]
    with torch.no_grad():
        expected = [ensemble.restore(*image) for image in images]
        counter = CompileCounterWithBackend('eager')
        torch.compiler.reset()
        ensemble.compile(backend=counter)
        counts = set()
        for image, result in zip(images, expected, strict=True):
            assert_same(ensemble.restore(*image), result)
            counts.add(counter.frame_count)
    assert len(counts) == 1, counts


def test_compiled_tiles_in_threads():
    torch.compiler.reset()
    image, mask = mosaics(torch.rand(1, 3, 400, 90))
    model = make(block=DifferenceBlock)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = model.restore(image, mask)
            # One thread compiles while the other is at work.
            model.compile(backend='aot_eager')
            assert_same(model.restore(image, mask), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_copy_of_a_compiled_model_runs_its_own_weights():
    image, mask = mosaics(torch.rand(1, 3, 20, 24))
    model = make(block=DifferenceBlock)
    model.compile(backend='eager')
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = model.restore(image, mask)
        for parameter in copied.parameters():
            parameter.add_(0.1)
        assert not torch.allclose(copied.restore(image, mask), expected)
        assert torch.equal(model.restore(image, mask), expected)
