import copy
from itertools import product

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, Data
from torch_geometric.data.datapipes import functional_transform

from pyg_unroll import GLRConv, GridGraph, Topology, image_to_data
from pyg_unroll.graph import resolve_graph
from pyg_unroll.testing import assert_batch_equals_loop
from pyg_unroll.transforms.grid_graph import WINDOWS

BOX = list(product(range(-2, 3), repeat=2))
OFFSETS = {
    4: [o for o in BOX if abs(o[0]) + abs(o[1]) == 1],
    8: [o for o in BOX if max(map(abs, o)) == 1],
    12: [o for o in BOX if 1 <= abs(o[0]) + abs(o[1]) <= 2],
    24: [o for o in BOX if o != (0, 0)],
}
LIST = [(0, 3), (-1, 0), (1, 0), [2, -1]]
LIST_OFFSETS = [(0, 3), (0, -3), (1, 0), (-1, 0), (2, -1), (-2, 1)]
SIZES = [(5, 7), (1, 9), (9, 1), (2, 2), (1, 1), (3, 2)]


def make(height, width):
    return image_to_data(torch.rand(2, height, width))


def brute_force(height, width, offsets):
    edges = []
    for row, col in product(range(height), range(width)):
        for down, right in offsets:
            r, c = row + down, col + right
            if 0 <= r < height and 0 <= c < width:
                edges.append((row * width + col, r * width + c))
    return sorted(edges)


def edge_list(data):
    return [tuple(edge) for edge in data.edge_index.t().tolist()]


@pytest.mark.parametrize('window', [4, 8, 12, 24, LIST])
@pytest.mark.parametrize('size', SIZES)
def test_grid_graph(window, size):
    offsets = LIST_OFFSETS if window is LIST else OFFSETS[window]
    data = make(*size)
    out = GridGraph(window)(data)
    # Sorted by row, then column.
    assert edge_list(out) == brute_force(*size, offsets)
    assert out.edge_index.dtype == torch.long
    assert out.is_undirected() and not out.has_self_loops()
    assert 'edge_index' not in data
    assert torch.equal(out.x, data.x)
    Topology.from_edge_index(out.edge_index, data.num_nodes)


@pytest.mark.parametrize('window', [4, 8, 24, LIST, [(0, 3)], [(4, 0)]])
@pytest.mark.parametrize(
    'size', [(6, 5), (13, 4), (1, 9), (9, 1), (2, 3), (1, 1)]
)
@pytest.mark.parametrize('count', [1, 3])
def test_topology_is_what_sorting_gives(window, size, count, device):
    graph = GridGraph(window)
    half = graph.offsets
    offsets = [*half, *((-row, -col) for row, col in half)]
    edges = [
        (i + k * size[0] * size[1], j + k * size[0] * size[1])
        for k in range(count)
        for i, j in brute_force(*size, offsets)
    ]
    edge_index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
    images = [make(*size) for _ in range(count)]
    out = graph.topology(Batch.from_data_list(images).to(device))
    assert out.device.type == device.type
    expected = Topology.from_edge_index(edge_index, out.num_nodes).to(device)
    assert torch.equal(out.edge_index.cpu(), edge_index)
    for name in ('src', 'dst', 'rowptr', 'col', 'edge_id', 'sign', 'entry'):
        one, other = getattr(out, name), getattr(expected, name)
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert out.grid == (*size, *(k for offset in half for k in offset))


def test_large_graphs_are_not_remembered():
    data = make(60, 60)
    assert GridGraph(8).topology(data) is GridGraph(8).topology(data)
    # More than 2 ** 23 pairs of a pixel and an offset, few of them in it.
    far = GridGraph([(0, 1), *((60 + row, 0) for row in range(2400))])
    first, second = far.topology(data), far.topology(data)
    assert first is not second and torch.equal(first.col, second.col)
    assert first.num_edges == 60 * 59


def test_window_24_is_number_of_inner_neighbours():
    for window in (4, 8, 12, 24):
        data = GridGraph(window)(make(9, 9))
        degree = torch.bincount(data.edge_index[0], minlength=81)
        assert degree.view(9, 9)[4, 4] == window == degree.max()


def test_is_remembered(device):
    # Layers need not sort the edges of a transform again.
    data = GridGraph(4)(make(4, 5).to(device))
    assert data.edge_index.device.type == device.type
    for _ in range(2):
        topology, _ = resolve_graph(data.edge_index, None, 20, torch.float32)
        assert topology is GridGraph(4).topology(data)


def test_writes_past_torch_are_noticed():
    # NumPy shares the memory, but not PyTorch's count of changes.
    data = GridGraph([(0, 1), (1, 0)])(make(1, 4))
    conv, x = GLRConv(3), torch.randn(4, 2)
    mask = torch.tensor([True, False, False, True])
    before = conv(x, data.edge_index, mask=mask)
    path = [[0, 0, 1, 1, 2, 3], [1, 2, 0, 3, 0, 1]]  # 2 - 0 - 1 - 3
    data.edge_index.numpy()[:] = path
    after = conv(x, data.edge_index, mask=mask)
    assert torch.equal(after, conv(x, torch.tensor(path), mask=mask))
    assert not torch.allclose(after, before)
    data.edge_index.numpy()[0, 0] = 1
    with pytest.raises(ValueError, match='self-loop'):
        conv(x, data.edge_index, mask=mask)


def test_same_shape_gives_independent_edge_index():
    first, second = GridGraph(4)(make(3, 4)), GridGraph(4)(make(3, 4))
    first.edge_index.zero_()
    assert edge_list(second) == brute_force(3, 4, OFFSETS[4])
    assert edge_list(GridGraph(4)(make(3, 4))) == edge_list(second)


@pytest.mark.parametrize(
    'sizes', [[(4, 5)] * 3, [(4, 5), (3, 7), (1, 1), (6, 2)]]
)
def test_batch(sizes):
    examples = [make(*size) for size in sizes]
    assert_batch_equals_loop(GridGraph(8), examples)
    batch = Batch.from_data_list(examples)
    before = copy.copy(batch._slice_dict)
    out = GridGraph(8)(batch)
    assert out.validate()
    for i, size in enumerate(sizes):
        expected = brute_force(*size, OFFSETS[8])
        assert edge_list(out.get_example(i)) == expected
    assert 'edge_index' not in batch
    assert batch._slice_dict.keys() == before.keys()
    # A batch of the single graphs is the same.
    expected = Batch.from_data_list([GridGraph(8)(data) for data in examples])
    assert torch.equal(out.edge_index, expected.edge_index)


def test_batch_on_device(device):
    batch = Batch.from_data_list([make(3, 4), make(2, 5)]).to(device)
    out = GridGraph(4)(batch)
    assert out.edge_index.device.type == device.type
    sizes = [data.num_nodes for data in out.to_data_list()]
    assert sizes == [12, 10]


def test_replaces_edges_of_a_batch():
    examples = [GridGraph(4)(make(3, 4)), GridGraph(4)(make(2, 5))]
    out = GridGraph(8)(Batch.from_data_list(examples))
    assert edge_list(out.get_example(1)) == brute_force(2, 5, OFFSETS[8])


def test_compose_and_names():
    data = T.Compose([GridGraph(4), T.ToUndirected()])(make(3, 3))
    assert edge_list(data) == brute_force(3, 3, OFFSETS[4])
    # The name is taken, hence registered.
    with pytest.raises(Exception, match='already taken'):
        functional_transform('grid_graph')(GridGraph)
    assert str(GridGraph(8)) == 'GridGraph(window=8)'
    copied = copy.deepcopy(GridGraph(LIST))
    assert edge_list(copied(make(5, 7))) == brute_force(5, 7, LIST_OFFSETS)


def test_under_inference_mode():
    # What is remembered then must not spoil training.
    size = (11, 13)
    with torch.inference_mode():
        GridGraph(4)(make(*size))
    topology = GridGraph(4).topology(make(*size))
    assert not any(x.is_inference() for x in topology.pack()[0])
    weight = torch.rand(topology.num_edges, requires_grad=True)
    x, mask = torch.rand(143, 1), torch.arange(143) < 9
    GLRConv(2)(x, topology, weight, mask).sum().backward()
    assert bool((weight.grad != 0).any())


@pytest.mark.parametrize(
    'window, match',
    [
        (5, r"'window' must be one of \[4, 8, 12, 24\].*got 5"),
        ([(0, 0)], r'\(0, 0\), a self-loop'),
        ([], 'at least one'),
        ([(1, 2, 3)], r'integer \(row, column\) offsets'),
        ([(0.5, 1)], r'integer \(row, column\) offsets'),
    ],
)
def test_wrong_window(window, match):
    with pytest.raises(ValueError, match=match):
        GridGraph(window)


def test_wrong_data():
    with pytest.raises(ValueError, match=r"no 'height'.*image_to_data"):
        GridGraph()(Data(x=torch.rand(4, 1)))
    data = make(3, 4)
    data.height = 5
    with pytest.raises(ValueError, match=r'12 nodes.*make 20 pixels'):
        GridGraph()(data)


@pytest.mark.parametrize('name', ['edge_weight', 'edge_attr', 'kind_of_edge'])
@pytest.mark.parametrize('batched', [False, True])
def test_attributes_of_other_edges_are_removed(name, batched):
    data = GridGraph(4)(make(2, 3))
    data[name] = torch.ones(data.edge_index.size(1))
    data = Batch.from_data_list([data, data]) if batched else data
    out = GridGraph(8)(data)
    assert name not in out and name in data
    if batched:
        assert name not in out.to_data_list()[1]


def test_attributes_of_nodes_stay():
    data = make(2, 3)
    data.label, data.nothing = torch.ones(6), torch.ones(0)
    out = GridGraph(8)(GridGraph(4)(data))
    assert 'label' in out
    assert 'nothing' in GridGraph(4)(data)
    data.adj_t = torch.eye(6).to_sparse_csr()
    assert 'adj_t' not in GridGraph(4)(data)


@pytest.mark.parametrize('shape', [(1, 6, 9), (3, 2, 1), (2, 1, 1)])
def test_operator_for_compilers(shape):
    # Sizes as compilers compute them, of images smaller than the window, too.
    window = [k for offset in WINDOWS[24] for k in offset]
    operands = shape, window, torch.device('cpu')
    torch.library.opcheck(
        torch.ops.pyg_unroll.pixels.default,
        operands,
        test_utils=('test_schema', 'test_faketensor'),
    )
    found = torch.ops.pyg_unroll.pixels(*operands)
    count, *size = shape
    expected = GridGraph(24).pixels(*size, operands[2], count)
    assert all(map(torch.equal, found, expected.pack()[0]))
