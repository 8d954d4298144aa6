"""Stacks on Bayer mosaics: `domain='mosaic'`."""

import math
from itertools import pairwise

import pytest
import torch
from skimage.data import astronaut
from torch_geometric.data import Batch

from pyg_unroll import UnrolledGLR, UnrolledGTV, data_to_image, mosaic
from pyg_unroll.data import cfa_mask
from pyg_unroll.nn.models import local_interpolation
from pyg_unroll.nn.models.tiling import _cut, _tile_size, run_in_tiles
from pyg_unroll.testing import assert_same
from tests.nn.models.utils import psnr, silent_parameters

BAYER = ('RGGB', 'GRBG', 'GBRG', 'BGGR')
MODELS = (UnrolledGLR, UnrolledGTV)


@pytest.fixture(scope='module')
def photo():
    pixels = torch.from_numpy(astronaut()[96:192, 160:260])
    return pixels.permute(2, 0, 1).float() / 255


def make(cls=UnrolledGLR, seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    model = cls(
        3,
        domain='mosaic',
        guide=True,
        hidden_channels=8,
        feature_channels=4,
        **options,
    ).to(dtype)
    with torch.no_grad():
        for block in model.blocks:
            # As strong as a trained net.
            block.features.head.weight.mul_(20)
    return model.eval()


@pytest.mark.parametrize('differences', [False, True])
@pytest.mark.parametrize('cls', MODELS)
@pytest.mark.parametrize('pattern', BAYER)
def test_phases(cls, pattern, differences, photo):
    data = mosaic(photo[:, :51, :48], pattern)
    with torch.no_grad():
        out = make(cls, color_differences=differences)(data)
    assert out.shape == data.x.shape
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('differences', [False, True])
def test_a_shifted_sensor_gives_a_shifted_image(differences, photo):
    options = {'num_layers': 2, 'num_blocks': 1}
    if differences:
        options |= {'color_differences': True, 'num_steps': 4}
    model = make(dtype=torch.float64, **options)
    photo = photo.double()
    with torch.no_grad():
        whole = data_to_image(d := mosaic(photo, 'RGGB'), model(d))[:, 1:, 1:]
        part = data_to_image(d := mosaic(photo[:, 1:, 1:], 'BGGR'), model(d))
    inner = slice(model.receptive_field, -model.receptive_field)
    assert part[:, inner, inner].numel() > 1000
    torch.testing.assert_close(part[:, inner, inner], whole[:, inner, inner])


@pytest.mark.parametrize('differences', [False, True])
@pytest.mark.parametrize('cls', MODELS)
def test_a_small_net_starts_above_bilinear(cls, differences, photo):
    torch.manual_seed(0)
    model = cls(
        *(3, 'mosaic'),
        guide=True,
        hidden_channels=8,
        color_differences=differences,
    )
    data = mosaic(photo)
    with torch.no_grad():
        out = data_to_image(data, model(data))
    known = data_to_image(data, data.mask)[None]
    bilinear = local_interpolation(data_to_image(data)[None], known)[0]
    assert psnr(out, photo) > psnr(bilinear, photo) + 3


@pytest.mark.parametrize('differences', [False, True])
@pytest.mark.parametrize('cls', MODELS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_tiles_equal_the_whole(cls, differences, dtype):
    torch.manual_seed(1)
    image = torch.rand(3, 301, 391, dtype=dtype)
    options = {
        'num_layers': 2,
        'num_blocks': 1,
        'color_differences': differences,
    }
    if cls is UnrolledGTV:
        options |= {'num_iters': 2, 'num_steps': 2}
    model = make(cls, dtype=dtype, **options)
    data = mosaic(image, 'GRBG')
    with torch.no_grad():
        whole = model(data)
        model.max_pixels = 1
        tiled = model(data)
        assert 4 * model.receptive_field < 301
    atol = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(tiled, whole, rtol=0, atol=atol)


@pytest.mark.parametrize('differences', [False, True])
def test_reach_ends_at_the_receptive_field(differences):
    model = make(
        dtype=torch.float64,
        num_layers=2,
        num_blocks=1,
        color_differences=differences,
    )
    reach = model.receptive_field
    image = torch.rand(3, 2 * reach + 21, 40, dtype=torch.float64)
    changed = image.clone()
    changed[:, :10] = torch.rand_like(changed[:, :10])
    with torch.no_grad():
        first, second = (
            data_to_image(d := mosaic(i), model(d)) for i in (image, changed)
        )
    assert torch.equal(first[:, 10 + reach :], second[:, 10 + reach :])
    assert not torch.equal(first[:, 10:20], second[:, 10:20])


@pytest.mark.parametrize(
    'size,tile,halo', [(10, 20, 2), (100, 30, 4), (64, 62, 10), (97, 18, 4)]
)
def test_cuts_cover_once(size, tile, halo):
    cuts = _cut(size, tile, halo)
    assert cuts[0][1] == 0
    assert cuts[-1][2] == size
    for before, after in pairwise(cuts):
        assert before[2] == after[1]
    for start, first, last in cuts:
        assert first == 0 or first - start >= halo
        assert last == size or start + tile - last >= halo
        assert start % 2 == size % 2 * (start + tile == size)


@pytest.mark.parametrize('max_pixels', [54_000, 330_000, 660_000])
@pytest.mark.parametrize('size', [(548, 804), (4036, 6036), (300, 9000)])
def test_tiles_waste_little(size, max_pixels):
    halo = 40
    shape = _tile_size(*size, max_pixels, halo)
    if math.prod(size) <= max_pixels:
        assert shape == size
        return
    largest = 3 * max_pixels // 4
    assert math.prod(shape) <= largest
    count = [len(_cut(s, t, halo)) for s, t in zip(size, shape, strict=True)]
    work = math.prod(count) * math.prod(shape)
    # What square tiles of that many pixels would compute at least.
    inner = (math.isqrt(largest) - 2 * halo) ** 2
    assert work <= 1.1 * math.prod(size) * largest / inner


@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
@pytest.mark.parametrize('num_views', [2, 4, 8])
def test_views_are_averaged(fidelity, num_views):
    torch.manual_seed(0)
    model = make(dtype=torch.float64, fidelity=fidelity)
    image = torch.rand(1, 3, 21, 30, dtype=torch.float64)
    mask = cfa_mask('GBRG', 21, 30)[None]
    sensor = torch.where(mask, image, 0)
    std = None if fidelity == 'hard' else 0.1

    def turned(k, mirror):
        def turn(x):
            x = x.mT if mirror else x
            return x.rot90(k, (-2, -1))

        out = model.restore(turn(sensor), turn(mask), std)
        out = out.rot90(-k, (-2, -1))
        return out.mT if mirror else out

    with torch.no_grad():
        chosen = {
            2: [(0, False), (2, True)],
            4: [(0, False), (2, True), (1, True), (1, False)],
            8: [(k, mirror) for k in range(4) for mirror in (False, True)],
        }[num_views]
        views = [turned(*view) for view in chosen]
        model.num_views = num_views
        out = model.restore(sensor, mask, std)
    torch.testing.assert_close(out, sum(views) / num_views)
    assert (out - views[0]).abs().max() > 1e-3
    if fidelity == 'hard':
        assert torch.equal(out[mask], image[mask])


def test_views_there_are_not():
    with pytest.raises(ValueError, match="'num_views' must be one of 1, 2"):
        make(num_views=3)
    model = make()
    model.num_views = 5
    with pytest.raises(ValueError, match=r"'num_views'.*\(got 5\)"):
        model(mosaic(torch.rand(3, 12, 12)))


def test_run_in_tiles_of_a_blur():
    image = torch.rand(2, 3, 70, 94)

    def blur(part):
        return torch.nn.functional.avg_pool2d(part, 5, 1, 2)

    whole = run_in_tiles(blur, (image,), 10**6, 2, 4)
    tiled = run_in_tiles(blur, (image,), 400, 2, 4)
    torch.testing.assert_close(tiled, whole)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode='reflect')
    torch.testing.assert_close(whole, blur(padded)[..., 2:-2, 2:-2])
    shifted = run_in_tiles(blur, (image,), 400, 2, 4, (1, 1))
    torch.testing.assert_close(shifted, whole)


def test_batch_equals_loop(photo):
    parts = [mosaic(photo[:, :40, :44], 'BGGR'), mosaic(photo[:, :31, :50])]
    model = make()
    with torch.no_grad():
        out = model(Batch.from_data_list(parts))
        loop = torch.cat([model(part) for part in parts])
    assert torch.equal(out, loop)


@pytest.mark.parametrize('differences', [False, True])
@pytest.mark.parametrize('cls', MODELS)
def test_estimates_are_those_of_a_loop(cls, differences, photo):
    image = torch.stack([photo[:, :32, :36], photo[:, 40:72, 20:56]])
    mask = data_to_image(d := mosaic(image[0]), d.mask)[None]
    image = torch.where(mask, image, 0)
    model = make(cls, color_differences=differences)
    with torch.no_grad():
        both = model.estimates(image, mask)
        assert len(both) == model.num_blocks
        for k in range(2):
            one = model.estimates(image[k : k + 1], mask)
            torch.testing.assert_close(one[-1][0], both[-1][k])


@pytest.mark.parametrize('cls', MODELS)
@pytest.mark.parametrize(
    'options',
    [
        {'guide': True, 'fidelity': 'hard'},
        {'guide': True, 'fidelity': 'soft'},
        {'guide': False, 'fidelity': 'hard'},
        {'guide': False, 'fidelity': 'soft'},
        {'color_differences': True},
    ],
)
def test_gradients_reach_everything_that_matters(cls, options, photo):
    torch.manual_seed(0)
    model = cls(3, domain='mosaic', hidden_channels=8, **options)
    image = photo[None, :, :32, :32]
    mask = data_to_image(d := mosaic(image[0]), d.mask)[None]
    out = model.estimates(torch.where(mask, image, 0), mask)[-1]
    (out - image).square().mean().backward()
    # Layers that hold known entries have no use for mu.
    held = 'fill_conv.log_mu' if model.fidelity == 'hard' else 'none'
    held = 'log_mu' if 'fidelity' in options and held != 'none' else held
    assert all(name.endswith(held) for name in silent_parameters(model))


def test_autocast_trains_as_well(photo):
    model = make()
    image = photo[None, :, :32, :32]
    mask = data_to_image(d := mosaic(image[0]), d.mask)[None]
    with torch.no_grad():
        exact = model.estimates(torch.where(mask, image, 0), mask)[-1]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = model.estimates(torch.where(mask, image, 0), mask)[-1]
    assert out.dtype == torch.float32
    assert (out - exact).abs().mean() < 0.01


def test_smooth_differences_are_found_by_layers(photo):
    # Fine luma, smooth chroma: what the layers assume. Without corrections of
    # the net they gain on what they start from.
    torch.manual_seed(0)
    model = UnrolledGLR(3, 'mosaic', color_differences=True, num_steps=5)
    ramp = torch.linspace(-0.1, 0.1, photo.size(2)).expand_as(photo[0])
    image = 0.2 + 0.6 * photo[1] + torch.stack([ramp, 0 * ramp, -ramp])
    data = mosaic(image)
    known = data_to_image(data, data.mask)[None]
    with torch.no_grad():
        out = data_to_image(data, model(data))
        start = model.reader.read(data_to_image(data)[None], known).estimate
    assert psnr(out, image) > psnr(start[0], image) + 1


@pytest.mark.parametrize(
    'options', [{'domain': 'inpainting'}, {'fidelity': 'soft'}]
)
def test_differences_need_exact_mosaics(options):
    options = {'domain': 'mosaic'} | options
    with pytest.raises(ValueError, match="'color_differences' needs domain="):
        UnrolledGLR(3, color_differences=True, **options)


@pytest.mark.parametrize('junk', [0.7, math.nan])
def test_unknown_values_do_not_matter(junk, photo):
    model, data = make(), mosaic(photo)
    with torch.no_grad():
        expected = model(data)
        data.x = torch.where(data.mask, data.x, junk)
        assert torch.equal(model(data), expected)
        soft = make(fidelity='soft')
        image, mask = (data_to_image(data, v) for v in (data.x, data.mask))
        out = soft.restore(image[None], mask[None], 0.1)
        clean = torch.where(mask, image, 0)
        assert torch.equal(out, soft.restore(clean[None], mask[None], 0.1))
        batch = Batch.from_data_list([data, data])
        assert_same(model(batch), torch.cat([expected, expected]))


def test_wrong_data(photo):
    model = make()
    with pytest.raises(ValueError, match='GraphDemosaic'):
        model(mosaic(photo, 'X-Trans'))
    with pytest.raises(ValueError, match='at least 2 x 2'):
        model.restore(photo[None, :, :1, :9], photo[None, :, :1, :9] > 0)
    data = mosaic(photo)
    data.mask = data.mask[:, 0]
    with pytest.raises(ValueError, match='num_pixels, 3'):
        model(data)
    with pytest.raises(ValueError, match="domain='mosaic'"):
        UnrolledGLR(3).restore(photo[None], photo[None] > 0)
    with pytest.raises(ValueError, match="'in_channels' must be 3"):
        UnrolledGLR(1, domain='mosaic')
    with pytest.raises(ValueError, match="'num_layers' must be even"):
        UnrolledGLR(3, domain='mosaic', num_layers=5)


def test_smallest_images():
    model = make()
    for size in ((2, 2), (3, 2), (5, 8)):
        data = mosaic(torch.rand(3, *size))
        with torch.no_grad():
            out = model(data)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize('cls', MODELS)
def test_soft_fidelity(cls, photo):
    model = make(cls, fidelity='soft', dtype=torch.float64)
    clean = photo.double()[:, :50, :61]
    torch.manual_seed(2)
    data = mosaic(clean + 0.08 * torch.randn_like(clean), 'GRBG')
    data.noise_std = 0.08
    with torch.no_grad():
        out = model(data)
        assert not torch.equal(out[data.mask], data.x[data.mask])
        # Layers average what the start keeps as it is.
        assert psnr(data_to_image(data, out), clean) > 20
        data.noise_std = torch.tensor([0.08], dtype=torch.float64)
        assert torch.equal(model(data), out)
        data.noise_std = 0.01
        assert not torch.allclose(model(data), out)
        del data.noise_std
        torch.testing.assert_close(model(data), out, atol=0.05, rtol=0)
        both = Batch.from_data_list([data, mosaic(clean)])
        both.noise_std = torch.tensor([0.08, 0.0], dtype=torch.float64)
        parts = model(both).split([len(data.x)] * 2)
        data.noise_std = 0.0
        torch.testing.assert_close(parts[0], out, atol=1e-12, rtol=0)
        two = model(Batch.from_data_list([data, data]))
        assert torch.equal(two[: len(data.x)], model(data))


def test_noise_is_estimated(photo):
    reader = UnrolledGLR(3, 'mosaic', fidelity='soft').reader
    flat = torch.full((2, 3, 200, 301), 0.5)
    mask = data_to_image(d := mosaic(flat[0]), d.mask)[None]
    torch.manual_seed(0)
    noise = torch.tensor([0.02, 0.2]).view(-1, 1, 1, 1)
    found = reader.noise_std(flat + noise * torch.randn(flat.shape), mask)
    torch.testing.assert_close(found, noise.flatten(), rtol=0.05, atol=0)
    photo = photo[None]
    mask = data_to_image(d := mosaic(photo[0]), d.mask)[None]
    noisy = photo + 0.1 * torch.randn(photo.shape)
    assert abs(float(reader.noise_std(noisy, mask)) - 0.1) < 0.015
    # A regular pattern is not noise.
    cell = torch.arange(64) // 2
    chart = ((cell[:, None] + cell) % 2).float().expand(1, 3, -1, -1)
    mask = data_to_image(d := mosaic(chart[0]), d.mask)[None]
    assert float(reader.noise_std(chart, mask)) < 1e-6
    grain = 0.1 * torch.randn(chart.shape)
    found = float(reader.noise_std(chart + grain, mask))
    assert found == pytest.approx(0.1, rel=0.15)
    with pytest.raises(ValueError, match='6 x 6'):
        reader.noise_std(photo[..., :5, :9], mask[..., :5, :9])


@pytest.mark.parametrize('noise', [-0.1, float('nan'), torch.ones(3)])
def test_wrong_noise(noise, photo):
    mask = data_to_image(d := mosaic(photo), d.mask)[None]
    with pytest.raises(ValueError, match="'noise_std' must be finite"):
        make(fidelity='soft').restore(photo[None], mask, noise)
    with pytest.raises(ValueError, match="fidelity='soft'"):
        make().restore(photo[None], mask, noise)


def test_save_and_load(tmp_path, photo):
    model = make(UnrolledGTV, num_blocks=1, num_layers=4)
    model.save(tmp_path / 'm.safetensors', {'note': 'trained on nothing'})
    data = mosaic(photo[:, :24, :24])
    with torch.no_grad():
        again = UnrolledGTV.load(tmp_path / 'm.safetensors')(data)
        assert torch.equal(model(data), again)


@pytest.mark.parametrize('cls', MODELS)
def test_unknown_pretrained(cls):
    with pytest.raises(ValueError, match="'name' must be one of"):
        cls.from_pretrained('demosaic-nothing')
