"""Defective pixels of sensors: masks with holes, and how to find them."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array, diags
from scipy.sparse.linalg import spsolve
from torch_geometric.data import Batch

from pyg_unroll import Demosaic, GraphDemosaic, mosaic
from pyg_unroll.imaging import SelfEnsemble, Tiled, find_defects
from pyg_unroll.imaging.defects import fill_defects
from tests.imaging.utils import make, mosaics, psnr

PATTERNS = ['RGGB', 'GBRG', 'X-Trans']


def scattered(mask, share=1e-2, seed=0):
    """True at some pixels of a mask, `[1, 1, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(mask[:, :1].shape, generator=generator) < share


@pytest.mark.parametrize('pattern', PATTERNS)
def test_red_is_filled_as_a_sparse_solve_does(pattern):
    torch.manual_seed(0)
    image, whole = mosaics(torch.rand(1, 3, 17, 19).double(), pattern)
    # Where green and blue are flat, weights depend on distances alone.
    image = torch.where(whole[:, :1] | ~whole, image, 0.5)
    holes = scattered(whole, 0.2) & whole[:, :1]
    mask = whole & ~holes
    out = fill_defects(torch.where(mask, image, torch.nan), mask, whole)
    assert torch.equal(out[mask], image[mask])
    is_red = whole[0, 0]
    step = is_red.nonzero().numpy()[:, None] - is_red.nonzero().numpy()
    near = abs(step).max(-1)
    length = np.maximum((step**2).sum(-1), 1)
    weight = coo_array(((near <= 2) & (near > 0)) / length)
    laplacian = (diags(weight.sum(1)) - weight).tocsr()
    known = mask[0, 0][is_red].numpy()
    right = -laplacian[~known][:, known] @ image[0, 0][is_red].numpy()[known]
    expected = spsolve(laplacian[~known][:, ~known].tocsc(), right)
    found = out[0, 0][is_red].numpy()[~known]
    assert len(found) > 5
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_edges_of_other_colours_stop_it():
    # A red hole on the dark side of an edge that green and blue show.
    edge = (torch.arange(24) >= 12).double().expand(1, 3, 24, -1)
    image, whole = mosaics(0.1 + 0.8 * edge)
    hole = torch.zeros_like(whole)
    hole[..., 10, 10] = True
    mask = whole & ~hole
    out = fill_defects(image, mask, whole)
    assert abs(float(out[0, 0, 10, 10]) - 0.1) < 1e-3


@pytest.mark.parametrize('pattern', PATTERNS)
@torch.no_grad()
def test_restorers_take_masks_with_holes(pattern, large_photo):
    image, whole = mosaics(large_photo[None], pattern)
    holes = scattered(whole)
    holes[..., 40] = True  # a dead column
    mask = whole & ~holes
    models = [GraphDemosaic()]
    if pattern != 'X-Trans':
        models += [
            Demosaic.from_pretrained('bayer'),
            SelfEnsemble(Tiled(make(strength=1.0)), 2),
            make(fidelity='soft', strength=1.0),
        ]
    for model in models:
        clean = model.restore(image, whole)
        given = torch.where(mask, image, torch.nan)
        out = model.restore(given, mask)
        if getattr(model, 'fidelity', 'hard') == 'hard':
            assert torch.equal(out[mask], image[mask])
        assert psnr(out, large_photo) > psnr(clean, large_photo) - 1.0
        # Zeros that are taken as measured are far worse.
        dark = model.restore(torch.where(mask, image, 0), whole)
        assert psnr(out, large_photo) > psnr(dark, large_photo) + 3


@pytest.mark.parametrize('pattern', ['RGGB', 'X-Trans'])
def test_wide_holes_take_the_colours_around(pattern):
    # Where a whole colour is unseen it must not count as black.
    flat = torch.full((1, 3, 64, 64), 0.8)
    flat[..., :3] = 0.02
    image, whole = mosaics(flat, pattern)
    mask = whole.clone()
    mask[..., 20:40, 6:40] = False
    out = fill_defects(image, mask, whole)
    torch.testing.assert_close(out, image, rtol=0, atol=0.01)


@torch.no_grad()
def test_batches_of_other_holes_and_patterns(photo):
    examples = [mosaic(photo, p) for p in ('RGGB', 'GBRG', 'X-Trans')]
    for k, data in enumerate(examples):
        data.mask[100 * k + 55] = False
    model = GraphDemosaic()
    out = model(Batch.from_data_list(examples))
    expected = torch.cat([model(data) for data in examples])
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_noise_is_estimated_beside_holes(large_photo):
    torch.manual_seed(0)
    noisy = large_photo + 0.02 * torch.randn_like(large_photo)
    image, whole = mosaics(noisy[None])
    mask = whole & ~scattered(whole, 0.1)
    image = torch.where(mask, image, 0)
    model = make(fidelity='soft', strength=1.0)
    expected = model.restore(image, mask)
    out = SelfEnsemble(model, 1).restore(image, mask)
    torch.testing.assert_close(out, expected)


def test_known_holes_are_not_found_again(large_photo):
    image, mask = mosaics(0.5 * large_photo[None])
    image[..., 70, 70] = image[..., 30, 40] = 0.9
    image, first = torch.where(mask, image, 0), mask.clone()
    first[..., 70, 70] = False
    found = find_defects(image, first)
    assert found[..., 30, 40].all() and not found[..., 70, 70].any()


@torch.no_grad()
def test_data_with_holes(photo):
    model = GraphDemosaic()
    data = mosaic(photo, 'GBRG')
    data.mask[777] = False
    image, mask = mosaics(photo[None], 'GBRG')
    mask = mask.clone()
    mask[..., 777 // 100, 777 % 100] = False
    expected = model.restore(image, mask)[0].flatten(1).T
    torch.testing.assert_close(model(data), expected)


@pytest.mark.parametrize('unit', [1.0, 255.0, 1e-30, 1e30])
@pytest.mark.parametrize('pattern', PATTERNS)
def test_finds_hot_and_dead_pixels(pattern, unit, large_photo):
    # Fine texture hides some, and looks like some.
    smooth = torch.nn.functional.avg_pool2d(large_photo[None], 5, 1, 2)
    smooth = 0.3 + 0.4 * smooth
    image, mask = mosaics(smooth.expand(2, -1, -1, -1), pattern)
    defects = scattered(mask, 2e-3).repeat(2, 1, 1, 1)
    defects[1] = defects[1].flip(-1)
    defects[..., 60, 60] = defects[..., 60, 62] = True  # a pair
    value = (torch.arange(143) % 2).float()  # hot or dead
    noisy = torch.where(defects & mask, value, image)
    found = find_defects(unit * noisy, mask)
    assert found.shape == defects.shape and found.dtype == torch.bool
    assert (found & defects).sum() > 0.95 * defects.sum()
    assert (found & ~defects).sum() <= 0.02 * defects.sum()
    assert not find_defects(unit * image, mask).any()


def test_lights_and_lines_are_no_defects():
    # As lenses draw them: a point and a line are wider than a pixel.
    image = torch.zeros(1, 3, 40, 40)
    image[..., 10, 10] = image[..., 25, :] = 1
    image[..., :, 30] = 1
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    blur = (taps[:, None] * taps).expand(3, 1, -1, -1)
    image = torch.nn.functional.conv2d(image, blur, padding=1, groups=3)
    for pattern in PATTERNS:
        assert not find_defects(*mosaics(0.1 + image, pattern)).any()


def test_strips_do_not_matter(monkeypatch, large_photo):
    image, mask = mosaics(large_photo[None])
    image = torch.where(scattered(mask) & mask, 1.0, image)
    whole = find_defects(image, mask)
    monkeypatch.setattr('pyg_unroll.imaging.defects._STRIP', 143 * 7)
    assert torch.equal(find_defects(image, mask), whole)


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (6, 6)])
def test_tiny_mosaics(size):
    image, mask = mosaics(torch.rand(1, 3, *size))
    assert find_defects(image, mask).shape == (1, 1, *size)


def test_bad_input(photo):
    image, mask = mosaics(photo[None])
    with pytest.raises(ValueError, match="'threshold' must"):
        find_defects(image, mask, 0.0)
    with pytest.raises(ValueError, match='one of three colours at each pixel'):
        find_defects(image, mask | scattered(mask))
    # Other colour filter arrays have no holes.
    quad = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :20, :20]
    part = image[..., :20, :20]
    assert GraphDemosaic().restore(part, quad).isfinite().all()
    with pytest.raises(ValueError, match=r'Bayer or X-Trans .* for these only'):
        GraphDemosaic().restore(part, quad & ~scattered(quad, 0.05))
    # A colour that is nowhere cannot be filled in.
    nothing = mask & torch.tensor([True, True, False]).view(3, 1, 1)
    for model in (make(), GraphDemosaic()):
        with pytest.raises(ValueError, match='known'):
            model.restore(image, nothing)
    with pytest.raises(ValueError, match="'mask' must be that of Bayer"):
        make().restore(image, mask.roll(1, 1) & ~scattered(mask))
