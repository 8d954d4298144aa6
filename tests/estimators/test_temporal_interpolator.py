from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import FeaturePropagation

from pyg_unroll import (
    FillWarning,
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
    with pytest.raises(ValueError, match="'positions' must be None"):
        fitted.predict(other, data.pos)


def test_gaps_of_whole_sensors_and_times():
    data, truth = sensors()
    # Levels that change in space, for the sensor without a reading.
    truth = truth - truth.mean(1, keepdim=True) + 3 * data.pos[:, 1:]
    data.mask[3], data.mask[:, 7] = False, False
    data.x = torch.where(data.mask, truth, torch.nan)
    with pytest.warns(FillWarning, match=r'1 sensor.*\[3\]'):
        fitted = TemporalInterpolator().fit(data)
    out = fitted.predict()
    others = torch.arange(40) != 3
    assert (out - truth)[others, 7].square().mean().sqrt() < 0.1
    # Of a sensor without readings, level and course are its neighbours'.
    assert (out - truth)[3].square().mean().sqrt() < 0.15
    table = torch.where(data.mask, truth, torch.nan).T
    with pytest.warns(FillWarning, match=r'1 sensor.*\[3\]'):
        fitted = TemporalInterpolator().fit(table)
    out, (low, high) = fitted.predict(return_interval=0.9)
    assert out[:, 3].isfinite().all()
    assert high[:, 3].isposinf().all() and low[:, 3].isneginf().all()
    assert high[:, others].isfinite().all()
    data.edge_index = data.edge_index[:, :0]  # without neighbours, too
    with pytest.warns(FillWarning, match=r'1 sensor.*\[3\]'):
        out = TemporalInterpolator().fit(data).predict()
    assert out.isfinite().all()


def test_components_duplicates_and_constants():
    data, truth = sensors(20)
    apart = Data(
        x=torch.cat([truth, truth]),
        edge_index=data.edge_index,
        mask=torch.cat([data.mask, torch.zeros(20, 60).bool()]),
    )
    with pytest.warns(FillWarning, match='20 sensor'):
        out = TemporalInterpolator().fit(apart).predict()
    assert out.isfinite().all()
    levels = torch.stack(
        [row[known].mean() for row, known in zip(truth, data.mask, strict=True)]
    )
    assert (out[20:].mean(1) - levels.mean()).abs().max() < 0.2
    # At most the mean course.
    swing = (truth.mean(0) - levels.mean()).abs().max()
    assert (out[20:] - levels.mean()).abs().max() < 1.1 * swing
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
    with pytest.warns(FillWarning, match='4 sensor'):
        fitted = TemporalInterpolator().fit(data.update({'x': truth}))
    with pytest.raises(ValueError, match='more known readings'):
        fitted.predict_interval()
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


def courses(sensors=30, steps=300, seed=0):
    """Courses that sensors share, with gains of their own, some negative."""
    chance = np.random.default_rng(seed)
    time = np.arange(steps) / 20
    two = np.stack([np.sin(time), np.cos(0.37 * time) + 0.1 * time])
    gain = chance.normal(size=(sensors, 2)) * [[3.0, 1.0]]
    level = 10 * chance.normal(size=(sensors, 1))
    noise = 0.05 * chance.normal(size=(sensors, steps))
    return (level + gain @ two + noise).T


def outages(shape, length, share, seed=0):
    """True in gaps of so many times, which hide a share of the readings."""
    chance = np.random.default_rng(seed)
    missing = np.zeros(shape, dtype=bool)
    while missing.mean() < share:
        start = chance.integers(1 - length, shape[0])
        sensor = chance.integers(shape[1])
        missing[max(start, 0) : start + length, sensor] = True
    return missing


def test_sensors_with_gains_of_their_own():
    truth = courses()
    missing = outages(truth.shape, 60, 0.2)
    table = np.where(missing, np.nan, truth)
    out = TemporalInterpolator().fit(table).predict()
    assert np.array_equal(out[~missing], truth[~missing])
    error = np.sqrt(np.square(out - truth)[missing].mean())
    spread = np.sqrt(np.square(truth - np.nanmean(table, 0))[missing].mean())
    assert error < 0.05 * spread  # signs and sizes of gains are found


@pytest.mark.parametrize('length', [1, 40])
def test_intervals_hold_what_they_say(length):
    covered, count = 0, 0
    for seed in range(6):
        data, truth = sensors(20, 200, missing=0.0, seed=seed)
        missing = torch.from_numpy(outages((200, 20), length, 0.3, seed)).T
        data.mask = ~missing
        data.x = torch.where(missing, torch.nan, truth)
        fitted = TemporalInterpolator(seed=seed).fit(data)
        out, (low, high) = fitted.predict(return_interval=0.9)
        assert ((low <= out) & (out <= high)).all()
        assert torch.equal(low[data.mask], truth[data.mask])
        covered += int(((low <= truth) & (truth <= high))[missing].sum())
        count += int(missing.sum())
    assert 0.86 < covered / count < 0.96
    with pytest.raises(ValueError, match="'coverage' must"):
        fitted.predict_interval(coverage=1.5)


def test_intervals_of_sensors_without_readings():
    covered, count = 0, 0
    for seed in range(6):
        data, truth = sensors(40, 100, seed=seed)
        truth = truth - truth.mean(1, keepdim=True) + 3 * data.pos[:, 1:]
        silent = torch.randperm(40)[:10]
        data.mask[silent] = False
        data.x = torch.where(data.mask, truth, torch.nan)
        with pytest.warns(FillWarning, match='10 sensor'):
            low, high = TemporalInterpolator().fit(data).predict_interval()
        inside = ((low <= truth) & (truth <= high))[silent]
        covered, count = covered + int(inside.sum()), count + inside.numel()
    # Sixty sensors, whose readings err together: within three deviations.
    assert abs(covered / count - 0.9) < 3 * (0.9 * 0.1 / 60) ** 0.5


def test_outages_of_all_sensors():
    covered, count = 0, 0
    for seed in range(4):
        data, truth = sensors(15, 300, missing=0.2, seed=seed)
        data.mask[:, 100:112] = data.mask[:, 200:210] = False
        table = torch.where(data.mask, truth, torch.nan).T
        low, high = (
            TemporalInterpolator(seed=seed).fit(table).predict_interval()
        )
        inside = ((low <= truth.T) & (truth.T <= high))[100:112]
        covered, count = covered + int(inside.sum()), count + inside.numel()
    # Few such outages are there to learn from; single gaps would say 4 %.
    assert covered / count > 0.6


def test_few_held_out_readings_and_kinds():
    data, truth = sensors(8, 60)
    table = torch.where(data.mask[:8], truth[:8], torch.nan).T.numpy()
    fitted = TemporalInterpolator().fit(table)
    with pytest.raises(ValueError, match=r'coverage=0.999 need.*999'):
        fitted.predict_interval(coverage=0.999)
    low, high = fitted.predict_interval(coverage=1e-9)
    wide_low, wide_high = fitted.predict_interval(coverage=0.5)
    assert (high - low).mean() < (wide_high - wide_low).mean()
    masked = np.ma.masked_invalid(table)
    masked.data[np.isnan(table)] = -9999
    out = TemporalInterpolator().fit(masked).predict()
    np.testing.assert_array_equal(out, fitted.predict())
    # A sensor without readings, of few: intervals of the others are there.
    table[:, 3] = np.nan
    with pytest.warns(FillWarning):
        fitted = TemporalInterpolator().fit(table, data.pos[:8].numpy())
    low, high = fitted.predict_interval()
    assert np.isinf(high[:, 3]).all()
    assert np.isfinite(np.delete(high, 3, 1)).all()


def test_intervals_are_wider_in_long_gaps():
    truth = courses()
    missing = outages(truth.shape, 1, 0.1) | outages(truth.shape, 50, 0.2)
    fitted = TemporalInterpolator().fit(np.where(missing, np.nan, truth))
    low, high = fitted.predict_interval()
    alone = missing & ~np.roll(missing, 1, 0) & ~np.roll(missing, -1, 0)
    inside = missing & np.roll(missing, 15, 0) & np.roll(missing, -15, 0)
    width = high - low
    assert width[inside].mean() > 1.2 * width[alone].mean()


def test_frames_and_time_stamps():
    pd = pytest.importorskip('pandas')
    truth = courses(12, 200)
    names = [f'station {k}' for k in range(12)]
    chance = np.random.default_rng(0)
    hours = np.cumsum(chance.integers(1, 12, size=200))  # irregular
    stamps = pd.Timestamp('2026-03-28', tz='Europe/Berlin') + pd.to_timedelta(
        hours, unit='h'
    )
    frame = pd.DataFrame(truth, stamps, names)
    frame = frame.mask(outages(truth.shape, 8, 0.3))
    pos = pd.DataFrame(chance.random((12, 2)), names, ['x', 'y'])
    fitted = TemporalInterpolator().fit(frame, pos.sample(frac=1))
    out, (low, high) = fitted.predict(return_interval=0.8)
    assert out.index.equals(frame.index) and list(out.columns) == names
    assert ((low <= out) & (out <= high)).all(axis=None)
    # The same as an array, with times in hours.
    data = Data(x=torch.from_numpy(frame.to_numpy().T.copy()))
    data.pos = torch.from_numpy(pos.to_numpy())
    data.time = torch.from_numpy(hours)
    same = TemporalInterpolator().fit(data).predict()
    np.testing.assert_allclose(out.to_numpy().T, same, rtol=1e-9)
    # Times count: a line is not one in the number of the row.
    line = pd.Series(np.arange(50.0) ** 2, np.arange(50.0) ** 2).to_frame()
    hidden = line.copy()
    hidden.iloc[20:30] = np.nan
    filled = TemporalInterpolator().fit(hidden).predict()
    np.testing.assert_allclose(filled, line, rtol=1e-4, atol=1e-4)
    periods = frame.set_axis(pd.period_range('2026', periods=200, freq='M'))
    assert TemporalInterpolator().fit(periods).predict().notna().all(axis=None)
    for wrong, problem in (
        (frame.iloc[::-1], 'increasing'),
        (frame.set_axis(frame.index.astype(str)), 'to_datetime'),
        (frame.astype(object).replace(frame.iloc[0, 0], 'dry'), 'numbers'),
        (frame * np.nan, 'known reading'),
    ):
        with pytest.raises(ValueError, match=problem):
            TemporalInterpolator().fit(wrong, pos)
    with pytest.raises(ValueError, match=r"none for \['station 0'\]"):
        TemporalInterpolator().fit(frame, pos.iloc[1:])
    with pytest.raises(ValueError, match='each of the 12 columns'):
        TemporalInterpolator().fit(frame, pos.to_numpy()[1:])
    with pytest.raises(ValueError, match=r"'data.time' must have shape"):
        TemporalInterpolator().fit(data.update({'time': torch.arange(12)}))


def test_longitudes_and_latitudes():
    truth = courses(8, 100)
    table = np.where(outages(truth.shape, 5, 0.3), np.nan, truth)
    east = np.linspace(178, 182, 8)
    places = [
        np.stack([longitude, np.full(8, 60.0)], 1)
        for longitude in (east, (east + 180) % 360 - 180)
    ]
    model = TemporalInterpolator(2, geographic=True)
    once, again = (model.fit(table, pos).predict() for pos in places)
    np.testing.assert_allclose(once, again, rtol=1e-6)
    with pytest.raises(ValueError, match='longitude and latitude'):
        model.fit(table, 100 * places[0])


def test_later_changes_of_the_data_are_not_of_the_fit():
    data, _ = sensors(10, 30)
    data.x = data.x.nan_to_num()
    fitted = TemporalInterpolator().fit(data)
    expected = fitted.predict()
    data.x.zero_()
    data.mask.fill_(True)
    assert torch.equal(fitted.predict(), expected)
