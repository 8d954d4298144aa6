"""Results are in the unit of the signal, whichever it is."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from pyg_unroll import GLRConv, GTVConv, InterpolateFeatures
from pyg_unroll.estimators import GraphInterpolator, TemporalInterpolator
from pyg_unroll.solvers import glr, gtv
from tests.oracles import random_graph

# About 1e-150 and 1e150, of which no bits change; those of single precision.
UNITS = {
    torch.float64: [2.0**-498, 2.0**498],
    torch.float32: [2.0**-99, 2.0**99],
}
CASES = [(dtype, unit) for dtype, units in UNITS.items() for unit in units]
of_any_unit = pytest.mark.parametrize('dtype, unit', CASES)


def example(dtype, num_nodes=40):
    graph = random_graph(num_nodes, num_nodes, dtype=dtype)
    x = torch.randn(num_nodes, 2, dtype=dtype) + 1
    mask = torch.rand(num_nodes) < 0.4
    mask[0] = True
    return x, graph.edge_index, graph.edge_weight, mask


def assert_alike(found, unit, expected, tol=1e-12):
    size = float(expected.abs().max())
    tol = tol if found.dtype == torch.float64 else 1e-5
    close = {'rtol': 0, 'atol': tol * size}
    torch.testing.assert_close(found / unit, expected, **close)


@of_any_unit
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        {'order': 2},
        {'fidelity': 'soft', 'mu': 0.3},
        {'fidelity': 'soft', 'mu': 1e7},
        {'preconditioner': 'amg'},
    ],
)
def test_glr(dtype, unit, kwargs):
    if 'preconditioner' in kwargs:
        pytest.importorskip('pyamg')
    x, edge_index, weight, mask = example(dtype)
    expected = glr(x, edge_index, weight, mask, **kwargs).x
    found = glr(unit * x, edge_index, weight, mask, **kwargs).x
    assert_alike(found, unit, expected)
    # And in that of weights, with that of `mu`.
    kwargs = kwargs | {'mu': kwargs.get('mu', 1.0) / unit}
    for scale in (1.0, unit):
        found = glr(scale * x, edge_index, unit * weight, mask, **kwargs).x
        assert_alike(found, scale, expected)


@of_any_unit
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
def test_gtv(dtype, unit, fidelity):
    x, edge_index, weight, mask = example(dtype)
    kwargs = {'fidelity': fidelity}
    expected = gtv(x, edge_index, weight, mask, mu=0.5, **kwargs).x
    for scale, mu in ((1.0, 0.5 * unit), (unit, 0.5)):
        args = unit * x, edge_index, weight * scale, mask
        assert_alike(gtv(*args, mu=mu, **kwargs).x, unit, expected)


@pytest.mark.parametrize('solve', [glr, gtv])
@pytest.mark.parametrize('size', [1e-200, 1e200])
def test_what_numbers_cannot_hold(solve, size):
    x, edge_index, weight, mask = example(torch.float64)
    with pytest.raises(ValueError, match="'x' times 'edge_weight' must lie"):
        solve(size * x, edge_index, size * weight, mask)
    with pytest.raises(ValueError, match="'mu' times 'edge_weight' must lie"):
        solve(x, edge_index, size * weight, mu=size)
    if solve is gtv:
        with pytest.raises(ValueError, match="'edge_weight' over 'x' must lie"):
            solve(x / size, edge_index, weight, mu=size)


@of_any_unit
@pytest.mark.parametrize('known', [False, True])
@pytest.mark.parametrize('order', [1, 2])
def test_glr_conv(dtype, unit, known, order):
    x, edge_index, weight, mask = example(dtype)
    conv = GLRConv(4, order=order).to(dtype)
    mask = mask if known else None
    expected = conv(x, edge_index, weight, mask)
    found = conv(unit * x, edge_index, weight, mask)
    assert_alike(found, unit, expected)


@of_any_unit
def test_gtv_conv(dtype, unit):
    # The penalty is in the inverse unit of differences.
    x, edge_index, weight, mask = example(dtype)
    results = []
    for scale in (1, unit):
        conv = GTVConv(3, 4, rho=2 / scale).to(dtype)
        conv.reset_parameters()
        results.append(conv(scale * x, edge_index, weight, mask))
    # A penalty is learned as its logarithm.
    assert_alike(results[1], unit, results[0], tol=1e-10)


@of_any_unit
def test_interpolate_features(dtype, unit):
    x, edge_index, weight, mask = example(dtype)
    results = []
    for scale in (1, unit):
        data = Data(x=scale * x, edge_index=edge_index, edge_weight=weight)
        transform = InterpolateFeatures(~mask.unsqueeze(1).expand_as(x))
        results.append(transform(data).x)
    assert_alike(results[1], unit, results[0])


@pytest.mark.parametrize('unit', UNITS[torch.float64])
def test_graph_interpolator(unit):
    pos = np.random.default_rng(0).random((30, 2))
    y = np.sin(5 * pos).sum(1)
    results = []
    for scale, extent in ((1, 1), (unit, 1 / unit)):
        model = GraphInterpolator().fit(extent * pos[5:], scale * y[5:])
        out = model.predict(extent * pos[:5], return_std=True)
        results.append([torch.as_tensor(value) / scale for value in out])
    for found, expected in zip(*results, strict=True):
        assert_alike(found, 1.0, expected, tol=1e-6)


@pytest.mark.parametrize('kind', [GraphInterpolator, TemporalInterpolator])
@pytest.mark.parametrize('unit', UNITS[torch.float64])
def test_estimators_of_data(kind, unit):
    x, edge_index, _, _ = example(torch.float64)
    if kind is TemporalInterpolator:
        x = torch.randn(40, 24).double().cumsum(1) + 1
    mask = torch.rand(x.shape) < 0.7
    results = []
    for scale in (1, unit):
        data = Data(x=scale * x, edge_index=edge_index, mask=mask)
        results.append(torch.as_tensor(kind().fit(data).predict()))
    assert_alike(results[1], unit, results[0])
