import copy

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_unroll import GraphDemosaic, data_to_image, mosaic
from pyg_unroll.data import CFA_PATTERNS
from pyg_unroll.nn.models import local_interpolation


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
@pytest.mark.parametrize('pattern', CFA_PATTERNS)
def test_tiny_and_odd_sizes(size, pattern):
    data = mosaic(torch.rand(3, *size), pattern)
    with torch.no_grad():
        out = GraphDemosaic()(data)
    assert out.shape == data.x.shape and bool(out.isfinite().all())
    assert torch.equal(out[data.mask], data.x[data.mask])


@pytest.mark.parametrize('prior', ['glr', 'gtv'])
@pytest.mark.parametrize('pattern', ['GRBG', 'X-Trans'])
def test_strips_are_exact(prior, pattern):
    data = mosaic(torch.rand(3, 170, 12), pattern)
    with torch.no_grad():
        whole = GraphDemosaic(prior)(data)
        strips = GraphDemosaic(prior, max_pixels=12 * 40)(data)
    torch.testing.assert_close(strips, whole, atol=1e-5, rtol=0)


def test_batch_of_different_sizes():
    examples = [mosaic(picture(12, 14)), mosaic(picture(9, 16), 'X-Trans')]
    with torch.no_grad():
        model = GraphDemosaic()
        out = model(Batch.from_data_list(examples))
        expected = torch.cat([model(data) for data in examples])
    torch.testing.assert_close(out, expected)


def test_is_trainable():
    model = GraphDemosaic()
    data = mosaic(picture(12, 14))
    model(data).square().sum().backward()
    for name in ('gain_limit', 'chroma_ratio', 'fill_metric.weight'):
        grad = model.get_parameter(name).grad
        assert bool(grad.isfinite().all()) and bool(grad.any()), name


def test_errors():
    with pytest.raises(ValueError, match=r"'prior' must be one of.*'tv'"):
        GraphDemosaic('tv')
    with pytest.raises(ValueError, match="'max_pixels' must be a positive"):
        GraphDemosaic(max_pixels=0)
    data = mosaic(picture(4, 4))
    with pytest.raises(ValueError, match="'data' must be a mosaic"):
        GraphDemosaic()(Data(x=data.x, height=4, width=4))


def test_values_are_checked():
    data = mosaic(torch.rand(3, 8, 8))
    expected = GraphDemosaic()(data)
    unknown = copy.copy(data)
    unknown.x = torch.where(data.mask, data.x, torch.nan)
    assert torch.equal(GraphDemosaic()(unknown), expected)
    data.x = torch.where(data.mask, torch.nan, data.x)
    with pytest.raises(ValueError, match=r"'data.x' must be finite"):
        GraphDemosaic()(data)
    unknown.mask = unknown.mask.float()
    with pytest.raises(ValueError, match=r"'data.mask' must be boolean"):
        GraphDemosaic()(unknown)
