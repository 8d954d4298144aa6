from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import FeaturePropagation

from pyg_unroll import (
    KNNGraph,
    TemporalInterpolator,
    TemporalProduct,
    from_product,
)
from pyg_unroll.testing import assert_same

SHARED = Path(__file__).parents[3] / 'shared' / 'data' / 'graph'


def sensors(count=40, steps=60, missing=0.5, seed=0):
    """Sensors with a level of their own and a wave that changes in space."""
    torch.manual_seed(seed)
    pos = torch.rand(count, 2, dtype=torch.float64)
    time = torch.linspace(0, 9, steps, dtype=torch.float64)
    truth = (time + 2 * pos[:, :1]).sin() + 5 * torch.rand(count, 1).double()
    truth = truth + 0.02 * torch.randn(count, steps).double()
    mask = torch.rand(count, steps) >= missing
    data = KNNGraph(4)(Data(pos=pos))
    data.x, data.mask = torch.where(mask, truth, torch.nan), mask
    return data, truth


def rmse(out, truth, mask):
    return float((out - truth)[~mask].square().mean().sqrt())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_sensors_that_differ_by_constants_only(dtype):
    data, _ = sensors()
    wave = torch.linspace(0, 9, 60).sin()
    truth = (wave + 5 * torch.rand(40, 1)).to(dtype)
    data.x = torch.where(data.mask, truth, torch.nan)
    out = TemporalInterpolator().fit(data).predict()
    scaled = data.clone()
    scaled.x = 1e-3 * data.x  # rounded differently
    again = TemporalInterpolator().fit(scaled).predict()
    torch.testing.assert_close(1e3 * again, out, rtol=1e-3, atol=1e-3)
    # All neighbours are as good as each other.
    assert rmse(out, truth, data.mask) < 0.05


def linear(x, mask):
    step = np.arange(x.shape[1])
    return torch.from_numpy(
        np.stack(
            [
                np.interp(step, step[known], row[known])
                for row, known in zip(x.numpy(), mask.numpy(), strict=True)
            ]
        )
    )


@pytest.mark.parametrize('missing', [0.5, 0.8])
def test_better_than_time_or_space_alone(missing):
    data, truth = sensors(missing=missing)
    fitted = TemporalInterpolator().fit(data)
    out = fitted.predict()
    assert torch.equal(out[data.mask], truth[data.mask])
    ours = rmse(out, truth, data.mask)
    assert ours < rmse(linear(data.x, data.mask), truth, data.mask)
    graph = TemporalProduct()(data)
    graph.x = graph.x.nan_to_num().float()
    graph.edge_weight = None
    graph = FeaturePropagation(~graph.mask.unsqueeze(1), 100)(graph)
    peer = from_product(graph)[..., 0]
    assert ours < 0.5 * rmse(peer, truth, data.mask)
    # Held-out readings foretell the error.
    assert 0.5 < fitted.report_['error'] / ours < 2


def test_likelihood_weighs_sensors():
    # Sensor 0 follows sensor 1; sensor 2, as near, follows nobody.
    torch.manual_seed(0)
    x = torch.randn(3, 200).double().cumsum(1)
    x[0] = x[1] + 0.01 * torch.randn(200)
    mask = torch.ones(3, 200).bool()
    mask[0, 50:100] = False  # too long for the times beside
    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
    data = Data(x=x, mask=mask, edge_index=edges)
    out = TemporalInterpolator().fit(data).predict()
    assert rmse(out, x, mask) < 0.5 * rmse(linear(x, mask), x, mask)


def test_positions_types_and_other_data():
    data, _ = sensors()
    points = Data(x=data.x.float(), pos=data.pos)  # mask where not NaN
    before = points.clone()
    fitted = TemporalInterpolator(neighbors=4).fit(points)
    out = fitted.predict()
    assert out.dtype == torch.float32
    assert torch.equal(points.x.nan_to_num(), before.x.nan_to_num())
    assert set(points.keys()) == set(before.keys())
    expected = TemporalInterpolator().fit(data).predict()
    torch.testing.assert_close(out.double(), expected, atol=1e-3, rtol=0)
    assert_same(TemporalInterpolator(4).fit(points).predict(), out)
    other, other_truth = sensors(30, 50, seed=1)
    out = fitted.predict(other)
    assert rmse(out, other_truth, other.mask) < 0.1
    assert str(fitted) == 'TemporalInterpolator(neighbors=4)'


def test_gaps_of_whole_sensors_and_times():
    data, truth = sensors()
    data.mask[3], data.mask[:, 7] = False, False
    data.x = torch.where(data.mask, truth, torch.nan)
    out = TemporalInterpolator().fit(data).predict()
    others = torch.arange(40) != 3
    assert (out - truth)[others, 7].square().mean().sqrt() < 0.1
    # Of a sensor without readings, the level of its neighbours.
    near = data.edge_index[1, data.edge_index[0] == 3]
    level = torch.stack([truth[n][data.mask[n]].mean() for n in near]).mean()
    assert (out[3].mean() - level).abs() < 0.1
    assert out[3].std() > 0.5  # and their course


def test_components_duplicates_and_constants():
    data, truth = sensors(20)
    apart = Data(
        x=torch.cat([truth, truth]),
        edge_index=data.edge_index,
        mask=torch.cat([data.mask, torch.zeros(20, 60).bool()]),
    )
    out = TemporalInterpolator().fit(apart).predict()
    assert out.isfinite().all()
    levels = torch.stack(
        [row[known].mean() for row, known in zip(truth, data.mask, strict=True)]
    )
    assert (out[20:] - levels.mean()).abs().max() < 0.2
    constant = Data(x=torch.full((20, 60), 3.0), mask=data.mask, pos=data.pos)
    out = TemporalInterpolator().fit(constant).predict()
    torch.testing.assert_close(out, constant.x)
    twice = Data(
        x=torch.cat([truth, truth]),
        mask=torch.cat([data.mask, ~data.mask]),
        pos=torch.cat([data.pos, data.pos]),
    )
    out = TemporalInterpolator(neighbors=3).fit(twice).predict()
    assert out.isfinite().all()
    assert rmse(out, twice.x, twice.mask) < 0.5


def test_little_data():
    data, truth = sensors(5, 8)
    data.mask = torch.zeros(5, 8).bool()
    data.mask[2, 3] = True
    fitted = TemporalInterpolator().fit(data.update({'x': truth}))
    expected = truth[2, 3].expand(5, 8)
    torch.testing.assert_close(fitted.predict(), expected)
    assert np.isnan(fitted.report_['error'])
    one = Data(x=torch.tensor([[1.0, torch.nan, 3.0]]), pos=torch.zeros(1, 2))
    out = TemporalInterpolator().fit(one).predict()
    torch.testing.assert_close(out, torch.tensor([[1.0, 2.0, 3.0]]))
    del one.pos  # of a single sensor, not needed
    assert torch.equal(TemporalInterpolator().fit(one).predict(), out)
    all_known = Data(x=truth, edge_index=data.edge_index)
    assert torch.equal(TemporalInterpolator().fit(all_known).predict(), truth)


def test_wrong_data():
    data, _ = sensors(10, 12)
    for change, problem in (
        ({'x': torch.rand(10)}, r"'data.x' must have shape.*\[10\]"),
        ({'x': None}, "'data.x'"),
        ({'mask': torch.zeros(10, 12)}, "'data.mask'"),
        ({'mask': torch.zeros(10, 12).bool()}, 'no known entry'),
        ({'mask': torch.ones(10, 12).bool()}, "'data.x' must be finite"),
        ({'mask': torch.ones(3, 12).bool()}, "'data.mask'"),
        ({'edge_index': None, 'pos': None}, "'edge_index', or 'pos'"),
        ({'edge_index': None, 'pos': torch.rand(9, 2)}, "'data.pos'"),
        ({'edge_index': torch.tensor([[0], [1]])}, "'edge_index'"),
    ):
        wrong = data.clone()
        for name, value in change.items():
            wrong[name] = value
        with pytest.raises(ValueError, match=problem):
            TemporalInterpolator().fit(wrong)
    with pytest.raises(ValueError, match="call 'fit' first"):
        TemporalInterpolator().predict()
    for name, value in (('neighbors', 0), ('seed', 0.5), ('seed', -1)):
        with pytest.raises(ValueError, match=f"'{name}' must be"):
            TemporalInterpolator(**{name: value}).fit(data)


def test_hours_of_traffic():
    file = SHARED / 'metr-la-week' / 'metr-la-week.npz'
    if not file.exists():
        pytest.skip('no traffic data')
    with np.load(file) as arrays:
        truth = torch.from_numpy(arrays['y'][:, 600:700]).double()
        pos = torch.from_numpy(arrays['pos'])
    torch.manual_seed(0)
    mask = torch.rand(truth.shape) >= 0.5
    data = Data(x=torch.where(mask, truth, torch.nan), pos=pos)
    out = TemporalInterpolator().fit(data).predict()
    peer = rmse(linear(truth, mask | ~mask.any(1, keepdim=True)), truth, mask)
    assert rmse(out, truth, mask) < 0.99 * peer


def test_later_changes_of_the_data_are_not_of_the_fit():
    data, _ = sensors(10, 30)
    data.x = data.x.nan_to_num()
    fitted = TemporalInterpolator().fit(data)
    expected = fitted.predict()
    data.x.zero_()
    data.mask.fill_(True)
    assert torch.equal(fitted.predict(), expected)
