import copy

import pytest
import torch
import torch_geometric.transforms as T
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.parameter import UninitializedParameter
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform

from pyg_unroll import (
    GLRConv,
    GridGraph,
    KNNGraph,
    MahalanobisGraph,
    Topology,
    image_to_data,
)
from pyg_unroll.testing import (
    assert_batch_equals_loop,
    assert_compiles,
    assert_laplacian,
    assert_permutation_equivariant,
    assert_same,
)
from tests.oracles import random_graph

NORMALIZATIONS = ['sym', 'row', None]
N, C = 12, 3


def make(dtype=torch.float32, scale=1.0, num_nodes=N):
    graph = random_graph(num_nodes, 2 * num_nodes)
    x = scale * torch.randn(num_nodes, C).to(dtype)
    return Data(x=x, edge_index=graph.edge_index)


def dense_weights(data, metric, normalization):
    """From the definition, on the adjacency matrix, in float64."""
    x = data.x.double()
    adjacency = torch.zeros(len(x), len(x), dtype=torch.bool)
    adjacency[tuple(data.edge_index)] = True
    difference = x[:, None] - x[None]
    distance = torch.einsum('ijc,cd,ijd->ij', difference, metric, difference)
    kernel = torch.where(adjacency, (-distance).exp(), 0)
    if normalization == 'row':
        kernel = kernel / kernel.sum(0)
    elif normalization == 'sym':
        degree = kernel.sum(1)
        kernel = kernel / (degree[:, None] * degree[None]).sqrt()
    return kernel[tuple(data.edge_index)]


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('heads, rank', [(1, None), (3, None), (2, 2), (1, 5)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_definition(normalization, heads, rank, dtype):
    data = make(dtype)
    before = copy.deepcopy(data)
    graph = MahalanobisGraph(C, heads, rank, normalization).to(dtype)
    out = graph(data)
    weight = out.edge_weight.view(-1, heads)
    assert out.edge_weight.dim() == (1 if heads == 1 else 2)
    assert weight.dtype == dtype and weight.requires_grad
    for head in range(heads):
        metric = graph.metric[head].detach().double()
        assert bool((torch.linalg.eigvalsh(metric) >= -1e-6).all())
        expected = dense_weights(data, metric, normalization).to(dtype)
        assert_same(weight[:, head], expected)
    assert data.keys() == before.keys()
    assert torch.equal(data.x, before.x)
    assert out.x is data.x and out.edge_index is data.edge_index


def test_row_is_dot_product_attention():
    data = make(torch.float64)
    graph = MahalanobisGraph(C, normalization='row').double()
    metric = graph.metric[0].detach()
    source, target = data.edge_index
    # Queries and keys share one projection; the keys' norm is added.
    projected = data.x @ graph.weight[0].detach().T
    logits = 2 * projected @ projected.T - projected.square().sum(1)
    assert_same(projected @ projected.T, data.x @ metric @ data.x.T)
    adjacency = torch.zeros(N, N, dtype=torch.bool)
    adjacency[target, source] = True
    attention = logits.masked_fill(~adjacency, -torch.inf).softmax(dim=1)
    assert_same(graph(data).edge_weight.detach(), attention[target, source])


@pytest.mark.parametrize('normalization', ['sym', None])
@pytest.mark.parametrize('heads', [1, 2])
def test_laplacian(normalization, heads):
    data = make(torch.float64)
    graph = MahalanobisGraph(C, heads, normalization=normalization).double()
    topology = Topology.from_edge_index(data.edge_index, N)
    weight = topology.undirected_weight(graph(data).edge_weight)
    assert_laplacian(topology, weight)
    assert_same(weight, graph.edge_weights(data.x, topology))


@pytest.mark.parametrize('normalization', ['sym', 'row'])
@pytest.mark.parametrize('scale', [1e3, 1e-3, 0.0])
def test_extreme_distances(normalization, scale):
    # exp(-d) underflows in all edges of a node; the ratio does not.
    data = make(scale=scale)
    data.x.requires_grad_()
    graph = MahalanobisGraph(C, normalization=normalization)
    weight = graph(data).edge_weight
    assert bool(weight.isfinite().all())
    assert float(weight.detach().max()) > 0
    total = torch.zeros(N).index_add_(0, data.edge_index[1], weight.detach())
    if normalization == 'row':
        assert_same(total, torch.ones(N))
    grads = torch.autograd.grad(weight.sum(), [data.x, graph.weight])
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
def test_gradients(normalization):
    data = make(torch.float64, num_nodes=5)
    graph = MahalanobisGraph(C, 2, 2, normalization).double()

    def function(x, weight):
        out = torch.func.functional_call(
            graph, {'weight': weight}, Data(x=x, edge_index=data.edge_index)
        )
        return out.edge_weight

    arguments = data.x.requires_grad_(), graph.weight
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


def test_gradient_of_node_with_one_neighbour():
    # Its log-degree is minus the distance, by whatever way it is computed.
    data = Data(
        x=torch.tensor([[0.0], [0.5]]).double().requires_grad_(),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
    )
    weight = MahalanobisGraph(1).double()(data).edge_weight
    assert_same(weight.detach(), torch.ones(2).double())
    (grad,) = torch.autograd.grad(weight.sum(), data.x)
    assert_same(grad, torch.zeros(2, 1).double())


def test_lazy():
    data = make()
    graph = MahalanobisGraph(-1, heads=2)
    assert isinstance(graph.weight, UninitializedParameter)
    graph.reset_parameters()
    out = graph(data)
    assert graph.weight.shape == (2, C, C) and graph.in_channels == C
    again = MahalanobisGraph(C, heads=2)
    again.load_state_dict(graph.state_dict())
    assert torch.equal(again(data).edge_weight, out.edge_weight)


def test_lazy_state_dict():
    data = make()
    lazy, graph = MahalanobisGraph(-1), MahalanobisGraph(C)
    graph.weight.data.mul_(0.5)
    lazy.weight.materialize((1, C, C))
    lazy.load_state_dict(graph.state_dict())
    assert torch.equal(lazy.weight, graph.weight)
    graph(data)
    unused = MahalanobisGraph(-1)
    unused.load_state_dict(MahalanobisGraph(-1).state_dict())
    assert isinstance(unused.weight, UninitializedParameter)


def test_initial_metric_is_euclidean():
    graph = MahalanobisGraph(C, heads=2)
    expected = torch.stack([torch.eye(C), torch.eye(C) / 4])
    assert_same(graph.metric.detach(), expected)
    graph.weight.data.fill_(7)
    graph.reset_parameters()
    assert_same(graph.metric.detach(), expected)


def test_copies():
    data = make()
    graph = MahalanobisGraph(C, heads=2)
    copied = copy.deepcopy(graph)
    assert torch.equal(copied(data).edge_weight, graph(data).edge_weight)
    copied.weight.data.mul_(2)
    assert not torch.equal(copied(data).edge_weight, graph(data).edge_weight)
    assert str(graph) == "MahalanobisGraph(3, heads=2, normalization='sym')"


@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('heads', [1, 2])
def test_batch(normalization, heads):
    graph = MahalanobisGraph(C, heads, normalization=normalization)
    examples = [make(num_nodes=n) for n in (4, 9, 6)]
    with torch.no_grad():
        assert_batch_equals_loop(graph, examples)
        assert_batch_equals_loop(
            T.Compose([KNNGraph(3), graph]),
            [Data(x=d.x, pos=d.x[:, :2]) for d in examples],
        )


def test_compose():
    transform = T.Compose([GridGraph(4), MahalanobisGraph(2)])
    data = Data(x=torch.rand(12, 2), height=3, width=4)
    out = transform(data)
    assert out.edge_weight.shape == (out.num_edges,)
    assert 'edge_weight' not in data and 'edge_index' not in data
    with pytest.raises(Exception, match='already taken'):
        functional_transform('mahalanobis_graph')(MahalanobisGraph)


@pytest.mark.parametrize('normalization', ['sym', None])
def test_permutation_equivariance(normalization):
    data = make(torch.float64)
    graph = MahalanobisGraph(C, 2, normalization=normalization).double()
    conv = GLRConv(3, heads=2)

    def function(x, edge_index, edge_weight, mask):
        learned = graph(Data(x=x, edge_index=edge_index))
        return conv(x, edge_index, learned.edge_weight, mask)

    mask = torch.arange(N) % 3 == 0
    assert_permutation_equivariant(
        function, data.x, data.edge_index, None, mask
    )


def test_other_attribute_and_vector_features():
    data = make()
    data.features = torch.rand(N)
    out = MahalanobisGraph(-1, attr='features')(data)
    expected = MahalanobisGraph(1)(
        Data(x=data.features.view(-1, 1), edge_index=data.edge_index)
    )
    assert_same(out.edge_weight, expected.edge_weight)


def test_compile():
    data = make()
    graph = MahalanobisGraph(C, heads=2)
    topology = Topology.from_edge_index(data.edge_index, N)
    x = data.x.requires_grad_()
    assert_compiles(
        lambda x: graph.edge_weights(x, topology), x, backend='aot_eager'
    )


def test_on_device(device):
    data = make()
    graph = MahalanobisGraph(C, heads=2)
    expected = graph(data).edge_weight
    out = copy.deepcopy(graph).to(device)(data.clone().to(device))
    assert out.edge_weight.device.type == device.type
    assert_same(out.edge_weight.cpu(), expected)


def test_isolated_nodes_and_no_edges():
    empty = torch.empty(2, 0, dtype=torch.long)
    for normalization in NORMALIZATIONS:
        graph = MahalanobisGraph(C, normalization=normalization)
        out = graph(Data(x=torch.rand(4, C), edge_index=empty))
        assert out.edge_weight.shape == (0,)
        pair = torch.tensor([[0, 2], [2, 0]])
        out = graph(Data(x=torch.rand(4, C), edge_index=pair))
        assert bool(out.edge_weight.isfinite().all())


@pytest.mark.parametrize(
    'kwargs, match',
    [
        ({'in_channels': 0}, "'in_channels' must be positive, or -1"),
        ({'in_channels': 3, 'heads': 0}, "'heads' must be a positive integer"),
        ({'in_channels': 3, 'rank': 0}, "'rank' must be a positive integer"),
        ({'in_channels': 3, 'normalization': 'l2'}, 'sym.*row.*None.*l2'),
        ({'in_channels': 3, 'floor': -0.1}, "'floor' must be a finite, non-n"),
        (
            {'in_channels': 3, 'normalization': 'row', 'floor': 0.1},
            r"'floor' must be 0 with normalization='row'.*got 0.1",
        ),
    ],
)
def test_wrong_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        MahalanobisGraph(**kwargs)


def test_wrong_data():
    data = make()
    graph = MahalanobisGraph(C)
    with pytest.raises(ValueError, match=r"no features 'x'.*'attr'"):
        graph(Data(edge_index=data.edge_index, num_nodes=N))
    with pytest.raises(ValueError, match=r"no 'edge_index'.*GridGraph"):
        graph(Data(x=data.x))
    with pytest.raises(ValueError, match=r'\[num_nodes, 3\].*\[12, 2\]'):
        graph(Data(x=data.x[:, :2], edge_index=data.edge_index))
    with pytest.raises(ValueError, match='no reverse edge'):
        graph(Data(x=data.x, edge_index=torch.tensor([[0], [1]])))
    topology = Topology.from_edge_index(data.edge_index, N)
    row = MahalanobisGraph(C, normalization='row')
    with pytest.raises(ValueError, match=r"'row'.*differ by direction"):
        row.edge_weights(data.x, topology)


@pytest.mark.parametrize('normalization', ['sym', None])
def test_floor(normalization):
    data = make(torch.float64, num_nodes=5)
    settings = {'heads': 2, 'rank': 2, 'normalization': normalization}
    plain = MahalanobisGraph(C, **settings).double()
    graph = MahalanobisGraph(C, **settings, floor=0.03).double()
    graph.load_state_dict(plain.state_dict())
    assert torch.equal(graph(data).edge_weight, plain(data).edge_weight + 0.03)
    topology = Topology.from_edge_index(data.edge_index, 5)
    samples = torch.randn(3, 5, C).double()
    assert torch.equal(
        graph.edge_weights(samples, topology),
        plain.edge_weights(samples, topology) + 0.03,
    )

    def function(x, weight):
        out = torch.func.functional_call(
            graph, {'weight': weight}, Data(x=x, edge_index=data.edge_index)
        )
        return out.edge_weight

    arguments = data.x.requires_grad_(), graph.weight
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments, fast_mode=True)
    # Nodes whose weights underflow stay connected.
    weight = graph(Data(x=100 * data.x, edge_index=data.edge_index)).edge_weight
    assert float(weight.detach().min()) >= 0.03


def test_row_weights_are_refused_by_the_layers():
    data = MahalanobisGraph(C, normalization='row')(make())
    mask = torch.arange(N) < 4
    with pytest.raises(ValueError, match=r"not symmetric.*'sym'"):
        GLRConv(2)(data.x, data.edge_index, data.edge_weight, mask)


@pytest.mark.parametrize('heads', (1, 2))
def test_topology_in_data(heads):
    data = GridGraph(4)(image_to_data(torch.rand(2, 4, 4)))
    metric = MahalanobisGraph(2, heads)
    expected = metric(data)
    topology = GridGraph(4).topology(data)
    data.edge_index = topology
    out = metric(data)
    conv = GLRConv(2, heads)
    assert_same(
        conv(data.x, topology, out.edge_weight),
        conv(expected.x, expected.edge_index, expected.edge_weight),
    )
    with pytest.raises(ValueError, match=r"'row'.*topology.edge_index"):
        MahalanobisGraph(2, normalization='row')(data)


@pytest.mark.parametrize('kind', ['adj_t', 'coo', 'csr'])
def test_sparse_matrix_in_data(kind):
    data = make()
    metric, mask = MahalanobisGraph(C, heads=2), torch.arange(N) < 4
    expected = metric(data)
    conv = GLRConv(2, heads=2)
    out = conv(data.x, data.edge_index, expected.edge_weight, mask)
    if kind == 'adj_t':
        data = T.ToSparseTensor()(data)
        edges = data.adj_t
    else:
        ones = torch.ones(data.num_edges)
        edges = torch.sparse_coo_tensor(data.edge_index, ones, (N, N))
        edges = edges.coalesce() if kind == 'coo' else edges.to_sparse_csr()
        data.edge_index = edges
    weight = metric(data).edge_weight
    assert_same(conv(data.x, edges, weight, mask), out)
    with pytest.raises(ValueError, match=r"'row'.*to_edge_index"):
        MahalanobisGraph(C, normalization='row')(data)


def test_lazy_takes_a_trained_state():
    trained, lazy = MahalanobisGraph(3, 2), MahalanobisGraph(-1, 2)
    lazy.load_state_dict(trained.state_dict())
    assert lazy.in_channels == 3 and torch.equal(lazy.weight, trained.weight)
