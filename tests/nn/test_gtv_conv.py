from functools import partial
from itertools import pairwise
from math import log
from unittest.mock import Mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pyg_unroll import GTVConv, Topology
from pyg_unroll.ops import backend
from pyg_unroll.testing import assert_same
from tests.oracles import (
    dual_gtv_proximal,
    grid_graph,
    gtv_objective,
    linprog_gtv,
    random_graph,
)


@torch.no_grad()
def test_objective_approaches_optimum():
    graph = grid_graph(16, 16, dtype=torch.float64)
    x = torch.rand(256, 1).double()
    mask = torch.rand(256) < 0.3
    x = torch.where(mask[:, None], x, x[mask].mean())
    optimum = linprog_gtv(x, *graph[:2], mask)[0]
    gaps = []
    for num_iters in (1, 4, 16, 64, 160):
        out = GTVConv(num_iters, num_steps=8)(x, *graph[:2], mask)
        value = gtv_objective(out, *graph[:2])[0]
        gaps.append(value / optimum - 1)
    assert min(gaps) > -1e-9
    assert all(a > b for a, b in pairwise(gaps)), gaps
    assert gaps[-1] < 5e-3


@pytest.mark.parametrize('mu', [0.2, 1.0])
@torch.no_grad()
def test_soft_fidelity(mu):
    graph = random_graph(15, 20, dtype=torch.float64)
    y = torch.randn(15, 2).double()
    confidence = torch.rand(15).double() + 0.5
    conv = GTVConv(150, num_steps=5, mu=mu)
    for c in (None, confidence):
        total = torch.ones(15) if c is None else c
        expected = dual_gtv_proximal(y, *graph[:2], total, mu)
        out = conv(y, *graph[:2], confidence=c)
        torch.testing.assert_close(out, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize('mu', [0.5, 4.0])
@torch.no_grad()
def test_two_nodes(mu):
    # In closed form: both move towards each other by mu / 2 until they meet.
    edge_index = torch.tensor([[0, 1], [1, 0]])
    y = torch.tensor([[0.0], [1.0]])
    move = min(mu / 2, 0.5)
    out = GTVConv(200, mu=mu)(y, edge_index)
    expected = torch.tensor([[move], [1 - move]])
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_median():
    # A node between three known ones takes their weighted median.
    edge_index = torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]])
    x = torch.tensor([[0.5], [0.0], [0.2], [1.0]])
    mask = torch.tensor([False, True, True, True])
    out = GTVConv(300)(x, edge_index, mask=mask)
    torch.testing.assert_close(out[0], x[2], atol=1e-3, rtol=0)
    weight = torch.tensor([1.0, 1.0, 3.0, 1.0, 1.0, 3.0])
    out = GTVConv(300)(x, edge_index, weight, mask)
    torch.testing.assert_close(out[0], x[3], atol=1e-3, rtol=0)


@pytest.mark.parametrize('heads', [1, 2])
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
def test_state_is_passed_on(heads, fidelity):
    graph = random_graph(20, 40, heads, torch.float64)
    x = torch.randn(20, 2).double()
    mask = torch.rand(20) < 0.4
    mask[0] = True
    kwargs = {'num_steps': 3, 'fidelity': fidelity}
    half, whole = GTVConv(4, **kwargs), GTVConv(8, **kwargs)
    weights = graph.edge_weight.view(-1, heads).unbind(1)
    for weight in weights:
        arguments = x, graph.edge_index, weight, mask
        out, state = half(*arguments, return_state=True)
        assert state.shape == (graph.edge_index.size(1) // 2, 2, 1)
        out, state = half(
            *arguments, warm_start=out, state=state, return_state=True
        )
        expected, dual = whole(*arguments, return_state=True)
        assert_same(out, expected)
        assert_same(state, dual)
    # Without the state, the second layer starts afresh.
    afresh = half(*arguments, warm_start=half(*arguments))
    assert not torch.allclose(afresh, expected)


def test_state_of_heads():
    graph = random_graph(20, 40, 2)
    x, mask = torch.randn(20, 2), torch.arange(20) < 8
    conv = GTVConv(3, heads=2)
    out, state = conv(x, *graph[:2], mask, return_state=True)
    assert state.shape == (graph.edge_index.size(1) // 2, 2, 2)
    assert torch.equal(out, conv(x, *graph[:2], mask))
    zero = torch.zeros_like(state)
    assert torch.equal(out, conv(x, *graph[:2], mask, state=zero))


@torch.no_grad()
def test_dual_state_marks_jumps():
    # A step between two known plateaus: |p| <= 1, and 1 where x jumps.
    src = torch.arange(9)
    edge_index = torch.stack([src, src + 1])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    x = torch.cat([torch.zeros(5, 1), torch.ones(5, 1)]).double()
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 1, 0]).bool()
    out, state = GTVConv(200)(x, edge_index, mask=mask, return_state=True)
    assert float(state.abs().max()) < 1 + 1e-3
    topology = Topology.from_edge_index(edge_index, 10)
    jump = (out[topology.src] - out[topology.dst]).view(-1)
    assert int((jump.abs() > 0.1).sum()) == 1
    p = state.view(-1)[jump.abs() > 0.1]
    assert_same(p, jump[jump.abs() > 0.1].sign())


@torch.no_grad()
def test_keeps_edges_that_glr_blurs():
    # One known step: a signal of two values, not a ramp.
    src = torch.arange(9)
    edge_index = torch.stack([src, src + 1])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    weight = torch.ones(9)
    weight[4] = 0.2
    x = torch.linspace(0, 1, 10).view(-1, 1)
    mask = torch.zeros(10).bool()
    mask[0] = mask[9] = True
    conv = GTVConv(300, num_steps=8)
    out = conv(x, edge_index, weight.repeat(2), mask)
    expected = (torch.arange(10) > 4).float().view(-1, 1)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=0)


@torch.no_grad()
def test_relaxation_changes_the_way_not_the_aim():
    graph = grid_graph(6, 6, dtype=torch.float64)
    x, mask = torch.rand(36, 1).double(), torch.arange(36) % 3 == 0
    optimum = linprog_gtv(x, *graph[:2], mask)[0]
    for relaxation in (0.7, 1.0, 1.6):
        conv = GTVConv(150, num_steps=5)
        conv.relaxation_logit.fill_(log(relaxation / (2 - relaxation)))
        out = conv(x, *graph[:2], mask)
        value = gtv_objective(out, *graph[:2])[0]
        assert abs(value / optimum - 1) < 5e-3, relaxation


def training_input(num_nodes=12, features=2):
    graph = random_graph(num_nodes, 5 * num_nodes)
    topology = Topology.from_edge_index(graph.edge_index, num_nodes)
    weight = topology.undirected_weight(graph.edge_weight).requires_grad_()
    x = torch.randn(num_nodes, features, requires_grad=True)
    return x, topology, weight, torch.arange(num_nodes) < 4


@pytest.mark.parametrize('checkpoint', [False, True])
def test_memory_of_edge_signals(checkpoint):
    # One dual variable per iteration or, checkpointed, per sqrt(T) of them; on
    # a graph of many more edges than nodes, they are most of the memory.
    topology = Topology.from_pairs(*torch.triu_indices(32, 32, 1), 32)
    weight = torch.rand(topology.num_edges, 1, requires_grad=True)
    x, mask = torch.randn(32, 64, requires_grad=True), torch.arange(32) < 4
    edge_signal = topology.num_edges * x.size(1) * x.itemsize
    kept = {}
    for num_iters, num_steps in ((1, 1), (9, 1), (1, 4)):
        conv = GTVConv(num_iters, num_steps, checkpoint=checkpoint)
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        ) as run:
            out = conv(x, topology, weight, mask)
        sizes = [event.self_cpu_memory_usage for event in run.events()]
        kept[num_iters, num_steps] = sum(sizes)
        del out
    first = kept.pop((1, 1))
    assert first > 0
    limit = 3 if checkpoint else 12
    assert kept[9, 1] - first < limit * edge_signal
    assert kept[1, 4] - first < edge_signal


@pytest.mark.parametrize('num_iters', [1, 2, 9])
def test_checkpoint_changes_no_bit(num_iters, monkeypatch):
    kernels = backend.kernels('admm', torch.ones(1))
    step = Mock(wraps=kernels.admm_step)
    monkeypatch.setattr(kernels, 'admm_step', step)
    x, topology, weight, mask = training_input()
    state = torch.randn(topology.num_edges, 2, 1, requires_grad=True)
    results, counts = [], []
    for checkpoint in (False, True):
        conv = GTVConv(num_iters, 2, checkpoint=checkpoint)
        leaves = x, weight, state, *conv.parameters()
        step.reset_mock()
        out, last = conv(
            *(x, topology, weight, mask), state=state, return_state=True
        )
        grads = torch.autograd.grad(
            out.sum() + last.square().sum(),
            leaves,
            allow_unused=True,
            materialize_grads=True,
        )
        counts.append(step.call_count)
        results.append([out, last, *grads])
    assert all(map(torch.equal, *results))
    assert counts == [num_iters, 2 * num_iters]


@pytest.mark.parametrize('checkpoint', [False, True])
def test_derivatives_again_and_again(checkpoint):
    x, topology, weight, mask = training_input()
    conv = GTVConv(4, 2, checkpoint=checkpoint)
    leaves = x, weight, conv.log_rho, conv.alpha
    out = conv(x, topology, weight, mask)
    run = partial(torch.autograd.grad, out, leaves, torch.ones_like(out))
    grads = run(retain_graph=True)
    assert all(map(torch.equal, grads, run(retain_graph=True)))
    torch.testing.assert_close(
        grads, run(create_graph=True), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize('checkpoint', [False, True])
@pytest.mark.parametrize('changed', ['state', 'alpha', 'confidence'])
def test_changes_in_place_are_noticed(checkpoint, changed):
    x, topology, weight, _ = training_input()
    state = torch.zeros(topology.num_edges, x.size(1), 1)
    confidence = torch.ones_like(x)
    conv = GTVConv(2, fidelity='soft', checkpoint=checkpoint)
    out = conv(x, topology, weight, confidence=confidence, state=state)
    read = {'state': state, 'alpha': conv.alpha, 'confidence': confidence}
    with torch.no_grad():
        read[changed].add_(1)
    with pytest.raises(RuntimeError, match=r'changed in place|inplace'):
        out.sum().backward()


def test_repr():
    assert str(GTVConv(3)) == (
        "GTVConv(num_iters=3, num_steps=4, heads=1, fidelity='hard')"
    )
    assert GTVConv(3).propagate.__module__.endswith('_propagate')
