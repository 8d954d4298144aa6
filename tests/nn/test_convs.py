"""What holds for every unrolled layer."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MessagePassing, Sequential, to_hetero
from torch_geometric.typing import SparseTensor

from pyg_unroll import GLRConv, GTVConv, Topology, UnrolledGLR, UnrolledGTV
from pyg_unroll.testing import (
    assert_batch_equals_loop,
    assert_compiles,
    assert_exports,
    assert_permutation_equivariant,
    assert_same,
)
from tests.oracles import random_graph

CONVS = {
    'GLRConv': lambda **kwargs: GLRConv(num_steps=5, **kwargs),
    'GLRConv2': lambda **kwargs: GLRConv(num_steps=3, order=2, **kwargs),
    'GTVConv': lambda **kwargs: GTVConv(num_iters=3, num_steps=2, **kwargs),
}
N, F = 14, 2
parametrize_convs = pytest.mark.parametrize(
    'make', CONVS.values(), ids=list(CONVS)
)


def make_input(heads=None, dtype=torch.float32, num_nodes=N, features=F):
    graph = random_graph(num_nodes, 2 * num_nodes, heads, dtype)
    x = torch.randn(num_nodes, features, dtype=dtype)
    # Each feature has known and unknown entries.
    mask = torch.rand(num_nodes, features) < 0.4
    mask[0], mask[1] = True, False
    return x, graph.edge_index, graph.edge_weight, mask


@parametrize_convs
@pytest.mark.parametrize(
    ('dtype', 'heads'),
    [
        (torch.float64, 1),
        (torch.float32, 3),
        (torch.bfloat16, 1),
        (torch.float16, 2),
    ],
)
def test_known_entries_are_bit_identical(make, dtype, heads, device):
    x, edge_index, weight, mask = make_input(heads, dtype)
    conv = make(heads=heads).to(device)
    conv.head_logits.data.normal_()
    x, mask, edge_index = x.to(device), mask.to(device), edge_index.to(device)
    for known in (mask, mask[:, 0]):
        out = conv(x, edge_index, weight.to(device), known)
        assert out.dtype == dtype and out.shape == x.shape
        assert torch.equal(out[known], x[known])
        assert not torch.equal(out[~known], x[~known])
        assert bool(out.isfinite().all())


@parametrize_convs
def test_mask_of_nodes_is_mask_of_entries(make):
    x, edge_index, weight, mask = make_input()
    conv, nodes = make(heads=2), mask[:, :1]
    expected = conv(x, edge_index, weight, nodes.expand_as(x))
    for known in (nodes, nodes[:, 0]):
        assert_same(conv(x, edge_index, weight, known), expected)
    # Features do not see each other.
    for f in range(F):
        single = conv(x[:, f : f + 1], edge_index, weight, mask[:, f])
        together = conv(x, edge_index, weight, mask)
        assert_same(single, together[:, f : f + 1])


@parametrize_convs
@pytest.mark.parametrize(
    ('fidelity', 'dtype'), [('hard', torch.float64), ('soft', torch.bfloat16)]
)
def test_constants_are_reproduced(make, fidelity, dtype):
    x, edge_index, weight, mask = make_input(2, dtype)
    x = torch.full_like(x, 0.3)
    conv = make(heads=2, fidelity=fidelity)
    for known in (mask, None):
        assert_same(conv(x, edge_index, weight, known), x)


@parametrize_convs
def test_shares_of_heads_sum_to_one(make):
    # Also where parameters are less precise than signals.
    x, edge_index, weight, mask = make_input(2, torch.float64)
    conv = make(heads=2)
    conv.head_logits.data = torch.tensor([0.3, -1.0])
    x = torch.full_like(x, 0.3)
    assert_same(conv(x, edge_index, weight, mask), x)


@parametrize_convs
@pytest.mark.parametrize(('fidelity', 'heads'), [('hard', 2), ('soft', None)])
def test_permutation_equivariance(make, fidelity, heads):
    conv = make(heads=heads or 1, fidelity=fidelity)
    x, edge_index, weight, mask = make_input(heads, torch.float64)
    for arguments in ((weight, mask), (weight, None), (None, mask[:, 0])):
        assert_permutation_equivariant(conv, x, edge_index, *arguments)


@parametrize_convs
def test_batch_equals_loop(make):
    conv = make(heads=2)
    examples = []
    for num_nodes in (5, 14, 8):
        x, edge_index, weight, mask = make_input(2, torch.float64, num_nodes)
        examples.append(
            Data(x=x, edge_index=edge_index, edge_weight=weight, mask=mask)
        )
    assert_batch_equals_loop(
        lambda data: conv(data.x, data.edge_index, data.edge_weight, data.mask),
        examples,
    )


@parametrize_convs
def test_layouts(make, device):
    x, edge_index, weight, mask = (y.to(device) for y in make_input())
    conv = make().to(device)
    expected = conv(x, edge_index, weight, mask)
    adj = torch.sparse_coo_tensor(
        edge_index, weight, (N, N), check_invariants=True
    ).coalesce()
    topology = Topology.from_edge_index(edge_index, N)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # CSR is in beta state
        sparse = [adj, adj.to_sparse_csr(), adj.to_sparse_csc()]
    for layout in sparse:
        out = conv(x, layout, mask=mask)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    for layout, edge_weight in [
        (EdgeIndex(edge_index, sparse_size=(N, N)), weight),
        (edge_index.int(), weight),
        (topology, topology.undirected_weight(weight)),
        (topology, topology.undirected_weight(weight).squeeze(1)),
    ]:
        out = conv(x, layout, edge_weight, mask)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@parametrize_convs
def test_sparse_tensor(make):
    pytest.importorskip('torch_sparse')
    x, edge_index, weight, mask = make_input()
    conv = make()
    expected = conv(x, edge_index, weight, mask)
    adj_t = SparseTensor.from_edge_index(edge_index, weight, (N, N)).t()
    out = conv(x, adj_t, mask=mask)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    without = SparseTensor.from_edge_index(edge_index, None, (N, N)).t()
    assert_same(conv(x, without, mask=mask), conv(x, edge_index, mask=mask))
    with pytest.raises(ValueError, match=r"\[14, 14\], but 'x' has 13"):
        conv(x[:-1], adj_t, mask=mask[:-1])


@parametrize_convs
@pytest.mark.parametrize('num_edges', [None, 0])
def test_sparse_tensor_of_heads(make, num_edges):
    pytest.importorskip('torch_sparse')
    x, edge_index, weight, mask = make_input()
    edge_index = edge_index[:, :num_edges]
    weight = torch.stack([weight, 2 * weight], dim=1)[:num_edges]
    adj_t = SparseTensor.from_edge_index(edge_index, weight, (N, N)).t()
    conv = make(heads=2)
    assert_same(conv(x, adj_t, mask=mask), conv(x, edge_index, weight, mask))


@parametrize_convs
@pytest.mark.parametrize('layout', ['csr', 'coo', 'edge_index'])
def test_gradients_reach_weights_in_each_layout(make, layout):
    x, edge_index, weight, mask = make_input()
    conv, size = make(), (N, N)
    reference = weight.clone().requires_grad_()
    conv(x, edge_index, reference, mask).square().sum().backward()
    weight.requires_grad_()
    if layout == 'edge_index':
        out = conv(x, EdgeIndex(edge_index, sparse_size=size), weight, mask)
        out.square().sum().backward()
        assert_same(weight.grad, reference.grad)
        return
    adj = torch.sparse_coo_tensor(
        edge_index, weight, size, check_invariants=True
    ).coalesce()
    adj = adj.to_sparse_csr() if layout == 'csr' else adj
    conv(x, adj, mask=mask).square().sum().backward()
    assert_same(weight.grad, reference.grad)


@parametrize_convs
def test_weights_of_one_head_serve_all(make):
    x, edge_index, weight, mask = make_input()
    conv = make(heads=2)
    expected = conv(x, edge_index, weight, mask)
    both = weight.unsqueeze(1).expand(-1, 2)
    assert_same(conv(x, edge_index, both, mask), expected)
    # Equal heads are as good as one.
    assert_same(make()(x, edge_index, weight, mask), expected)
    ones = torch.ones_like(weight)
    assert_same(
        conv(x, edge_index, None, mask), conv(x, edge_index, ones, mask)
    )


@parametrize_convs
def test_heads_are_averaged(make):
    x, edge_index, weight, mask = make_input(2, torch.float64)
    conv = make(heads=2).double()
    conv.head_logits.data = torch.tensor([0.0, 1.0]).double()
    share = conv.head_logits.softmax(0)
    single = [
        make().double()(x, edge_index, weight[:, head], mask)
        for head in range(2)
    ]
    expected = share[0] * single[0] + share[1] * single[1]
    assert_same(conv(x, edge_index, weight, mask), expected)


@parametrize_convs
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
def test_warm_start(make, fidelity):
    x, edge_index, weight, mask = make_input()
    conv = make(fidelity=fidelity)
    start = torch.randn_like(x)
    out = conv(x, edge_index, weight, mask, warm_start=start)
    assert not torch.allclose(out, conv(x, edge_index, weight, mask))
    # The same as putting it where nothing is known: entries of `x` there are
    # the start, and are no observations.
    mixed = torch.where(mask, x, start)
    if fidelity == 'hard':
        assert_same(out, conv(mixed, edge_index, weight, mask))
    else:
        expected = conv(mixed, edge_index, weight, mask, warm_start=start)
        assert_same(out, expected)
    assert_same(
        conv(x, edge_index, weight, mask, warm_start=x),
        conv(x, edge_index, weight, mask),
    )


@parametrize_convs
def test_stacking_goes_on_where_the_first_stopped(make):
    x, edge_index, weight, mask = make_input(dtype=torch.float64)
    conv = make()
    once = conv(x, edge_index, weight, mask)
    twice = conv(once, edge_index, weight, mask)
    assert_same(twice, conv(x, edge_index, weight, mask, warm_start=once))


@pytest.mark.usefixtures('each_backend')
@parametrize_convs
@pytest.mark.parametrize(('fidelity', 'heads'), [('hard', 1), ('soft', 2)])
def test_gradients(make, fidelity, heads):
    # Signals far apart: no difference is near a kink of the soft threshold.
    torch.manual_seed(3)
    graph = random_graph(5, 3, heads, torch.float64, shuffle=False)
    topology = Topology.from_edge_index(graph.edge_index, 5)
    weight = topology.undirected_weight(graph.edge_weight)
    x = 3 * torch.randn(5, 2, dtype=torch.float64)
    mask = torch.tensor([[1, 0], [0, 1], [0, 0], [1, 0], [0, 1]]).bool()
    conv = make(heads=heads, fidelity=fidelity).double()
    names = [name for name, _ in conv.named_parameters()]

    def function(x, weight, *parameters):
        return torch.func.functional_call(
            conv,
            dict(zip(names, parameters, strict=True)),
            (x, topology, weight, mask),
        )

    arguments = (
        x.requires_grad_(),
        weight.requires_grad_(),
        *(p.detach().requires_grad_() for p in conv.parameters()),
    )
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments, fast_mode=True)
    # To be differentiated again, they are computed in another way.
    first, second = (
        torch.autograd.grad(
            function(*arguments).sin().sum(),
            arguments,
            create_graph=create_graph,
            materialize_grads=True,
        )
        for create_graph in (False, True)
    )
    assert_same(first, tuple(second))


@parametrize_convs
def test_gradients_of_directed_weights(make):
    graph = random_graph(5, 3, None, torch.float64, shuffle=True)
    x = 3 * torch.randn(5, 1, dtype=torch.float64)
    mask = torch.tensor([1, 0, 0, 1, 0]).bool()
    # `gradcheck` moves one direction at a time.
    conv = make(validate_args=False).double()

    def function(x, weight):
        return conv(x, graph.edge_index, weight, mask)

    arguments = x.requires_grad_(), graph.edge_weight.requires_grad_()
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments, fast_mode=True)


@parametrize_convs
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
@pytest.mark.parametrize('heads', [1, 2])
def test_gradients_reach_parameters(make, heads, fidelity):
    x, edge_index, weight, mask = make_input(heads)
    conv = make(heads=heads, fidelity=fidelity)
    state = conv.state_dict()
    parameters = dict(conv.named_parameters())
    # The share of an only head is one.
    assert state.keys() - parameters.keys() == (
        {'head_logits'} if heads == 1 else set()
    )
    for known in (mask, None):
        conv.zero_grad()
        conv(x, edge_index, weight, known).square().sum().backward()
        held = fidelity == 'hard' and known is not None
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
            matters = bool((parameter.grad != 0).any())
            assert matters == (name != 'log_mu' or not held), name


@parametrize_convs
def test_sequential_and_batch(make):
    x, edge_index, weight, mask = make_input(dtype=torch.float64)
    module = Sequential(
        'x, edge_index, edge_weight, mask',
        [
            (make(), 'x, edge_index, edge_weight, mask -> x'),
            (make(fidelity='soft'), 'x, edge_index, edge_weight -> x'),
        ],
    )
    first, second = make(), make(fidelity='soft')
    expected = first(x, edge_index, weight, mask)
    expected = second(expected, edge_index, weight)
    assert_same(module(x, edge_index, weight, mask), expected)
    data = Data(x=x, edge_index=edge_index, edge_weight=weight, mask=mask)
    batch = Batch.from_data_list([data, data])
    out = module(batch.x, batch.edge_index, batch.edge_weight, batch.mask)
    assert_same(out, torch.cat([expected, expected]))


class Net(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


@parametrize_convs
def test_to_hetero(make):
    x = torch.randn(N, F)
    first, second = (random_graph(N, N).edge_index for _ in range(2))
    relations = [('node', 'near', 'node'), ('node', 'like', 'node')]
    net = to_hetero(Net(make()), (['node'], relations), aggr='mean')
    out = net({'node': x}, dict(zip(relations, (first, second), strict=True)))
    expected = (make()(x, first) + make()(x, second)) / 2
    assert_same(out['node'], expected)


@parametrize_convs
def test_to_hetero_refuses_bipartite_relations(make):
    relations = [('a', 'to', 'b'), ('b', 'to', 'a')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        net = to_hetero(Net(make()), (['a', 'b'], relations))
    signals = {'a': torch.randn(3, F), 'b': torch.randn(4, F)}
    edges = {name: torch.tensor([[0], [1]]) for name in relations}
    with pytest.raises(ValueError, match='no bipartite form'):
        net(signals, edges)


@pytest.mark.parametrize(
    ('name', 'fidelity'),
    [
        ('GLRConv', 'hard'),
        ('GLRConv', 'soft'),
        ('GLRConv2', 'soft'),
        ('GTVConv', 'hard'),
        ('GTVConv', 'soft'),
    ],
)
def test_compile(name, fidelity):
    x, edge_index, weight, mask = make_input(2)
    conv = CONVS[name](heads=2, fidelity=fidelity)
    topology = Topology.from_edge_index(edge_index, N)
    undirected = topology.undirected_weight(weight).requires_grad_()
    x.requires_grad_()
    assert_compiles(conv, x, topology, undirected, mask, backend='aot_eager')


def test_compile_builds_the_graph():
    x, edge_index, weight, mask = make_input(2)
    conv = GLRConv(2, heads=2)
    weight.requires_grad_()
    assert_compiles(conv, x, edge_index, weight, mask, backend='aot_eager')


@parametrize_convs
def test_compiles_once_for_all_sizes(make):
    conv, counter = make(), CompileCounterWithBackend('aot_eager')
    torch.compiler.reset()
    compiled = torch.compile(
        conv, fullgraph=True, dynamic=True, backend=counter
    )
    for num_nodes in range(5, 25):
        graph = random_graph(num_nodes, 2 * num_nodes)
        mask = torch.rand(num_nodes) < 0.5
        mask[0], x = True, torch.randn(num_nodes, 2)
        with torch.no_grad():
            out = compiled(x, graph.edge_index, None, mask)
            assert_same(out, conv(x, graph.edge_index, None, mask))
    assert counter.frame_count == 1


@pytest.mark.parametrize('layer', [GLRConv, GTVConv, UnrolledGLR, UnrolledGTV])
def test_first_lines_say_what_compiled_layers_do_not_check(layer):
    first = ' '.join(layer.__doc__.split())[:600]
    assert 'nder :meth:`torch.compile` no values are checked' in first


@pytest.mark.parametrize(
    'edge_index, match',
    [
        ([[0], [1]], 'no reverse edge'),
        ([[0, 0], [0, 0]], 'self-loop'),
        ([[0, 1, 0, 1], [1, 0, 1, 0]], 'duplicate edge'),
        ([[-1, 0], [0, -1]], 'out of range'),
        ([[0, N], [N, 0]], 'out of range'),
    ],
)
def test_a_topology_refuses_what_layers_do(edge_index, match):
    edge_index = torch.tensor(edge_index)
    with pytest.raises(ValueError, match=match) as by_layer:
        GLRConv(1)(torch.randn(N, F), edge_index)
    with pytest.raises(ValueError, match=match) as by_topology:
        Topology.from_edge_index(edge_index, N)
    ours, other = str(by_topology.value), str(by_layer.value)
    assert ours == other


def test_compile_by_inductor():
    x, edge_index, *_ = make_input()
    topology = Topology.from_edge_index(edge_index, N)
    with torch.no_grad():
        assert_compiles(GLRConv(1), x, topology)


@parametrize_convs
def test_torch_checkpoint(make):
    x, edge_index, weight, _ = make_input(dtype=torch.float64)
    conv = make().double()
    x.requires_grad_()
    out = checkpoint(conv, x, edge_index, weight, use_reentrant=False)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    out = conv(x, edge_index, weight)
    (expected,) = torch.autograd.grad(out.square().sum(), x)
    assert_same(grad, expected)


@parametrize_convs
def test_export(make):
    x, edge_index, weight, mask = make_input(2)
    assert_exports(make(heads=2), x, edge_index, weight, mask)
    conv, topology = make(), Topology.from_edge_index(edge_index, N)

    class OnFixedGraph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x, weight):
            return self.conv(x, topology, weight)

    assert_exports(OnFixedGraph(), x, topology.undirected_weight(weight)[:, :1])


@parametrize_convs
def test_reset_copy_and_state_dict(make):
    x, edge_index, weight, mask = make_input(2)
    conv = make(heads=2)
    initial = copy.deepcopy(conv.state_dict())
    for parameter in conv.parameters():
        parameter.data.uniform_(0.1, 0.9)
    out = conv(x, edge_index, weight, mask)
    copied, loaded = copy.deepcopy(conv), make(heads=2)
    loaded.load_state_dict(conv.state_dict())
    assert torch.equal(copied(x, edge_index, weight, mask), out)
    assert torch.equal(loaded(x, edge_index, weight, mask), out)
    assert not torch.equal(make(heads=2)(x, edge_index, weight, mask), out)
    conv.reset_parameters()
    for name, value in conv.state_dict().items():
        assert torch.equal(value, initial[name]), name
        assert bool(value.isfinite().all()), name
    assert isinstance(conv, MessagePassing)


@parametrize_convs
def test_input_is_not_changed(make):
    arguments = make_input()
    before = [y.clone() for y in arguments]
    make()(*arguments)
    for one, other in zip(arguments, before, strict=True):
        assert torch.equal(one, other)


@parametrize_convs
def test_same_bits_in_each_run(make, device):
    arguments = [y.to(device) for y in make_input(num_nodes=300)]
    conv = make().to(device)
    out = conv(*arguments)
    assert all(torch.equal(out, conv(*arguments)) for _ in range(3))


@parametrize_convs
def test_isolated_nodes_keep_their_start(make):
    x = torch.randn(4, 1)
    edge_index = torch.tensor([[0, 1], [1, 0]])
    mask = torch.tensor([True, False, False, True])
    out = make()(x, edge_index, mask=mask)
    assert torch.equal(out[2:], x[2:])
    # No edges at all, and edges of weight zero, change nothing.
    empty = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(make()(x, empty, mask=mask), x)
    assert_same(make()(x, edge_index, torch.zeros(2), mask), x)


@parametrize_convs
def test_confidence(make):
    x, edge_index, weight, mask = make_input(dtype=torch.float64)
    conv = make(fidelity='soft')
    ones = torch.ones(N)
    expected = conv(x, edge_index, weight, mask)
    assert_same(conv(x, edge_index, weight, mask, confidence=ones), expected)
    # A mask is a confidence of zero and one.
    out = conv(x, edge_index, weight, confidence=mask.double())
    assert_same(out, expected)
    half = conv(x, edge_index, weight, mask, confidence=ones / 2)
    assert not torch.allclose(half, expected)
    # Without a mask, hard fidelity is the same layer.
    assert_same(make()(x, edge_index, weight), conv(x, edge_index, weight))


@parametrize_convs
def test_checks_can_be_switched_off(make):
    x, edge_index, weight, mask = make_input()
    x[0, 0] = float('nan')
    out = make(validate_args=False)(x, edge_index, weight, mask)
    assert bool(out.isnan().any())


@parametrize_convs
def test_autocast_leaves_the_solver_alone(make, device):
    x, edge_index, weight, mask = (v.to(device) for v in make_input(2))
    conv = make(heads=2).to(device)
    expected = conv(x, edge_index, weight, mask)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(conv(x, edge_index, weight, mask), expected)


@pytest.mark.parametrize('conv', [partial(GLRConv, 4), partial(GTVConv, 2, 4)])
def test_all_entries_known(conv):
    edge_index, weight = random_graph(N, 3 * N)[:2]
    x, mask = torch.rand(N, 3), torch.ones(N).bool()
    assert torch.equal(conv()(x, edge_index, weight, mask), x)
    soft = conv(fidelity='soft')
    assert_same(soft(x, edge_index, weight, mask), soft(x, edge_index, weight))


@parametrize_convs
@pytest.mark.parametrize('batch', [0, 2])
@pytest.mark.parametrize('own', [False, True])
def test_shapes_of_samples(make, batch, own, device):
    x, edge_index, weight, _ = make_input()
    x = x.new_ones((batch, *x.shape)).to(device)
    if own:
        weight = weight.view(1, -1, 1).expand(batch, -1, 1)
    conv = make().to(device)
    args = x, edge_index.to(device), weight.to(device)
    assert conv(*args).shape == x.shape
    if isinstance(conv, GTVConv):
        state = conv(*args, return_state=True)[1]
        assert state.shape == (batch, edge_index.size(1) // 2, F, 1)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@parametrize_convs
def test_nodes_of_small_degree_move_in_half_precision(make, dtype, device):
    # Weights of a learned graph: the degrees are mostly below one.
    graph = random_graph(30, 60)
    row, col = graph.edge_index
    degree = torch.zeros(30).index_add_(0, row, graph.edge_weight)
    weight = 0.3 * graph.edge_weight / (degree[row] * degree[col]).sqrt()
    x, mask = torch.randn(30, 2), torch.arange(30) % 4 == 0
    conv = make().to(device)
    args = graph.edge_index.to(device), weight.to(device), mask.to(device)
    x = x.to(device)
    expected = conv(x, *args)
    out = conv(x.to(dtype), *args).float()
    assert bool(((out - expected).abs() < 0.06).all())
    assert bool(((out - x).abs()[~args[2]] > 1e-4).all())
