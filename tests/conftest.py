import os
from pathlib import Path

# Without a GPU, Triton's kernels run in its interpreter; it reads this when it
# is first imported, which PyTorch may do.
if not Path('/dev/nvidiactl').exists():
    os.environ.setdefault('TRITON_INTERPRET', '1')

import pytest
import torch

from tests.backends import each_backend  # noqa: F401

# Threads gain nothing on small graphs, and on a busy machine they wait for
# each other: up to a hundred times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(12345)


@pytest.fixture(
    params=[
        'cpu',
        pytest.param(
            'cuda',
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason='no CUDA device'
            ),
        ),
    ]
)
def device(request):
    return torch.device(request.param)
