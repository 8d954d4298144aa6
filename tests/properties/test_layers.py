"""The layers on any graph: what they promise, trained or not."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from pyg_unroll import GLRConv, GTVConv
from pyg_unroll.testing import TOLERANCES, assert_same
from tests.properties.strategies import FLOATS, HALVES, LAYOUTS, cases, share

CONVS = {
    'GLRConv': lambda **kwargs: GLRConv(4, **kwargs),
    'GLRConv of order 2': lambda **kwargs: GLRConv(3, order=2, **kwargs),
    'GTVConv': lambda **kwargs: GTVConv(3, 2, **kwargs),
}
parametrize_convs = pytest.mark.parametrize(
    'make', CONVS.values(), ids=list(CONVS)
)
fidelities = st.sampled_from(['hard', 'soft'])
WEIGHTS = ('none', 'unit', 'zeros')


def close(actual, expected, scale=1.0):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(
        actual,
        expected,
        rtol=10 * tolerance['rtol'],
        atol=10 * tolerance['atol'] * max(scale, 1.0),
    )


@parametrize_convs
@given(cases(FLOATS + HALVES, (*WEIGHTS, 'extreme')), fidelities)
def test_results_are_finite_and_known_entries_exact(make, case, fidelity):
    # Weights from 1e-30 to 1e30, and in float16 from 1e-3 to 1e3.
    index, weight = case.columns()
    weight = limited(make, weight)
    conv = make(heads=case.heads, fidelity=fidelity)
    out = conv(case.x, index, weight, case.mask)
    assert out.dtype == case.dtype and out.shape == case.x.shape
    assert bool(out.isfinite().all())
    if case.mask is not None and fidelity == 'hard':
        assert torch.equal(out[case.mask], case.x[case.mask])


def limited(make, weight):
    """Weights whose squares do not overflow, as GTVConv needs."""
    if weight is None or make is not CONVS['GTVConv']:
        return weight
    return weight.clamp(max=torch.finfo(weight.dtype).max ** 0.5 / 20)


@parametrize_convs
@given(cases(weights=(*WEIGHTS, 'extreme')), fidelities)
def test_gradients_are_finite(make, case, fidelity):
    index, weight = case.columns()
    weight = limited(make, weight)
    conv = make(heads=case.heads, fidelity=fidelity)
    x = case.x.requires_grad_()
    leaves = [x, *conv.parameters()]
    if weight is not None:
        leaves.append(weight.requires_grad_())
    out = conv(x, index, weight, case.mask)
    grads = torch.autograd.grad(
        out.square().sum(), leaves, allow_unused=True, materialize_grads=True
    )
    for leaf, grad in zip(leaves, grads, strict=True):
        assert bool(grad.isfinite().all()), leaf.shape


@parametrize_convs
@given(cases(weights=WEIGHTS), st.sampled_from(LAYOUTS), fidelities)
def test_layouts(make, case, layout, fidelity):
    conv = make(heads=case.heads, fidelity=fidelity)
    index, weight = case.columns()
    expected = conv(case.x, index, weight, case.mask)
    index, weight = case.layout(layout)
    assert_same(conv(case.x, index, weight, case.mask), expected)


@parametrize_convs
@given(cases(weights=WEIGHTS), fidelities)
def test_renamed_nodes(make, case, fidelity):
    conv = make(heads=case.heads, fidelity=fidelity)
    index, weight = case.columns()
    order, name = case.renaming()
    mask = None if case.mask is None else case.mask[order]
    out = conv(case.x[order], name[index], weight, mask)
    close(out, conv(case.x, index, weight, case.mask)[order])


@pytest.mark.parametrize('order', [1, 2])
@given(cases(weights=WEIGHTS), fidelities, st.integers(-20, 20))
def test_powers_of_two_change_no_bit(order, case, fidelity, k):
    # GLR is linear in the signal; held entries, any unit of the weights.
    index, weight = case.columns()
    conv = GLRConv(3, heads=case.heads, fidelity=fidelity, order=order)
    out = conv(case.x, index, weight, case.mask)
    scaled = conv(case.x * 2.0**k, index, weight, case.mask)
    assert torch.equal(scaled, out * 2.0**k)
    if weight is not None and case.mask is not None and fidelity == 'hard':
        assert torch.equal(conv(case.x, index, weight * 2.0**k, case.mask), out)


@given(cases(FLOATS[:1], WEIGHTS), st.sampled_from([1e-3, 0.1, 7.0, 1e3]))
def test_gtv_in_other_units(case, unit):
    index, weight = case.columns()
    out = GTVConv(3, 2, heads=case.heads)(case.x, index, weight, case.mask)
    conv = GTVConv(3, 2, heads=case.heads, rho=2.0 / unit, mu=unit)
    scaled = conv(case.x * unit, index, weight, case.mask)
    close(scaled / unit, out)


@parametrize_convs
@given(cases(weights=WEIGHTS), fidelities, st.sampled_from([-3.0, 0.5, 64.0]))
def test_shifted_signals(make, case, fidelity, shift):
    index, weight = case.columns()
    conv = make(heads=case.heads, fidelity=fidelity)
    out = conv(case.x + shift, index, weight, case.mask)
    expected = conv(case.x, index, weight, case.mask) + shift
    close(out, expected, abs(shift))


def objective(case, z, x, mu, order, confidence=None):
    """Of each feature, in float64 by the dense matrix."""
    adjacency = case.dense()[0]
    matrix = adjacency.sum(1).diag() - adjacency
    if order == 2:
        degree = adjacency.sum(1)
        inverse = torch.where(degree > 0, 1 / degree, 0)
        matrix = matrix @ inverse.diag() @ matrix
    z, x = z.double(), x.double()
    value = mu * (z * (matrix @ z)).sum(0)
    if confidence is not None:
        value = value + (confidence * (z - x).square()).sum(0)
    return value


@pytest.mark.parametrize('order', [1, 2])
@given(
    cases(weights=(*WEIGHTS, 'extreme'), headless=True),
    fidelities,
    st.integers(1, 12),
    st.sampled_from([0.01, 1.0, 100.0]),
)
def test_untrained_glr_descends(order, case, fidelity, num_steps, mu):
    # The Chebyshev polynomial of the error is at most one on the spectrum.
    index, weight = case.columns()
    conv = GLRConv(num_steps, fidelity=fidelity, order=order, mu=mu)
    held = case.mask is not None and fidelity == 'hard'
    confidence = None if held else case.known().double()
    start = case.randn(*case.x.shape)
    out = conv(case.x, index, weight, case.mask, warm_start=start)
    if held:
        start = torch.where(case.known(), case.x, start)
    before, after = (
        objective(case, z, case.x, 1.0 if held else mu, order, confidence)
        for z in (start, out)
    )
    rounding = 100 * torch.finfo(case.dtype).eps
    size = max(mu, 1) * case.dense().sum() + case.num_nodes
    assert bool((after <= before * (1 + rounding) + rounding * size).all())


@parametrize_convs
@given(cases(weights=WEIGHTS), fidelities)
def test_samples_equal_loop(make, case, fidelity):
    index, weight = case.columns()
    conv = make(heads=case.heads, fidelity=fidelity)
    x = case.randn(2, case.num_nodes, 1)
    mask = case.mask
    if mask is not None and mask.dim() == 2:
        mask = mask[:, :1]
    out = conv(x, index, weight, mask)
    expected = [conv(part, index, weight, mask) for part in x]
    assert_same(out, torch.stack(expected))


@parametrize_convs
@given(
    st.lists(
        cases(FLOATS[:1], ('unit',), headless=True), min_size=2, max_size=3
    )
)
def test_batch_equals_loop(make, examples):
    conv = make()
    features = examples[0].x.size(1)
    parts, batch = [], []
    for case in examples:
        index, weight = case.columns()
        x = case.x[:, :1].expand(-1, features)
        batch.append(Data(x=x, edge_index=index, edge_weight=weight))
        parts.append(conv(x, index, weight))
    batch = Batch.from_data_list(batch)
    out = conv(batch.x, batch.edge_index, batch.edge_weight)
    assert_same(out, torch.cat(parts))


@parametrize_convs
@given(cases(dtypes=FLOATS + HALVES, weights=('unit',)), fidelities)
def test_strides_change_no_bit(make, case, fidelity):
    index, weight = case.columns()
    conv = make(heads=case.heads, fidelity=fidelity)
    expected = conv(case.x, index, weight, case.mask)

    def strided(v):
        if v is None:
            return None
        wide = v.new_zeros((2, *reversed(v.shape)))
        wide[1] = v.permute(*reversed(range(v.dim())))
        return wide[1].permute(*reversed(range(v.dim())))

    arguments = map(strided, (case.x, index, weight, case.mask))
    assert torch.equal(conv(*arguments), expected)


@share(0.2)
@parametrize_convs
@given(cases(weights=('unit',), masked=(True,)), st.integers(1, 4))
def test_stacks_go_on_where_the_first_stopped(make, case, depth):
    assume(case.mask is not None)
    index, weight = case.columns()
    conv, x = make(heads=case.heads), case.x
    for _ in range(depth):
        x = conv(x, index, weight, case.mask)
    assert bool(x.isfinite().all())
    assert torch.equal(x[case.mask], case.x[case.mask])
