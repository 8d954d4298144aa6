"""Graphs that are made or read: against brute force in Python."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from pyg_unroll import (
    GridGraph,
    InterpolateFeatures,
    KNNGraph,
    MahalanobisGraph,
    TemporalProduct,
    Topology,
    data_to_image,
    from_product,
    image_to_data,
)
from pyg_unroll.testing import assert_batch_equals_loop, assert_laplacian
from tests.properties.strategies import FLOATS, HALVES, HEADS, cases

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))
offsets = st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(any)
windows = st.sampled_from([4, 8, 12, 24]) | st.lists(
    offsets, min_size=1, max_size=4
)


def columns(edge_index):
    return list(zip(*edge_index.tolist(), strict=True))


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(
                st.tuples(st.integers(-1, n), st.integers(-1, n)), max_size=8
            ),
            st.booleans(),
        )
    )
)
def test_any_list_of_edges_is_read_or_refused(drawn):
    n, edges, both = drawn
    edges = edges + [(j, i) for i, j in edges] if both else edges
    index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
    count = Counter(edges)
    is_fine = all(
        0 <= i < n and 0 <= j < n and i != j and count[i, j] == count[j, i] == 1
        for i, j in edges
    )
    if not is_fine:
        with pytest.raises(ValueError, match="'edge_index'"):
            Topology.from_edge_index(index, n)
        return
    topology = Topology.from_edge_index(index, n)
    assert columns(topology.edge_index) == edges
    for row in range(n):
        entries = slice(*topology.rowptr[row : row + 2].tolist())
        near = sorted(j for i, j in edges if i == row)
        assert topology.col[entries].tolist() == near


@given(cases(weights=('unit',)))
def test_weights_of_both_directions(case):
    index, weight = case.columns()
    topology = Topology.from_edge_index(index, case.num_nodes)
    per_edge = topology.undirected_weight(weight)
    again = topology.directed_weight(per_edge).view_as(weight)
    assert torch.equal(again, weight)
    moved = Topology.from_edge_index(topology.edge_index, case.num_nodes)
    assert torch.equal(moved.col, topology.col)
    if case.num_edges:
        skew = weight.clone()
        skew[0] *= 1.5
        with pytest.raises(ValueError, match='not symmetric'):
            topology.undirected_weight(skew)


@given(sizes, windows, st.integers(1, 3))
def test_grids(size, window, count):
    height, width = size
    half = GridGraph(window).offsets
    expected = []
    for image in range(count):
        for i in range(height * width):
            row, col = divmod(i, width)
            near = set()
            for down, right in (*half, *((-r, -c) for r, c in half)):
                r, c = row + down, col + right
                if 0 <= r < height and 0 <= c < width:
                    near.add(r * width + c)
            shift = image * height * width
            expected += [(i + shift, j + shift) for j in sorted(near)]
    images = torch.zeros(count, 1, height, width)
    data = image_to_data(images if count > 1 else images[0])
    graph = GridGraph(window)
    assert columns(graph(data).edge_index) == expected
    topology, index = graph.topology(data), Topology.from_edge_index
    twin = index(topology.edge_index, topology.num_nodes)
    for one, other in zip(topology.pack()[0], twin.pack()[0], strict=True):
        assert torch.equal(one, other)


@given(
    st.integers(2, 12),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.sampled_from([1e-30, 1.0, 1e30]),
    st.booleans(),
)
def test_nearest_neighbours(n, k, dim, seed, unit, on_lattice):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand((n, dim), generator=generator, dtype=torch.double)
    if on_lattice:  # many points at the same place
        pos = (2 * pos).round()
    pos = pos * unit
    graph = KNNGraph(k)
    data = Data(pos=pos)
    if n <= k:
        with pytest.raises(ValueError, match="'k' must be smaller"):
            graph(data)
        return
    edges = set(columns(graph(data).edge_index))
    assert edges == {(j, i) for i, j in edges}
    distance = torch.cdist(pos / unit, pos / unit).fill_diagonal_(torch.inf)
    for i in range(n):
        near = [j for j in range(n) if (i, j) in edges]
        assert len(near) >= k and i not in near
        # Each edge is one of the k shortest at one of its ends.
        for j in near:
            a, b = (distance[p].sort().values[k - 1] for p in (i, j))
            assert distance[i, j] <= max(a, b) * (1 + 1e-9)
    if not on_lattice:
        nearest = distance.topk(k, largest=False).indices
        assert all(
            (i, j) in edges for i in range(n) for j in nearest[i].tolist()
        )


@given(
    cases(weights=('none',)),
    HEADS,
    st.sampled_from(['sym', None]),
    st.sampled_from([0.0, 1e-20, 1.0, 30.0, 1e15]),
)
def test_learned_graphs(case, heads, normalization, unit):
    # Features from equal to far apart.
    index, _ = case.columns()
    graph = MahalanobisGraph(case.x.size(1), heads, normalization=normalization)
    graph = graph.to(case.dtype)
    x = (case.x * unit).requires_grad_()
    out = graph(Data(x=x, edge_index=index))
    weight = out.edge_weight
    assert bool(((weight >= 0) & (weight <= 1)).all())
    topology = Topology.from_edge_index(index, case.num_nodes)
    assert_laplacian(topology, topology.undirected_weight(weight))
    leaves = [x, graph.weight]
    grads = torch.autograd.grad(weight.sum(), leaves, materialize_grads=True)
    assert all(bool(grad.isfinite().all()) for grad in grads)


@given(
    cases(weights=('none', 'unit', 'zeros'), headless=True), st.integers(1, 5)
)
def test_products(case, steps):
    index, weight = case.columns()
    x = case.randn(case.num_nodes, steps)
    data = Data(x=x, edge_index=index, edge_weight=weight)
    out = TemporalProduct(time_weight=2.0)(data)
    assert torch.equal(from_product(out).squeeze(-1), x)
    size = case.num_nodes * steps
    dense = torch.zeros(size, size, dtype=torch.double)
    dense[tuple(out.edge_index)] = out.edge_weight.double()
    path = torch.zeros(steps, steps, dtype=torch.double)
    inner = torch.arange(steps - 1)
    path[inner, inner + 1] = path[inner + 1, inner] = 2.0
    one, other = (torch.eye(k).double() for k in (steps, case.num_nodes))
    expected = torch.kron(case.dense()[0], one) + torch.kron(other, path)
    assert torch.equal(dense, expected)


@given(
    cases(FLOATS, ('none', 'unit', 'zeros'), masked=(True,), headless=True),
    st.sampled_from([None, 'sym']),
    st.sampled_from([1, 2]),
)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_missing_features(case, normalization, order):
    missing = torch.ones(case.num_nodes, dtype=torch.bool)
    if case.mask is not None:
        missing = ~case.mask
    index, weight = case.columns()
    x = case.x.clone()
    x[missing] = torch.nan
    transform = InterpolateFeatures(
        'missing', normalization=normalization, order=order
    )
    data = Data(x=x, edge_index=index, edge_weight=weight, missing=missing)
    out = transform(data).x
    assert bool(out.isfinite().all()) and out.dtype == case.dtype
    assert torch.equal(out[~missing], case.x[~missing])
    assert torch.equal(data.x.isnan(), x.isnan())  # the input is unchanged


@given(
    sizes, st.integers(1, 4), st.sampled_from([*FLOATS, *HALVES, torch.uint8])
)
def test_images_come_back_bit_for_bit(size, channels, dtype):
    image = torch.arange(channels * size[0] * size[1]).view(channels, *size)
    image = image.to(dtype)
    data = image_to_data(image)
    assert torch.equal(data_to_image(data), image)
    flipped = image.mT.mT.flip(-1)  # and of strided ones
    assert torch.equal(data_to_image(image_to_data(flipped)), flipped)


@given(st.lists(sizes, min_size=2, max_size=3), windows)
def test_batches_of_grids(shapes, window):
    images = [image_to_data(torch.zeros(1, *shape)) for shape in shapes]
    assert_batch_equals_loop(GridGraph(window), images)
