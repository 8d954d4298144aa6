"""The regressor of scikit-learn, on tables of points."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch_geometric.data import Data

from pyg_unroll import GraphInterpolator
from pyg_unroll.estimators.feature_fit import quantile
from pyg_unroll.files import read_tensors, write_tensors
from pyg_unroll.testing import assert_same


def field(count=80, seed=0, noise=0.0):
    """A smooth signal on random points."""
    chance = np.random.default_rng(seed)
    pos = chance.uniform(size=(count, 2))
    y = np.sin(4 * pos[:, 0]) + np.cos(3 * pos[:, 1])
    return pos, y + noise * chance.normal(size=count)


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.SkipTestWarning')
def test_is_a_regressor_of_scikit_learn():
    for model, check in estimator_checks_generator(GraphInterpolator()):
        if check.func.__name__ != 'check_array_api_input':  # off by default
            check(model)


def test_tools_of_scikit_learn():
    pos, y = field()
    assert cross_val_score(GraphInterpolator(), pos, y, cv=3).min() > 0.99
    grid = {'graphinterpolator__positions': [1, 2]}
    pipe = make_pipeline(StandardScaler(), GraphInterpolator())
    search = GridSearchCV(pipe, grid, cv=3).fit(pos, y)
    assert search.best_score_ > 0.99
    assert clone(GraphInterpolator(positions=[1])).positions == [1]
    assert GraphInterpolator().fit(pos, y).score(*field(seed=1)) > 0.99


def test_equals_a_gaussian_process():
    """Of the same kernel and mean."""
    pos, y = field(60, noise=0.1)
    new, _ = field(500, seed=1)
    model = GraphInterpolator().fit(pos, y)
    ((_, blend),) = model._fits[0].blends
    part = model._fits[0].parts[0]
    (kriging,) = (
        c
        for _, c in blend.terms
        if c.name.startswith('krig') and c.smoothness == 1.5
    )
    places, wanted = (
        torch.from_numpy(p) @ kriging.factor.T for p in (pos, new)
    )
    kernel = Matern(1.0, nu=1.5) + WhiteKernel(kriging.noise)
    peer = GaussianProcessRegressor(kernel, optimizer=None, alpha=1e-8)
    process = kriging._process(part)
    level = float(process.level)
    order = torch.argsort(model._sites.site)
    peer.fit(places, part.values[model._sites.site, 0].numpy() - level)
    assert len(order) == 60
    expected = peer.predict(wanted) + level
    places = model._sites.at(torch.from_numpy(new))
    out = kriging.predict(part.at(places))[:, 0]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_new_places_are_as_if_given_to_the_fit():
    pos, y = field(120, noise=0.05)
    known = np.arange(120) < 80
    data = Data(
        x=torch.from_numpy(y),
        pos=torch.from_numpy(pos),
        mask=torch.from_numpy(known),
    )
    joint = GraphInterpolator().fit(data)
    points = GraphInterpolator().fit(pos[known], y[known])
    terms = [
        {c.name: c for _, c in model._fits[0].blends[0][1].terms}
        for model in (joint, points)
    ]
    sites = points._sites.at(torch.from_numpy(pos[~known]))
    for name, candidate in terms[1].items():
        part = joint._fits[0].parts[0]
        expected = terms[0][name].predict(part)[joint._sites.site][~known]
        out = candidate.predict(points._fits[0].parts[0].at(sites))
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_each_place_on_its_own():
    pos, y = field(30, noise=0.05)
    model = GraphInterpolator().fit(pos, y)
    new, _ = field(30, seed=1)
    out, std, (low, high) = model.predict(new, True, 0.9)
    for k in (0, 7):
        one = model.predict(new[[k]], return_std=True, return_interval=0.9)
        np.testing.assert_allclose(one[0], out[k], rtol=1e-9)
        np.testing.assert_allclose(one[1], std[k], rtol=1e-6)
        np.testing.assert_allclose(one[2][0], low[k], rtol=1e-6)
    assert (low < out).all() and (out < high).all() and (std > 0).all()
    ends = model.predict_interval(new, 0.9)
    np.testing.assert_array_equal(ends[1], high)


def test_kinds_of_tables():
    pd = pytest.importorskip('pandas')
    pos, y = field()
    expected = GraphInterpolator().fit(pos, y).predict(pos[:5])
    assert isinstance(expected, np.ndarray)
    frame = pd.DataFrame(pos, columns=['east', 'north'], index=range(9, 89))
    series = pd.Series(y, frame.index, name='rain')
    model = GraphInterpolator(positions=['east', 'north']).fit(frame, series)
    assert list(model.feature_names_in_) == ['east', 'north']
    out = model.predict(frame[:5])
    assert out.name == 'rain' and list(out.index) == [*range(9, 14)]
    np.testing.assert_allclose(out, expected)
    with pytest.raises(ValueError, match='feature names should match'):
        model.predict(frame[['north', 'east']])
    both = pd.DataFrame({'rain': y, 'wind': -y}, frame.index)
    out = GraphInterpolator().fit(frame, both).predict(frame[:5])
    assert list(out.columns) == ['rain', 'wind']
    np.testing.assert_allclose(out['rain'], -out['wind'])
    tensors = torch.from_numpy(pos), torch.from_numpy(y).float()
    out = GraphInterpolator().fit(*tensors).predict(tensors[0][:5])
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)
    out = GraphInterpolator().fit(pos.tolist(), y.tolist()).predict(pos[:5])
    np.testing.assert_allclose(out, expected)


def test_gaps_in_the_signal():
    pd = pytest.importorskip('pandas')
    pos, y = field(100)
    frame = pd.DataFrame(pos, columns=['east', 'north'])
    frame['rain'] = np.where(np.arange(100) % 3 > 0, y, np.nan)
    table = frame[['east', 'north']]
    model = GraphInterpolator().fit(table, frame['rain'])
    filled = frame['rain'].fillna(model.predict(table))
    np.testing.assert_allclose(filled, y, atol=0.02)
    two = np.stack([frame['rain'], y], 1)
    out = GraphInterpolator().fit(pos, two).predict(pos)
    np.testing.assert_allclose(out[:, 0], y, atol=0.02)
    np.testing.assert_allclose(out[:, 1], y, atol=0.02)


def test_categories():
    pd = pytest.importorskip('pandas')
    pos, y = field(200)
    kind = np.random.default_rng(3).integers(0, 3, 200)
    y = y + 2.0 * (kind == 1)
    frame = pd.DataFrame(pos, columns=['east', 'north'])
    frame['soil'] = pd.Categorical.from_codes(kind, ['clay', 'sand', 'peat'])
    frame['wet'] = 3.0  # says nothing
    known = np.arange(200) < 120
    model = GraphInterpolator().fit(frame[known], y[known])
    error = np.std(model.predict(frame[~known]) - y[~known])
    assert error < 0.3
    other = frame[~known].assign(soil='snow')  # was never seen
    assert np.isfinite(model.predict(other)).all()


def test_points_of_a_geodataframe():
    gpd = pytest.importorskip('geopandas')
    pos, y = field(60)
    frame = gpd.GeoDataFrame(
        {'height': 0 * y, 'rain': y}, geometry=gpd.points_from_xy(*pos.T)
    )
    places = frame.drop(columns='rain')
    model = GraphInterpolator().fit(places, frame['rain'])
    out = model.predict(places[:5])
    table = np.hstack([pos, 0 * y[:, None]])
    expected = GraphInterpolator().fit(table, y).predict(table[:5])
    np.testing.assert_allclose(out, expected, atol=1e-9)


def test_longitude_and_latitude():
    chance = np.random.default_rng(0)
    lon = chance.uniform(170, 190, 150)
    lat = chance.uniform(-10, 10, 150)
    y = np.sin(lon / 6) + np.cos(lat / 5)
    known = np.arange(150) < 100
    line = np.stack([(lon + 180) % 360 - 180, lat], 1)  # meets the date line
    model = GraphInterpolator(geographic=True).fit(line[known], y[known])
    out = model.predict(line[~known])
    assert np.std(out - y[~known]) < 0.05
    turned = np.stack([lon, lat], 1)[~known]
    np.testing.assert_allclose(model.predict(turned), out, atol=1e-9)
    data = Data(
        x=torch.from_numpy(y),
        pos=torch.from_numpy(line),
        mask=torch.from_numpy(known),
    )
    filled = GraphInterpolator(geographic=True).fit(data).predict()[:, 0]
    assert np.std(filled.numpy() - y) < 0.05
    # About a pole, all longitudes are near each other.
    pole = np.stack([np.arange(0, 360, 9), np.full(40, 89.0)], 1)
    value = np.cos(np.deg2rad(pole[:, 0]))
    model = GraphInterpolator(geographic=True).fit(pole[1:], value[1:])
    assert abs(model.predict(pole[:1]) - 1) < 0.05
    with pytest.raises(
        ValueError, match=r"'X' must be longitude and lat.*swap"
    ):
        model.predict(pole[:, ::-1])


@pytest.mark.parametrize('door', ['points', 'data'])
def test_files_and_pickles(tmp_path, door):
    pos, y = field(40, noise=0.05)
    pos, y = torch.from_numpy(pos), torch.from_numpy(y)
    if door == 'points':
        model = GraphInterpolator(seed=1).fit(pos, y)
        args = [pos[:9] + 0.1]
    else:
        data = Data(x=y, pos=pos, mask=torch.arange(40) < 20)
        model, args = GraphInterpolator(seed=1).fit(data), []
    expected = model.predict(*args, return_std=True, return_interval=0.9)
    model.save(tmp_path / 'fit.safetensors')
    twin = GraphInterpolator.load(tmp_path / 'fit.safetensors')
    assert twin.get_params() == model.get_params()
    assert twin.report_ == model.report_
    for other in (twin, pickle.loads(pickle.dumps(model))):
        out = other.predict(*args, return_std=True, return_interval=0.9)
        assert_same(out, expected)
    (tmp_path / 'no').write_text('no')
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        GraphInterpolator.load(tmp_path / 'no')
    write_tensors(tmp_path / 'other', {'a': pos}, {})
    with pytest.raises(ValueError, match="'save' of an estimator wrote"):
        GraphInterpolator.load(tmp_path / 'other')


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('"FeatureFit"', '"Unknown"'),
        ('"settings"', '"setting"'),
        ('{"tensor": "0"}', '{"tensor": "999"}'),
        ('"objects"', '"object"'),
        ('{"state"', '["state"'),
    ],
)
def test_damaged_files(tmp_path, old, new):
    pos, y = field(20)
    GraphInterpolator().fit(pos, y).save(tmp_path / 'fit')
    tensors, texts = read_tensors(tmp_path / 'fit')
    ((key, text),) = texts.items()
    assert old in text
    write_tensors(tmp_path / 'fit', tensors, {key: text.replace(old, new)})
    with pytest.raises(ValueError, match="'path' holds an estimator that is"):
        GraphInterpolator.load(tmp_path / 'fit')


def test_few_points():
    pos, y = field(30)
    one = GraphInterpolator().fit(pos[:1], y[:1]).predict(pos)
    np.testing.assert_allclose(one, y[0])
    out = GraphInterpolator().fit(pos[:5], y[:5]).predict(pos)
    assert y[:5].min() - 0.5 < out.min() and out.max() < y[:5].max() + 0.5
    model = GraphInterpolator().fit(pos[:11], y[:11])
    with pytest.raises(ValueError, match=r'need 12 known places.*has 11'):
        model.predict(pos, return_interval=0.9)


def test_known_places_where_replicates_agree():
    pos, y = field(60)
    rough = y + np.random.default_rng(5).normal(size=60)
    twice = np.concatenate([pos, pos])
    again = np.concatenate([rough, rough + 0.01])
    model = GraphInterpolator().fit(twice, again)
    out, (low, high) = model.predict(pos, return_interval=0.9)
    np.testing.assert_allclose(out, rough + 0.005, atol=1e-9)
    assert (high - low).max() < 0.1
    aside, (low, high) = model.predict(pos + 1e-3, return_interval=0.9)
    assert np.abs(aside - rough).max() > 0.5 and (high - low).min() > 0.5
    # Where nothing tells noise from roughness, places are as those aside.
    once = GraphInterpolator().fit(pos, rough)
    np.testing.assert_allclose(
        once.predict(pos), once.predict(pos + 1e-9), atol=1e-6
    )


@pytest.mark.parametrize('known', [12, 40])
def test_intervals_hold_from_few_points_on(known):
    held = []
    for seed in range(4):
        pos, y = field(known + 200, seed, noise=0.1 * (seed % 3))
        model = GraphInterpolator().fit(pos[:known], y[:known])
        low, high = model.predict_interval(pos[known:], 0.9)
        held.append(np.mean((low <= y[known:]) & (y[known:] <= high)))
    assert 0.8 < np.mean(held) < 0.99


def testquantile_has_the_coverage_of_another_value():
    # Of n uniform values, the expectation of the k-th is k / (n + 1).
    torch.manual_seed(0)
    for count in (12, 25):
        values = torch.rand(count, 20_000, dtype=torch.float64)
        mean = float(quantile(values, 0.9).mean())
        assert mean == pytest.approx(0.9, abs=0.002)


def test_constants_have_no_width():
    pos, _ = field(30)
    model = GraphInterpolator().fit(pos, np.full(30, 3.0))
    out, std, (low, high) = model.predict(pos + 0.1, True, 0.9)
    np.testing.assert_allclose(out, 3.0)
    assert (std == 0).all() and (low == high).all()


def test_wrong_tables():
    pos, y = field(20)
    for call, problem in (
        (lambda m: m.fit(pos, y * np.nan), "'y' must have a known entry"),
        (lambda m: m.fit(pos, y[:5]), 'inconsistent numbers of samples'),
        (lambda m: m.fit(pos * np.nan, y), 'contains NaN'),
        (lambda m: m.set_params(positions=['x']).fit(pos, y), "'positions'"),
        (lambda m: m.set_params(positions=[5]).fit(pos, y), 'got 5 of the'),
        (lambda m: m.set_params(kriging=False).fit(pos, y), "'kriging' must"),
        (lambda m: m.fit(pos, y).predict(), 'must be a table of places'),
        (lambda m: m.fit(pos, y).predict(Data()), 'must be a table of places'),
        (lambda m: m.predict(pos), "call 'fit' first"),
    ):
        with pytest.raises(ValueError, match=problem):
            call(GraphInterpolator())
