import pytest
import torch

from pyg_unroll import Inpaint, mosaic
from pyg_unroll.imaging import SelfEnsemble
from tests.imaging.utils import holes, make, mosaics

# Quarter turns and mirrorings of the views.
VIEWS = {
    1: [(0, False)],
    2: [(0, False), (2, True)],
    4: [(0, False), (2, True), (1, True), (1, False)],
    8: [(k, mirror) for k in range(4) for mirror in (False, True)],
}


def average(model, num_views, image, mask, noise=None):
    """The mean of restored views, each turned back."""

    def turn(x, k, mirror):
        return (x.mT if mirror else x).rot90(k, (-2, -1))

    total = 0
    for k, mirror in VIEWS[num_views]:
        level = noise
        if torch.is_tensor(noise) and noise.dim() == 4:
            level = turn(noise, k, mirror)
        out = model.restore(
            turn(image, k, mirror), turn(mask, k, mirror), level
        )
        out = out.rot90(-k, (-2, -1))
        total = total + (out.mT if mirror else out)
    return total / num_views


@pytest.mark.parametrize('num_views', VIEWS)
@torch.no_grad()
def test_views_are_averaged(num_views):
    model = make(dtype=torch.float64, num_blocks=1)
    image, mask = mosaics(torch.rand(2, 3, 13, 18).double(), 'GBRG')
    out = SelfEnsemble(model, num_views).restore(image, mask)
    torch.testing.assert_close(out, average(model, num_views, image, mask))
    single = model.restore(image, mask)
    assert ((out - single).abs().max() > 1e-3) == (num_views > 1)
    # Held samples to the bit.
    assert torch.equal(out[mask.expand_as(out)], image[mask.expand_as(out)])


@torch.no_grad()
def test_noise_turns_with_the_image():
    model = make(dtype=torch.float64, fidelity='soft', num_blocks=1)
    image, mask = mosaics(torch.rand(2, 3, 13, 18).double())
    noises = 0.1, torch.tensor([0.1, 0.2]), 0.3 * torch.rand(2, 1, 13, 18)
    for noise in noises:
        out = SelfEnsemble(model, 4).restore(image, mask, noise)
        torch.testing.assert_close(out, average(model, 4, image, mask, noise))
    # Estimated once, of the image as it is.
    level = model.first_estimate.noise_std(image, mask)
    torch.testing.assert_close(
        SelfEnsemble(model, 4).restore(image, mask),
        average(model, 4, image, mask, level),
    )


@torch.no_grad()
def test_data_and_masks_of_pixels():
    model = make(Inpaint, num_blocks=1)
    image, mask = holes(torch.rand(2, 3, 9, 12))
    out = SelfEnsemble(model).restore(image, mask)
    torch.testing.assert_close(out, average(model, 4, image, mask))
    model, data = make(num_blocks=1), mosaic(torch.rand(2, 3, 10, 10))
    out = SelfEnsemble(model)(data)
    assert out.shape == data.x.shape
    assert torch.equal(out[data.mask], data.x[data.mask])


@pytest.mark.parametrize('num_views', [0, 3, 5, 16])
def test_number_of_views(num_views):
    with pytest.raises(ValueError, match="'num_views' must be one of 1, 2, 4"):
        SelfEnsemble(make(num_blocks=1), num_views)
