import pytest
import torch
from skimage.data import astronaut


@pytest.fixture(scope='session')
def photo():
    """An image `[3, 96, 100]`; cut from the middle of a photograph."""
    pixels = torch.from_numpy(astronaut()[96:192, 160:260].copy())
    return pixels.permute(2, 0, 1).float() / 255


@pytest.fixture(scope='session')
def large_photo():
    """An image `[3, 141, 143]`."""
    pixels = torch.from_numpy(astronaut()[140:281, 60:203].copy())
    return pixels.permute(2, 0, 1).float() / 255
