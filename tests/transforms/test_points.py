import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, Data
from torch_geometric.data.datapipes import functional_transform

from pyg_unroll import KNNGraph, Topology, points_to_data, solvers
from pyg_unroll.testing import assert_batch_equals_loop
from pyg_unroll.transforms.points import nearest_by_distance, nearest_by_tree

NAN = float('nan')


def brute_force(pos, k):
    """Pairs of which either is among the other's k nearest."""
    distance = torch.cdist(pos.double(), pos.double())
    distance.fill_diagonal_(float('inf'))
    near = torch.zeros(distance.shape, dtype=torch.bool)
    near.scatter_(1, distance.topk(k, largest=False).indices, True)
    return (near | near.T).nonzero().T


# One row at a time, some rows, all rows.
@pytest.mark.parametrize('max_distances', [10, 100, 2**26])
def test_nearest_by_distance(max_distances, device):
    for dim in (1, 2, 3):
        pos = torch.rand(30, dim)
        near = nearest_by_distance(pos.to(device), 5, max_distances).cpu()
        assert torch.equal(near, nearest_by_tree(pos, 5))
    # Among equal points, any; each of them once.
    pos = torch.cat([torch.zeros(8, 2), torch.rand(12, 2) + 1])
    near = nearest_by_distance(pos.to(device), 5, max_distances).cpu()
    assert all(len(row.unique()) == 5 for row in near)
    expected = nearest_by_tree(pos, 5)
    distances = [(pos[n] - pos[:, None]).norm(dim=2) for n in (near, expected)]
    assert torch.equal(*distances)
    whole = torch.arange(6).view(3, 2)  # integer positions
    assert nearest_by_distance(whole, 2, max_distances)[0].tolist() == [0, 1]


@pytest.mark.parametrize('k', [1, 4, 29])
@pytest.mark.parametrize('dim', [1, 2, 3])
def test_knn_graph(k, dim):
    data = Data(pos=torch.rand(30, dim))
    out = KNNGraph(k)(data)
    assert torch.equal(out.edge_index, brute_force(data.pos, k))
    assert 'edge_index' not in data
    assert out.is_undirected() and not out.has_self_loops()
    degree = torch.bincount(out.edge_index[0], minlength=30)
    assert int(degree.min()) >= k
    Topology.from_edge_index(out.edge_index, 30)


def test_duplicates():
    # Eight times the same point: any of them are neighbours, never oneself.
    pos = torch.cat([torch.zeros(8, 2), torch.rand(12, 2) + 1])
    out = KNNGraph(3)(Data(pos=pos))
    assert out.is_undirected() and not out.has_self_loops()
    degree = torch.bincount(out.edge_index[0], minlength=20)
    assert int(degree.min()) >= 3
    distance = (pos[out.edge_index[0]] - pos[out.edge_index[1]]).norm(dim=1)
    from_duplicate = out.edge_index[0] < 8
    assert bool((distance[from_duplicate & (out.edge_index[1] < 8)] == 0).all())
    # Edges among the others are exact; a duplicate is never nearest to them.
    far = (out.edge_index >= 8).all(0)
    expected = brute_force(pos[8:], 3) + 8
    assert set(map(tuple, out.edge_index[:, far].T.tolist())) <= set(
        map(tuple, expected.T.tolist())
    )


def test_all_points_equal():
    out = KNNGraph(2)(Data(pos=torch.ones(6, 2)))
    degree = torch.bincount(out.edge_index[0], minlength=6)
    assert int(degree.min()) >= 2 and not out.has_self_loops()


def test_batch():
    examples = [Data(pos=torch.rand(n, 2)) for n in (5, 12, 7)]
    assert_batch_equals_loop(KNNGraph(3), examples)
    batch = KNNGraph(3)(Batch.from_data_list(examples))
    assert batch.validate()
    plain = Data(pos=batch.pos, batch=batch.batch)  # as PyG's poolings give
    assert torch.equal(KNNGraph(3)(plain).edge_index, batch.edge_index)
    # Points of different examples are never joined.
    row, col = batch.edge_index
    assert torch.equal(batch.batch[row], batch.batch[col])
    for i, data in enumerate(examples):
        expected = brute_force(data.pos, 3)
        assert torch.equal(batch.get_example(i).edge_index, expected)


def test_on_device(device):
    pos = torch.rand(40, 3)
    out = KNNGraph(5)(Data(pos=pos.to(device)))
    assert out.edge_index.device.type == device.type
    assert torch.equal(out.edge_index.cpu(), brute_force(pos, 5))


def test_positions_with_gradients_and_one_coordinate():
    pos = torch.tensor([0.0, 1.0, 3.0, 3.5], requires_grad=True)
    out = KNNGraph(1)(Data(pos=pos))
    assert out.edge_index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]


def test_compose_and_names():
    data = Data(pos=torch.rand(20, 2))
    out = T.Compose([KNNGraph(4), T.Distance(cat=False)])(data)
    assert out.edge_attr.size(0) == out.num_edges
    with pytest.raises(Exception, match='already taken'):
        functional_transform('symmetric_knn_graph')(KNNGraph)
    # PyG's own transform keeps its name.
    with pytest.raises(Exception, match='already taken'):
        functional_transform('knn_graph')(KNNGraph)
    assert KNNGraph is not T.KNNGraph
    assert str(KNNGraph(4)) == 'KNNGraph(k=4)'


@pytest.mark.parametrize('k', [0, -1, 2.5, True])
def test_wrong_k(k):
    with pytest.raises(ValueError, match="'k' must be a positive integer"):
        KNNGraph(k)


def test_wrong_data():
    with pytest.raises(ValueError, match=r"no positions.*'data.pos'"):
        KNNGraph()(Data(x=torch.rand(4, 1)))
    with pytest.raises(ValueError, match='k=4 for 4 points'):
        KNNGraph(4)(Data(pos=torch.rand(4, 2)))
    pos = torch.rand(9, 2)
    pos[3, 1] = float('nan')
    with pytest.raises(ValueError, match=r"'data.pos' must be finite.*node 3"):
        KNNGraph(2)(Data(pos=pos))


def test_points_to_data(device):
    pos = torch.rand(4, 3, device=device)
    signal = torch.tensor([[1.0, 10], [3, 20], [NAN, 5], [9, 5]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 0], [0, 1]]).bool()
    data = points_to_data(pos, signal.to(device), mask.to(device))
    third = 35 / 3
    expected = torch.tensor([[1, 10], [3, 20], [2, third], [2, 5]])
    assert torch.allclose(data.x.cpu(), expected)
    assert torch.equal(data.mask.cpu(), mask)
    assert data.pos is pos and data.num_nodes == 4


def test_mask_from_nan():
    signal = torch.tensor([1.0, NAN, 3.0])
    data = points_to_data(torch.rand(3, 2), signal)
    assert data.x.view(-1).tolist() == [1, 2, 3]
    assert data.mask.view(-1).tolist() == [True, False, True]
    assert bool(signal[1].isnan())


def test_mask_of_nodes():
    mask = torch.tensor([True, False])
    data = points_to_data(torch.rand(2, 2), torch.ones(2, 3), mask)
    assert data.mask.tolist() == [[True] * 3, [False] * 3]


def test_mean_of_half_precision():
    signal = torch.full((1000,), 100.0).half()  # their sum is too large
    data = points_to_data(torch.rand(1000, 2), signal, torch.arange(1000) < 900)
    assert data.x.dtype == torch.float16
    assert torch.equal(data.x, signal.unsqueeze(1))


def test_integer_signal():
    data = points_to_data(torch.rand(3, 1), torch.tensor([1, 2, 3]))
    assert data.x.dtype == torch.float32 and bool(data.mask.all())


def test_goes_into_a_solver():
    signal = torch.rand(30)
    signal[::2] = NAN
    data = KNNGraph(4)(points_to_data(torch.rand(30, 2), signal))
    out = solvers.glr(data.x, data.edge_index, mask=data.mask).x
    assert torch.equal(out[1::2, 0], signal[1::2])
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    'pos, signal, mask, match',
    [
        ([1.0], torch.rand(1), None, "'pos' must be a tensor.*got 'list'"),
        (torch.rand(1, 2), [1.0], None, "'signal' must be a tensor.*'list'"),
        (torch.rand(1, 2), torch.rand(1), [True], "'mask' must be a tensor"),
        (torch.rand(3), torch.rand(3), None, r"'pos'.*\[3\]"),
        (torch.rand(3, 2), torch.rand(4), None, r"'signal'.*\[3, features\]"),
        (torch.rand(3, 2), torch.rand(3, 1, 1), None, "'signal' must have"),
        (torch.rand(3, 2), torch.rand(3), torch.ones(3), 'boolean'),
        (torch.rand(3, 2), torch.rand(3), torch.ones(4).bool(), "'mask' must"),
        (
            torch.rand(2, 2),
            torch.tensor([1, NAN]),
            torch.ones(2).bool(),
            'nan at node 1, feature 0',
        ),
        (torch.rand(2, 2), torch.tensor([1, torch.inf]), None, 'inf at node'),
        (
            torch.rand(2, 2),
            torch.tensor([[1, NAN], [1, NAN]]),
            None,
            'no known entry in feature 1',
        ),
    ],
)
def test_wrong_points(pos, signal, mask, match):
    with pytest.raises(ValueError, match=match):
        points_to_data(pos, signal, mask)
