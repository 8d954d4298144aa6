import math

import pytest
import torch

from pyg_unroll import Topology
from pyg_unroll.ops.admm import shrink
from pyg_unroll.ops.cg import (
    LaplacianSystem,
    cg_iterates,
    cg_steps,
    chebyshev_coefficients,
)
from pyg_unroll.testing import assert_same
from tests.oracles import dense_laplacian, random_graph

pytestmark = pytest.mark.usefixtures('each_backend')


@pytest.mark.parametrize('lower, upper', [(0.1, 2.0), (0.02, 1.5)])
def test_chebyshev_coefficients(lower, upper):
    # On a diagonal operator, the error after K steps is the scaled Chebyshev
    # polynomial T_K, evaluated here by its cosine form.
    num_steps = 9
    values = torch.linspace(lower, upper, 50, dtype=torch.float64)
    alpha, beta = chebyshev_coefficients(num_steps, lower, upper)
    assert alpha.shape == (num_steps,) and beta.shape == (num_steps - 1,)
    error = torch.ones_like(values)
    direction = torch.zeros_like(values)
    for k in range(num_steps):
        momentum = beta[k - 1].double() if k > 0 else 0.0
        direction = values * error + momentum * direction
        error = error - alpha[k].double() * direction
    center, radius = (upper + lower) / 2, (upper - lower) / 2
    peak = math.cosh(num_steps * math.acosh(center / radius))
    expected = torch.cos(
        num_steps * torch.acos(((center - values) / radius).clamp(-1, 1))
    )
    torch.testing.assert_close(error, expected / peak, atol=1e-5, rtol=1e-4)


def test_system_against_dense():
    graph = random_graph(9, 10, dtype=torch.float64)
    topology = Topology.from_edge_index(graph.edge_index, 9)
    weight = topology.undirected_weight(graph.edge_weight)
    free = torch.rand(9, 2, 1) > 0.4
    confidence = torch.rand(9, 1, 1).double()
    system = LaplacianSystem.build(topology, weight, confidence, free)
    dense = dense_laplacian(*graph) + confidence.view(-1).diag()
    x = torch.where(free, torch.randn(9, 2, 1).double(), 0)
    expected = torch.where(free, (dense @ x.squeeze(-1)).unsqueeze(-1), 0)
    assert_same(system(x), expected)
    assert_same(
        (x / system.diagonal).squeeze(-1),
        x.squeeze(-1) / dense.diagonal().unsqueeze(-1),
    )


@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('soft', [False, True])
def test_iterates_are_the_same_bits(order, soft):
    graph = random_graph(20, 40, 2)
    topology = Topology.from_edge_index(graph.edge_index, 20)
    weight = topology.undirected_weight(graph.edge_weight).requires_grad_()
    x, b = torch.randn(20, 3, 2), torch.randn(20, 3, 2)
    confidence = torch.rand(20, 1, 1) if soft else None
    free = None if soft else torch.rand(20, 3, 1) > 0.4
    system = LaplacianSystem.build(topology, weight, confidence, free, order)
    alpha, beta = torch.rand(4, 2), torch.rand(3, 2)
    number = 0
    for out in cg_iterates(system, x, b, alpha, beta):
        number += 1
        steps = alpha[:number], beta[: number - 1]
        assert torch.equal(out, cg_steps(system, x, b, *steps))
        assert not out.requires_grad
    assert number == 4


def test_shrink():
    z = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    expected = torch.tensor([-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    assert torch.equal(shrink(z, torch.tensor(1.0)), expected)


@pytest.mark.parametrize('order', [1, 2])
def test_gradients_at_nearly_isolated_nodes_are_finite(order):
    # In float32, one over the square of such a degree is infinite.
    topology = Topology.from_pairs(torch.arange(4), torch.arange(1, 5), 5)
    weight = torch.tensor([[1.0], [1e-25], [1e-25], [1e-36]])
    weight.requires_grad_()
    free = torch.tensor([False, True, True, True, True]).view(-1, 1, 1)
    system = LaplacianSystem.build(topology, weight, None, free, order)
    x = torch.tensor([1.0, 0.0, 0.0, 2.0, 3.0]).view(-1, 1, 1)
    coefficients = torch.full((3, 1), 0.5)
    out = cg_steps(system, x, None, coefficients, coefficients[1:])
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert (weight.grad != 0).any()
