import gc
import weakref

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from pyg_unroll import GLRConv, GridGraph, Topology, image_to_data
from pyg_unroll.graph import resolve_graph
from pyg_unroll.testing import assert_laplacian, assert_same
from tests.oracles import random_graph


def resolve(edge_index, edge_weight=None, num_nodes=4, **kwargs):
    return resolve_graph(
        edge_index, edge_weight, num_nodes, torch.float32, **kwargs
    )


def path(num_nodes=4):
    src = torch.arange(num_nodes - 1)
    return to_undirected(torch.stack([src, src + 1]))


def test_topology():
    edge_index = torch.tensor([[2, 0, 1, 1], [1, 1, 0, 2]])
    topology = Topology.from_edge_index(edge_index, 4)
    assert topology.num_edges == 2 and topology.num_nodes == 4
    assert topology.src.tolist() == [0, 1]
    assert topology.dst.tolist() == [1, 2]
    assert topology.rowptr.tolist() == [0, 1, 3, 4, 4]
    assert topology.col.tolist() == [1, 0, 2, 1]
    assert topology.edge_id.tolist() == [0, 0, 1, 1]
    assert topology.sign.tolist() == [1, -1, 1, -1]
    assert topology.entry.tolist() == [[1, 2], [3, 0]]
    assert all(x.dtype != torch.int64 for x in topology.pack()[0][:-1])


def test_edge_index_roundtrip(device):
    edge_index = random_graph(50, 200).edge_index.to(device)
    topology = Topology.from_edge_index(edge_index, 50)
    assert torch.equal(topology.edge_index, edge_index)
    # CSR rows are sorted, and name the edge and its side.
    row = torch.arange(50, device=device).repeat_interleave(
        topology.rowptr.diff()
    )
    for r, c, e, s in zip(
        row.tolist(),
        topology.col.tolist(),
        topology.edge_id.tolist(),
        topology.sign.tolist(),
        strict=True,
    ):
        ends = int(topology.src[e]), int(topology.dst[e])
        assert ends == ((r, c) if s > 0 else (c, r))
    key = row * 50 + topology.col
    assert bool((key.diff() > 0).all())


def test_from_pairs_is_sorted_by_row():
    topology = Topology.from_pairs(
        torch.tensor([1, 0, 0]), torch.tensor([2, 2, 1]), 3
    )
    expected = [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]
    assert topology.edge_index.tolist() == expected
    again = Topology.from_edge_index(topology.edge_index, 3)
    assert torch.equal(again.edge_index, topology.edge_index)


def test_int32_edge_index():
    # In 32 bits, `row * num_nodes + col` is the same for both edges.
    num_nodes = 100_000
    edge_index = torch.tensor(
        [[0, 42949, 1, 67297, 0, 5], [1, 67297, 0, 42949, 5, 0]]
    )
    expected = Topology.from_edge_index(edge_index, num_nodes)
    assert expected.dst.tolist() == [1, 5, 67297]
    topology = Topology.from_edge_index(edge_index.int(), num_nodes)
    for one, other in zip(topology.pack()[0], expected.pack()[0], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(topology.edge_index, edge_index)
    pairs = torch.tensor([[0, 42949], [1, 67297]])
    expected = Topology.from_pairs(*pairs, num_nodes)
    again = Topology.from_pairs(*pairs.int(), num_nodes)
    for one, other in zip(again.pack()[0], expected.pack()[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    'edge_index, match',
    [
        ([[0, 1, 2], [1, 0, 2]], r'self-loop at edge \(2, 2\).*remove_self'),
        ([[0, 1, 9], [1, 0, 0]], r'out of range: edge \(9, 0\).*4 nodes'),
        ([[0, 1, -1], [1, 0, 0]], r'out of range: edge \(-1, 0\)'),
        ([[0, 1, 2], [1, 0, 3]], r'no reverse.*\(2, 3\).*to_undirected'),
        ([[0, 1, 3], [1, 0, 2]], r'no reverse.*\(3, 2\).*to_undirected'),
        ([[0, 0, 1, 1], [1, 1, 0, 0]], r'duplicate.*\(0, 1\).*coalesce'),
        ([[3, 3], [1, 1]], r'duplicate.*\(3, 1\).*coalesce'),
        ([[0, 1], [1, 0], [2, 1]], r'shape \[2, num_edges\].*\[3, 2\]'),
        ([0, 1], r'shape \[2, num_edges\]'),
        ([[0.0, 1.0], [1.0, 0.0]], r'integers.*float32.*long\(\)'),
    ],
)
def test_invalid_graph(edge_index, match):
    edge_index = torch.tensor(edge_index)
    with pytest.raises(ValueError, match=match):
        Topology.from_edge_index(edge_index, 4)
    with pytest.raises(ValueError, match=match):
        resolve(edge_index)


def test_transposed_graph():
    with pytest.raises(ValueError, match='transpose it'):
        resolve(path().t().contiguous())


def test_directed_and_undirected_weights():
    graph = random_graph(30, 60, heads=3)
    topology = Topology.from_edge_index(graph.edge_index, 30)
    weight = topology.undirected_weight(graph.edge_weight)
    assert weight.shape == (topology.num_edges, 3)
    assert torch.equal(topology.directed_weight(weight), graph.edge_weight)
    single = topology.undirected_weight(graph.edge_weight[:, 0])
    assert torch.equal(single, weight[:, :1])
    assert_laplacian(topology, weight)
    # By hand, through the edge list.
    table = dict(
        zip(
            map(tuple, graph.edge_index.t().tolist()),
            graph.edge_weight.tolist(),
            strict=True,
        )
    )
    for e in range(topology.num_edges):
        pair = int(topology.src[e]), int(topology.dst[e])
        assert table[pair] == weight[e].tolist()


def test_gradients_of_weights_are_symmetric():
    graph = random_graph(10, 20)
    topology = Topology.from_edge_index(graph.edge_index, 10)
    edge_weight = graph.edge_weight.requires_grad_()
    weight = topology.undirected_weight(edge_weight)
    factor = torch.randn_like(weight)
    (grad,) = torch.autograd.grad((weight * factor).sum(), edge_weight)
    assert_same(grad, topology.directed_weight(factor).squeeze(1) / 2)


def test_asymmetric_weights():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    weight = torch.tensor([1.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r'edge \(1, 2\).*2\.0.*3\.0') as info:
        resolve(edge_index, weight, 3)
    assert 'reduce="mean"' in str(info.value)
    # Rounding is forgiven, and an unchecked graph takes the mean.
    resolve(edge_index, torch.tensor([1.0, 1.0, 2.0, 2.0 + 1e-6]), 3)
    _, mean = resolve(edge_index, weight, 3, validate_args=False)
    assert mean.view(-1).tolist() == [1.0, 2.5]


@pytest.mark.parametrize('value', [-1.0, float('nan'), float('inf')])
def test_bad_weights(value):
    weight = torch.ones(6)
    edge_index = path()
    weight[(edge_index.sum(0) == 3)] = value
    with pytest.raises(ValueError, match=r'non-negative.*edge \(1, 2\)'):
        resolve(edge_index, weight)


def test_weights_of_wrong_shape():
    with pytest.raises(ValueError, match=r'shape \[6\].*\[6, heads\].*\[5\]'):
        resolve(path(), torch.ones(5))
    with pytest.raises(ValueError, match=r'got \[6, 1, 1\]'):
        resolve(path(), torch.ones(6, 1, 1))
    topology = Topology.from_edge_index(path(), 4)
    with pytest.raises(ValueError, match=r'shape \[3\]'):
        resolve(topology, torch.ones(6))
    with pytest.raises(ValueError, match=r"'weight' must have 3 rows.*\[6\]"):
        topology.directed_weight(torch.ones(6))


def test_weights_of_wrong_type():
    topology = Topology.from_edge_index(path(), 4)
    for read in (topology.undirected_weight, lambda w: resolve(path(), w)):
        with pytest.raises(ValueError, match="'edge_weight' must be a tensor"):
            read([1.0] * 6)
        with pytest.raises(ValueError, match=r'must be real.*complex64'):
            read(torch.ones(6).cfloat())


def test_wrong_number_of_nodes():
    topology = Topology.from_edge_index(path(), 4)
    with pytest.raises(ValueError, match="4 nodes, but 'x' has 5 rows"):
        resolve(topology, num_nodes=5)
    sparse = torch.eye(4).to_sparse_csr()
    with pytest.raises(ValueError, match=r"shape \[4, 4\], but 'x' has 5"):
        resolve(sparse, num_nodes=5)


@pytest.mark.parametrize('graph', [[[0, 1], [1, 0]], path().numpy(), None])
def test_wrong_type(graph):
    name = type(graph).__name__
    with pytest.raises(ValueError, match=f"'edge_index' must.*got '{name}'"):
        resolve(graph)
    with pytest.raises(ValueError, match=f"'edge_index' must.*got '{name}'"):
        Topology.from_edge_index(graph, 4)


@pytest.mark.parametrize('num_nodes', [3.0, -1, None])
def test_no_number_of_nodes(num_nodes):
    match = rf"'num_nodes' must be a non-negative integer \(got {num_nodes}\)"
    with pytest.raises(ValueError, match=match):
        Topology.from_edge_index(path()[:, :0], num_nodes)


def test_layouts():
    graph = random_graph(20, 40)
    expected, weight = resolve(*graph)
    value = graph.edge_weight
    coo = torch.sparse_coo_tensor(
        graph.edge_index, value, (20, 20), check_invariants=True
    )
    edge_index = EdgeIndex(graph.edge_index, sparse_size=(20, 20))
    for layout, edge_weight in [
        (coo.coalesce(), None),
        (coo.to_sparse_csr(), None),
        (coo.to_sparse_csc(), None),
        (edge_index, value),
        (edge_index.int(), value),
        (graph.edge_index.int(), value),
    ]:
        topology, other = resolve(layout, edge_weight, 20)
        assert torch.equal(topology.src, expected.src)
        assert torch.equal(topology.dst, expected.dst)
        assert torch.equal(other, weight)


def test_sparse_matrix_with_explicit_weights():
    graph = random_graph(10, 20)
    ones = torch.ones_like(graph.edge_weight)
    csr = torch.sparse_coo_tensor(
        graph.edge_index, ones, (10, 10), check_invariants=True
    )
    csr = csr.to_sparse_csr()
    _, weight = resolve(csr, None, 10)
    assert torch.equal(weight, torch.ones_like(weight))
    _, weight = resolve(csr, 2 * ones, 10)
    assert torch.equal(weight, torch.full_like(weight, 2))


def test_cache():
    edge_index = path()
    first, _ = resolve(edge_index)
    assert resolve(edge_index)[0] is first
    assert resolve(edge_index, num_nodes=5)[0] is not first
    # Another tensor of the same values is another key.
    assert resolve(edge_index.clone())[0] is not first
    # A change in place is noticed.
    before = resolve(edge_index)[0]
    edge_index.copy_(3 - edge_index.clone())
    after = resolve(edge_index)[0]
    assert after is not before
    assert torch.equal(after.edge_index, edge_index)
    edge_index[0, 0] = edge_index[1, 0]
    with pytest.raises(ValueError, match='self-loop'):
        resolve(edge_index)


def test_cache_forgets():
    edge_index = path()
    topology = weakref.ref(resolve(edge_index)[0])
    gc.collect()
    assert topology() is not None
    del edge_index
    gc.collect()
    assert topology() is None


def test_cache_sees_writes_past_pytorch():
    # NumPy writes into the memory of a tensor, which does not count them.
    edge_index = path()
    before = resolve(edge_index)[0]
    edge_index.numpy()[:] = 3 - edge_index.numpy()[:, ::-1].copy()
    edge_index.numpy()[:, [0, 1]] = [[0, 3], [3, 0]]
    topology = resolve(edge_index)[0]
    assert topology is not before
    assert torch.equal(topology.edge_index, edge_index)
    assert resolve(edge_index)[0] is topology
    edge_index.numpy()[0, 0] = edge_index.numpy()[1, 0]
    with pytest.raises(ValueError, match='self-loop'):
        resolve(edge_index)


def test_cache_sees_writes_into_edges_of_transforms():
    data = GridGraph(4)(image_to_data(torch.rand(1, 2, 3)))
    index = data.edge_index
    row = torch.arange(6.0).view(6, 1)
    conv = GLRConv(2)
    before = conv(row, index)
    renamed = 5 - index
    index.numpy()[:] = renamed.numpy()
    index.numpy()[:, [0, 1]] = index.numpy()[:, [1, 0]]
    out = conv(row, index)
    assert torch.equal(out, conv(row, index.clone()))
    index.numpy()[index.numpy() == 0] = 99
    with pytest.raises(ValueError, match='out of range'):
        conv(row, index)
    assert not out.isnan().any() and not before.isnan().any()


@pytest.mark.filterwarnings('ignore:Sparse')
def test_cache_sees_writes_into_sparse_matrices():
    edge_index = path(5)
    adj = torch.sparse_coo_tensor(
        edge_index, torch.ones(8), (5, 5), check_invariants=True
    )
    for matrix, indices in (
        (adj := adj.coalesce(), adj.indices()[0]),
        (csr := adj.to_sparse_csr(), csr.col_indices()),
    ):
        before = resolve(matrix, num_nodes=5)[0]
        assert resolve(matrix, num_nodes=5)[0] is before
        indices.numpy()[0] = 4
        with pytest.raises(ValueError, match='no reverse edge'):
            resolve(matrix, num_nodes=5)


def test_cache_does_not_skip_the_check():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 3]])
    resolve(edge_index, validate_args=False)
    with pytest.raises(ValueError, match='no reverse edge'):
        resolve(edge_index)


def test_cache_under_inference_mode():
    with torch.inference_mode():
        edge_index = path()
        topology, _ = resolve(edge_index)
        assert torch.equal(topology.edge_index, edge_index)
    # A topology made in inference mode must not spoil training.
    edge_index = path()
    x, mask = torch.rand(4, 1), torch.tensor([True, False, False, True])
    conv = GLRConv(2)
    with torch.inference_mode():
        conv(x, edge_index, mask=mask)
    weight = torch.ones(6, requires_grad=True)
    conv(x, edge_index, weight, mask=mask).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize('grid', [False, True])
def test_pack(grid):
    topology = Topology.from_edge_index(path(), 4)
    if grid:
        topology = GridGraph(8).topology(image_to_data(torch.rand(1, 5, 7)))
    assert bool(topology.grid) == grid
    again = Topology.unpack(*topology.pack())
    assert vars(again) == vars(topology)


def test_to(device):
    topology = Topology.from_edge_index(path(), 4)
    moved = topology.to(device)
    assert moved.device.type == device.type and moved.num_nodes == 4
    for one, other in zip(moved.pack()[0], topology.pack()[0], strict=True):
        assert one.device.type == device.type
        assert torch.equal(one.cpu(), other)
    assert torch.equal(moved.edge_index.cpu(), topology.edge_index)


def test_to_another_device_type():
    moved = Topology.from_edge_index(path(), 4).to('meta')
    assert moved.device.type == 'meta' and moved.entry.is_meta


@pytest.mark.parametrize('num_nodes', [1, 5])
def test_no_edges(num_nodes):
    empty = torch.empty(2, 0, dtype=torch.long)
    topology, weight = resolve(empty, None, num_nodes)
    assert topology.num_edges == 0 and weight.shape == (0, 1)
    assert topology.rowptr.tolist() == [0] * (num_nodes + 1)
    assert topology.edge_index.shape == (2, 0)
    assert resolve(empty, torch.empty(0), num_nodes)[1].shape == (0, 1)
    assert topology.directed_weight(torch.empty(0, 2)).shape == (0, 2)
    again = Topology.from_pairs(empty[0], empty[1], num_nodes)
    assert again.num_edges == 0


@pytest.mark.parametrize('heads', [1, 3])
def test_topology_without_edges_takes_weights(heads):
    empty = torch.empty(2, 0, dtype=torch.long)
    topology = Topology.from_edge_index(empty, 2)
    _, weight = resolve(topology, torch.empty(0, heads), 2)
    assert weight.shape == (0, heads)


def test_moves_with_data():
    topology = Topology.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    data = Data(x=torch.rand(2, 1), edge_index=topology).to('meta')
    assert data.edge_index.device.type == 'meta'
    assert topology.cpu().device.type == 'cpu'


def test_integer_weights():
    topology = Topology.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    weight = topology.undirected_weight(torch.tensor([3, 3]))
    assert_same(weight, torch.tensor([[3.0]]))


def test_symmetry_is_that_of_the_type_of_the_weights():
    edge_index = path(30)
    row, col = edge_index
    size = torch.rand(30) + 0.5
    # The two directions differ by rounding, as those of PyG's `gcn_norm`.
    weight = size[row] * 0.7 * size[col]
    assert not torch.equal(*weight.view(2, -1))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        _, out = resolve_graph(edge_index, weight, 30, dtype)
        assert out.dtype == dtype
        topology = Topology.from_edge_index(edge_index, 30)
        exact = weight[topology.entry].double().mean(1, keepdim=True)
        eps = max(torch.finfo(kind).eps for kind in (dtype, weight.dtype))
        assert bool(((out.double() - exact).abs() <= eps * exact).all())
        one_sided = torch.where(row < col, 1.06 * weight, weight)
        with pytest.raises(ValueError, match='is not symmetric'):
            resolve_graph(edge_index, one_sided, 30, dtype)


def test_integer_weights_keep_their_digits():
    weight = torch.full((6,), 2**24 + 1)
    _, out = resolve_graph(path(), weight, 4, torch.float64)
    assert out.tolist() == [[2**24 + 1]] * 3


def test_topology_says_its_size():
    topology = Topology.from_edge_index(path(), 4)
    assert repr(topology) == 'Topology(num_nodes=4, num_edges=3)'
    assert 'Topology(num_nodes=4' in repr(Data(edge_index=topology))
