"""The Triton kernels against plain PyTorch, on a GPU or in the interpreter."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from pyg_unroll import GLRConv, GTVConv, MahalanobisGraph, Topology
from pyg_unroll.ops import backend
from pyg_unroll.ops.reference.cg import Adjoint, Matrix, State
from pyg_unroll.testing import TOLERANCES, assert_same
from tests.oracles import random_graph

if find_spec('triton') is None:
    pytest.skip('Triton is not installed', allow_module_level=True)
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

SHAPES = [(1, 1), (3, 4), (40, 2)]


def both(family):
    """The kernels and their oracle."""
    names = 'cuda', 'reference'
    return [import_module(f'pyg_unroll.ops.{name}.{family}') for name in names]


def make(kind, features, heads, dtype=torch.float64):
    if kind == 'empty':
        empty = torch.empty(2, 0, dtype=torch.long)
        topology = Topology.from_edge_index(empty, 5)
    else:  # three of the nodes are isolated
        graph = random_graph(20, 40)
        topology = Topology.from_edge_index(graph.edge_index, 23)
    topology = topology.to(DEVICE)
    num_nodes, num_edges = topology.num_nodes, topology.num_edges

    def rand(*shape):
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    return SimpleNamespace(
        graph=topology,
        w=rand(num_edges, heads).abs(),
        z=rand(num_edges, features, heads),
        h=rand(3, heads).abs() + 0.1,
        nodes=[rand(num_nodes, features, heads) for _ in range(8)],
        full=rand(num_nodes, features, heads).abs() + 1,
        small=rand(num_nodes, 1, heads).abs() + 1,
    )


each_graph = pytest.mark.parametrize(
    ('kind', 'shape'),
    [*(('random', shape) for shape in SHAPES), ('empty', (3, 4))],
)


@each_graph
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.bfloat16]
)
def test_operators(kind, shape, dtype):
    cuda, reference = both('operators')
    p = make(kind, *shape)
    w, z, x, y = (v.to(dtype) for v in (p.w, p.z, *p.nodes[:2]))
    for name, operands in (
        ('laplacian', (w, x)),
        ('edge_dot', (x, y)),
        ('to_edges', (x, True)),
        ('to_edges', (x[:, 0], False)),
        ('to_nodes', (z, True)),
        ('to_nodes', (w, False)),
    ):
        operands = [
            v.contiguous() if v is not True and v is not False else v
            for v in operands
        ]
        out = getattr(cuda, name)(p.graph, *operands)
        expected = getattr(reference, name)(p.graph, *operands)
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected, **TOLERANCES[dtype])


@each_graph
@pytest.mark.parametrize('case', ['hard', 'per feature', 'soft', 'second'])
def test_cg_step(kind, shape, case):
    p = make(kind, *shape)
    diagonal = p.full if case == 'per feature' else p.small
    diagonal = diagonal.clone()
    diagonal[::3] = float('inf')
    confidence = p.small if case == 'soft' else None
    degree = p.small + 1 if case == 'second' else None
    a = Matrix(p.graph, p.w, diagonal, confidence, degree)
    results = []
    for module in both('cg'):
        x, residual, direction = (v.clone() for v in p.nodes[:3])
        new = torch.empty_like(direction)
        module.cg_step(a, State(x, residual), direction, new, p.h)
        results.append((new, x, residual))
    assert_same(*results)


@each_graph
@pytest.mark.parametrize('case', ['hard', 'first', 'soft', 'second'])
def test_cg_step_backward(kind, shape, case):
    p = make(kind, *shape)
    diagonal = p.small.clone()
    diagonal[::3] = float('inf')
    confidence = p.full if case == 'soft' else None
    degree = p.small + 1 if case == 'second' else None
    a = Matrix(p.graph, p.w, diagonal, confidence, degree)
    if case == 'first':
        p.h[2] = 0
    results = []
    for module in both('cg'):
        q, v, u, grad_v, grad_x, sum_d, sum_c = (x.clone() for x in p.nodes[:7])
        adjoint = Adjoint(
            x=grad_x,
            residual=q,
            direction=grad_v,
            weight=p.w.clone(),
            diagonal=sum_d,
            confidence=sum_c if case == 'soft' else None,
            degree=sum_c if case == 'second' else None,
        )
        dots = module.cg_step_backward(a, adjoint, v, u, p.h)
        assert torch.equal(grad_x, p.nodes[4])
        results.append((dots, *filter(torch.is_tensor, vars(adjoint).values())))
    assert_same(*results)


@each_graph
def test_admm_step(kind, shape):
    p = make(kind, *shape)
    cuda, reference = both('admm')
    operands = (p.graph, p.w, p.nodes[0], p.z, p.h)
    assert_same(cuda.admm_step(*operands), reference.admm_step(*operands))
    operands = (*operands, p.nodes[1], torch.randn_like(p.z))
    assert_same(
        cuda.admm_step_backward(*operands),
        reference.admm_step_backward(*operands),
    )


@each_graph
@pytest.mark.parametrize('offset', [0, 1000])
def test_log_degree(kind, shape, offset):
    cuda, reference = both('operators')
    p = make(kind, *shape)
    d = p.w + offset
    degree = cuda.log_degree(p.graph, d)
    assert_same(degree, reference.log_degree(p.graph, d))
    operands = p.graph, d, degree, p.nodes[0][:, 0].contiguous()
    assert_same(
        cuda.log_degree_backward(*operands),
        reference.log_degree_backward(*operands),
    )


def test_same_bits_in_each_run():
    cuda, _ = both('operators')
    p = make('random', 3, 4, torch.float32)
    first = cuda.laplacian(p.graph, p.w, p.nodes[0])
    for _ in range(3):
        assert torch.equal(first, cuda.laplacian(p.graph, p.w, p.nodes[0]))


COMPILE = """
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pyg_unroll import Topology
from pyg_unroll.ops.cuda import admm, cg, operators
from pyg_unroll.ops.cuda.tiles import Launch
from pyg_unroll.ops.reference.cg import Adjoint, Matrix, State

TYPES = {torch.bfloat16: '*bf16', torch.float32: '*fp32', torch.int32: '*i32'}
compiled = set()


def type_of(value):
    if isinstance(value, tuple) and not hasattr(value, '_fields'):
        if not any(isinstance(v, bool) for v in value):
            return tuple(map(type_of, value))
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return 'i32' if is_number else 'constexpr'


def compile(self, kernel, blocks, graph, *arguments):
    names = kernel.arg_names
    values = dict(zip(names, (graph, self.size, *arguments, self.tile)))
    types = {name: type_of(values[name]) for name in names}
    known = {
        (k,): values[name]
        for k, name in enumerate(names)
        if types[name] == 'constexpr'
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=known)
    triton.compile(source, target=GPUTarget('cuda', 90, 32))
    compiled.add(kernel.__name__)


Launch.run = compile
pairs = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
graph = Topology.from_edge_index(pairs, 3)
x = torch.rand(3, 2, 3, dtype=torch.bfloat16)
w = torch.rand(graph.num_edges, 3, dtype=torch.bfloat16)
z = torch.rand(graph.num_edges, 2, 3, dtype=torch.bfloat16)
operators.laplacian(graph, w, x)
operators.laplacian(graph, torch.rand(graph.num_edges, 4), torch.rand(3, 2, 4))
operators.edge_dot(graph, x, x)
operators.log_degree(graph, w)
operators.log_degree_backward(graph, w, x[:, 0], x[:, 0])
for signed in (True, False):
    operators.to_edges(graph, x, signed)
    operators.to_nodes(graph, z, signed)
shared = x[:, :1]
for rest in ((x,), (shared, x, shared)):
    a = Matrix(graph, w, *rest)
    cg.cg_step(a, State(x, x), x, x, w)
    adjoint = Adjoint(x, x, x, w, x, x, None if a.degree is None else x)
    cg.cg_step_backward(a, adjoint, x, x, w)
admm.admm_step(graph, w, x, z, w)
admm.admm_step_backward(graph, w, x, z, w, x, z)
assert len(compiled) == 10, compiled
"""


def test_compiles_for_a_gpu(tmp_path):
    # The interpreter knows no types: what it runs need not compile.
    pytest.importorskip('triton', minversion='3.4')
    outside = {'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', COMPILE],
        env={**os.environ, **outside},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('conv', [GLRConv(2), GTVConv(1, 2)])
def test_layers(conv, monkeypatch):
    """The registered operators, which ask more of kernels than their users."""
    topology = Topology.from_edge_index(random_graph(6, 9).edge_index, 6)
    topology = topology.to(DEVICE)
    x = torch.randn(6, 1, dtype=torch.float64, device=DEVICE)
    features = torch.randn(6, 2, dtype=torch.float64, device=DEVICE)
    conv = conv.to(DEVICE).double()
    graph = MahalanobisGraph(2).to(DEVICE).double()
    results = []
    for name in ('cuda', 'reference'):
        monkeypatch.setitem(backend.chosen, DEVICE, name)
        leaves = [v.clone().requires_grad_() for v in (x, features)]
        weight = graph.edge_weights(leaves[1], topology)
        out = conv(leaves[0], topology, weight)
        parameters = [*leaves, *graph.parameters(), *conv.parameters()]
        grads = torch.autograd.grad(
            out.sum(), parameters, allow_unused=True, materialize_grads=True
        )
        results.append((out, *grads))
    assert_same(*results)
