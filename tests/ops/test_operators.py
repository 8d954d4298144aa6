import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch_geometric.nn import MessagePassing

from pyg_unroll import Topology, ops
from pyg_unroll.testing import (
    TOLERANCES,
    assert_compiles,
    assert_laplacian,
    assert_same,
)
from tests.oracles import dense_laplacian, random_graph

pytestmark = pytest.mark.usefixtures('each_backend')
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
N, F, H = 7, 3, 2


def incidence(topology):
    matrix = torch.zeros(topology.num_edges, topology.num_nodes).double()
    edges = torch.arange(topology.num_edges)
    matrix[edges, topology.src.cpu().long()] = 1
    matrix[edges, topology.dst.cpu().long()] = -1
    return matrix.to(topology.device)


def make(dtype=torch.float64, device='cpu', num_nodes=N, features=F):
    graph = random_graph(num_nodes, 2 * num_nodes)
    topology = Topology.from_edge_index(graph.edge_index, num_nodes)
    topology = topology.to(device)

    def rand(*shape):
        return torch.randn(shape, device=device).to(dtype)

    return (
        topology,
        rand(topology.num_edges, H).abs(),
        rand(num_nodes, features, H),
        rand(num_nodes, features, H),
        rand(topology.num_edges, features, H),
    )


# Operators as (name, function of the operands above, dense twin).
OPERATORS = {
    'gradient': (
        lambda t, w, a, b, z: ops.gradient(t, a),
        lambda m, w, a, b, z: torch.einsum('en,nfh->efh', m, a),
    ),
    'divergence': (
        lambda t, w, a, b, z: ops.divergence(t, z),
        lambda m, w, a, b, z: torch.einsum('en,efh->nfh', m, z),
    ),
    'laplacian': (
        lambda t, w, a, b, z: ops.laplacian(t, w, a),
        lambda m, w, a, b, z: torch.einsum('en,eh,em,mfh->nfh', m, w, m, a),
    ),
    'edge_dot': (
        lambda t, w, a, b, z: ops.edge_dot(t, a, b),
        lambda m, w, a, b, z: (
            ((m @ a.flatten(1)) * (m @ b.flatten(1)))
            .view(-1, a.size(1), H)
            .sum(1)
        ),
    ),
    'degree': (
        lambda t, w, a, b, z: ops.degree(t, w),
        lambda m, w, a, b, z: m.abs().T @ w,
    ),
    'endpoint_sum': (
        lambda t, w, a, b, z: ops.endpoint_sum(t, a[:, 0]),
        lambda m, w, a, b, z: m.abs() @ a[:, 0],
    ),
    'log_degree': (
        lambda t, w, a, b, z: ops.log_degree(t, w),
        lambda m, w, a, b, z: torch.where(
            m.T.unsqueeze(-1) == 0, -torch.inf, -w
        ).logsumexp(1),
    ),
}
parametrize_operators = pytest.mark.parametrize('name', OPERATORS)


@parametrize_operators
@pytest.mark.parametrize('dtype', DTYPES)
def test_dense_twin(name, dtype, device):
    operator, dense = OPERATORS[name]
    topology, *operands = make(dtype, device)
    out = operator(topology, *operands)
    assert out.dtype == dtype
    expected = dense(incidence(topology), *(x.double() for x in operands))
    torch.testing.assert_close(out.double(), expected, **TOLERANCES[dtype])


@parametrize_operators
def test_gradients(name, device):
    topology, *operands = make(device=device)
    operands = [x.requires_grad_() for x in operands]

    def function(*operands):
        return OPERATORS[name][0](topology, *operands)

    assert gradcheck(function, operands)
    assert gradgradcheck(function, operands, fast_mode=True)


def test_gradients_of_edge_dot_with_itself():
    topology, _, a, *_ = make()
    a.requires_grad_()
    assert gradcheck(lambda a: ops.edge_dot(topology, a, a), a)
    assert gradgradcheck(lambda a: ops.edge_dot(topology, a, a), a)


@parametrize_operators
def test_noncontiguous(name):
    topology, *operands = make()
    strided = [x.mT.contiguous().mT for x in operands]
    assert not any(x.is_contiguous() for x in strided)
    operator = OPERATORS[name][0]
    assert torch.equal(
        operator(topology, *strided), operator(topology, *operands)
    )
    # Expanded heads, as the layers give them.
    topology, w, a, b, z = make()
    expanded = [x[..., :1].expand(*x.shape[:-1], H) for x in (w, a, b, z)]
    copied = [x.contiguous() for x in expanded]
    assert torch.equal(
        operator(topology, *expanded), operator(topology, *copied)
    )


@parametrize_operators
def test_same_bits_in_each_run(name, device):
    topology, *operands = make(torch.float32, device, 500, 5)
    operator = OPERATORS[name][0]
    first = operator(topology, *operands)
    for _ in range(5):
        assert torch.equal(first, operator(topology, *operands))


@parametrize_operators
def test_compile(name):
    topology, *operands = make(torch.float32)
    operands = [x.requires_grad_() for x in operands]

    def function(*operands):
        return OPERATORS[name][0](topology, *operands)

    assert_compiles(function, *operands, backend='aot_eager')


@parametrize_operators
def test_opcheck(name):
    # Schema, fake tensors and autograd registration, by PyTorch itself.
    topology, w, a, b, z = make()
    operands = {
        'gradient': ('to_edges', a, True),
        'divergence': ('to_nodes', z, True),
        'laplacian': ('laplacian', w, a),
        'edge_dot': ('edge_dot', a, b),
        'degree': ('to_nodes', w, False),
        'endpoint_sum': ('to_edges', a[:, 0].contiguous(), False),
        'log_degree': ('log_degree', w),
    }
    op, *args = operands[name]
    args = [x.requires_grad_() if torch.is_tensor(x) else x for x in args]
    torch.library.opcheck(
        getattr(torch.ops.pyg_unroll, op).default, (*topology.pack(), *args)
    )


@pytest.mark.parametrize('name', sorted(OPERATORS.keys() - {'log_degree'}))
def test_saves_only_operands(name):
    # With many features: nothing of size edges x features, also not for the
    # second derivative.
    topology, *operands = make(torch.float32, num_nodes=12, features=64)
    operands = [x.requires_grad_() for x in operands]
    operator = OPERATORS[name][0]
    grad = torch.randn_like(operator(topology, *operands), requires_grad=True)
    own = {x.data_ptr() for x in (*operands, *topology.pack()[0], grad)}
    foreign = []

    def pack(x):
        if x.data_ptr() not in own:
            foreign.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = operator(topology, *operands)
        used = torch.autograd.grad(
            out, operands, grad, create_graph=True, allow_unused=True
        )
    assert any(x is not None for x in used)
    assert foreign == []


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('offset', [0, 95, 2000])
def test_log_degree_of_large_distances(offset, dtype, device):
    # Where every exp(-d) of a node, or of some nodes only, is zero.
    topology, d, *_ = make(device=device)
    d[: len(d) // 2] += offset
    d[:, 1] += offset
    d = d.to(dtype).requires_grad_()
    out = ops.log_degree(topology, d)
    exact = d.detach().double().requires_grad_()
    expected = OPERATORS['log_degree'][1](
        incidence(topology), exact, None, None, None
    )
    torch.testing.assert_close(out.double(), expected, **TOLERANCES[dtype])
    given = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, d, given)
    (twin,) = torch.autograd.grad(expected, exact, given.double())
    # Rounding of the result, which the derivative reads, counts relatively.
    tolerance = 1e-9 + torch.finfo(dtype).eps * (1 + 4 * offset)
    if tolerance < 0.1:
        torch.testing.assert_close(
            grad.double(), twin, rtol=tolerance, atol=tolerance
        )


def test_adjoints(device):
    topology, w, a, b, z = make(device=device)
    left = (ops.gradient(topology, a) * z).sum()
    assert_same(left, (a * ops.divergence(topology, z)).sum())
    left = (ops.degree(topology, w) * a[:, 0]).sum()
    assert_same(left, (w * ops.endpoint_sum(topology, a[:, 0])).sum())
    left = (ops.laplacian(topology, w, a) * b).sum()
    assert_same(left, (a * ops.laplacian(topology, w, b)).sum())
    assert_same(left, (ops.edge_dot(topology, a, b) * w).sum())


def test_laplacian_against_pyg():
    graph = random_graph(20, 40, dtype=torch.float64)
    topology = Topology.from_edge_index(graph.edge_index, 20)
    x = torch.randn(20, 4, 1).double()
    weight = topology.undirected_weight(graph.edge_weight)
    out = ops.laplacian(topology, weight, x)
    matrix = dense_laplacian(*graph)
    assert_same(out.squeeze(-1), matrix @ x.squeeze(-1))
    assert_laplacian(topology, weight)

    class WeightedSum(MessagePassing):
        def forward(self, x, edge_index, edge_weight):
            return self.propagate(edge_index, x=x, edge_weight=edge_weight)

        def message(self, x_i, x_j, edge_weight):
            return edge_weight.view(-1, 1) * (x_i - x_j)

    propagated = WeightedSum()(x.squeeze(-1), *graph[:2])
    assert_same(out.squeeze(-1), propagated)


@pytest.mark.parametrize('dtype', DTYPES)
def test_laplacian_of_constants_is_exactly_zero(dtype):
    topology, w, a, *_ = make(dtype)
    constant = a[:1].expand_as(a)
    assert torch.equal(
        ops.laplacian(topology, w, constant), torch.zeros_like(a)
    )


def test_half_precision_accumulates_in_float32():
    # A star of 4096 leaves: bfloat16 sums of ones would stop at 256.
    leaves = torch.arange(1, 4097)
    topology = Topology.from_pairs(torch.zeros_like(leaves), leaves, 4097)
    weight = torch.ones(4096, 1, dtype=torch.bfloat16)
    assert ops.degree(topology, weight)[0].item() == 4096
    x = torch.zeros(4097, 1, 1, dtype=torch.bfloat16)
    x[0] = 1
    assert ops.laplacian(topology, weight, x)[0].item() == 4096


@pytest.mark.parametrize('num_nodes', [1, 3])
def test_without_edges(num_nodes, device):
    empty = torch.empty(2, 0, dtype=torch.long, device=device)
    topology = Topology.from_edge_index(empty, num_nodes)
    assert topology.num_edges == 0
    x = torch.randn(num_nodes, 2, H, device=device, requires_grad=True)
    w = torch.empty(0, H, device=device, requires_grad=True)
    z = torch.empty(0, 2, H, device=device)
    zero = torch.zeros_like(x)
    assert ops.gradient(topology, x).shape == (0, 2, H)
    assert ops.edge_dot(topology, x, x).shape == (0, H)
    assert ops.endpoint_sum(topology, x[:, 0]).shape == (0, H)
    assert torch.equal(ops.divergence(topology, z), zero)
    assert torch.equal(ops.degree(topology, w), zero[:, 0])
    assert torch.equal(ops.log_degree(topology, w), zero[:, 0])
    out = ops.laplacian(topology, w, x)
    assert torch.equal(out, zero)
    grad_x, grad_w = torch.autograd.grad(out.sum(), [x, w])
    assert torch.equal(grad_x, zero) and grad_w.shape == (0, H)


def test_wrong_operands():
    topology, w, a, b, _ = make()
    with pytest.raises(ValueError, match=r"'x' must have shape \[7, features"):
        ops.gradient(topology, a[..., 0])
    with pytest.raises(ValueError, match=r"'z'.*one row per undirected edge"):
        ops.divergence(topology, a)
    with pytest.raises(ValueError, match="'weight' must have shape"):
        ops.laplacian(topology, w[:-1], a)
    with pytest.raises(ValueError, match=r'floating point.*float()'):
        ops.gradient(topology, a.long())
    with pytest.raises(ValueError, match='agree in type and heads'):
        ops.laplacian(topology, w[:, :1], a)
    with pytest.raises(ValueError, match='agree in type and heads'):
        ops.edge_dot(topology, a, b.float())
    with pytest.raises(ValueError, match='same number of features'):
        ops.edge_dot(topology, a, b[:, :1])
    with pytest.raises(ValueError, match="'weight'"):
        ops.degree(topology, w[0])
    with pytest.raises(ValueError, match="'x' must have shape"):
        ops.endpoint_sum(topology, a)
    with pytest.raises(ValueError, match="'distance' must have shape"):
        ops.log_degree(topology, a)
