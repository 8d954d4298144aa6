import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import FeaturePropagation

from pyg_unroll import GraphInterpolator, GridGraph, KNNGraph, Topology


def points(count=300, hidden=0.5, seed=0, features=1):
    """A smooth signal on random points."""
    torch.manual_seed(seed)
    pos = torch.rand(count, 2, dtype=torch.float64)
    waves = [
        (4 * pos[:, 0] + k).sin() + (3 * pos[:, 1]).cos() for k in range(5)
    ]
    truth = torch.stack(waves[:features], 1)
    mask = torch.rand(count) > hidden
    data = Data(x=torch.where(mask[:, None], truth, torch.nan), pos=pos)
    data.mask = mask
    return data, truth


def rmse(out, truth, mask):
    return float((out - truth)[~mask].square().mean().sqrt())


def test_points():
    data, truth = points(features=2)
    out = GraphInterpolator().fit(data).predict()
    assert torch.equal(out[data.mask], truth[data.mask])
    assert rmse(out, truth, data.mask) < 0.01
    fitted = GraphInterpolator().fit(data)
    assert fitted.score(data, truth) > 0.999
    assert torch.equal(fitted.predict(), out)
    assert sum(fitted.report_.values()) == pytest.approx(1, abs=0.3)


def test_graph_without_positions():
    data, truth = points(400)
    data = KNNGraph(6)(data)
    del data.pos
    out = GraphInterpolator().fit(data).predict()
    start = data.clone()
    start.x = start.x.nan_to_num().float()
    missing = ~data.mask.unsqueeze(1)
    peer = FeaturePropagation(missing, 200)(start).x.double()
    error = rmse(out, truth, data.mask)
    assert error < 0.9 * rmse(peer, truth, data.mask)


def test_covariate_that_no_known_node_varies():
    data, truth = points(200)
    without = GraphInterpolator().fit(data).predict()
    # All sensors happen to be in one kind of place, others are in another.
    data.covariates = (~data.mask & (torch.rand(200) < 0.5)).double()
    out = GraphInterpolator().fit(data).predict()
    error = rmse(out, truth, data.mask)
    assert error < 1.5 * rmse(without, truth, data.mask)


@pytest.mark.parametrize('kriging', [False, True])
def test_interval_beside_the_only_known_node(kriging):
    inside = []
    for seed in range(4):
        torch.manual_seed(seed)
        pos = torch.rand(80, 2, dtype=torch.float64).repeat(2, 1)
        truth = (4 * pos[:, 0]).sin() + pos[:, 1] + 0.3 * torch.randn(160)
        data = Data(x=truth, pos=pos, mask=torch.arange(160) < 80)
        fitted = GraphInterpolator(kriging=kriging).fit(data)
        low, high = fitted.predict_interval()
        ours = (low[:, 0] <= truth) & (truth <= high[:, 0])
        inside.append(ours[80:].double().mean())
    assert sum(inside) / 4 > 0.85


def test_nodes_of_a_graph_may_share_a_position():
    step = torch.arange(19)
    edge_index = torch.stack(
        [torch.cat([step, step + 1]), torch.cat([step + 1, step])]
    )
    truth, mask = torch.arange(20.0), torch.arange(20) % 3 != 1
    data = Data(x=truth, edge_index=edge_index, mask=mask)
    expected = GraphInterpolator().fit(data).predict()[:, 0]
    # Two floors, one above the other.
    floors = torch.stack([truth % 10, torch.zeros(20)], 1)
    for pos in (floors, torch.zeros(20, 2)):
        data.pos = pos
        out = GraphInterpolator().fit(data).predict()[:, 0]
        error = (out - truth)[~mask].abs().max()
        assert error < max(1.0, 2 * (expected - truth)[~mask].abs().max())


def test_long_path():
    torch.manual_seed(0)
    step = torch.arange(2000)
    angle = 2 * torch.pi * step.double() / 1000
    truth = angle.sin() + 0.3 * (3.4 * angle).sin()
    ends = torch.stack([step[:-1], step[1:]])
    mask = torch.rand(2000) < 0.2
    mask[[0, -1]] = True
    data = Data(x=truth, mask=mask)
    data.edge_index = torch.cat([ends, ends.flip(0)], 1)
    out = GraphInterpolator().fit(data).predict()
    linear = np.interp(step, step[mask], truth[mask])
    error = rmse(out, truth[:, None], mask)
    # Smoothness of second order sees that it bends.
    assert error < 0.5 * rmse(torch.from_numpy(linear), truth, mask)


def test_arguments():
    data, truth = points(60)
    fitted = GraphInterpolator().fit(data)
    for feature in (1, -1, 'x'):
        with pytest.raises(ValueError, match=r"'feature' must be.*\[0, 1\)"):
            fitted.metric(feature)
    with pytest.raises(ValueError, match='nothing to score'):
        fitted.score(data, torch.ones_like(truth))
    with pytest.raises(ValueError, match="call 'fit' first"):
        GraphInterpolator().metric()
    for name, value in (
        ('neighbors', 0),
        ('samples', 2),
        ('kriging', 'no'),
        ('seed', None),
        ('seed', -1),
    ):
        with pytest.raises(ValueError, match=f"'{name}' must be"):
            GraphInterpolator(**{name: value}).fit(data)


@pytest.mark.parametrize('weights', ['equal', 'none'])
def test_other_data_with_equal_weights(weights):
    data, _ = points(100)
    data = KNNGraph(4)(data)
    del data.pos
    row, col = data.edge_index
    data.edge_weight = 1 / (1 + (row + col) % 3).double()
    fitted = GraphInterpolator().fit(data)
    data.edge_weight = torch.ones(data.num_edges).double()
    expected = fitted.predict(data)
    if weights == 'none':
        del data.edge_weight
    out = fitted.predict(data)
    assert torch.isfinite(out).all()
    assert torch.equal(out, expected)


def test_covariate_decides():
    torch.manual_seed(0)
    pos = torch.rand(300, 2)
    height = torch.rand(300)  # says all, and is rough in space
    truth = (3 * height).sin().unsqueeze(1)
    data = Data(x=truth, pos=pos, mask=torch.rand(300) < 0.5)
    blind = GraphInterpolator().fit(data)
    with pytest.raises(ValueError, match='no metric was learned'):
        GraphInterpolator(kriging=False).fit(data).metric()
    data.covariates = height
    seeing = GraphInterpolator().fit(data)
    errors = [
        rmse(model.predict(), truth, data.mask) for model in (blind, seeing)
    ]
    assert errors[1] < 0.1 * errors[0]
    metric = seeing.metric()
    assert metric.shape == (3, 3)
    assert torch.linalg.eigvalsh(metric).min() >= 0
    assert metric[2, 2] > 10 * metric[0, 0]


@pytest.mark.parametrize('kind', ['points', 'graph'])
def test_intervals_cover(kind):
    covered = []
    for seed in range(3):
        data, truth = points(300, seed=seed)
        truth = truth + 0.2 * torch.randn_like(truth)
        data.x = torch.where(data.mask[:, None], truth, torch.nan)
        if kind == 'graph':
            data = KNNGraph(6)(data)
            del data.pos
        fitted = GraphInterpolator().fit(data)
        low, high = fitted.predict_interval(coverage=0.8)
        inside = (low <= truth) & (truth <= high)
        assert bool(inside[data.mask].all())
        assert bool((low == high)[data.mask].all())
        covered.append(float(inside[~data.mask].double().mean()))
    assert 0.7 < np.mean(covered) < 0.9


def test_other_points():
    data, _ = points(300)
    fitted = GraphInterpolator().fit(data)
    other, other_truth = points(200, seed=5)
    out = fitted.predict(other)
    assert rmse(out, other_truth, other.mask) < 0.02
    assert torch.equal(out[other.mask], other_truth[other.mask])
    wide, _ = points(200, features=2)
    with pytest.raises(ValueError, match=r'\(1, 2, 0\) \(got \(2, 2, 0\)\)'):
        fitted.predict(wide)


def test_features_known_at_different_nodes_are_fitted_apart():
    data, truth = points(120, features=2)
    mask = torch.rand(120, 2) < 0.6
    data.x, data.mask = truth, mask
    out = GraphInterpolator().fit(data).predict()
    for k in range(2):
        one = Data(x=truth[:, k], pos=data.pos, mask=mask[:, k])
        alone = GraphInterpolator().fit(one).predict()
        torch.testing.assert_close(out[:, k : k + 1], alone)


def test_sites_that_nodes_share():
    data, truth = points(150)
    noise = 0.01 * torch.randn(300, 1, dtype=torch.float64)
    both = torch.cat([truth, truth]) + noise
    mask = torch.cat([data.mask, torch.rand(150) < 0.5])
    twice = Data(x=both, pos=torch.cat([data.pos, data.pos]), mask=mask)
    fitted = GraphInterpolator().fit(twice)
    out = fitted.predict()
    beside = ~mask & mask.roll(150)
    torch.testing.assert_close(out[beside], both.roll(150, 0)[beside])
    low, high = fitted.predict_interval()
    assert (high - low)[~mask & ~mask.roll(150)].mean() > 0
    assert out.isfinite().all()


def test_samples_of_one_signal():
    data, truth = points(60, features=1)
    days = torch.linspace(0.5, 2, 30, dtype=torch.float64)
    truth = truth * days + days
    data.x = torch.where(data.mask[:, None], truth, torch.nan)
    out = GraphInterpolator(samples=True).fit(data).predict()
    assert out.shape == (60, 30)
    assert rmse(out, truth, data.mask) < 0.1


def test_grids_of_pixels():
    row, col = torch.meshgrid(torch.arange(12), torch.arange(12), indexing='ij')
    truth = (row + col).double().view(-1, 1)
    data = Data(x=truth, height=12, width=12)
    data.mask = torch.rand(144) < 0.5
    data = GridGraph(8)(data)
    del data.height, data.width
    out = GraphInterpolator().fit(data).predict()
    assert rmse(out, truth, data.mask) < 1


def test_types_and_input_unchanged():
    data, _ = points(60)
    data.x, data.pos = data.x.float(), data.pos.float()
    before = data.clone()
    out = GraphInterpolator().fit(data).predict()
    assert out.dtype == torch.float32
    assert set(data.keys()) == set(before.keys())
    assert torch.equal(data.x.nan_to_num(), before.x.nan_to_num())


@pytest.mark.parametrize('known', [1, 3])
def test_few_known_nodes(known):
    data, truth = points(50)
    data.x = truth
    data.mask = torch.arange(50) < known
    fitted = GraphInterpolator().fit(data)
    out = fitted.predict()
    low, high = truth[:known].min(), truth[:known].max()
    assert bool(((out >= low - 0.1) & (out <= high + 0.1)).all())
    with pytest.raises(ValueError, match=r'coverage=0\.9 need 12 known'):
        fitted.predict_interval()


def test_constant_signals():
    data, _ = points(50)
    data.x = torch.full((50, 1), 3.0)
    out = GraphInterpolator().fit(data).predict()
    torch.testing.assert_close(out, data.x)


def test_components_without_known_nodes():
    data, truth = points(100)
    near = KNNGraph(4)(Data(pos=data.pos[:50]))
    edges = torch.cat([near.edge_index, near.edge_index + 50], 1)
    apart = Data(x=truth, edge_index=edges, mask=torch.arange(100) < 40)
    out = GraphInterpolator().fit(apart).predict()
    mean = truth[:40].mean()
    assert (out[50:] - mean).abs().max() < 0.2 * truth[:40].std()


@pytest.mark.parametrize(
    'change,problem',
    [
        ({'x': None, 'mask': None}, "'data.x'"),
        ({'x': torch.full((40, 1), torch.nan), 'mask': None}, 'no known entry'),
        ({'x': torch.empty(0), 'mask': None}, r'at least one entry.*\[0\]'),
        ({'x': torch.arange(40)}, "'data.x'.*int64"),
        ({'mask': torch.zeros(40)}, "'data.mask'"),
        ({'mask': torch.ones(3) > 0}, "'data.mask'"),
        ({'pos': torch.full((40, 2), torch.nan)}, "'data.pos' must be finite"),
        (
            {'covariates': torch.rand(39)},
            r"'data.covariates' must be real, of shape \[40,.*of \[39, 1\]",
        ),
        ({'pos': torch.rand(40, 2) + 0j}, "'data.pos' must be real"),
        (
            {'pos': None},
            "must have 'edge_index', or 'pos' of more than one site",
        ),
        ({'pos': torch.zeros(40, 1)}, 'more than one site'),
        (
            {'pos': None, 'covariates': torch.rand(40)},
            "must have 'edge_index', or 'pos'",
        ),
        (
            {'pos': None, 'edge_index': torch.empty(2, 0, dtype=torch.long)},
            "'data.edge_index' has no edges between different sites",
        ),
        ({'edge_index': torch.tensor([[0], [1]])}, "'edge_index'"),
        (
            {
                'edge_index': torch.tensor([[0, 1], [1, 0]]),
                'edge_weight': torch.ones(2, 3),
            },
            "'data.edge_weight' must be one number per edge.*got 3",
        ),
    ],
)
def test_wrong_data(change, problem):
    data, _ = points(40)
    for name, value in change.items():
        data[name] = value
    with pytest.raises(ValueError, match=problem):
        GraphInterpolator().fit(data)


def test_wrong_calls():
    data, truth = points(40)
    with pytest.raises(ValueError, match="call 'fit' first"):
        GraphInterpolator().predict()
    with pytest.raises(ValueError, match='one graph'):
        GraphInterpolator().fit(Batch.from_data_list([data, data]))
    with pytest.raises(ValueError, match='requires y to be passed'):
        GraphInterpolator().fit(truth)
    with pytest.raises(ValueError, match="'y' must be None with data"):
        GraphInterpolator().fit(data, truth)
    fitted = GraphInterpolator(kriging=False).fit(data)
    with pytest.raises(ValueError, match="'coverage'"):
        fitted.predict_interval(coverage=90)
    with pytest.raises(ValueError, match="'y' must have shape"):
        fitted.score(data, truth[:3])


def test_column_without_known_entries_is_named():
    data, truth = points(60, features=3)
    mask = data.mask[:, None].repeat(1, 3)
    mask[:, 1] = False
    data.x, data.mask = torch.where(mask, truth, torch.nan), mask
    with pytest.raises(ValueError, match='no known entry in feature 1'):
        GraphInterpolator().fit(data)
    del data.mask
    with pytest.raises(ValueError, match='no known entry in feature 1'):
        GraphInterpolator().fit(data)


def test_nan_where_known_is_named():
    data, truth = points(60)
    data.x = truth.clone()
    data.x[7], data.mask[7] = torch.nan, True
    with pytest.raises(ValueError, match=r"'data.x' must be finite.*node 7"):
        GraphInterpolator().fit(data)


def test_one_known_node_fills_all():
    data, truth = points(50)
    for kind in ('points', 'graph'):
        if kind == 'graph':
            data = KNNGraph(4)(data)
            del data.pos
        data.x, data.mask = truth, torch.arange(50) == 3
        out = GraphInterpolator().fit(data).predict()
        torch.testing.assert_close(out, truth[3].expand(50, 1))


def test_constant_signal_beside_another():
    data, truth = points(80)
    alone = GraphInterpolator(kriging=False).fit(data).predict()
    data.x = torch.cat([truth, torch.full_like(truth, 2.0)], 1)
    fitted = GraphInterpolator(kriging=False).fit(data)
    out = fitted.predict()
    torch.testing.assert_close(out[:, 1], data.x[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(out[:, :1], alone, atol=1e-3, rtol=0)
    low, high = fitted.predict_interval()
    assert low.isfinite().all() and bool((low <= high).all())


def test_all_points_at_two_sites():
    pos = torch.arange(20.0).remainder(2).unsqueeze(1)
    x = pos.double() * 3 + 1
    data = Data(x=x, pos=pos, mask=torch.arange(20) < 6)
    out = GraphInterpolator().fit(data).predict()
    torch.testing.assert_close(out, x)


def test_fit_is_of_the_data_as_they_were():
    data = Data(x=torch.rand(40), pos=torch.rand(40, 2))
    data.x[::2] = torch.nan
    fitted = GraphInterpolator(kriging=False).fit(data)
    before = fitted.predict_interval()
    data.x = fitted.predict()
    assert torch.equal(fitted.predict_interval()[1], before[1])


def test_metric_is_learned_in_inference_mode():
    torch.manual_seed(0)
    pos = torch.rand(80, 2)
    data = Data(x=torch.sin(9 * pos[:, 0]), pos=pos, mask=pos[:, 1] < 0.7)
    expected = GraphInterpolator().fit(data)
    with torch.inference_mode():
        fitted = GraphInterpolator().fit(data)
    assert torch.equal(fitted.metric(), expected.metric())


def test_other_data_that_do_not_fit():
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    data = Data(
        x=torch.arange(4.0),
        mask=torch.arange(4) > 0,
        pos=torch.rand(4, 2),
        edge_index=edge_index,
    )
    fitted = GraphInterpolator().fit(data)
    with pytest.raises(ValueError, match=r"lacks the graph.*'given'.*nearest"):
        fitted.predict(Data(x=data.x, mask=data.mask, pos=data.pos))
    flat = Data(**{**data.to_dict(), 'pos': torch.rand(4, 3)})
    with pytest.raises(ValueError, match=r'\(1, 2, 0\) \(got \(1, 3, 0\)\)'):
        fitted.predict(flat)
    with pytest.raises(ValueError, match=r"names 'elevaton'.*does not have"):
        GraphInterpolator(covariates='elevaton').fit(data)


def test_one_far_point_joins_no_others():
    data, truth = points()
    far = torch.tensor([[5e5, 5e6]], dtype=torch.float64)
    data.pos = torch.cat([data.pos, far])
    data.x = torch.cat([data.x, torch.full((1, 1), torch.nan)])
    data.mask = torch.cat([data.mask, torch.tensor([False])])
    out = GraphInterpolator(kriging=False).fit(data).predict()[:-1]
    alone, _ = points()
    expected = GraphInterpolator(kriging=False).fit(alone).predict()
    known = alone.mask
    assert rmse(out, truth, known) < 1.5 * rmse(expected, truth, known)


def test_later_changes_of_the_data_are_not_of_the_fit():
    data, _ = points(60)
    fitted = GraphInterpolator(kriging=False).fit(data)
    expected, (low, high) = fitted.predict(), fitted.predict_interval()
    data.x[~data.mask] = 0.0
    data.mask.fill_(True)
    assert torch.equal(fitted.predict(), expected)
    again = fitted.predict_interval()
    assert torch.equal(again[0], low) and torch.equal(again[1], high)


def test_masks_of_features_that_were_fitted_together():
    data, truth = points(60, features=2)
    fitted = GraphInterpolator(kriging=False).fit(data)
    data.x, data.mask = truth, torch.rand(60, 2) < 0.5
    with pytest.raises(ValueError, match=r'must be the same.*\[0, 1\]'):
        fitted.predict(data)


def test_weights_changed_in_place_are_not_of_the_fit():
    data, _ = points(60)
    data = KNNGraph(4)(data)
    topology = Topology.from_edge_index(data.edge_index, 60)
    graph = Data(x=data.x, mask=data.mask, edge_index=topology)
    graph.edge_weight = 1 + torch.rand(topology.num_edges).double()
    fitted = GraphInterpolator().fit(graph)
    expected = fitted.predict()
    graph.edge_weight.fill_(1.0)
    assert torch.equal(fitted.predict(), expected)


def test_threads_are_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match='data'):
            GraphInterpolator().fit(Data(x=torch.ones(3)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
