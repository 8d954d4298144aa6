"""Extreme values, copies, threads and processes."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GraphDemosaic,
    GraphInterpolator,
    GridGraph,
    GTVConv,
    KNNGraph,
    MahalanobisGraph,
    Topology,
    UnrolledGTV,
    image_to_data,
    mosaic,
    solvers,
)
from pyg_unroll.imaging import DifferenceBlock, SelfEnsemble, Tiled
from pyg_unroll.testing import assert_same
from tests.oracles import random_graph

CONVS = {
    'GLRConv': lambda **kwargs: GLRConv(4, **kwargs),
    'GLRConv2': lambda **kwargs: GLRConv(3, order=2, **kwargs),
    'GTVConv': lambda **kwargs: GTVConv(3, 2, **kwargs),
}
parametrize_convs = pytest.mark.parametrize(
    'make', CONVS.values(), ids=list(CONVS)
)
EMPTY = torch.empty(2, 0, dtype=torch.long)


@parametrize_convs
@pytest.mark.parametrize('shape', [(0, 1), (1, 1), (5, 0)])
def test_empty_signals_and_single_nodes(make, shape):
    x = torch.randn(shape).requires_grad_()
    conv = make(heads=2)
    out = conv(x, EMPTY)
    # Nothing to smooth with: the observations come back.
    assert_same(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize('solve', [solvers.glr, solvers.gtv])
@pytest.mark.parametrize('num_nodes', [0, 1, 4])
def test_solvers_without_edges(solve, num_nodes):
    x = torch.randn(num_nodes, 2)
    result = solve(x, EMPTY)
    assert result.converged
    assert_same(result.x, x)


@pytest.mark.parametrize('scale', [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize('order', [1, 2])
def test_glr_does_not_depend_on_the_unit_of_weights(scale, order):
    graph = random_graph(30, 60)
    x, mask = torch.randn(30, 2), torch.arange(30) % 4 == 0
    conv = GLRConv(6, order=order)
    x.requires_grad_()
    outputs, grads = [], []
    for unit in (1.0, scale):
        weight = graph.edge_weight * unit
        out = conv(x, graph.edge_index, weight, mask)
        outputs.append(out.detach())
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert_same(*outputs)
    assert_same(*grads)


def test_gtv_refuses_weights_whose_squares_overflow():
    graph = random_graph(9, 9)
    x = torch.randn(9, 1)
    for dtype, limit in (
        (torch.float16, 10.0),
        (torch.float32, 1e17),
        (torch.float64, 1e152),
    ):
        weight = graph.edge_weight.to(dtype)
        weight = weight / weight.max()
        args = x.to(dtype), graph.edge_index
        assert bool(GTVConv(3)(*args, weight * limit).isfinite().all())
        with pytest.raises(ValueError, match='too large for'):
            GTVConv(3)(*args, weight * limit * 100)


@parametrize_convs
def test_expanded_inputs(make):
    graph = random_graph(12, 20)
    x = torch.randn(12, 1).expand(-1, 2)
    weight = graph.edge_weight.unsqueeze(1).expand(-1, 2)
    mask = (torch.arange(12) % 3 == 0).unsqueeze(1).expand(-1, 2)
    conv = make(heads=2)
    out = conv(x, graph.edge_index, weight, mask)
    whole = (v.contiguous() for v in (x, graph.edge_index, weight, mask))
    assert torch.equal(out, conv(*whole))


def models():
    image = mosaic(torch.rand(3, 6, 6))
    points = Data(x=torch.randn(9, 1), pos=torch.rand(9, 2))
    grid = GridGraph(8)(image)
    return {
        'Demosaic': (
            SelfEnsemble(Tiled(Demosaic([DifferenceBlock(8)]), 5000), 2),
            image,
        ),
        'uGTV': (UnrolledGTV(1, graph=KNNGraph(3), num_blocks=1), points),
        'GraphDemosaic': (GraphDemosaic('gtv'), image),
        'MahalanobisGraph': (MahalanobisGraph(3), grid),
        'GridGraph': (GridGraph(4), image),
        'KNNGraph': (KNNGraph(2), points),
    }


@pytest.mark.parametrize(
    'name',
    [
        'Demosaic',
        'GraphDemosaic',
        'GridGraph',
        'KNNGraph',
        'MahalanobisGraph',
        'uGTV',
    ],
)
def test_copies_and_pickles(name):
    model, data = models()[name]

    def result(model, data):
        out = model(data)
        if isinstance(out, Data):
            return out.get('edge_weight', out.edge_index.float())
        return out

    expected = result(model, data)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for given in (data, copy.deepcopy(data)):
            assert torch.equal(result(twin, given), expected)
    if isinstance(model, torch.nn.Module):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert torch.equal(result(model, data), expected)


def test_copies_of_topologies_and_estimators():
    graph = random_graph(9, 9)
    topology = Topology.from_edge_index(graph.edge_index, 9)
    for twin in (copy.deepcopy(topology), pickle.loads(pickle.dumps(topology))):
        assert torch.equal(twin.edge_index, graph.edge_index)
    data = Data(x=torch.randn(9), mask=torch.arange(9) > 2)
    data.edge_index = graph.edge_index
    fitted = GraphInterpolator().fit(data)
    assert_same(copy.deepcopy(fitted).predict(), fitted.predict())


@parametrize_convs
def test_threads(make):
    # Graphs are remembered, and kernels shared, between threads.
    conv = make()
    graphs = [random_graph(40, 80) for _ in range(3)]
    x = torch.randn(40, 2)

    def work(k):
        graph = graphs[k % 3]
        leaf = x.clone().requires_grad_()
        out = conv(leaf, graph.edge_index, graph.edge_weight)
        return out.detach(), torch.autograd.grad(out.square().sum(), leaf)[0]

    expected = [work(k) for k in range(3)]
    graphs[:] = [
        type(g)(g.edge_index.clone(), *g[1:]) for g in graphs
    ]  # not remembered yet
    with ThreadPoolExecutor(4) as pool:
        for k, results in enumerate(pool.map(work, range(24))):
            assert all(map(torch.equal, results, expected[k % 3]))


def make_example(k):
    generator = torch.Generator().manual_seed(k)
    image = torch.rand((3, 5, 4), generator=generator)
    data = Compose([GridGraph(8), MahalanobisGraph(3)])(image_to_data(image))
    data.mask = torch.arange(data.num_nodes) % 3 == k % 3
    points = Data(pos=data.x, num_nodes=data.num_nodes)
    data.near_edge_index = KNNGraph(3)(points).edge_index
    out = GLRConv(2)(data.x, data.edge_index, mask=data.mask)
    data.filled = out.detach()
    return data.apply(torch.Tensor.detach)


class Examples(torch.utils.data.Dataset):
    """Made in the worker: transforms, and a layer's kernels."""

    def __len__(self):
        return 6

    def __getitem__(self, k):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        return make_example(k)


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_of_a_loader(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no '{method}' on this system")
    examples = Examples()
    loader = DataLoader(
        examples,
        batch_size=2,
        num_workers=1 if method == 'spawn' else 2,
        multiprocessing_context=method,
        timeout=300,
    )
    conv = GLRConv(2)
    for k, batch in enumerate(loader):
        expected = Batch.from_data_list([examples[2 * k], examples[2 * k + 1]])
        for key in (
            'x',
            'edge_index',
            'edge_weight',
            'near_edge_index',
            'filled',
        ):
            assert torch.equal(batch[key], expected[key]), key
        out = conv(batch.x, batch.edge_index, mask=batch.mask)
        assert_same(out, batch.filled)
    assert k == 2
