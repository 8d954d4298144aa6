import copy
import warnings

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.loader import DataLoader, NeighborLoader
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE, SparseTensor
from torch_geometric.utils import (
    k_hop_subgraph,
    subgraph,
    to_torch_coo_tensor,
    to_torch_csr_tensor,
    to_undirected,
)

from pyg_unroll import InterpolateFeatures, KNNGraph, Topology
from pyg_unroll.solvers import ConvergenceWarning
from pyg_unroll.testing import (
    assert_batch_equals_loop,
    assert_permutation_equivariant,
    assert_same,
)
from tests.oracles import dense_glr, random_graph, relative_error, spsolve_glr

NAN = float('nan')
N, F = 20, 3
parametrize_dtype = pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32]
)
needs_sampler = pytest.mark.skipif(
    not (WITH_PYG_LIB or WITH_TORCH_SPARSE),
    reason='NeighborLoader needs pyg-lib or torch-sparse',
)


def make_data(dtype=torch.float64, num_nodes=N, weighted=True):
    graph = random_graph(num_nodes, 2 * num_nodes, dtype=dtype)
    missing = torch.rand(num_nodes, F) < 0.6
    # Each feature has known and missing entries.
    missing[0], missing[1] = False, True
    data = Data(
        x=torch.randn(num_nodes, F, dtype=dtype) + 1,
        edge_index=graph.edge_index,
        missing_mask=missing,
    )
    if weighted:
        data.edge_weight = graph.edge_weight
    return data


@parametrize_dtype
@pytest.mark.parametrize('weights', ['edge_weight', 'edge_attr', None])
def test_is_the_limit_of_feature_propagation(dtype, weights):
    data = make_data(dtype)
    weight = data.edge_weight
    if weights == 'edge_attr':
        del data.edge_weight
        data.edge_attr = weight
    elif weights is None:
        # PyG would multiply by ones of float32 if there were no weights.
        data.edge_weight = torch.ones_like(weight)
    expected = T.FeaturePropagation(data.missing_mask, 5000)(data).x
    transform = InterpolateFeatures(
        data.missing_mask, normalization='sym', tol=1e-12
    )
    if weights is None:
        del data.edge_weight
    assert_same(transform(data).x, expected)
    # The other one is something else.
    other = InterpolateFeatures(data.missing_mask)(data).x
    assert relative_error(other, expected) > 1e-2


def test_self_loops_as_feature_propagation_takes_them():
    data = T.AddSelfLoops(attr='edge_weight', fill_value=0.7)(make_data())
    options = {'missing_mask': data.missing_mask, 'tol': 1e-12}
    out = InterpolateFeatures(normalization='sym', **options)(data)
    assert_same(out.x, T.FeaturePropagation(data.missing_mask, 5000)(data).x)
    # They have no part in a difference of two nodes.
    without = T.RemoveSelfLoops(attr='edge_weight')(data)
    assert_same(*(InterpolateFeatures(**options)(d).x for d in (data, without)))


@parametrize_dtype
def test_is_harmonic(dtype):
    data = make_data(dtype)
    out = InterpolateFeatures(data.missing_mask, tol=1e-12)(data).x
    expected = spsolve_glr(
        data.x, data.edge_index, data.edge_weight, ~data.missing_mask
    )
    assert_same(out, expected.to(dtype))
    known = ~data.missing_mask
    assert torch.equal(out[known], data.x[known])
    for f in range(F):
        value = data.x[known[:, f], f]
        assert value.min() <= out[:, f].min()
        assert out[:, f].max() <= value.max()


@pytest.mark.parametrize('normalization', [None, 'sym'])
def test_second_order(normalization):
    data = make_data()
    transform = InterpolateFeatures(
        data.missing_mask, normalization=normalization, order=2, tol=1e-13
    )
    matrix = torch.zeros(N, N).double()
    matrix[tuple(data.edge_index)] = data.edge_weight
    degree = matrix.sum(1)
    if normalization is None:
        expected = dense_glr(
            data.x,
            data.edge_index,
            data.edge_weight,
            ~data.missing_mask,
            order=2,
        )
    else:
        # Least squares of the distances from the propagated features.
        root = degree.rsqrt()
        step = torch.eye(N) - root[:, None] * matrix * root
        expected = data.x.clone()
        for f in range(F):
            free = data.missing_mask[:, f]
            right = -step[:, ~free] @ data.x[~free, f]
            solution = torch.linalg.lstsq(step[:, free], right[:, None])
            expected[free, f] = solution.solution[:, 0]
    torch.testing.assert_close(
        transform(data).x, expected, atol=1e-7, rtol=1e-7
    )


def test_constant_features_and_center():
    data = make_data()
    data.x = torch.full((N, F), 3.0).double()

    def solve(**options):
        return InterpolateFeatures(data.missing_mask, tol=1e-12, **options)(
            data
        ).x

    assert_same(solve(), data.x)
    assert_same(solve(normalization='sym', center=True), data.x)
    assert relative_error(solve(normalization='sym'), data.x) > 0.1
    data.x = torch.randn(N, F).double()
    assert_same(solve(center=True), solve())
    mean = torch.where(data.missing_mask, NAN, data.x).nanmean(0)
    shifted = data.clone()
    shifted.x = data.x - mean
    expected = T.FeaturePropagation(data.missing_mask, 5000)(shifted).x + mean
    assert_same(solve(normalization='sym', center=True), expected)


def test_missing_entries_are_ignored_and_input_stays():
    data = make_data()
    expected = InterpolateFeatures(data.missing_mask)(data)
    for junk in (NAN, float('inf'), 1e30):
        other = copy.copy(data)
        other.x = torch.where(data.missing_mask, junk, data.x)
        before = other.x.clone()
        out = InterpolateFeatures(data.missing_mask)(other)
        assert torch.equal(out.x, expected.x)
        torch.testing.assert_close(
            other.x, before, rtol=0, atol=0, equal_nan=True
        )
    assert out.keys() == data.keys()
    assert torch.equal(out.edge_index, data.edge_index)


def test_forms_of_the_mask():
    data = make_data()
    nodes = data.missing_mask[:, 0]
    wide = nodes.unsqueeze(1).expand(N, F)
    expected = InterpolateFeatures(wide)(data).x
    assert_same(InterpolateFeatures(nodes)(data).x, expected)
    data.lost = nodes
    assert_same(InterpolateFeatures('lost')(data).x, expected)
    # One feature without an axis for it.
    data.x = data.x[:, 0]
    assert_same(InterpolateFeatures(nodes)(data).x, expected[:, 0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    data = make_data(torch.float32)
    data.x = data.x.to(dtype)
    out = InterpolateFeatures(data.missing_mask, tol=1e-10)(data).x
    wide = copy.copy(data)
    wide.x = data.x.double()
    expected = InterpolateFeatures(data.missing_mask, tol=1e-10)(wide).x
    assert out.dtype == dtype
    # Rounded once, at the end.
    assert torch.equal(out, expected.to(dtype))


def test_layouts_and_device(device):
    data = make_data()
    transform = InterpolateFeatures('missing_mask', tol=1e-12)
    expected = transform(data).x
    on_device = data.clone().to(device)
    for mask in ('missing_mask', data.missing_mask):
        out = InterpolateFeatures(mask, tol=1e-12)(on_device).x
        assert out.device.type == device.type
        assert_same(out.cpu(), expected)
    size, weight = (N, N), data.edge_weight
    matrices = [
        to_torch_csr_tensor(data.edge_index, weight, size),
        to_torch_csr_tensor(data.edge_index, weight, size).to_sparse_csc(),
        to_torch_coo_tensor(data.edge_index, weight, size),
    ]
    if WITH_TORCH_SPARSE:
        matrices.append(
            SparseTensor.from_edge_index(data.edge_index, weight, size)
        )
    for matrix in matrices:
        other = Data(x=data.x, adj_t=matrix, missing_mask=data.missing_mask)
        assert_same(transform(other).x, expected)


@pytest.mark.parametrize('normalization', [None, 'sym'])
def test_renaming_nodes(normalization):
    data = make_data()

    def function(x, edge_index, edge_weight, mask):
        transform = InterpolateFeatures(
            ~mask, normalization=normalization, tol=1e-13
        )
        return transform(
            Data(x=x, edge_index=edge_index, edge_weight=edge_weight)
        ).x

    assert_permutation_equivariant(
        function, data.x, data.edge_index, data.edge_weight, ~data.missing_mask
    )


@pytest.mark.filterwarnings('ignore:.*without a known one')
@pytest.mark.parametrize('center', [False, True])
def test_batch(center):
    examples = [make_data(num_nodes=n) for n in (5, 20, 9)]
    # Filled and centred by its own mean, not by that of others.
    examples[1].missing_mask[:, 1] = True
    examples[2].edge_index = torch.tensor([[0, 1], [1, 0]])
    examples[2].edge_weight = torch.ones(2).double()
    transform = InterpolateFeatures(
        'missing_mask', normalization='sym', center=center, tol=1e-13
    )
    assert_batch_equals_loop(transform, examples)
    batch = Batch.from_data_list(examples)
    by_tensor = InterpolateFeatures(
        batch.missing_mask, normalization='sym', center=center, tol=1e-13
    )
    assert_same(by_tensor(batch).x, transform(batch).x)
    batch = next(iter(DataLoader(examples, batch_size=3)))
    assert bool(transform(batch).x.isfinite().all())


def test_edges_of_one_direction():
    # Each edge of an undirected graph is kept in one direction, at random.
    data = make_data()
    transform = InterpolateFeatures('missing_mask', tol=1e-12)
    expected = transform(data).x
    row, col = data.edge_index
    pair = torch.minimum(row, col) * N + torch.maximum(row, col)
    keep = torch.rand(N * N)[pair] < 0.5
    keep = keep ^ (row < col)
    one = copy.copy(data)
    one.edge_index = data.edge_index[:, keep]
    one.edge_weight = data.edge_weight[keep]
    assert one.num_edges * 2 == data.num_edges
    assert_same(transform(one).x, expected)
    # Directions that differ are averaged, parallel edges added up.
    half = torch.cat([one.edge_index, one.edge_index], 1)
    two = copy.copy(data)
    two.edge_index = torch.cat([half, one.edge_index.flip(0)], 1)
    share = torch.rand(one.num_edges).double()
    two.edge_weight = torch.cat(
        [
            share * one.edge_weight,
            (1 - share) * one.edge_weight * 0.5,
            # Adds up to twice the weight with the two others.
            2 * one.edge_weight
            - share * one.edge_weight
            - (1 - share) * one.edge_weight * 0.5,
        ]
    )
    assert_same(transform(two).x, expected)
    # Without weights, an edge that is listed twice counts once.
    del one.edge_weight, two.edge_weight
    assert_same(transform(two).x, transform(one).x)


def component_data():
    """Two paths, of which the second has no known entry in feature 0."""
    src = torch.tensor([0, 1, 3, 4])
    edge_index = torch.stack([src, src + 1])
    x = torch.arange(12.0).double().view(6, 2)
    missing = torch.zeros(6, 2).bool()
    missing[1, 0] = missing[3:, 0] = missing[4, 1] = True
    return Data(
        x=torch.where(missing, NAN, x),
        edge_index=torch.cat([edge_index, edge_index.flip(0)], 1),
        edge_weight=torch.ones(8).double(),
        missing_mask=missing,
    )


@pytest.mark.parametrize('normalization', [None, 'sym'])
@pytest.mark.parametrize('center', [False, True])
def test_components_without_known_entries(normalization, center):
    data = component_data()
    options = {
        'missing_mask': 'missing_mask',
        'normalization': normalization,
        'center': center,
        'tol': 1e-12,
    }
    with pytest.warns(UserWarning, match=r'leaves 3 entries.*node 3'):
        out = InterpolateFeatures(**options)(data).x
    # Known are 0 and 4.
    assert_same(out[3:, 0], torch.full((3,), 2.0).double())
    assert bool(out.isfinite().all())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        zero = InterpolateFeatures(fill=0.0, **options)(data).x
    assert torch.equal(zero[3:, 0], torch.zeros(3).double())
    # The rest does not depend on it.
    assert_same(out[:3], zero[:3])
    assert_same(out[:, 1], zero[:, 1])
    if normalization == 'sym' and not center:
        # As PyG has it.
        expected = T.FeaturePropagation(data.missing_mask, 2000)(data).x
        torch.testing.assert_close(zero, expected)
    with pytest.raises(ValueError, match=r'without a known one.*pass .fill.'):
        InterpolateFeatures(fill=None, **options)(data)


def test_edges_of_weight_zero_join_nothing():
    data = component_data()
    data.missing_mask[3:, 0] = False
    data.x = torch.arange(12.0).double().view(6, 2)
    data.edge_weight = torch.tensor([1.0, 1, 0, 0] * 2).double()
    with pytest.warns(UserWarning, match=r'leaves 1 entries.*node 4'):
        out = InterpolateFeatures('missing_mask')(data).x
    known = ~data.missing_mask[:, 1]
    assert_same(out[4, 1], data.x[known, 1].mean())


def test_all_or_nothing_known():
    data = make_data()
    out = InterpolateFeatures(torch.zeros(N, F).bool())(data)
    assert torch.equal(out.x, data.x) and out.x is not data.x
    # A feature without any known entry: zero, as PyG has it.
    data.missing_mask[:, 1] = True
    with pytest.warns(UserWarning, match=r'1 features have none at all'):
        out = InterpolateFeatures('missing_mask', tol=1e-12)(data).x
    assert torch.equal(out[:, 1], torch.zeros(N).double())
    others = spsolve_glr(
        data.x[:, ::2],
        data.edge_index,
        data.edge_weight,
        ~data.missing_mask[:, ::2],
    )
    assert_same(out[:, ::2], others)
    # Known in full beside missing ones.
    data.missing_mask[:, 1] = False
    out = InterpolateFeatures('missing_mask', tol=1e-12)(data).x
    assert torch.equal(out[:, 1], data.x[:, 1])
    assert_same(out[:, ::2], others)
    with pytest.warns(UserWarning, match='none at all'):
        out = InterpolateFeatures(torch.ones(N).bool())(data).x
    assert torch.equal(out, torch.zeros(N, F).double())


def test_no_edges_and_no_nodes():
    data = make_data()
    data.edge_index = torch.empty(2, 0).long()
    del data.edge_weight
    with pytest.warns(UserWarning, match='without a known one'):
        out = InterpolateFeatures('missing_mask')(data).x
    mean = torch.where(data.missing_mask, NAN, data.x).nanmean(0)
    assert_same(out, torch.where(data.missing_mask, mean, data.x))
    empty = Data(x=torch.empty(0, 2), edge_index=torch.empty(2, 0).long())
    out = InterpolateFeatures(torch.empty(0, 2).bool())(empty)
    assert out.x.shape == (0, 2)


def test_missed_tolerance_is_visible():
    data = make_data()
    transform = InterpolateFeatures('missing_mask', tol=1e-12, max_steps=2)
    with pytest.warns(ConvergenceWarning, match="raise 'max_steps'"):
        transform(data)


def part_of(data, nodes):
    """What a loader hands over, by hand."""
    edge_index, edge_weight = subgraph(
        nodes, data.edge_index, data.edge_weight, relabel_nodes=True
    )
    # `subgraph` keeps the order of the full graph.
    nodes = nodes.sort().values
    return Data(
        x=data.x[nodes],
        edge_index=edge_index,
        edge_weight=edge_weight,
        missing_mask=data.missing_mask[nodes],
        n_id=nodes,
    )


def test_part_of_a_graph_by_hand():
    data = make_data(num_nodes=60)
    data.missing_mask[::4] = False
    nodes, *_ = k_hop_subgraph(7, 3, data.edge_index, num_nodes=60)
    part = part_of(data, nodes)
    assert F < part.num_nodes < 60
    expected = spsolve_glr(
        part.x, part.edge_index, part.edge_weight, ~part.missing_mask
    )
    for mask in ('missing_mask', data.missing_mask):
        out = InterpolateFeatures(mask, tol=1e-12, fill=None)(part).x
        assert_same(out, expected)
    # A tensor has the rows of the full graph.
    with pytest.raises(ValueError, match=r'mask of the full graph'):
        InterpolateFeatures(part.missing_mask)(part)
    # As many nodes, in another order.
    order = torch.randperm(60)
    whole = part_of(data, torch.arange(60))
    expected = InterpolateFeatures(data.missing_mask, tol=1e-12)(whole).x
    name = torch.empty_like(order)
    name[order] = torch.arange(60)
    shuffled = Data(
        x=data.x[order],
        edge_index=name[data.edge_index],
        edge_weight=data.edge_weight,
        n_id=order,
    )
    out = InterpolateFeatures(data.missing_mask, tol=1e-12)(shuffled).x
    assert_same(out, expected[order])


@needs_sampler
@pytest.mark.parametrize(
    'subgraph_type', ['directional', 'bidirectional', 'induced']
)
def test_neighbor_loader(subgraph_type):
    data = make_data(num_nodes=60)
    data.missing_mask[::4] = False
    options = {'tol': 1e-12, 'normalization': 'sym', 'fill': 0.0}
    # In the loader, and on its batches.
    by_name = InterpolateFeatures('missing_mask', **options)
    by_tensor = InterpolateFeatures(data.missing_mask, **options)
    loader = NeighborLoader(
        data,
        num_neighbors=[3, 3],
        batch_size=8,
        subgraph_type=subgraph_type,
        transform=lambda batch: (batch, by_name(batch)),
    )
    count = 0
    for batch, out in loader:
        assert_same(out.x, by_tensor(batch).x)
        assert torch.equal(batch.x, data.x[batch.n_id])
        # PyG needs edges in both directions; it leaves zeros, too.
        undirected = copy.copy(batch)
        undirected.edge_index, undirected.edge_weight = to_undirected(
            batch.edge_index, batch.edge_weight, batch.num_nodes, 'mean'
        )
        expected = T.FeaturePropagation(batch.missing_mask, 5000)(undirected)
        assert_same(out.x, expected.x)
        count += batch.batch_size
    assert count == 60
    # All neighbours of all nodes: the whole graph.
    loader = NeighborLoader(data, [-1] * 8, batch_size=60)
    batch = by_name(next(iter(loader)))
    assert_same(batch.x, by_name(data).x[batch.n_id])


def test_compose_and_names():
    data = make_data()
    transform = T.Compose(
        [InterpolateFeatures(data.missing_mask), T.NormalizeFeatures()]
    )
    assert bool(transform(data).x.isfinite().all())
    with pytest.raises(Exception, match='already taken'):
        functional_transform('interpolate_features')(InterpolateFeatures)
    mask = torch.tensor([[True, False, False, False]])
    assert str(InterpolateFeatures(mask, order=2)) == (
        'InterpolateFeatures(missing_features=25.0%, normalization=None, '
        'order=2)'
    )
    assert str(InterpolateFeatures('lost', normalization='sym')) == (
        "InterpolateFeatures(missing_mask='lost', normalization='sym', order=1)"
    )


MASK = torch.ones(N, F).bool()


@pytest.mark.parametrize(
    'options, match',
    [
        ({'missing_mask': MASK.float()}, "'missing_mask' must be boolean"),
        ({'missing_mask': None}, "name of an attribute .got 'NoneType'"),
        ({'missing_mask': MASK[None]}, r'got \[1, 20, 3\]'),
        ({'normalization': 'row'}, "'normalization' must be one of"),
        ({'order': 3}, "'order' must be one of 1, 2"),
        ({'fill': 'median'}, "'fill' must be a finite number, 'mean' or None"),
        ({'tol': 0.0}, "'tol' must be positive and finite"),
        ({'max_steps': 0}, "'max_steps' must be a positive integer"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ValueError, match=match):
        InterpolateFeatures(**{'missing_mask': MASK, **options})


def test_iterations_are_refused():
    with pytest.raises(TypeError):
        InterpolateFeatures(MASK, 40)


@pytest.mark.parametrize(
    'change, match',
    [
        ({'x': None}, "'data.x' must be a tensor"),
        ({'x': torch.ones(N, F).long()}, r"convert it with 'data.x.float\(\)'"),
        ({'x': torch.full((N, F), NAN)}, 'must be finite where it is known'),
        ({'x': torch.ones(N, F + 1)}, r"'data.missing_mask' must have shape"),
        ({'missing_mask': None}, 'set data.missing_mask, True where missing'),
        (
            {'missing_mask': torch.ones(N)},
            "'data.missing_mask' must be boolean",
        ),
        ({'edge_index': None}, "no 'edge_index'; .* a sparse 'adj_t'"),
        ({'edge_index': torch.tensor([[0], [N]])}, 'nodes 0 and 20.*20 rows'),
        ({'edge_index': torch.tensor([[-1], [0]])}, 'nodes -1 and 0'),
        ({'edge_index': torch.ones(4, 3).long()}, r'\[2, num_edges\]'),
        ({'edge_index': None, 'adj_t': torch.eye(N)}, r'\[2, num_edges\]'),
        (
            {'edge_weight': torch.ones(4)},
            r"'data.edge_weight' .*\[4\]\): one weight",
        ),
        (
            {'edge_attr': torch.ones(4, 2)},
            r"'data.edge_attr' .*\[4, 2\]\): one weight",
        ),
    ],
)
def test_wrong_data(change, match):
    data = make_data(weighted=False)
    for key, value in change.items():
        data[key] = value
    with pytest.raises(ValueError, match=match):
        InterpolateFeatures('missing_mask')(data)


@pytest.mark.parametrize('value', [-1.0, NAN, float('inf')])
def test_wrong_weights(value):
    data = make_data()
    data.edge_weight[5] = value
    with pytest.raises(ValueError, match=r"'data.edge_weight' must be finite"):
        InterpolateFeatures('missing_mask')(data)


def test_heterogeneous_data():
    data = HeteroData()
    data['road'].x = torch.rand(3, 2)
    data['road', 'to', 'road'].edge_index = torch.tensor([[0], [1]])
    transform = InterpolateFeatures(torch.ones(3).bool())
    for wrong in (data, Batch.from_data_list([data, data])):
        with pytest.raises(ValueError, match=r"'data' must be a homogeneous"):
            transform(wrong)


def test_one_known_node_and_duplicate_points():
    pos = torch.rand(N, 2).repeat(2, 1)
    data = KNNGraph(3)(Data(x=torch.randn(2 * N, F), pos=pos))
    data.missing_mask = torch.arange(2 * N) != 5
    data.edge_index = torch.cat(  # a path, lest a component be lost
        [data.edge_index, torch.stack([torch.arange(39), torch.arange(1, 40)])],
        1,
    )
    out = InterpolateFeatures('missing_mask', tol=1e-10)(data).x
    torch.testing.assert_close(out, data.x[5].expand(2 * N, F))


@pytest.mark.parametrize('attribute', ['edge_weight', 'edge_attr'])
def test_graph_of_any_layout(attribute):
    data = make_data()
    weight = data.edge_weight
    transform = InterpolateFeatures('missing_mask', tol=1e-10)
    expected = transform(data).x
    topology = Topology.from_edge_index(data.edge_index, N)
    ones = torch.ones_like(weight)
    size = (N, N)
    plain = torch.sparse_coo_tensor(data.edge_index, ones, size).coalesce()
    order = torch.sparse_coo_tensor(
        data.edge_index, torch.arange(len(weight)) + 1, size
    ).coalesce()
    sorted_weight = weight[order.values() - 1]
    cases = [
        ('edge_index', topology, weight),
        ('edge_index', topology, topology.undirected_weight(weight)),
    ]
    if attribute == 'edge_weight':  # stands before the values of a matrix
        cases += [
            ('adj_t', plain, sorted_weight),
            ('adj_t', plain.to_sparse_csr(), sorted_weight),
            ('edge_index', plain, sorted_weight),
        ]
    for name, graph, values in cases:
        other = Data(x=data.x, missing_mask=data.missing_mask)
        other[name], other[attribute] = graph, values
        assert relative_error(transform(other).x, expected) < 1e-8
    matrix = torch.sparse_coo_tensor(data.edge_index, weight, size)
    other = Data(x=data.x, missing_mask=data.missing_mask, edge_index=matrix)
    assert relative_error(transform(other).x, expected) < 1e-8
