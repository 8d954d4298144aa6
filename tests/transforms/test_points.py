import pytest
import torch

from pyg_unroll import KNNGraph, points_to_data, solvers

NAN = float('nan')


def test_points_to_data(device):
    pos = torch.rand(4, 3, device=device)
    signal = torch.tensor([[1.0, 10], [3, 20], [NAN, 5], [9, 5]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 0], [0, 1]]).bool()
    data = points_to_data(pos, signal.to(device), mask.to(device))
    third = 35 / 3
    expected = torch.tensor([[1, 10], [3, 20], [2, third], [2, 5]])
    assert torch.allclose(data.x.cpu(), expected)
    assert torch.equal(data.mask.cpu(), mask)
    assert data.pos is pos and data.num_nodes == 4


def test_mask_from_nan():
    signal = torch.tensor([1.0, NAN, 3.0])
    data = points_to_data(torch.rand(3, 2), signal)
    assert data.x.view(-1).tolist() == [1, 2, 3]
    assert data.mask.view(-1).tolist() == [True, False, True]
    assert bool(signal[1].isnan())


def test_mask_of_nodes():
    mask = torch.tensor([True, False])
    data = points_to_data(torch.rand(2, 2), torch.ones(2, 3), mask)
    assert data.mask.tolist() == [[True] * 3, [False] * 3]


def test_mean_of_half_precision():
    signal = torch.full((1000,), 100.0).half()  # their sum is too large
    data = points_to_data(torch.rand(1000, 2), signal, torch.arange(1000) < 900)
    assert data.x.dtype == torch.float16
    assert torch.equal(data.x, signal.unsqueeze(1))


def test_integer_signal():
    data = points_to_data(torch.rand(3, 1), torch.tensor([1, 2, 3]))
    assert data.x.dtype == torch.float32 and bool(data.mask.all())


def test_goes_into_a_solver():
    signal = torch.rand(30)
    signal[::2] = NAN
    data = KNNGraph(4)(points_to_data(torch.rand(30, 2), signal))
    out = solvers.glr(data.x, data.edge_index, mask=data.mask).x
    assert torch.equal(out[1::2, 0], signal[1::2])
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    'pos, signal, mask, match',
    [
        ([1.0], torch.rand(1), None, "'pos' must be a tensor.*got 'list'"),
        (torch.rand(1, 2), [1.0], None, "'signal' must be a tensor.*'list'"),
        (torch.rand(1, 2), torch.rand(1), [True], "'mask' must be a tensor"),
        (torch.rand(3), torch.rand(3), None, r"'pos'.*\[3\]"),
        (torch.rand(3, 2), torch.rand(4), None, r"'signal'.*\[3, features\]"),
        (torch.rand(3, 2), torch.rand(3, 1, 1), None, "'signal' must have"),
        (torch.rand(3, 2), torch.rand(3), torch.ones(3), 'boolean'),
        (torch.rand(3, 2), torch.rand(3), torch.ones(4).bool(), "'mask' must"),
        (
            torch.rand(2, 2),
            torch.tensor([1, NAN]),
            torch.ones(2).bool(),
            'nan at node 1, feature 0',
        ),
        (torch.rand(2, 2), torch.tensor([1, torch.inf]), None, 'inf at node'),
        (
            torch.rand(2, 2),
            torch.tensor([[1, NAN], [1, NAN]]),
            None,
            'no known entry in feature 1',
        ),
    ],
)
def test_wrong_points(pos, signal, mask, match):
    with pytest.raises(ValueError, match=match):
        points_to_data(pos, signal, mask)
