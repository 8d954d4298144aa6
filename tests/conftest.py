import pytest
import torch


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
