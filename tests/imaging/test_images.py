import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_unroll import data_to_image, image_to_data
from pyg_unroll.imaging import to_unit_range
from pyg_unroll.testing import TOLERANCES

DTYPES = [torch.uint8, torch.uint16, *TOLERANCES]


def make(*shape, dtype=torch.float32):
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    limit = torch.iinfo(dtype).max + 1
    return torch.randint(limit, shape, dtype=torch.int32).to(dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'shape', [(3, 5, 7), (1, 1, 9), (4, 6, 1), (1, 1, 1), (2, 3, 5, 4)]
)
def test_roundtrip(shape, dtype):
    image = make(*shape, dtype=dtype)
    data = image_to_data(image)
    out = data_to_image(data)
    assert out.dtype == dtype and torch.equal(out, image)
    assert data.validate()
    assert isinstance(data, Batch) == (len(shape) == 4)


def test_roundtrip_of_strided_image(device):
    image = make(5, 7, 3).to(device).permute(2, 0, 1)
    data = image_to_data(image)
    assert data.x.is_contiguous() and data.pos.device == image.device
    assert torch.equal(data_to_image(data), image)


def test_image_to_data():
    image = torch.arange(24.0).view(2, 3, 4)
    data = image_to_data(image)
    assert data.num_nodes == 12 and (data.height, data.width) == (3, 4)
    # Row-major, positions are (row, column).
    for node, (row, col) in enumerate(np.ndindex(3, 4)):
        assert data.pos[node].tolist() == [row, col]
        assert torch.equal(data.x[node], image[:, row, col])


def test_batch():
    images = make(3, 2, 4, 5)
    batch = image_to_data(images)
    assert batch.num_graphs == 3 and batch.num_nodes == 60
    for image, data in zip(images, batch.to_data_list(), strict=True):
        assert torch.equal(data_to_image(data), image)
    # A batch of one remains a batch.
    single = image_to_data(images[:1])
    assert data_to_image(single).shape == (1, 2, 4, 5)


def test_signal_of_a_model():
    data = image_to_data(make(3, 4, 5))
    x = torch.randn(20, 7, requires_grad=True)
    image = data_to_image(data, x)
    assert image.shape == (7, 4, 5) and image.requires_grad
    assert torch.equal(image[:, 2, 3], x[13])


@pytest.mark.parametrize(
    'image, match',
    [
        (torch.rand(4, 5), r'channels, height, width.*unsqueeze\(0\)'),
        (torch.rand(1, 1, 1, 1, 1), r'got \[1, 1, 1, 1, 1\]'),
        (np.zeros((3, 4, 5)), 'must be a tensor'),
        ('photo.png', 'must be a tensor'),
        (torch.rand(3, 0, 5), 'is empty'),
        (torch.rand(0, 3, 5, 5), 'is empty'),
    ],
)
def test_wrong_image(image, match):
    with pytest.raises(ValueError, match=match):
        image_to_data(image)


def test_wrong_data():
    data = image_to_data(make(3, 4, 5))
    with pytest.raises(ValueError, match=r"'x'.*\[20\]"):
        data_to_image(data, data.x[:, 0])
    with pytest.raises(ValueError, match=r'10 rows, but 1 image.*20 pixels'):
        data_to_image(data, data.x[:10])
    with pytest.raises(ValueError, match=r"no 'height'.*image_to_data"):
        data_to_image(Data(x=torch.rand(4, 1)))
    sizes = [image_to_data(make(1, h, 4)) for h in (3, 5)]
    with pytest.raises(ValueError, match=r'different sizes.*to_data_list'):
        data_to_image(Batch.from_data_list(sizes))
    with pytest.raises(ValueError, match=r"'x' must have shape.*NoneType"):
        data_to_image(Data(height=2, width=2))


def test_to_unit_range():
    full = torch.tensor([0, 65535, 257], dtype=torch.uint16)
    expected = torch.tensor([0.0, 1.0, 257 / 65535])
    assert torch.equal(to_unit_range(full), expected)
    # All 16 bits survive.
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    assert to_unit_range(every).unique().numel() == 65536
    assert to_unit_range(torch.tensor(255, dtype=torch.uint8)) == 1
    with pytest.raises(ValueError, match=r'torch.int64.*divide'):
        to_unit_range(torch.tensor([1]))
