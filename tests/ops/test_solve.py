import pytest
import torch

from pyg_unroll import GridGraph, Topology
from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient
from tests.backends import needs_numba
from tests.oracles import dense_laplacian, random_graph


def make(order, soft, features=3, heads=2):
    graph = random_graph(60, 90, dtype=torch.float64)
    topology = Topology.from_edge_index(graph.edge_index, 60)
    weight = topology.undirected_weight(graph.edge_weight)
    scale = torch.rand(heads, dtype=torch.float64) + 0.5
    confidence = free = None
    if soft:
        confidence = torch.rand(60, 1, heads, dtype=torch.float64)
    else:
        free = torch.rand(60, features, 1) > 0.3
    system = LaplacianSystem.build(
        topology, weight * scale, confidence, free, order
    )
    dense = []
    for h in range(heads):
        matrix = dense_laplacian(*graph) * scale[h]
        if order == 2:
            matrix = matrix @ (matrix / matrix.diagonal()[:, None])
        if soft:
            matrix = matrix + confidence[:, 0, h].diag()
        dense.append(matrix)
    return system, dense


def exact(system, dense, right):
    out = torch.zeros_like(right)
    for f in range(right.size(1)):
        for h in range(right.size(2)):
            rows = torch.ones(len(right), dtype=torch.bool)
            if system.free is not None:
                rows = system.free[:, f, 0]
            part = dense[h][rows][:, rows]
            out[rows, f, h] = torch.linalg.solve(part, right[rows, f, h])
    return out


@pytest.mark.usefixtures('each_backend')
@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('soft', [False, True])
def test_solution(order, soft):
    system, dense = make(order, soft)
    right = torch.randn(60, 3, 2, dtype=torch.float64)
    right = system.restrict(right)
    out, residual, steps = conjugate_gradient(system, right, 1e-12, 2000)
    assert residual <= 1e-12 and steps < 2000
    torch.testing.assert_close(
        out, exact(system, dense, right), rtol=1e-6, atol=1e-8
    )


@needs_numba
@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('shape', [(1, 1), (3, 2), (70, 1)])
@pytest.mark.parametrize('size', [10, 2**17])
def test_kernels_take_the_same_steps(order, shape, size, monkeypatch):
    # In chunks of a few numbers, and blocks of columns at once.
    from pyg_unroll.ops import backend
    from pyg_unroll.ops.cpu import launch, solve

    monkeypatch.setattr(launch, 'CHUNK', size)
    monkeypatch.setattr(solve, 'CHUNK', size)
    system, _ = make(order, True, *shape)
    right = torch.randn(60, *shape, dtype=torch.float64)
    found = {}
    for name in ('reference', 'cpu'):
        monkeypatch.setitem(backend.chosen, 'cpu', name)
        found[name] = conjugate_gradient(system, right, 1e-6, 1000)
    one, other = found.values()
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-7)
    assert one[2] == other[2]
    assert max(one[1], other[1]) <= 1e-6


@needs_numba
def test_grids_are_solved_without_an_index():
    topology = GridGraph(8).pixels(20, 30, torch.device('cpu'))
    index = Topology.from_pairs(topology.src, topology.dst, 600)
    weight = torch.rand(topology.num_edges, 1, dtype=torch.float64)
    right = torch.randn(600, 1, 1, dtype=torch.float64)
    c = torch.rand(600, 1, 1, dtype=torch.float64)
    one, other = (
        conjugate_gradient(
            LaplacianSystem.build(graph, weight, c), right, 1e-10, 500
        )
        for graph in (topology, index)
    )
    torch.testing.assert_close(one[0], other[0], rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures('each_backend')
@pytest.mark.parametrize('preconditioned', [False, True])
def test_columns_stop_by_themselves(preconditioned):
    system, dense = make(1, True, 3, 1)
    right = torch.randn(60, 3, 1, dtype=torch.float64)
    right[:, 1] = 0
    inverse = None
    if preconditioned:
        matrix = torch.linalg.inv(dense[0])

        def inverse(residual):
            return (matrix @ residual[..., 0]).unsqueeze(-1)

    out, residual, steps = conjugate_gradient(
        system, right, 1e-10, 500, inverse
    )
    assert residual <= 1e-10
    assert steps <= 2 if preconditioned else steps > 2
    assert not out[:, 1].any()
    torch.testing.assert_close(
        out, exact(system, dense, right), rtol=1e-6, atol=1e-8
    )


@pytest.mark.usefixtures('each_backend')
@pytest.mark.parametrize('inverse', [None, lambda residual: residual * 2])
def test_stops_at_the_first_step_that_suffices(inverse):
    system, _ = make(1, True)
    right = torch.randn(60, 3, 2, dtype=torch.float64)
    for tol in (1e-2, 1e-5, 1e-9):
        *_, steps = conjugate_gradient(system, right, tol, 500, inverse)
        arguments = steps - 1, inverse
        _, residual, _ = conjugate_gradient(system, right, 0, *arguments)
        assert residual > tol


@pytest.mark.usefixtures('each_backend')
def test_says_what_is_left():
    system, _ = make(1, True)
    right = torch.randn(60, 3, 2, dtype=torch.float64)
    _, residual, steps = conjugate_gradient(system, right, 1e-12, 3)
    assert steps == 3 and residual > 1e-12
    right[0, 0, 0] = float('nan')
    _, residual, _ = conjugate_gradient(system, right, 1e-12, 100)
    assert residual != residual


@pytest.mark.usefixtures('each_backend')
def test_nothing_to_solve():
    system, _ = make(1, True)
    right = torch.zeros(60, 0, 2, dtype=torch.float64)
    out, residual, steps = conjugate_gradient(system, right, 1e-12, 3)
    assert out.shape == right.shape and residual == 0 and steps == 0
