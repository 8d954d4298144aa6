"""`solve` and `iterates`: the layers step by step."""

import pytest
import torch

from pyg_unroll import GLRConv, GTVConv
from pyg_unroll.nn import Iterate
from pyg_unroll.testing import assert_same
from tests.oracles import random_graph

CONVS = {
    'GLRConv': (lambda **options: GLRConv(4, **options), 4),
    'GLRConv2': (lambda **options: GLRConv(3, order=2, **options), 3),
    'GTVConv': (lambda **options: GTVConv(3, 2, **options), 3),
}
parametrize_convs = pytest.mark.parametrize(
    ('make', 'count'), CONVS.values(), ids=list(CONVS)
)
N = 14


def arguments(kind):
    """Positional arguments, and the known entries that are held."""
    graph = random_graph(N, 2 * N, 2 if kind == 'own' else None)
    x = torch.randn(N, 2) if kind == 'one' else torch.randn(2, N, 2)
    weight, mask = graph.edge_weight, torch.rand(x.shape) < 0.4
    mask[..., 0, :], mask[..., 1, :] = True, False
    if kind == 'own':
        weight = weight * torch.rand(2, 1, 1)
    return x, graph.edge_index, weight, mask


@parametrize_convs
@pytest.mark.parametrize('kind', ['one', 'shared', 'own'])
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
@torch.no_grad()
def test_the_last_is_the_result(make, count, kind, fidelity):
    x, edge_index, weight, mask = arguments(kind)
    conv = make(heads=2, fidelity=fidelity)
    for parameter in conv.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    options = {'mask': mask, 'warm_start': torch.randn_like(x)}
    iterates = list(conv.iterates(x, edge_index, weight, **options))
    assert len(iterates) == count + 1
    assert all(isinstance(iterate, Iterate) for iterate in iterates)
    out = conv(x, edge_index, weight, **options)
    assert torch.equal(iterates[-1].x, out)
    share = conv.head_logits.softmax(0)
    for iterate in iterates:
        assert iterate.x.shape == x.shape
        assert iterate.heads.shape == (*x.shape, 2)
        if fidelity == 'hard':
            assert torch.equal(iterate.x[mask], x[mask])
            held = x.unsqueeze(-1).expand_as(iterate.heads)[mask]
            assert torch.equal(iterate.heads[mask], held)
        assert_same(iterate.heads @ share, iterate.x)
    # The first is the start.
    start = options['warm_start']
    if fidelity == 'hard':
        start = torch.where(mask, x, start)
    assert_same(iterates[0].x, start)
    assert not torch.equal(iterates[1].x, iterates[0].x)


@parametrize_convs
@torch.no_grad()
def test_each_is_the_result_of_a_shorter_layer(make, count):
    x, edge_index, weight, mask = arguments('one')
    conv = make(spectrum=(0.2, 2.0))
    for k, iterate in enumerate(conv.iterates(x, edge_index, weight, mask)):
        if k == 0:
            continue
        if isinstance(conv, GTVConv):
            part = GTVConv(k, 2, spectrum=(0.2, 2.0))
        else:
            # Chebyshev coefficients do not depend on the number of steps.
            part = GLRConv(k, order=conv.order, spectrum=(0.2, 2.0))
        expected, state = part.solve(x, edge_index, weight, mask)
        assert torch.equal(iterate.x, expected)
        assert (state is None) == (iterate.state is None)
        if state is not None:
            assert torch.equal(iterate.state, state)


@torch.no_grad()
def test_states_of_samples():
    x, edge_index, weight, mask = arguments('own')
    conv = GTVConv(3, 2, heads=2)
    *_, last = conv.iterates(x, edge_index, weight, mask)
    out, state = conv.solve(x, edge_index, weight, mask)
    assert torch.equal(last.x, out) and torch.equal(last.state, state)
    assert state.shape == (2, edge_index.size(1) // 2, 2, 2)
    # They go on from a state.
    first, *_, last = conv.iterates(
        x, edge_index, weight, mask, warm_start=out, state=state
    )
    assert_same(first.state, state)
    expected, _ = conv.solve(
        x, edge_index, weight, mask, warm_start=out, state=state
    )
    assert torch.equal(last.x, expected)


@parametrize_convs
def test_solve(make, count):
    x, edge_index, weight, mask = arguments('one')
    conv = make()
    out, state = conv.solve(x, edge_index, weight, mask=mask)
    assert torch.equal(out, conv(x, edge_index, weight, mask))
    out.sum().backward()
    assert conv.alpha.grad is not None
    out, same = conv(x, edge_index, weight, mask, return_state=True)
    if state is None:
        assert same is None and isinstance(conv, GLRConv)
        with pytest.raises(ValueError, match=r"'state' must be None.*'Tensor'"):
            conv.solve(x, edge_index, weight, mask, state=out)
    else:
        assert torch.equal(state, same)
