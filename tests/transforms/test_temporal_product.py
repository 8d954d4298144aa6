import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch_geometric.transforms as T
from scipy.sparse.linalg import spsolve
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.utils import to_torch_csr_tensor

from pyg_unroll import (
    GLRConv,
    KNNGraph,
    MahalanobisGraph,
    TemporalProduct,
    Topology,
    from_product,
    solvers,
)
from pyg_unroll.testing import assert_batch_equals_loop, assert_same
from tests.oracles import dense_laplacian, random_graph, relative_error

N, STEPS = 6, 9


def path_laplacian(num_steps, weight, period=None, period_weight=0.0):
    """Dense, entry by entry."""
    out = np.zeros((num_steps, num_steps))
    pairs = [(t, t + 1, weight) for t in range(num_steps - 1)]
    if period is not None:
        pairs += [
            (t, t + period, period_weight) for t in range(num_steps - period)
        ]
    for s, t, w in pairs:
        out[s, s] += w
        out[t, t] += w
        out[s, t] -= w
        out[t, s] -= w
    return torch.from_numpy(out)


def kronecker(space, time):
    """Kronecker sum of two dense Laplacians."""
    eye = torch.eye(len(time), dtype=torch.double)
    other = torch.eye(len(space), dtype=torch.double)
    return torch.kron(space, eye) + torch.kron(other, time)


def sensors(dtype=torch.float64, num_steps=STEPS, heads=None, num_nodes=N):
    graph = random_graph(num_nodes, num_nodes, heads, dtype)
    return Data(
        x=torch.randn(num_nodes, num_steps, dtype=dtype),
        edge_index=graph.edge_index,
        edge_weight=graph.edge_weight,
    )


@pytest.mark.parametrize(
    'options, period',
    [
        ({}, None),
        ({'time_weight': 0.3}, None),
        ({'time_weight': 0.3, 'period': 4}, 0.3),
        ({'time_weight': 2.5, 'period': 8, 'period_weight': 0.7}, 0.7),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_is_the_kronecker_sum(options, period, dtype):
    data = sensors(dtype)
    out = TemporalProduct(**options)(data)
    assert out.edge_weight.dtype == dtype
    expected = kronecker(
        dense_laplacian(data.edge_index, data.edge_weight, N),
        path_laplacian(
            STEPS,
            options.get('time_weight', 1.0),
            options.get('period'),
            period,
        ),
    )
    actual = dense_laplacian(out.edge_index, out.edge_weight, N * STEPS)
    assert_same(actual.to(dtype), expected.to(dtype))
    assert torch.equal(actual != 0, expected != 0)


@pytest.mark.parametrize('num_steps', [1, 2, 7])
@pytest.mark.parametrize('num_edges', [0, 1, 40])
@pytest.mark.parametrize('num_nodes', [1, 6])
def test_edges_of_small_factors(num_steps, num_edges, num_nodes, device):
    graph = random_graph(num_nodes, num_edges, connected=False)
    weight = graph.edge_weight.double()
    data = Data(
        x=torch.rand(num_nodes, num_steps).double(),
        edge_index=graph.edge_index,
        edge_weight=weight,
    )
    period = 3 if num_steps > 3 else None
    out = TemporalProduct(1.5, period, 0.4 if period else None)(data.to(device))
    edge_index, size = out.edge_index, num_nodes * num_steps
    assert edge_index.device.type == device.type
    order = (edge_index[0] * size + edge_index[1]).argsort()
    assert torch.equal(edge_index[:, order], edge_index)
    Topology.from_edge_index(edge_index, size)  # undirected, each edge once
    actual = dense_laplacian(edge_index.cpu(), out.edge_weight.cpu(), size)
    expected = kronecker(
        dense_laplacian(graph.edge_index, weight, num_nodes),
        path_laplacian(num_steps, 1.5, period, 0.4),
    )
    assert_same(actual, expected)
    assert torch.equal(actual != 0, expected != 0)


def test_layers_do_not_sort_again(monkeypatch):
    out = TemporalProduct()(sensors(num_steps=50))

    def from_edge_index(*args):
        raise AssertionError('sorts the edges')

    monkeypatch.setattr(Topology, 'from_edge_index', from_edge_index)
    mask = torch.rand(N * 50) < 0.5
    solvers.glr(out.x, out.edge_index, out.edge_weight, mask)


@pytest.mark.parametrize('features', [None, 1, 3])
def test_signals_there_and_back(features):
    data = sensors()
    shape = (N, STEPS) if features is None else (N, STEPS, features)
    data.x = torch.randn(shape)
    data.mask = torch.rand(shape) < 0.5
    out = TemporalProduct()(data)
    assert out.num_nodes == N * STEPS and out.num_time_steps == STEPS
    assert out.x.shape == (N * STEPS, features or 1)
    assert out.mask.shape == (N * STEPS, features)[: data.mask.dim() - 1]
    for i, t in [(0, 0), (2, 5), (N - 1, STEPS - 1)]:
        row = i * STEPS + t
        assert torch.equal(out.x[row], data.x[i, t].view(-1))
        assert torch.equal(out.mask[row], data.mask[i, t])
        assert out.time_step[row] == t
    expected = data.x if features else data.x.unsqueeze(-1)
    assert torch.equal(from_product(out), expected)
    assert torch.equal(from_product(out, out.mask), data.mask)
    assert torch.equal(from_product(out, out.x[:, 0]), expected[..., 0])


def test_other_attributes():
    data = sensors()
    del data.edge_weight
    data.num_nodes = N
    data.pos = torch.rand(N, 2)
    data.name = [f'sensor {i}' for i in range(N)]
    data.road = torch.tensor([3])
    data.edge_attr = torch.rand(data.num_edges, 4)
    data.mask = torch.rand(N) < 0.5  # sensors that are known at all times
    data.y = torch.randn(N, STEPS)
    before = copy.deepcopy(data)
    out = TemporalProduct(attrs=['mask', 'y'])(data)
    assert set(out.keys()) == {
        *('x', 'edge_index', 'edge_weight', 'num_nodes', 'pos', 'name'),
        *('road', 'mask', 'y', 'time_step', 'num_time_steps'),
    }
    assert out.validate()
    sensor = torch.arange(N).repeat_interleave(STEPS)
    assert torch.equal(out.pos, data.pos[sensor])
    assert torch.equal(out.mask, data.mask[sensor])
    assert out.name == [f'sensor {i}' for i in sensor.tolist()]
    assert torch.equal(out.y, data.y.view(-1))
    assert torch.equal(out.road, data.road)
    assert torch.equal(out.edge_weight, torch.ones(out.num_edges).double())
    # The input is as it was.
    assert data.keys() == before.keys()
    for key, value in before.to_dict().items():
        same = torch.equal if isinstance(value, torch.Tensor) else list.__eq__
        assert (
            value == data[key] if key == 'num_nodes' else same(value, data[key])
        )


def test_layouts_and_heads():
    data = sensors(heads=2)
    out = TemporalProduct(0.5)(data)
    for head in range(2):
        one = data.clone()
        one.edge_weight = data.edge_weight[:, head]
        expected = TemporalProduct(0.5)(one)
        assert torch.equal(out.edge_index, expected.edge_index)
        assert torch.equal(out.edge_weight[:, head], expected.edge_weight)
    matrix = to_torch_csr_tensor(one.edge_index, one.edge_weight, (N, N))
    other = TemporalProduct(0.5)(Data(x=data.x, adj_t=matrix))
    assert 'adj_t' not in other
    assert torch.equal(other.edge_index, expected.edge_index)
    assert_same(other.edge_weight, expected.edge_weight)


def test_renaming_sensors():
    data = sensors()
    name = torch.randperm(N)
    renamed = Data(
        x=torch.empty_like(data.x),
        edge_index=name[data.edge_index],
        edge_weight=data.edge_weight,
    )
    renamed.x[name] = data.x
    out, other = (TemporalProduct(0.4, 3)(d) for d in (data, renamed))
    row = name.repeat_interleave(STEPS) * STEPS + out.time_step
    assert torch.equal(other.x[row], out.x)
    matrix, permuted = (
        dense_laplacian(d.edge_index, d.edge_weight, N * STEPS)
        for d in (out, other)
    )
    assert_same(permuted[row][:, row], matrix)


def test_batch():
    examples = [sensors(num_nodes=n) for n in (4, 7, 5)]
    for data in examples:
        data.mask = torch.rand_like(data.x) < 0.5
    transform = TemporalProduct(0.5, period=4)
    assert_batch_equals_loop(transform, examples)
    batch = transform(Batch.from_data_list(examples))
    expected = torch.cat([data.x for data in examples])
    assert torch.equal(from_product(batch)[..., 0], expected)
    unequal = [transform(sensors(num_steps=k)) for k in (5, 6)]
    with pytest.raises(ValueError, match=r'\[5, 6\] time steps'):
        from_product(Batch.from_data_list(unequal))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('period', [None, 12])
def test_fills_in_random_missing_entries(dtype, period):
    # Outside oracle: SuperLU on the Kronecker sum.
    num_nodes, num_steps = 12, 30
    data = sensors(dtype, num_steps, num_nodes=num_nodes)
    data.mask = torch.rand(num_nodes, num_steps) < 0.4
    truth = data.x
    data.x = torch.where(data.mask, data.x, torch.nan)
    graph = TemporalProduct(0.7, period, None if period is None else 0.2)(data)
    result = solvers.glr(
        graph.x, graph.edge_index, graph.edge_weight, graph.mask, tol=1e-12
    )
    matrix = kronecker(
        dense_laplacian(data.edge_index, data.edge_weight, num_nodes),
        path_laplacian(num_steps, 0.7, period, 0.2),
    )
    matrix, known = sp.csc_array(matrix.numpy()), data.mask.view(-1).numpy()
    expected = truth.double().view(-1).numpy().copy()
    right = -matrix[~known][:, known] @ expected[known]
    expected[~known] = spsolve(matrix[~known][:, ~known].tocsc(), right)
    expected = torch.from_numpy(expected).view(num_nodes, num_steps)
    out = from_product(graph, result.x)[..., 0]
    limit = 1e-9 if dtype == torch.float64 else 1e-5
    assert relative_error(out, expected) <= limit
    assert torch.equal(out[data.mask], truth[data.mask])


def test_layers_and_gradients():
    data = sensors(torch.float32)
    data.edge_weight.requires_grad_()
    data.mask = torch.rand(N, STEPS) < 0.5
    graph = TemporalProduct()(data)
    out = GLRConv(4)(graph.x, graph.edge_index, graph.edge_weight, graph.mask)
    grad = torch.autograd.grad(out.square().sum(), data.edge_weight)[0]
    assert bool((grad != 0).any())
    # Learned weights take the place of these.
    learned = MahalanobisGraph(-1)(graph)
    assert learned.edge_weight.shape == graph.edge_weight.shape


def test_compose_and_names():
    transform = T.Compose([TemporalProduct(), T.AddSelfLoops()])
    assert transform(sensors()).has_self_loops()
    with pytest.raises(Exception, match='already taken'):
        functional_transform('temporal_product')(TemporalProduct)
    text = 'TemporalProduct(time_weight=0.5, period=24)'
    assert str(TemporalProduct(0.5, 24)) == text


@pytest.mark.parametrize(
    'options, match',
    [
        ({'time_weight': 0.0}, "'time_weight' must be positive"),
        ({'time_weight': float('nan')}, "'time_weight' must be positive"),
        ({'period': 1}, "'period' must be an integer of at least 2"),
        ({'period': 2.0}, "'period' must be an integer of at least 2"),
        ({'period': 3, 'period_weight': -1.0}, "'period_weight' must be"),
        ({'period_weight': 1.0}, "without a 'period'"),
        ({'attrs': 'mask'}, r"write \['mask'\]"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ValueError, match=match):
        TemporalProduct(**options)


def test_wrong_data():
    data = sensors()
    transform = TemporalProduct()

    def change(**attributes):
        out = copy.copy(data)
        for key, value in attributes.items():
            out[key] = value
        return out

    for wrong, match in (
        (change(x=torch.rand(N)), r"'data.x' must have shape.*got \[6\]"),
        (Data(edge_index=data.edge_index), "got 'NoneType'"),
        (Data(x=data.x), "no 'edge_index'; make one of the sensors"),
        (change(mask=torch.ones(N, 4).bool()), r"'data.mask'.*got \[6, 4\]"),
        (change(edge_index=torch.tensor([[0], [1]])), 'no reverse edge'),
        (change(edge_weight=torch.rand(3)), "'edge_weight' must have shape"),
        (HeteroData(), 'homogeneous'),
    ):
        with pytest.raises(ValueError, match=match):
            transform(wrong)
    with pytest.raises(ValueError, match='got 9 for 9'):
        TemporalProduct(period=9)(data)
    with pytest.raises(ValueError, match="names 'y'"):
        TemporalProduct(attrs=['y'])(data)
    with pytest.raises(ValueError, match="no 'num_time_steps'"):
        from_product(data)
    with pytest.raises(ValueError, match=r"'x' must have shape \[54\]"):
        from_product(transform(data), data.x)


def fill(data, **kwargs):
    """The documented recipe."""
    graph = TemporalProduct()(data)
    out = solvers.glr(
        *(graph.x, graph.edge_index, graph.edge_weight, graph.mask), **kwargs
    )
    return from_product(graph, out.x)[..., 0]


def test_sensors_that_nothing_joins_to_a_known_reading():
    data = sensors(num_nodes=4)
    data.mask = torch.rand(4, STEPS) < 0.5
    data.mask[0, 0] = True
    both = Data(
        x=torch.cat([data.x, data.x]),
        edge_index=torch.cat([data.edge_index, data.edge_index + 4], 1),
        mask=torch.cat([data.mask, torch.zeros(4, STEPS).bool()]),
    )
    with pytest.raises(ValueError, match=rf'{4 * STEPS} node\(s\) \(36, 37'):
        fill(both)
    out = fill(both, fill='mean')
    torch.testing.assert_close(
        out[4:], data.x[data.mask].mean().expand(4, STEPS)
    )
    # A sensor or a time without readings is no component of its own.
    data.mask[1], data.mask[:, 4] = False, False
    assert fill(data).isfinite().all()


def test_one_reading_constants_and_nan():
    data = sensors()
    data.mask = torch.zeros(N, STEPS).bool()
    data.mask[2, 3] = True
    data.x = torch.where(data.mask, data.x, torch.nan)
    expected = data.x[2, 3].expand(N, STEPS)
    torch.testing.assert_close(fill(data), expected)
    constant = sensors()
    constant.x = torch.full((N, STEPS), 3.0).double()
    constant.mask = data.mask
    torch.testing.assert_close(fill(constant), constant.x)
    data.mask[1, 1] = True  # but NaN
    with pytest.raises(ValueError, match='finite where it is known'):
        fill(data)
    data.mask[:] = False
    with pytest.raises(ValueError, match='no known entry'):
        fill(data)


def test_duplicate_positions():
    pos = torch.rand(N, 2).repeat(2, 1)
    data = KNNGraph(3)(Data(x=torch.randn(2 * N, STEPS), pos=pos))
    data.mask = torch.rand(2 * N, STEPS) < 0.5
    data.mask[:, 0] = True
    out = fill(data)
    assert out.isfinite().all()
    assert torch.equal(out[data.mask], data.x[data.mask])


def test_what_was_set_on_a_batch():
    batch = Batch.from_data_list(
        [Data(x=torch.rand(n, 4), **edges(n)) for n in (3, 5)]
    )
    batch.mask = torch.rand(8, 4) < 0.5
    out = TemporalProduct()(batch)
    assert torch.equal(out.mask.view(8, 4), batch.mask)


def test_attributes_are_repeated_without_edges():
    empty = torch.empty(2, 0, dtype=torch.long)
    data = Data(
        pos=torch.rand(3, 2), station=torch.arange(3), x=torch.rand(3, 5)
    )
    data.edge_index = empty
    out = TemporalProduct()(data)
    assert out.station.tolist() == torch.arange(3).repeat_interleave(5).tolist()
    assert out.pos.shape == (15, 2)


def edges(num_nodes):
    """A path."""
    ends = torch.arange(num_nodes - 1)
    pairs = torch.stack([ends, ends + 1])
    return {'edge_index': torch.cat([pairs, pairs.flip(0)], 1)}
