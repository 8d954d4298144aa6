"""What holds for every restorer of images."""

import pytest
import torch
from torch_geometric.data import Batch

from pyg_unroll import Demosaic, Inpaint, data_to_image, image_to_data, mosaic
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock, Tiled
from pyg_unroll.testing import assert_exports
from tests.imaging.utils import (
    BLOCKS,
    make,
    make_blocks,
    mosaics,
    observed,
    silent_parameters,
)

# Each kind of restorer, block, prior and fidelity; not their full product.
CASES = [
    *((Demosaic, block, {'prior': prior}) for block, prior in BLOCKS),
    (Demosaic, GuidedBlock, {'prior': 'glr', 'fidelity': 'soft'}),
    (Demosaic, GuidedBlock, {'prior': 'gtv', 'fidelity': 'soft'}),
    (Inpaint, GuidedBlock, {'prior': 'glr'}),
    (Inpaint, GuidedBlock, {'prior': 'gtv'}),
]
parametrize_cases = pytest.mark.parametrize(('kind', 'block', 'options'), CASES)


def given(options, image, mask):
    """The arguments of a restorer."""
    noise = (0.1,) if options.get('fidelity') == 'soft' else ()
    return image, mask, *noise


@parametrize_cases
def test_estimates_are_those_of_a_loop(kind, block, options, photo):
    image = torch.stack([photo[:, :32, :36], photo[:, 40:72, 20:56]])
    image, mask = observed(kind, image)
    model = make(kind, block, **options)
    with torch.no_grad():
        both = model.estimates(*given(options, image, mask))
        assert len(both) == len(model.blocks) == 2
        for k in range(2):
            own = mask[k : k + 1] if len(mask) > 1 else mask
            one = model.estimates(*given(options, image[k : k + 1], own))
            torch.testing.assert_close(one[-1][0], both[-1][k])


@parametrize_cases
def test_gradients_reach_everything_that_matters(kind, block, options, photo):
    model = make(kind, block, strength=1.0, **options)
    image, mask = observed(kind, photo[None, :, :32, :32])
    out = model.estimates(*given(options, image, mask))[-1]
    (out - photo[:, :32, :32]).square().mean().backward()
    # Layers that hold known entries have no use for mu.
    held = {
        name
        for name, _ in model.named_parameters()
        if name.endswith('fill_conv.log_mu')
        or (name.endswith('.conv.log_mu') and model.fidelity == 'hard')
    }
    assert silent_parameters(model) == held


@pytest.mark.parametrize('kind', [Demosaic, Inpaint])
def test_batch_equals_loop(kind, photo):
    parts = []
    for cut, pattern in (
        (photo[:, :40, :44], 'BGGR'),
        (photo[:, :31, :50], 'RGGB'),
        # Of the size of the first, and another phase or not.
        (photo[:, 9:49, 9:53], 'BGGR'),
        (photo[:, 20:60, 9:53], 'GBRG'),
    ):
        image, mask = mosaics(cut[None], pattern)
        if kind is Inpaint:
            image, mask = observed(kind, cut[None])
        parts.append(image_to_data(image[0]))
        parts[-1].mask = mask[0].flatten(1).T
    model = make(kind)
    with torch.no_grad():
        out = model(Batch.from_data_list(parts))
        loop = torch.cat([model(part) for part in parts])
        torch.testing.assert_close(out, loop)
        # A mask that was set on the batch.
        same = Batch.from_data_list([parts[0], parts[0]])
        expected, mask = model(same), same.mask
        del same.mask
        same = image_to_data(data_to_image(same))
        same.mask = mask
        assert torch.equal(model(same), expected)


def test_images_are_data(photo):
    image, mask = mosaics(photo[None, :, :31, :20], 'GRBG')
    model, data = make(), mosaic(photo[:, :31, :20], 'GRBG')
    with torch.no_grad():
        out = model.restore(image, mask)
        assert torch.equal(data_to_image(data, model(data)), out[0])
        # One mask for all images, or one for each.
        both = torch.cat([image, image.flip(2).flip(2)])
        out = model.restore(both, mask)
        assert torch.equal(out, model.restore(both, mask.expand(2, -1, -1, -1)))


@torch.no_grad()
def test_noise_maps():
    model = make(fidelity='soft', num_blocks=1, num_layers=2)
    reach = model.receptive_field
    height = 2 * reach + 31
    image, mask = mosaics(torch.rand(2, 3, height, 20))
    flat = torch.full((2, 1, height, 20), 0.1)
    expected = model.restore(image, mask, 0.1)
    assert torch.equal(model.restore(image, mask, flat), expected)
    # Noise above some row matters there, and for no row that does not see it.
    flat[:, :, :10] = 0.3
    out = model.restore(image, mask, flat)
    far = 10 + reach
    assert torch.equal(out[:, :, far:], expected[:, :, far:])
    strong = model.restore(image, mask, 0.3)
    assert not torch.allclose(out[:, :, :10], expected[:, :, :10])
    assert not torch.allclose(out[:, :, far:], strong[:, :, far:])
    # Of each image, in tiles, and on images as they are.
    noise = 0.3 * torch.rand(2, 1, height, 20)
    out = model.restore(image, mask, noise)
    one = model.restore(image[1:], mask, noise[1:])
    torch.testing.assert_close(out[1:], one)
    tiled = Tiled(model, 1).restore(image, mask, noise)
    torch.testing.assert_close(tiled, out)
    cut = image[..., :16, :], mask[..., :16, :], flat[..., :16, :]
    assert not torch.allclose(
        model.estimates(*cut)[-1], model.estimates(*cut[:2], 0.1)[-1]
    )


@parametrize_cases
def test_reach_ends_at_the_receptive_field(kind, block, options):
    steps = (3,) if options['prior'] == 'glr' else (1, 2)
    model = make(
        *(kind, block),
        **options,
        dtype=torch.float64,
        num_layers=2,
        num_blocks=1,
        steps=steps,
    )
    reach = model.receptive_field
    image = torch.rand(1, 3, 2 * reach + 21, 12, dtype=torch.float64)
    image[:, :, -4:] = 1  # the white level of both
    changed = image.clone()
    changed[:, :, :10] = torch.rand_like(changed[:, :, :10])
    outs = []
    with torch.no_grad():
        for part in (image, changed):
            part, mask = mosaics(part)
            if kind is Inpaint:
                # Holes of one size, whose first fill does not see far.
                mask = torch.ones_like(mask).repeat(1, 1, 1, 1)
                mask[..., ::4, ::4] = False
                part = model.first_estimate.fill(part, mask)[0]
            outs.append(model.restore(*given(options, part, mask)))
    first, second = outs
    far = 10 + reach
    if kind is Inpaint:
        assert torch.allclose(first[:, :, far:], second[:, :, far:])
    else:
        assert torch.equal(first[:, :, far:], second[:, :, far:])
    assert not torch.equal(first[:, :, 10:20], second[:, :, 10:20])


def test_autocast_trains_as_well(photo):
    model = make()
    image, mask = mosaics(photo[None, :, :32, :32])
    with torch.no_grad():
        exact = model.estimates(image, mask)[-1]
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = model.estimates(image, mask)[-1]
    assert out.dtype == torch.float32
    assert (out - exact).abs().mean() < 0.01


class Restore(torch.nn.Module):
    """A restorer as a function of tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, mask, *noise_std):
        return self.model.estimates(image, mask, *noise_std)[-1]


def on_tensors(kind, block, options, device='cpu', seed=0):
    model = make(kind, block, num_blocks=1, num_layers=2, **options)
    torch.manual_seed(seed)
    image, mask = observed(kind, torch.rand(2, 3, 12, 10))
    args = [image, mask]
    if options.get('fidelity') == 'soft':
        args.append(torch.tensor([0.05, 0.1]))
    return Restore(model).to(device), [v.to(device) for v in args]


@pytest.mark.filterwarnings('ignore:Accessing the data pointer')
@pytest.mark.parametrize(('kind', 'block', 'options'), [CASES[1], CASES[4]])
def test_reads_no_value(kind, block, options):
    restore, args = on_tensors(kind, block, options)
    restore(*args)  # makes the grid
    # Of tensors without values: whoever looks at one gets an error.
    assert_exports(restore, *args)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@parametrize_cases
def test_cuda_graph(kind, block, options):
    restore, first = on_tensors(kind, block, options, 'cuda')
    graphed = torch.cuda.make_graphed_callables(
        on_tensors(kind, block, options, 'cuda')[0],
        tuple(v.clone() for v in first),
        allow_unused_input=True,
    )
    for seed in (0, 1):
        _, args = on_tensors(kind, block, options, 'cuda', seed)
        grads = []
        for function in (restore, graphed):
            function.zero_grad()
            out = function(*args)
            out.square().sum().backward()
            grads.append([out.detach().clone()])
            for p in function.parameters():
                unused = torch.zeros_like(p)
                grads[-1].append(unused if p.grad is None else p.grad.clone())
        for expected, value in zip(*grads, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'blocks',
    [
        [],
        [*make_blocks(channels=1), *make_blocks(channels=3)],
        [*make_blocks(fidelity='soft'), *make_blocks(DifferenceBlock)],
    ],
)
def test_blocks_fit_each_other(blocks):
    with pytest.raises(ValueError, match="'blocks' must be at least one block"):
        Inpaint(blocks)


@pytest.mark.parametrize('kind', [Demosaic, Inpaint])
def test_reset_parameters(kind):
    model = make(kind)
    for parameter in model.parameters():
        parameter.data.fill_(1e3)
    model.reset_parameters()
    assert all(float(p.detach().abs().max()) < 50 for p in model.parameters())
    image, mask = observed(kind, torch.rand(1, 3, 8, 8))
    assert float(model.restore(image, mask).detach().abs().max()) < 10
    assert str(model) == f'{kind.__name__}(2 x GuidedBlock)'


@parametrize_cases
@pytest.mark.parametrize('unit', [1e-150, 1e-9, 0.01, 255.0, 1e12, 1e150])
def test_results_are_in_the_unit_of_the_image(kind, block, options, unit):
    image = torch.rand(2, 3, 30, 36, dtype=torch.float64)
    image[1] *= 0.02  # of another exposure
    image, mask = observed(kind, image)
    model = make(kind, block, dtype=torch.float64, num_layers=2, **options)
    noise = [0.01 * unit] if options.get('fidelity') == 'soft' else []
    with torch.no_grad():
        expected = model.restore(image, mask, *(n / unit for n in noise))
        out = model.restore(unit * image, mask, *noise)
        alone = model.restore(unit * image[1:], mask[-1:], *noise)
    torch.testing.assert_close(out / unit, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(alone, out[1:], rtol=1e-9, atol=1e-12 * unit)


def test_black_images_stay_black():
    model = make(Demosaic, DifferenceBlock, num_layers=2)
    image, mask = mosaics(torch.zeros(2, 3, 12, 12))
    image[1, mask[0]] = 0.5
    with torch.no_grad():
        out = model.restore(image, mask)
    assert out.isfinite().all()
    assert out[0].abs().max() < 0.2
    assert (out[1] - 0.5).abs().max() < 0.2
