"""Whole models and the estimator on small data of any kind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from pyg_unroll import (
    Demosaic,
    GraphDemosaic,
    GraphInterpolator,
    Inpaint,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    mosaic,
)
from pyg_unroll.imaging import CFA_PATTERNS, GuidedBlock
from pyg_unroll.nn import MLPFeatures
from tests.properties.strategies import cases, share

MODELS = {'uGLR': UnrolledGLR, 'uGTV': UnrolledGTV}
parametrize_models = pytest.mark.parametrize('name', MODELS)
fidelities = st.sampled_from(['hard', 'soft'])


@share(0.3)
@parametrize_models
@given(
    cases((torch.float32,), ('none',)),
    fidelities,
    st.booleans(),
    st.sampled_from([1.0, 1e6]),
)
def test_stacks(name, case, fidelity, guide, unit):
    channels = case.x.size(1)
    features = MLPFeatures(channels, 3 + guide * channels, 4, pos_channels=2)
    model = MODELS[name](channels, features, guide=guide, fidelity=fidelity)
    index, _ = case.columns()
    pos, x = case.rand(case.num_nodes, 2), case.x * unit
    data = Data(x=x, pos=pos, edge_index=index, mask=case.mask)
    out = model(data)
    assert bool(out.isfinite().all())
    if case.mask is not None and fidelity == 'hard':
        assert torch.equal(out[case.mask], x[case.mask])
    if unit != 1:
        return
    order, rename = case.renaming()
    renamed = Data(
        x=x[order],
        pos=pos[order],
        edge_index=rename[index],
        mask=None if case.mask is None else case.mask[order],
    )
    torch.testing.assert_close(model(renamed), out[order], rtol=1e-3, atol=1e-3)
    grads = torch.autograd.grad(
        out.square().sum(),
        list(model.parameters()),
        allow_unused=True,
        materialize_grads=True,
    )
    assert all(bool(grad.isfinite().all()) for grad in grads)


@share(0.15)
@pytest.mark.parametrize('prior', ['glr', 'gtv'])
@given(
    st.integers(2, 9),
    st.integers(2, 9),
    st.sampled_from(['RGGB', 'BGGR', 'GRBG', 'GBRG']),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
)
def test_restorers(prior, height, width, pattern, seed, unit):
    generator = torch.manual_seed(seed)
    image = unit * torch.rand((3, height, width), generator=generator)
    data = mosaic(image, pattern)
    for kind in (Demosaic, Inpaint):
        model = kind([GuidedBlock(3, 4, num_layers=2, prior=prior)])
        with torch.no_grad():
            out = model(data)
        assert bool(out.isfinite().all())
        assert torch.equal(out[data.mask], data.x[data.mask])


@share(0.15)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(CFA_PATTERNS),
    st.sampled_from(['glr', 'gtv']),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
)
def test_graph_demosaic(height, width, pattern, prior, seed, unit):
    generator = torch.manual_seed(seed)
    image = unit * torch.rand((3, height, width), generator=generator)
    data = mosaic(image, pattern)
    with torch.no_grad():
        out = GraphDemosaic(prior)(data)
    assert bool(out.isfinite().all())
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert data_to_image(data, out).shape == image.shape


@share(0.05)
@given(
    st.integers(2, 30),
    st.integers(0, 2**32),
    st.sampled_from([1e-12, 1.0, 1e12]),
    st.sampled_from(['graph', 'points', 'both', 'covariates']),
    st.sampled_from(['smooth', 'noise', 'constant', 'steps']),
)
@pytest.mark.filterwarnings('ignore')
def test_graph_interpolator(n, seed, unit, kind, signal):
    generator = torch.manual_seed(seed)
    pos = torch.rand((n, 2), generator=generator)
    x = {
        'smooth': pos.sum(1),
        'noise': torch.randn(n, generator=generator),
        'constant': torch.full((n,), 3.0),
        'steps': (pos[:, 0] > 0.5).float(),
    }[signal] * unit
    mask = torch.rand(n, generator=generator) < 0.6
    mask[0], mask[-1] = True, False
    data = Data(x=x, mask=mask)
    if kind != 'points':
        path = torch.arange(n - 1)
        data.edge_index = torch.stack(
            [torch.cat([path, path + 1]), torch.cat([path + 1, path])]
        )
    if kind != 'graph':
        data.pos = pos
    if kind == 'covariates':
        data.covariates = torch.rand((n, 1), generator=generator)
    fitted = GraphInterpolator().fit(data)
    out = fitted.predict()
    assert bool(out.isfinite().all())
    assert torch.equal(out[mask, 0], x[mask])
    if signal == 'constant':
        torch.testing.assert_close(out[:, 0], x, rtol=1e-4, atol=0.0)
    elif int(mask.sum()) >= 9 and x[mask].std() > 0:
        low, high = fitted.predict_interval()
        assert bool((low <= high).all() and high.isfinite().all())
