"""The operators on any graph: a Laplacian, and the same from all kernels."""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyg_unroll import Topology, ops
from pyg_unroll.ops.reference.cg import Adjoint, Directions, Matrix, State
from pyg_unroll.testing import TOLERANCES, assert_laplacian
from tests.backends import needs_numba
from tests.properties.strategies import FLOATS, HALVES, HEADS, cases, share

needs_triton = pytest.mark.skipif(
    find_spec('triton') is None, reason='Triton is not installed'
)


def signals(case, heads):
    """Signals of nodes and edges with heads."""
    features = case.x.size(1)
    return (
        case.rand(case.num_edges, heads),
        case.randn(case.num_nodes, features, heads),
        case.randn(case.num_nodes, features, heads),
        case.randn(case.num_edges, features, heads),
    )


def close(actual, expected, scale=1.0):
    """Equal up to rounding of numbers of some size."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance['rtol'],
        atol=tolerance['atol'] * max(scale, 1.0),
    )


@given(cases(dtypes=FLOATS, weights=('unit', 'zeros', 'extreme')))
def test_is_a_laplacian(case):
    assert_laplacian(case.topology(), case.weight)


@given(cases(dtypes=FLOATS + HALVES, weights=('none', 'unit', 'zeros')))
def test_equals_the_dense_matrix(case):
    topology = case.topology()
    weight = case.per_head()
    x = case.randn(case.num_nodes, case.x.size(1), weight.size(1))
    adjacency = case.dense()
    matrix = adjacency.sum(2).diag_embed() - adjacency
    expected = torch.einsum('hij,jfh->ifh', matrix, x.double())
    out = ops.laplacian(topology, weight, x)
    close(out, expected.to(case.dtype), float(matrix.abs().sum(2).max()))
    close(
        ops.degree(topology, weight),
        adjacency.sum(2).T.to(case.dtype),
        float(adjacency.sum(2).max()),
    )


@given(cases(dtypes=FLOATS + HALVES), HEADS)
def test_constants_vanish(case, heads):
    topology = case.topology()
    w, a, *_ = signals(case, heads)
    constant = a[:1].expand_as(a)
    for value in (
        ops.laplacian(topology, w, constant),
        ops.gradient(topology, constant),
        ops.edge_dot(topology, constant, a),
    ):
        assert torch.equal(value, torch.zeros_like(value))


@given(cases(), HEADS)
def test_adjoints(case, heads):
    topology = case.topology()
    w, a, b, z = signals(case, heads)
    for one, other in (
        (ops.gradient(topology, a) * z, a * ops.divergence(topology, z)),
        (
            ops.degree(topology, w) * b[:, 0],
            w * ops.endpoint_sum(topology, b[:, 0]),
        ),
        (ops.laplacian(topology, w, a) * b, a * ops.laplacian(topology, w, b)),
        (ops.edge_dot(topology, a, b) * w, (ops.laplacian(topology, w, a) * b)),
    ):
        close(one.sum(), other.sum(), float(one.abs().sum()))


@given(cases(), st.integers(-20, 20), st.integers(-20, 20))
def test_powers_of_two_change_no_bit(case, k, m):
    topology = case.topology()
    w, a, b, _ = signals(case, 2)
    out = ops.laplacian(topology, w * 2.0**k, a * 2.0**m)
    assert torch.equal(out, ops.laplacian(topology, w, a) * 2.0 ** (k + m))
    out = ops.edge_dot(topology, a * 2.0**k, b * 2.0**m)
    assert torch.equal(out, ops.edge_dot(topology, a, b) * 2.0 ** (k + m))


@given(cases(), HEADS)
def test_renamed_nodes(case, heads):
    w, a, b, _ = signals(case, heads)
    order, name = case.renaming()
    ends = name[case.pairs]
    low, high = ends.amin(0), ends.amax(0)
    renamed = Topology.from_pairs(low, high, case.num_nodes)
    topology = case.topology()
    close(
        ops.laplacian(renamed, w, a[order]),
        ops.laplacian(topology, w, a)[order],
        case.num_nodes,
    )
    # Swapped endpoints change the sign of differences only.
    dot = ops.edge_dot(topology, a, b)
    assert torch.equal(ops.edge_dot(renamed, a[order], b[order]), dot)


@given(cases(dtypes=FLOATS + HALVES), HEADS)
def test_strides_change_no_bit(case, heads):
    topology = case.topology()
    w, a, b, z = signals(case, heads)

    def strided(v):
        wide = v.new_full((*v.shape, 2), torch.nan)
        wide[..., 0] = v
        return wide.transpose(0, 1)[..., 0].transpose(0, 1)

    for function, *operands in (
        (ops.laplacian, w, a),
        (ops.edge_dot, a, b),
        (ops.gradient, a),
        (ops.divergence, z),
        (ops.degree, w),
        (ops.endpoint_sum, a[:, 0]),
        (ops.log_degree, w),
    ):
        expected = function(topology, *operands)
        out = function(topology, *map(strided, operands))
        assert torch.equal(out, expected)


def kernel_calls(case, heads, has_confidence):
    """Module and operands of each kernel, made anew for each backend."""
    n, f = case.num_nodes, case.x.size(1)
    state = case.generator.get_state()

    def make():
        case.generator.set_state(state)
        graph = case.topology()
        w, a, b, z = signals(case, heads)
        wide = [case.randn(n, f, heads) for _ in range(7)]
        scalars, rows = case.rand(2, 3, heads) + 0.1, case.rand(3, 3, heads)
        directions = Directions(a, [case.randn(n, f, heads) for _ in '12'])
        diagonal = case.rand(n, 1 if has_confidence else f, heads) + 0.5
        diagonal[case.rand(n) < 0.3] = torch.inf
        c = case.rand(n, f if has_confidence else 1, heads)
        total = wide[6] if has_confidence else None
        matrix = Matrix(graph, w, diagonal, c if has_confidence else None)
        adjoint = Adjoint(*wide[:3], w.clone(), wide[3], total)
        log, grad = -w.new_ones(n, heads), a[:, 0].clone()
        return {
            ('operators', 'to_edges'): (graph, a, True),
            ('operators', 'to_nodes'): (graph, z, True),
            ('operators', 'laplacian'): (graph, w, a),
            ('operators', 'edge_dot'): (graph, a, b),
            ('operators', 'log_degree'): (graph, w * 300),
            ('operators', 'log_degree_backward'): (graph, w, log, grad),
            ('cg', 'cg_steps'): (matrix, State(*wide[:2]), directions, scalars),
            ('cg', 'cg_steps_backward'): (matrix, adjoint, directions, rows),
            ('admm', 'admm_step'): (graph, w, a, z, scalars[0]),
            ('admm', 'admm_step_backward'): (
                *(graph, w, a, z, scalars[0]),
                *(b, -z),
            ),
        }

    return make


def assert_kernels_agree(name, case, heads, confidence):
    make = kernel_calls(case, heads, confidence)
    for family, function in make():
        results = []
        for backend in (name, 'reference'):
            operands = make()[family, function]
            module = import_module(f'pyg_unroll.ops.{backend}.{family}')
            out = getattr(module, function)(*operands)
            out = out if isinstance(out, tuple) else (out,)
            # Some are changed in place.
            changed = list(operands[1:])
            if family == 'cg':
                changed += operands[-2].rest
            if function == 'cg_steps':
                changed += operands[1]
            if function == 'cg_steps_backward':
                changed += vars(operands[1]).values()
            results.append([*out, *changed])
        for actual, expected in zip(*results, strict=True):
            if torch.is_tensor(expected):
                close(actual, expected, 10 * case.num_nodes)


@needs_numba
@given(cases(), HEADS, st.booleans())
def test_cpu_kernels(case, heads, confidence):
    assert_kernels_agree('cpu', case, heads, confidence)


@needs_triton
@pytest.mark.skipif(
    torch.cuda.is_available(), reason='the interpreter is for the CPU'
)
@share(0.1)
@given(cases(), HEADS, st.booleans())
def test_triton_kernels(case, heads, confidence):
    assert_kernels_agree('cuda', case, heads, confidence)


@given(cases(weights=('unit', 'zeros', 'extreme')))
def test_gradients_are_finite(case):
    topology = case.topology()
    weight = case.per_head()
    a = case.randn(case.num_nodes, 2, weight.size(1))
    leaves = [weight.requires_grad_(), a.requires_grad_()]
    for out in (
        ops.laplacian(topology, weight, a),
        ops.edge_dot(topology, a, a),
        ops.log_degree(topology, weight),
    ):
        grads = torch.autograd.grad(
            out.sum(), leaves, allow_unused=True, materialize_grads=True
        )
        assert all(bool(grad.isfinite().all()) for grad in grads)
