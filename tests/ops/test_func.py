"""Operators under the transforms of `torch.func`, by dense twins."""

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.func import grad, jacrev, vjp, vmap

from pyg_unroll import Topology, ops
from pyg_unroll.testing import assert_same
from tests.ops.test_operators import OPERATORS, incidence, make

pytestmark = pytest.mark.usefixtures('each_backend')
parametrize_operators = pytest.mark.parametrize(
    ('operator', 'twin'), OPERATORS.values(), ids=list(OPERATORS)
)
OPERANDS = range(4)
B = 5


@pytest.fixture
def pair(operator, twin):
    """An operator and its twin as functions of four operands; these."""
    topology, *operands = make()
    matrix = incidence(topology)
    return (
        lambda *values: operator(topology, *values),
        lambda *values: twin(matrix, *values),
        operands,
    )


@parametrize_operators
def test_grad(pair):
    function, twin, operands = pair

    def loss(function):
        return lambda *values: function(*values).square().sum()

    for argnums in (0, 1, tuple(OPERANDS)):
        assert_same(
            grad(loss(function), argnums)(*operands),
            grad(loss(twin), argnums)(*operands),
        )


@parametrize_operators
def test_vjp(pair):
    function, twin, operands = pair
    (out, pull), (expected, pull_twin) = (
        vjp(each, *operands) for each in (function, twin)
    )
    assert_same(out, expected)
    cotangent = torch.randn_like(out)
    assert_same(pull(cotangent), pull_twin(cotangent))


@parametrize_operators
def test_jacrev(pair):
    function, twin, operands = pair
    argnums = tuple(OPERANDS)
    assert_same(
        jacrev(function, argnums)(*operands), jacrev(twin, argnums)(*operands)
    )


@parametrize_operators
def test_derivative_of_a_derivative(pair):
    function, twin, operands = pair
    argnums = 0, 1

    def energy(function):
        return lambda *values: function(*values).sin().sum()

    found, expected = (
        jacrev(grad(energy(each), argnums), argnums)(*operands)
        for each in (function, twin)
    )
    assert_same(found, expected)


@parametrize_operators
@pytest.mark.parametrize('axes', [(0,), (1,), (0, 1), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize('dim', [0, 1, -1])
def test_vmap(pair, axes, dim):
    function, twin, operands = pair
    in_dims = [None] * 4
    for axis in axes:
        samples = torch.stack([operands[axis] * k for k in range(1, B + 1)])
        operands[axis], in_dims[axis] = samples.movedim(0, dim), dim
    in_dims = tuple(in_dims)
    assert_same(
        vmap(function, in_dims)(*operands), vmap(twin, in_dims)(*operands)
    )


@parametrize_operators
def test_gradient_of_each_sample(pair):
    function, twin, (weight, a, b, z) = pair
    samples = torch.randn(B, *a.shape, dtype=a.dtype)

    def of_samples(function):
        def loss(a, weight):
            return function(weight, a, b, z).sin().sum()

        return vmap(grad(loss, (0, 1)), (0, None))(samples, weight)

    assert_same(of_samples(function), of_samples(twin))


@parametrize_operators
def test_gradient_of_all_samples(pair):
    function, twin, (weight, a, b, z) = pair
    samples = torch.randn(B, *a.shape, dtype=a.dtype)

    def of_samples(function):
        def loss(samples, weight):
            out = vmap(lambda a: function(weight, a, b, z))(samples)
            return out.sin().sum()

        return grad(loss, (0, 1))(samples, weight)

    assert_same(of_samples(function), of_samples(twin))


@parametrize_operators
def test_vmap_of_vmap(pair):
    function, twin, (weight, a, b, z) = pair
    weights = torch.rand(B, *weight.shape, dtype=a.dtype)
    signals = torch.randn(3, *a.shape, dtype=a.dtype)

    def table(function):
        inner = vmap(lambda w, a: function(w, a, b, z), (None, 0))
        return vmap(inner, (0, None))(weights, signals)

    assert_same(table(function), table(twin))


@parametrize_operators
@pytest.mark.parametrize('create_graph', [False, True])
def test_vectorized_jacobian(pair, create_graph):
    function, twin, operands = pair
    operands = tuple(operands)
    found, expected = (
        jacobian(each, operands, create_graph, vectorize=True)
        for each in (function, twin)
    )
    assert_same(found, expected)


@parametrize_operators
def test_batched_gradients(pair):
    function, twin, operands = pair
    for value in operands:
        value.requires_grad_()
    out, expected = function(*operands), twin(*operands)
    grads = torch.randn(B, *out.shape, dtype=out.dtype)

    def pull(out, create_graph):
        return torch.autograd.grad(
            out,
            operands,
            grads,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=True,
            materialize_grads=True,
        )

    for create_graph in (False, True):
        first = pull(out, create_graph), pull(expected, create_graph)
        assert_same(*first)
    second = [
        torch.autograd.grad(
            [v.square().sum() for v in each if v.requires_grad],
            operands,
            materialize_grads=True,
        )
        for each in first
        if any(v.requires_grad for v in each)
    ]
    if second:
        assert_same(*second)


def test_isolated_nodes_and_no_edges():
    none = torch.empty(0, dtype=torch.long)
    topology = Topology.from_pairs(none, none, 3)
    weight, x = torch.rand(0, 2), torch.randn(B, 3, 2, 2)
    out = vmap(lambda x: ops.laplacian(topology, weight, x))(x)
    assert_same(out, torch.zeros_like(x))
