"""X-Trans mosaics: trained models on cells of 3 x 3 pixels."""

from itertools import product

import pytest
import torch
from torch_geometric.data import Batch

from pyg_unroll import Demosaic, cfa_mask, data_to_image, mosaic
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock, Tiled
from pyg_unroll.imaging.cfa import find_pattern
from pyg_unroll.imaging.filters import green_along_lines, local_interpolation
from pyg_unroll.imaging.tiles import mirror_lines
from tests.imaging.utils import make_blocks, mosaics, psnr, silent_parameters


def make(block=DifferenceBlock, dtype=torch.float64, **options):
    """A small model whose nets matter as much as those of a trained one."""
    torch.manual_seed(0)
    blocks = make_blocks(block, cell=3, num_layers=2, **options)
    model = Demosaic(blocks, cfa='X-Trans').to(dtype)
    with torch.no_grad():
        for one in model.blocks:
            one.features.head.weight.mul_(20)
    return model.eval()


def shifted(row, col, height, width):
    """The mask of a sensor that begins anywhere in the pattern."""
    mask = cfa_mask('X-Trans', row + height, col + width)
    return mask[None, :, row:, col:]


@pytest.mark.parametrize(('row', 'col'), list(product(range(6), repeat=2)))
def test_mirrored_mosaics_are_mosaics(row, col):
    class Watcher(Demosaic):
        def run(self, *images):
            image, mask = images[:2]
            # Cells are in phase, and all measure what the pattern says.
            assert find_pattern(mask, ['X-Trans'])[1] == (0, 0)
            assert torch.equal(image > 0, mask)
            return image

    mask = shifted(row, col, 32, 45)
    model = Watcher(make_blocks(DifferenceBlock, cell=3), cfa='X-Trans')
    image = torch.where(mask, 1 + torch.rand(1, 3, 32, 45), 0)
    assert torch.equal(model.restore(image, mask)[mask], image[mask])


@pytest.mark.parametrize('size', [(6, 6), (7, 11), (40, 6)])
def test_mirror_lines(size):
    for phase in product(range(3), repeat=2):
        lines = mirror_lines(size, phase, 3)
        for (low, high), length, start in zip(lines, size, phase, strict=True):
            assert 0 <= low < high < length
            assert (low - start) % 3 == (high - start) % 3 == 1
            assert low < 3 and high >= length - 3
    assert mirror_lines((5, 8), (1, 0), 2) == [(0, 4), (0, 7)]


@pytest.mark.parametrize('block', [DifferenceBlock, GuidedBlock])
@pytest.mark.parametrize('shift', [(1, 2), (3, 3), (4, 0)])
@torch.no_grad()
def test_a_shifted_sensor_gives_a_shifted_image(block, shift):
    torch.manual_seed(1)
    image = torch.rand(3, 100, 104).double()
    row, col = shift
    model = make(block, num_blocks=1, steps=(3,))
    whole = data_to_image(data := mosaic(image, 'X-Trans'), model(data))
    mask = shifted(row, col, 100 - row, 104 - col)
    part = torch.where(mask, image[None, :, row:, col:], 0)
    out = model.restore(part, mask)[0]
    inner = ..., *[slice(model.receptive_field, -model.receptive_field)] * 2
    expected = whole[:, row:, col:][inner]
    assert expected.numel() > 3000
    # The white level is that of a few pixels more.
    torch.testing.assert_close(out[inner], expected, rtol=0, atol=1e-3)
    assert torch.equal(out[mask[0]], part[mask])


@torch.no_grad()
def test_batch_of_all_shifts():
    torch.manual_seed(4)
    examples = []
    for row, col in ((0, 0), (3, 0), (1, 2), (4, 2)):
        mask = shifted(row, col, 20, 22)
        data = mosaic(torch.rand(3, 20, 22).double(), 'X-Trans')
        data.mask = mask[0].flatten(1).T.contiguous()
        examples.append(data)
    model = make(num_blocks=1)
    out = model(Batch.from_data_list(examples))
    expected = torch.cat([model(data) for data in examples])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    masks = torch.cat([shifted(0, 0, 20, 22), shifted(1, 0, 20, 22)])
    with pytest.raises(ValueError, match='in one phase for all images'):
        model.restore(masks.double(), masks)


@torch.no_grad()
def test_red_and_blue_are_alike():
    # Three rows further, red and blue have changed places.
    torch.manual_seed(2)
    image = torch.rand(1, 3, 30, 33).double()
    model = make()
    for one in model.blocks:  # a net whose inputs do not know them apart
        one.features.head.weight.zero_()
    first = model.first_estimate(*mosaics(image, 'X-Trans'))
    mask = shifted(3, 0, 30, 33)
    swapped = torch.where(mask, image.flip(1), 0)
    second = model.first_estimate(swapped, mask)
    torch.testing.assert_close(second[0], first[0].flip(1))
    torch.testing.assert_close(second[2], first[2])


@pytest.mark.parametrize('noise', [None, 0.05])
@torch.no_grad()
def test_tiles_equal_the_whole(noise):
    model = make(num_blocks=1, steps=(2,))
    halo = model.halo([None] * (3 if noise is None else 4))
    height = 4 * halo + 31
    assert halo % 3 == 0
    torch.manual_seed(3)
    image, mask = mosaics(torch.rand(1, 3, height, 20).double(), 'X-Trans')
    whole = model.restore(image, mask, noise)
    tiled = Tiled(model, 1).restore(image, mask, noise)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_lines_of_green():
    # Planes are exact, and along an edge the lines that cross it do not count.
    row, col = torch.arange(24.0).view(-1, 1), torch.arange(30.0)
    plane = (3 * row - 2 * col).expand(1, 1, -1, -1).double()
    mask = cfa_mask('X-Trans', 24, 30)[None]
    values = torch.where(mask, plane, 0)
    out = green_along_lines(values.sum(1, keepdim=True), mask[:, 1:2])
    inner = ..., slice(6, -6), slice(6, -6)
    torch.testing.assert_close(out[inner], plane[inner])
    edge = (col > 14.5).double().expand(1, 3, 24, -1)
    image, mask = mosaics(edge, 'X-Trans')
    out = green_along_lines(image.sum(1, keepdim=True), mask[:, 1:2])
    bilinear = local_interpolation(image, mask)[:, 1:2]
    error, other = (
        (v - edge[:, 1:2])[inner].abs().max() for v in (out, bilinear)
    )
    assert error < 0.01 < 0.1 < other


@torch.no_grad()
def test_an_untrained_model_starts_above_bilinear(photo):
    image, mask = mosaics(photo[None], 'X-Trans')
    model = Demosaic(cfa='X-Trans').eval()
    for one in model.blocks:
        one.features.head.weight.zero_()
    out = model.restore(image, mask)
    assert psnr(out, photo) > psnr(local_interpolation(image, mask), photo) + 1


def test_files(tmp_path):
    model = make(block=GuidedBlock)
    model.save(tmp_path / 'model.safetensors')
    again = Demosaic.load(tmp_path / 'model.safetensors').eval()
    assert again.config == model.config and again.cfa == 'X-Trans'
    image, mask = mosaics(torch.rand(1, 3, 20, 20).double(), 'X-Trans')
    with torch.no_grad():
        expected = model.restore(image, mask)
        assert torch.equal(again.restore(image, mask), expected)


def test_derivatives_reach_all_parameters():
    model = make()
    image, mask = mosaics(torch.rand(1, 3, 12, 15).double(), 'X-Trans')
    for out in model.estimates(image, mask):
        assert out.shape == image.shape
        out.square().sum().backward(retain_graph=True)
    # Known differences are held.
    held = {f'blocks.{k}.step.fill_conv.log_mu' for k in range(2)}
    assert silent_parameters(model) == held


def test_errors(photo, tmp_path):
    model = make(dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"'mask' must be that of X-Trans sensors"
    ):
        model(mosaic(photo))
    with pytest.raises(ValueError, match='6 x 6 pixels'):
        model(mosaic(photo[:, :5, :9], 'X-Trans'))
    with pytest.raises(ValueError, match="'cfa' must be one of 'Bayer', 'X-T"):
        Demosaic(cfa='Foveon')
    with pytest.raises(ValueError, match=r'cells of 3 x 3.*with cell=3'):
        Demosaic([DifferenceBlock(8)], cfa='X-Trans')
    with pytest.raises(ValueError, match=r'cells of 2 x 2.*sides \[2, 3\]'):
        Demosaic([DifferenceBlock(8), DifferenceBlock(8, cell=3)])
    with pytest.raises(ValueError, match="'cell' must be"):
        DifferenceBlock(8, cell=0)
    mask = shifted(0, 1, 12, 12)
    with pytest.raises(ValueError, match=r'begins at \[0, 2\]'):
        model.estimates(mask.float(), mask)
    with pytest.raises(ValueError, match=r"'cfa'.*'Bayer' .*X-Trans"):
        model.export(tmp_path / 'model.onnx')
