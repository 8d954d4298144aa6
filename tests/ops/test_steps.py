from itertools import compress

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch_geometric.data import Batch

from pyg_unroll import GridGraph, Topology, image_to_data, ops
from pyg_unroll.ops.admm import (
    Coefficients,
    TotalVariation,
    admm_iterates,
    admm_steps,
)
from pyg_unroll.ops.cg import cg_iterates, cg_steps
from pyg_unroll.ops.reference.cg import Matrix
from pyg_unroll.testing import assert_same
from tests.oracles import random_graph

SHAPES = [(1, 1), (3, 4), (70, 2), (2, 70)]
pytestmark = pytest.mark.usefixtures('each_backend')


def rand(*shape, device='cpu'):
    return torch.randn(shape, device=device, dtype=torch.float64)


def make_graph(kind, device='cpu'):
    if kind == 'grid':
        data = image_to_data(torch.rand(1, 9, 13))
        return GridGraph(8).topology(data).to(device)
    graph = random_graph(30, 60)
    return Topology.from_edge_index(graph.edge_index, 33).to(device)


def cg_operands(topology, features, heads, soft, num_steps=4, order=1):
    device, num_nodes = topology.device, topology.num_nodes
    weight = rand(topology.num_edges, heads, device=device).abs()
    diagonal = ops.degree(topology, weight).unsqueeze(1) + 1
    confidence = b = degree = None
    if order == 2:
        degree = rand(num_nodes, 1, heads, device=device).abs() + 1
        degree[::7] = float('inf')
    if soft:
        confidence = rand(num_nodes, 1, heads, device=device).abs()
        b = rand(num_nodes, features, heads, device=device)
    else:
        held = torch.rand(num_nodes, features, 1, device=device) < 0.3
        diagonal = torch.where(held, float('inf'), diagonal)
    x = rand(num_nodes, features, heads, device=device)
    alpha = rand(num_steps, heads, device=device)
    beta = rand(num_steps - 1, heads, device=device)
    return weight, diagonal, confidence, degree, x, b, alpha, beta


def run_steps(topology, *operands, checkpoint=False):
    *matrix, x, b, alpha, beta = operands
    return cg_steps(Matrix(topology, *matrix), x, b, alpha, beta, checkpoint)


def composed(topology, weight, diagonal, confidence, degree, x, b, alpha, beta):
    def apply(v):
        out = ops.laplacian(topology, weight, v)
        if degree is not None:
            out = ops.laplacian(topology, weight, out / degree)
        return out if confidence is None else out + confidence * v

    residual = (0 if b is None else b) - apply(x)
    direction = 0
    momenta = torch.cat([torch.zeros_like(alpha[:1]), beta])
    for step, momentum in zip(alpha, momenta, strict=True):
        direction = residual / diagonal + momentum * direction
        x = x + step * direction
        residual = residual - step * apply(direction)
    return x


def gradients(function, operands):
    leaves = [
        v.detach().requires_grad_()
        if v is not None and v.is_floating_point()
        else v
        for v in operands
    ]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(1)
    loss = sum((v * torch.randn_like(v)).sum() for v in outputs)
    loss.backward()
    return outputs, [
        None
        if v is None or not v.requires_grad
        else torch.zeros_like(v)
        if v.grad is None
        else v.grad
        for v in leaves
    ]


def assert_all_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_same(one, other)


@pytest.mark.parametrize('kind', ['grid', 'random'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize(
    ('num_steps', 'order'), [(1, 1), (2, 1), (4, 1), (4, 2)]
)
def test_cg_steps_equal_composed_ones(
    kind, shape, soft, num_steps, order, device
):
    topology = make_graph(kind, device)
    operands = cg_operands(topology, *shape, soft, num_steps, order)
    for checkpoint in (False, True):
        out, grads = gradients(
            lambda *v, c=checkpoint: run_steps(topology, *v, checkpoint=c),
            operands,
        )
        expected = gradients(lambda *v: composed(topology, *v), operands)
        assert_same(out, expected[0])
        assert_all_same(grads, expected[1])


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_cg_iterates_are_the_same_bits(soft, dtype):
    topology = make_graph('grid')
    operands = cg_operands(topology, 3, 2, soft, 5)
    operands = [None if v is None else v.to(dtype) for v in operands]
    *matrix, x, b, alpha, beta = operands
    a, start = Matrix(topology, *matrix), x.clone()
    iterates = list(cg_iterates(a, x.requires_grad_(), b, alpha, beta))
    assert len(iterates) == 5 and torch.equal(x, start)
    for k, out in enumerate(iterates):
        expected = cg_steps(a, x, b, alpha[: k + 1], beta[:k], False)
        assert torch.equal(out, expected) and not out.requires_grad


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('order', [1, 2])
def test_cg_steps_derivatives(soft, order):
    topology = make_graph('random')
    operands = cg_operands(topology, 2, 2, soft, 3, order)
    used = [v for v in operands if v is not None]

    def function(*values):
        values = iter(values)
        filled = [None if v is None else next(values) for v in operands]
        return run_steps(topology, *filled)

    used = [v.requires_grad_() for v in used]
    assert gradcheck(function, used, fast_mode=True)
    assert gradgradcheck(function, used, fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_cg_steps_in_lower_precision(dtype):
    topology = make_graph('grid')
    operands = cg_operands(topology, 3, 2, True)
    expected = run_steps(topology, *operands)
    operands = (None if v is None else v.to(dtype) for v in operands)
    out = run_steps(topology, *operands)
    assert out.dtype == dtype
    error = (out.double() - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]


def admm_operands(topology, features, heads, soft, num_iters=3, num_steps=2):
    device, num_nodes = topology.device, topology.num_nodes
    confidence = observed = mu = free = None
    if soft:
        confidence = rand(num_nodes, 1, heads, device=device).abs()
        confidence[:30:5] = 0  # not of isolated nodes, which then jump
        observed = rand(num_nodes, features, heads, device=device)
        mu = rand(heads, device=device).abs() + 0.5
    else:
        free = torch.rand(num_nodes, features, 1, device=device) > 0.3
        free = free.expand(-1, -1, heads)
    shape = num_iters, num_steps, heads
    return (
        rand(topology.num_edges, heads, device=device).abs(),
        rand(num_nodes, features, heads, device=device),
        rand(topology.num_edges, features, heads, device=device),
        confidence,
        observed,
        mu,
        rand(num_iters, heads, device=device).abs() + 0.5,
        rand(num_iters, heads, device=device).sigmoid() * 2,
        rand(*shape, device=device) / 2,
        rand(num_iters, num_steps - 1, heads, device=device) / 2,
        free,
    )


def run_admm(topology, *operands, checkpoint=False, run=admm_steps):
    weight, x, dual, confidence, observed, mu, *rest, free = operands
    problem = TotalVariation(topology, weight, observed, confidence, free, mu)
    rest = (x, dual, Coefficients(*rest))
    return run(problem, *rest, *([] if run is admm_iterates else [checkpoint]))


def composed_admm(topology, *operands):
    weight, x, dual, confidence, observed, mu, *rest, free = operands
    before = 0
    for rho, relaxation, alpha, beta in zip(*rest, strict=True):
        flow = weight.unsqueeze(1) * ops.gradient(topology, x)
        p = before * flow if dual is None else dual + before * flow
        scaled = flow + p / rho
        shrunk = scaled.sign() * (scaled.abs() - 1 / rho).clamp(min=0)
        target = relaxation * shrunk + (1 - relaxation) * flow
        b = ops.divergence(topology, weight.unsqueeze(1) * (target - p / rho))
        dual, before = p - rho * target, rho
        diagonal, c = ops.degree(topology, weight**2).unsqueeze(1), None
        if confidence is not None:
            c = 2 * confidence / (mu * rho)
            diagonal, b = diagonal + c, b + c * observed
        diagonal = torch.where(diagonal > 1e-300, diagonal, float('inf'))
        if free is not None:
            diagonal = torch.where(free, diagonal, float('inf'))
        a = weight**2, diagonal, c, None
        x = composed(topology, *a, x, b, alpha, beta)
    return x, dual


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize(
    ('num_iters', 'num_steps', 'has_dual'), [(1, 2, True), (5, 1, False)]
)
def test_admm_steps_equal_composed_ones(
    shape, soft, num_iters, num_steps, has_dual, device
):
    topology = make_graph('random', device)
    operands = admm_operands(topology, *shape, soft, num_iters, num_steps)
    if not has_dual:
        operands = (*operands[:2], None, *operands[3:])
    expected = gradients(lambda *v: composed_admm(topology, *v), operands)
    for checkpoint in (False, True):
        out, grads = gradients(
            lambda *v, c=checkpoint: run_admm(topology, *v, checkpoint=c),
            operands,
        )
        assert_same(out, expected[0])
        assert_all_same(grads, expected[1])


@pytest.mark.parametrize('checkpoint', [False, True])
@pytest.mark.parametrize('soft', [False, True])
def test_admm_steps_derivatives(soft, checkpoint):
    topology = make_graph('random')
    operands = list(admm_operands(topology, 2, 2, soft))
    if soft:  # as a layer without a state, which returns none
        operands[2] = None
    used = [
        v is not None and v.is_floating_point() and v.requires_grad_() is v
        for v in operands
    ]

    def function(*values):
        rest = iter(values)
        filled = (
            next(rest) if is_used else v
            for v, is_used in zip(operands, used, strict=True)
        )
        x, dual = run_admm(topology, *filled, checkpoint=checkpoint)
        return x if soft else (x, dual)

    leaves = list(compress(operands, used))
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_admm_iterates_are_the_same_bits(soft, dtype):
    topology = make_graph('grid')
    operands = [
        v.to(dtype) if v is not None and v.is_floating_point() else v
        for v in admm_operands(topology, 3, 2, soft, 4)
    ]
    iterates = list(run_admm(topology, *operands, run=admm_iterates))
    assert len(iterates) == 4
    for k, pair in enumerate(iterates):
        rest = (v[: k + 1] for v in operands[6:10])
        out = run_admm(topology, *operands[:6], *rest, operands[10])
        assert all(map(torch.equal, out, pair))
        assert all(v.dtype == dtype for v in pair)


@pytest.mark.parametrize('operator', ['cg_steps', 'admm_steps'])
def test_opcheck(operator):
    topology = make_graph('random')
    if operator == 'cg_steps':
        operands = (*cg_operands(topology, 2, 2, True, order=2), 1)
    else:
        operands = (*admm_operands(topology, 2, 2, True), 2)
    for v in operands:
        if torch.is_tensor(v) and v.is_floating_point():
            v.requires_grad_()
    torch.library.opcheck(
        getattr(torch.ops.pyg_unroll, operator).default,
        (*topology.pack(), *operands),
    )


@pytest.mark.parametrize(
    'window', [4, 8, 12, 24, [(0, 3), (2, -1)], [(5, 0)], [(0, 1)]]
)
@pytest.mark.parametrize('size', [(1, 40), (40, 1), (7, 31), (33, 18)])
def test_grid_without_index_gives_the_same_bits(window, size):
    # Several images in one graph, too; without `grid`, the index is read.
    height, width = size
    images = [image_to_data(torch.rand(1, height, width)) for _ in range(3)]
    topology = GridGraph(window).topology(Batch.from_data_list(images))
    index = Topology.from_pairs(topology.src, topology.dst, topology.num_nodes)
    assert topology.grid and not index.grid
    for features, heads in [(1, 1), (3, 4)]:
        operands = cg_operands(topology, features, heads, True, order=2)
        a, b = operands[4], operands[5]
        one, other = (
            (ops.laplacian(t, operands[0], a), ops.edge_dot(t, a, b))
            for t in (topology, index)
        )
        assert all(map(torch.equal, one, other))
        one, other = (
            gradients(lambda *v, t=t: run_steps(t, *v), operands)
            for t in (topology, index)
        )
        assert torch.equal(one[0][0], other[0][0])
        assert all(map(torch.equal, one[1], other[1]))


def test_threads_do_not_change_a_bit():
    # Large enough to be cut into several chunks.
    data = image_to_data(torch.rand(1, 160, 170))
    topology = GridGraph(8).topology(data)
    operands = [
        None if v is None else v.float()
        for v in cg_operands(topology, 3, 4, True, order=2)
    ]
    admm = [
        v.float() if v is not None else None
        for v in admm_operands(topology, 3, 4, True)
    ]

    def run():
        out, grads = gradients(lambda *v: run_steps(topology, *v), operands)
        pair, others = gradients(lambda *v: run_admm(topology, *v), admm)
        results = *out, *grads, *pair, *others
        return [v for v in results if v is not None]

    threads = torch.get_num_threads()
    first = run()
    try:
        for number in (2, 3):
            torch.set_num_threads(number)
            assert all(map(torch.equal, first, run()))
    finally:
        torch.set_num_threads(threads)
