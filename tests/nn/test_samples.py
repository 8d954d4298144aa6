"""Several signals on one graph: what one layer does with each of them."""

import pytest
import torch
from torch.autograd import gradcheck

from pyg_unroll import GLRConv, GTVConv, MahalanobisGraph, Topology
from pyg_unroll.testing import assert_compiles, assert_same
from tests.nn.test_convs import CONVS
from tests.oracles import random_graph

B, N, F = 2, 14, 2
parametrize_convs = pytest.mark.parametrize(
    'make', CONVS.values(), ids=list(CONVS)
)


def make_input(heads, own, dtype=torch.float64):
    graph = random_graph(N, 2 * N, dtype=dtype)
    topology = Topology.from_edge_index(graph.edge_index, N)
    shape = (B, topology.num_edges, heads) if own else (topology.num_edges, 1)
    x = torch.randn(B, N, F, dtype=dtype)
    mask = torch.rand(B, N, F) < 0.4
    mask[:, 0], mask[:, 1] = True, False
    return x, topology, torch.rand(shape, dtype=dtype), mask


def loop(conv, x, topology, weight, **kwargs):
    """The layer on one sample after the other."""

    def of(value, b):
        return value[b] if value is not None and value.dim() == 3 else value

    return torch.stack(
        [
            conv(
                x[b],
                topology,
                of(weight, b),
                **{name: of(value, b) for name, value in kwargs.items()},
            )
            for b in range(B)
        ]
    )


@parametrize_convs
@pytest.mark.parametrize(
    ('known', 'own', 'heads'),
    [
        ('none', False, 2),
        ('none', True, 1),
        ('node', False, 1),
        ('node', True, 2),
        ('entry', False, 2),
        ('entry', True, 1),
        ('sample', False, 1),
        ('sample', True, 2),
    ],
)
def test_samples_equal_loop(make, known, own, heads):
    x, topology, weight, mask = make_input(heads, own)
    x.requires_grad_(), weight.requires_grad_()
    mask = {
        'none': None,
        'node': mask[0, :, 0],
        'entry': mask[0],
        'sample': mask,
    }[known]
    conv = make(heads=heads).double()
    for parameter in conv.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    results = [
        (out, *torch.autograd.grad(out.sin().sum(), [x, weight, conv.alpha]))
        for out in (
            conv(x, topology, weight, mask),
            loop(conv, x, topology, weight, mask=mask),
        )
    ]
    assert_same(*results)


@parametrize_convs
@pytest.mark.parametrize('own', [False, True], ids=['shared', 'own'])
def test_soft_fidelity_and_warm_start(make, own):
    x, topology, weight, mask = make_input(2, own)
    conv = make(heads=2, fidelity='soft')
    start = torch.randn_like(x)
    for confidence in (torch.rand(N), torch.rand(N, F), torch.rand(B, N, F)):
        options = {
            'mask': mask,
            'confidence': confidence.double(),
            'warm_start': start,
        }
        assert_same(
            conv(x, topology, weight, **options),
            loop(conv, x, topology, weight, **options),
        )
    hard = make(heads=2)
    options = {'mask': mask, 'warm_start': start}
    out = hard(x, topology, weight, **options)
    assert_same(out, loop(hard, x, topology, weight, **options))
    assert torch.equal(out[mask], x[mask])


@pytest.mark.parametrize('own', [False, True], ids=['shared', 'own'])
def test_state(own):
    x, topology, weight, mask = make_input(2, own)
    conv = GTVConv(2, 2, heads=2)
    out, state = conv(x, topology, weight, mask, return_state=True)
    assert state.shape == (B, topology.num_edges, F, 2)
    further = conv(out, topology, weight, mask, state=state)
    for b in range(B):
        w = weight[b] if own else weight
        one, dual = conv(x[b], topology, w, mask[b], return_state=True)
        assert_same(state[b], dual)
        assert_same(further[b], conv(one, topology, w, mask[b], state=dual))


def test_both_directions_of_weights():
    # In the order of `edge_index`, as PyG gives them.
    graph = random_graph(N, 2 * N, dtype=torch.float64)
    x = torch.randn(B, N, F).double()
    factor = torch.rand(B, 1, 1).double()
    weight = graph.edge_weight.view(1, -1, 1) * factor
    conv = GLRConv(3)
    out = conv(x, graph.edge_index, weight)
    assert_same(out, loop(conv, x, graph.edge_index, weight))


def test_learned_graphs_of_samples():
    _, topology, *_ = make_input(1, False)
    features = torch.randn(B, N, 5).double()
    for normalization in ('sym', None):
        graph = MahalanobisGraph(5, 3, normalization=normalization)
        for function in (graph.distances, graph.edge_weights):
            out = function(features, topology)
            single = [function(f, topology) for f in features]
            assert_same(out, torch.stack(single))


def test_gradients_of_a_learned_graph():
    x, topology, _, mask = make_input(1, False)
    graph, conv = MahalanobisGraph(2, 2).double(), GLRConv(2, heads=2).double()

    def function(features, x):
        weight = graph.edge_weights(features, topology)
        return conv(x, topology, weight, mask)

    features = torch.randn(B, N, 2).double().requires_grad_()
    assert gradcheck(function, (features, x.requires_grad_()))


@parametrize_convs
def test_compile(make):
    x, topology, weight, mask = make_input(2, True, torch.float32)
    weight.requires_grad_()
    assert_compiles(
        make(heads=2), x, topology, weight, mask, backend='aot_eager'
    )
