"""`glr` under the transforms of `torch.func`, by dense solutions."""

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.func import grad, jacrev, vmap
from torch_geometric.testing import withPackage

from pyg_unroll import Topology
from pyg_unroll.solvers import glr
from pyg_unroll.testing import assert_same
from tests.oracles import dense_glr, random_graph

N, F, B = 12, 2, 3


def exact(*args, **kwargs):
    return glr(*args, tol=1e-14, **kwargs).x


def dense_proximal(y, edge_index, weight, confidence, mu):
    """As that of the oracles, differentiable by the weights and `mu`."""
    adjacency = y.new_zeros(N, N).index_put(tuple(edge_index), weight)
    matrix = mu * (adjacency.sum(1).diag() - adjacency)
    columns = zip(confidence.unbind(1), y.unbind(1), strict=True)
    return torch.stack(
        [torch.linalg.solve(matrix + c.diag(), c * v) for c, v in columns], 1
    )


@pytest.fixture(params=['order 1', 'order 2', 'soft'])
def case(request):
    """The solver and its twin, and their operands: a signal and weights."""
    graph = random_graph(N, 15)
    topology = Topology.from_edge_index(graph.edge_index, N)
    edge_index = topology.edge_index
    x, mask = torch.randn(N, F).double(), torch.rand(N) < 0.4
    mask[0] = True
    weight = torch.rand(topology.num_edges).double() + 0.1
    if request.param == 'soft':
        c = torch.rand(N, F).double() + 0.1
        return (
            lambda x, w: exact(x, topology, w, confidence=c, mu=0.7),
            lambda x, w: dense_proximal(
                x, edge_index, topology.directed_weight(w), c, 0.7
            ),
            (x, weight),
        )
    order = int(request.param[-1])
    return (
        lambda x, w: exact(x, topology, w, mask, order=order),
        lambda x, w: dense_glr(
            x, edge_index, topology.directed_weight(w), mask, order
        ),
        (x, weight),
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_derivatives(case):
    *functions, operands = case
    argnums = 0, 1

    def loss(function):
        return lambda *values: function(*values).sin().sum()

    close(*(grad(loss(f), argnums)(*operands) for f in functions))
    close(*(jacrev(f, argnums)(*operands) for f in functions))
    close(
        *(jacrev(grad(loss(f), argnums), argnums)(*operands) for f in functions)
    )


@pytest.mark.parametrize('create_graph', [False, True])
def test_vectorized_jacobian(case, create_graph):
    *functions, operands = case
    found, expected = (
        jacobian(f, operands, create_graph, vectorize=True) for f in functions
    )
    close(found, expected)


@pytest.mark.parametrize('in_dims', [(0, None), (None, 0), (0, 0)])
def test_samples(case, in_dims):
    function, _, (x, weight) = case
    xs = torch.randn(B, *x.shape).double() if in_dims[0] == 0 else x
    weights = weight
    if in_dims[1] == 0:
        weights = torch.rand(B, *weight.shape).double() + 0.1
    pairs = [
        (
            xs[k] if in_dims[0] == 0 else x,
            weights[k] if in_dims[1] == 0 else weight,
        )
        for k in range(B)
    ]
    close(
        vmap(function, in_dims)(xs, weights),
        torch.stack([function(*pair) for pair in pairs]),
    )

    def loss(*values):
        return function(*values).sin().sum()

    found = vmap(grad(loss, (0, 1)), in_dims)(xs, weights)
    singles = zip(*(grad(loss, (0, 1))(*pair) for pair in pairs), strict=True)
    close(found, tuple(map(torch.stack, singles)))


def test_masks_and_mu_of_samples():
    graph = random_graph(N, 15)
    x = torch.randn(B, N, F).double()
    mask = torch.rand(B, N) < 0.5
    mask[:, 0] = True
    mu = torch.rand(B).double() + 0.5

    def solve(x, mask, mu):
        args = x, graph.edge_index, None, mask
        return exact(*args, fidelity='soft', mu=mu), exact(*args)

    found = vmap(solve)(x, mask, mu)
    expected = [solve(*sample) for sample in zip(x, mask, mu, strict=True)]
    close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


def test_unreachable_nodes_of_samples():
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    x = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]) > 0

    def solve(x, mask, fill=None):
        return glr(x, edge_index, None, mask, fill=fill).x

    with pytest.raises(ValueError, match=r'2 node\(s\) \(2, 3\)'):
        vmap(solve)(x, mask)
    filled = vmap(lambda x, mask: solve(x, mask, fill=9.0))(x, mask)
    expected = torch.tensor([[0.0, 0, 2, 2], [4, 4, 9, 9]])
    assert_same(filled.squeeze(-1), expected)


@withPackage('pyamg')
def test_multigrid():
    graph = random_graph(N, 15, dtype=torch.float64)
    x, weight = torch.randn(N, F).double(), graph.edge_weight
    mask = torch.rand(N) < 0.4
    mask[0] = True

    def solve(x, preconditioner='amg'):
        args = x, graph.edge_index, weight, mask
        return exact(*args, preconditioner=preconditioner)

    close(
        jacobian(solve, x, vectorize=True),
        jacobian(lambda x: solve(x, 'jacobi'), x),
    )
    with pytest.raises(ValueError, match="must be 'jacobi' in a function"):
        vmap(solve)(x.expand(B, -1, -1))
