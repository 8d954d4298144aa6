"""The solvers on any graph, against dense matrices and HiGHS."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyg_unroll import solvers
from tests.oracles import gtv_objective, linprog_gtv
from tests.properties.strategies import LAYOUTS, cases, share

DOUBLE = (torch.float64,)
WEIGHTS = ('none', 'unit', 'zeros')
held = cases(DOUBLE, WEIGHTS, masked=(True,), headless=True).filter(
    lambda case: case.mask is not None
)
noisy = cases(DOUBLE, WEIGHTS, masked=(False,), headless=True)
orders = pytest.mark.parametrize('order', [1, 2])


@contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', solvers.ConvergenceWarning)
        yield


def dense_prior(case, order):
    adjacency = case.dense()[0]
    degree = adjacency.sum(1)
    matrix = degree.diag() - adjacency
    if order == 2:
        inverse = torch.where(degree > 0, 1 / degree, 0)
        matrix = matrix @ inverse.diag() @ matrix
    return matrix


@orders
@given(held, st.sampled_from(['mean', 0.0, -2.5]))
def test_glr_held(order, case, fill):
    known, x = case.known(), case.x.clone()
    x[~known] = torch.nan  # without meaning
    index, weight = case.columns()
    result = solvers.glr(
        x, index, weight, case.mask, order=order, fill=fill, tol=1e-12
    )
    assert result.converged
    out = result.x
    assert torch.equal(out[known], case.x[known])
    # Optimal: no gradient at unknown entries.
    matrix = dense_prior(case, order)
    gradient = torch.where(known, 0, matrix @ out)
    assert float(gradient.abs().max()) < 1e-6 * (1 + float(matrix.abs().max()))
    if order == 1:
        # Nothing beyond the known values and the fill.
        for f in range(out.size(1)):
            bounds = case.x[known[:, f], f].tolist()
            bounds += [] if fill == 'mean' else [fill]
            assert float(out[:, f].min()) >= min(bounds) - 1e-8
            assert float(out[:, f].max()) <= max(bounds) + 1e-8


@orders
@given(noisy, st.sampled_from([1e-3, 1.0, 1e3]))
def test_glr_noisy(order, case, mu):
    index, weight = case.columns()
    out = solvers.glr(case.x, index, weight, mu=mu, order=order, tol=1e-12)
    matrix = torch.eye(case.num_nodes).double() + mu * dense_prior(case, order)
    expected = torch.linalg.solve(matrix, case.x)
    torch.testing.assert_close(out.x, expected, rtol=1e-6, atol=1e-6)


@given(held, st.sampled_from(LAYOUTS), st.integers(-40, 40))
def test_glr_in_other_layouts_units_and_order(case, layout, k):
    index, weight = case.columns()
    first = solvers.glr(case.x, index, weight, case.mask, fill='mean')
    index, weight = case.layout(layout)
    other = solvers.glr(case.x * 2.0**k, index, weight, case.mask, fill='mean')
    close = {'rtol': 1e-6, 'atol': 1e-6}
    torch.testing.assert_close(other.x / 2.0**k, first.x, **close)
    order, name = case.renaming()
    index, weight = case.columns()
    renamed = solvers.glr(
        case.x[order], name[index], weight, case.mask[order], fill='mean'
    )
    torch.testing.assert_close(renamed.x, first.x[order], **close)


@orders
@given(cases(DOUBLE, ('unit', 'zeros'), headless=True))
def test_glr_gradients_are_finite(order, case):
    index, weight = case.columns()
    x, weight = case.x.requires_grad_(), weight.requires_grad_()
    mu = torch.tensor(1.0, requires_grad=True)
    out = solvers.glr(
        x, index, weight, case.mask, order=order, mu=mu, fill='mean'
    ).x
    grads = torch.autograd.grad(
        out.square().sum(), [x, weight, mu], materialize_grads=True
    )
    assert all(bool(grad.isfinite().all()) for grad in grads)


@given(cases((torch.float32, torch.float64), ('extreme',), headless=True))
def test_glr_of_extreme_weights(case):
    # Finite, known entries held, and never silent if it did not converge.
    index, weight = case.columns()
    with quiet():
        result = solvers.glr(
            case.x, index, weight, case.mask, fill='mean', max_steps=200
        )
    assert bool(result.x.isfinite().all())
    assert result.converged == (result.residual <= 1e-8)
    if case.mask is not None:
        known = case.known()
        assert torch.equal(result.x[known], case.x[known])


@share(0.3)
@given(held, st.sampled_from([1e-3, 1.0, 1e4]))
def test_gtv_held(case, unit):
    index, weight = case.columns()
    x = case.x * unit
    with quiet():
        result = solvers.gtv(x, index, weight, case.mask, fill='mean')
    known = case.known()
    assert torch.equal(result.x[known], x[known])
    assert result.converged, result.residual
    if weight is None:
        weight = torch.ones(index.size(1))
    if index.size(1):
        reached = torch.from_numpy(gtv_objective(result.x, index, weight))
        best = torch.from_numpy(linprog_gtv(x, index, weight, case.mask))
        assert bool((reached <= best * (1 + 2e-4) + 1e-9 * unit).all())


@share(0.3)
@given(noisy, st.sampled_from([0.01, 1.0, 100.0]))
def test_gtv_noisy(case, mu):
    index, weight = case.columns()
    with quiet():
        result = solvers.gtv(case.x, index, weight, mu=mu)
    if weight is None:
        weight = torch.ones(index.size(1))

    def objective(z):
        prior = gtv_objective(z, index, weight) if index.size(1) else 0.0
        return mu * torch.as_tensor(prior) + (z - case.x).square().sum(0)

    # Better than what is known to be good.
    mean = case.x.mean(0).expand_as(case.x)
    for other in (case.x, mean, (case.x + mean) / 2):
        bound = objective(other) * (1 + 2e-4) + 1e-9
        assert bool((objective(result.x) <= bound).all())
    assert bool(result.x.isfinite().all())
