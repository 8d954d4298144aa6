import copy

import pytest
import skimage.data
import torch
from torch_geometric.data import Batch

from pyg_unroll import GraphDemosaic, data_to_image, mosaic
from pyg_unroll.imaging import CFA_PATTERNS, local_interpolation
from tests.imaging.utils import mosaics


def picture(height, width):
    """Smooth light on a tint, with an edge in all colours."""
    row = torch.linspace(0, 3, height).view(-1, 1)
    col = torch.linspace(0, 4, width).view(1, -1)
    light = 0.5 + 0.2 * (row.sin() + col.cos()) + 0.1 * (col > row + 1)
    return torch.stack([0.8 * light, light, 0.6 * light + 0.1])


@pytest.mark.parametrize('pattern', CFA_PATTERNS)
@pytest.mark.parametrize('prior', ['glr', 'gtv'])
def test_beats_local_interpolation(pattern, prior, device):
    image = picture(33, 46).to(device)
    data = mosaic(image, pattern)
    with torch.no_grad():
        out = GraphDemosaic(prior).to(device)(data)
    assert torch.equal(out[data.mask], data.x[data.mask])
    known = data_to_image(data, data.mask)[None]
    local = local_interpolation(data_to_image(data)[None], known)[0]
    error = (data_to_image(data, out) - image).square().mean()
    assert error < (local - image).square().mean()


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1), (2, 2), (5, 3)])
@pytest.mark.parametrize('pattern', ['GRBG', 'X-Trans'])
def test_tiny_and_odd_sizes(size, pattern):
    data = mosaic(torch.rand(3, *size), pattern)
    with torch.no_grad():
        out = GraphDemosaic()(data)
    assert out.shape == data.x.shape and bool(out.isfinite().all())
    assert torch.equal(out[data.mask], data.x[data.mask])


def test_batch_of_different_sizes_and_patterns():
    examples = [
        mosaic(picture(12, 14)),
        mosaic(picture(9, 16), 'X-Trans'),
        mosaic(picture(12, 14), 'X-Trans'),
        mosaic(0.9 * picture(12, 14), 'BGGR'),
    ]
    with torch.no_grad():
        model = GraphDemosaic()
        out = model(Batch.from_data_list(examples))
        expected = torch.cat([model(data) for data in examples])
    torch.testing.assert_close(out, expected)


def test_images_are_data():
    image, mask = mosaics(picture(12, 14)[None], 'GBRG')
    model, data = GraphDemosaic(), mosaic(picture(12, 14), 'GBRG')
    with torch.no_grad():
        out = model.restore(image, mask)
        assert torch.equal(data_to_image(data, model(data)), out[0])
    assert repr(model) == "GraphDemosaic(prior='glr')"


def test_is_trainable():
    model = GraphDemosaic()
    data = mosaic(picture(12, 14))
    model(data).square().sum().backward()
    for name in ('step.gain_limit', 'chroma_ratio', 'step.fill_metric.weight'):
        grad = model.get_parameter(name).grad
        assert bool(grad.isfinite().all()) and bool(grad.any()), name
    initial = GraphDemosaic().state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    for name, value in model.state_dict().items():
        assert torch.equal(value, initial[name]), name


def test_unknown_values_do_not_matter():
    data = mosaic(torch.rand(3, 8, 8))
    unknown = copy.copy(data)
    unknown.x = torch.where(data.mask, data.x, torch.nan)
    with torch.no_grad():
        assert torch.equal(GraphDemosaic()(unknown), GraphDemosaic()(data))


@pytest.mark.parametrize('prior', ['glr', 'gtv'])
def test_rows_without_green(prior):
    # Red and blue in one row, green in the next.
    image = torch.from_numpy(skimage.data.astronaut()[180:280, 60:164] / 255)
    image = image.movedim(2, 0).float()[None]
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[:, 0, ::2, ::2] = mask[:, 2, ::2, 1::2] = mask[:, 1, 1::2] = True
    for dims in ((2, 3), (3, 2)):
        x, m = (v.movedim((2, 3), dims) for v in (image, mask))
        with torch.no_grad():
            out = GraphDemosaic(prior).restore(torch.where(m, x, 0), m)
        near = local_interpolation(x, m)
        assert (out - x).square().mean() < 0.8 * (near - x).square().mean()
