"""Layers under the transforms of `torch.func`, by dense twins."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch_geometric.data import Data

from pyg_unroll import GLRConv, GTVConv, Topology, UnrolledGLR, UnrolledGTV
from pyg_unroll.testing import assert_compiles, assert_same
from tests.oracles import random_graph

N, F, H, B = 9, 2, 2, 3


def dense_steps(conv, params, graph, x, mask, confidence, **rest):
    """The layer with a dense matrix for each head, `[N, F]`."""
    matrix, weight = graph
    if confidence is None:
        confidence = torch.ones_like(x)
    if conv.fidelity == 'soft' and mask is not None:
        confidence = confidence * mask
    held = mask is not None and conv.fidelity == 'hard'
    free = ~mask if held else torch.ones_like(x, dtype=torch.bool)
    confidence = 0 * confidence if held else confidence
    estimates = []
    for head in range(conv.heads):
        own = {name: value[..., head] for name, value in params.items()}
        run = glr_steps if isinstance(conv, GLRConv) else gtv_steps
        estimates.append(
            run(conv, own, matrix, weight[:, head], x, free, confidence)
        )
    share = params['head_logits'].softmax(0)
    out = torch.stack(estimates, -1) @ share
    return torch.where(free, out, x)


def cg(system, diagonal, x, b, free, alpha, beta):
    residual = torch.where(free, b - system(x), 0)
    direction = residual / diagonal
    x = x + alpha[0] * direction
    for k in range(1, len(alpha)):
        image = torch.where(free, system(direction), 0)
        residual = residual - alpha[k - 1] * image
        direction = residual / diagonal + beta[k - 1] * direction
        x = x + alpha[k] * direction
    return x


def glr_steps(conv, own, m, w, x, free, confidence):
    laplacian = m.T @ (w[:, None] * m)
    degree = laplacian.diagonal()[:, None]
    prior = laplacian
    if conv.order == 2:
        prior = laplacian @ (laplacian / degree)
    c = confidence * (-own['log_mu']).exp()
    b, diagonal = c * x, degree + c

    def system(v):
        return prior @ v + c * v

    return cg(system, diagonal, x, b, free, own['alpha'], own['beta'])


def gtv_steps(conv, own, m, w, x, free, confidence):
    rho = own['log_rho'].exp()
    relaxation = 2 * own['relaxation_logit'].sigmoid()
    observed, dual = x, torch.zeros(len(m), x.size(1), dtype=x.dtype)
    gradient = w[:, None] * m
    laplacian = gradient.T @ gradient
    for t in range(conv.num_iters):
        flow = gradient @ x
        before = rho[t - 1] if t > 0 else 0
        p = dual + before * flow
        s = flow + p / rho[t]
        shrunk = s - s.clamp(-1 / rho[t], 1 / rho[t])
        target = flow + relaxation[t] * (shrunk - flow)
        c = confidence * 2 / (own['log_mu'].exp() * rho[t])
        b = gradient.T @ (target - p / rho[t]) + c * observed
        dual = p - rho[t] * target

        def system(v, c=c):
            return laplacian @ v + c * v

        diagonal = laplacian.diagonal()[:, None] + c
        steps = own['alpha'][t], own['beta'][t]
        x = cg(system, diagonal, x, b, free, *steps)
    return x


CONVS = {
    'GLRConv': lambda **kwargs: GLRConv(4, H, **kwargs),
    'GLRConv2': lambda **kwargs: GLRConv(3, H, order=2, **kwargs),
    'GTVConv': lambda **kwargs: GTVConv(3, 2, H, **kwargs),
}


@pytest.fixture(params=CONVS)
def make_conv(request):
    return CONVS[request.param]


@pytest.fixture(params=['hard', 'soft', 'proximal'])
def case(request, make_conv):
    """A layer and its twin, as functions of parameters, signal and weights;
    these.
    """
    fidelity = 'hard' if request.param == 'hard' else 'soft'
    conv = make_conv(fidelity=fidelity).double()
    with torch.no_grad():
        for value in conv.parameters():
            value.add_(0.1 * torch.randn_like(value))
    graph = random_graph(N, 12)
    topology = Topology.from_edge_index(graph.edge_index, N)
    matrix = torch.zeros(topology.num_edges, N).double()
    edges = torch.arange(topology.num_edges)
    matrix[edges, topology.src.long()] = 1
    matrix[edges, topology.dst.long()] = -1
    mask = confidence = None
    if request.param != 'proximal':
        mask = torch.rand(N, F) < 0.5
        mask[0], mask[1] = True, False
    if request.param == 'soft':
        confidence = torch.rand(N, F).double() + 0.1
    rest = {'mask': mask, 'confidence': confidence}

    def layer(params, x, weight):
        args = x, topology, weight
        return functional_call(conv, params, args, rest)

    def twin(params, x, weight):
        return dense_steps(conv, params, (matrix, weight), x, **rest)

    params = {name: v.detach() for name, v in conv.named_parameters()}
    x = torch.randn(N, F).double()
    weight = torch.rand(topology.num_edges, H).double() + 0.1
    return layer, twin, (params, x, weight)


def test_grad(case):
    *functions, operands = case

    def loss(function):
        return lambda *values: function(*values).sin().sum()

    argnums = 0, 1, 2
    found, expected = (grad(loss(f), argnums)(*operands) for f in functions)
    assert set(found[0]) == set(expected[0])
    for name, value in expected[0].items():
        assert_same(found[0][name], value)
    assert_same(found[1:], expected[1:])


def test_jacrev(case):
    *functions, operands = case
    assert_same(*(jacrev(f, (1, 2))(*operands) for f in functions))


def test_derivative_of_a_derivative(case):
    *functions, operands = case

    def energy(function):
        return lambda *values: function(*values).sin().sum()

    assert_same(
        *(jacrev(grad(energy(f), (1, 2)), (1, 2))(*operands) for f in functions)
    )


def test_dual_variable():
    graph = random_graph(N, 12)
    conv = GTVConv(3, 2, H).double()
    x, mask = torch.randn(N, F).double(), torch.rand(N) < 0.5
    mask[0] = True

    def energy(x):
        out, dual = conv.solve(x, graph.edge_index, mask=mask)
        return out.sin().sum() + dual.sin().sum()

    assert_same(jacrev(grad(energy))(x), hessian(energy, x))


def test_vectorized_jacobian(case):
    *functions, (params, *operands) = case

    def of(function):
        return lambda *values: function(params, *values)

    for create_graph in (False, True):
        assert_same(
            *(
                jacobian(of(f), tuple(operands), create_graph, vectorize=True)
                for f in functions
            )
        )


@pytest.mark.parametrize('own_weights', [False, True])
def test_samples(case, own_weights):
    *functions, (params, x, weight) = case
    samples = torch.randn(B, *x.shape).double()
    in_dims = None, 0, 0 if own_weights else None
    weights = torch.rand(B, *weight.shape).double() if own_weights else weight
    operands = params, samples, weights
    assert_same(*(vmap(f, in_dims)(*operands) for f in functions))


def test_gradient_of_each_sample(case):
    *functions, (params, x, weight) = case
    samples = torch.randn(B, *x.shape).double()

    def loss(function):
        return lambda *values: function(*values).sin().sum()

    found, expected = (
        vmap(grad(loss(f)), (None, 0, None))(params, samples, weight)
        for f in functions
    )
    for name, value in expected.items():
        assert_same(found[name], value)


def test_ensemble(make_conv):
    graph = random_graph(N, 12)
    convs = [make_conv().double() for _ in range(B)]
    with torch.no_grad():
        for conv in convs:
            for value in conv.parameters():
                value.add_(0.1 * torch.randn_like(value))
    params, buffers = stack_module_state(convs)
    x, mask = torch.randn(N, F).double(), torch.rand(N) < 0.5
    mask[0] = True
    weight = graph.edge_weight.double()

    def call(params, buffers):
        args = x, graph.edge_index, weight, mask
        return functional_call(convs[0], (params, buffers), args)

    out = vmap(call)(params, buffers)
    expected = [conv(x, graph.edge_index, weight, mask) for conv in convs]
    assert_same(out, torch.stack(expected))

    def loss(params, buffers):
        return call(params, buffers).sin().sum()

    found = vmap(grad(loss))(params, buffers)
    for k, conv in enumerate(convs):
        expected[k].sin().sum().backward()
        for name, value in conv.named_parameters():
            actual = found[name][k]
            wanted = torch.zeros_like(actual)
            assert_same(actual, wanted if value.grad is None else value.grad)


def test_batches_of_ensembles(make_conv):
    graph = random_graph(N, 12)
    conv = make_conv().double()
    x, mask = torch.randn(4, B, N, F).double(), torch.rand(N) < 0.5
    mask[0] = True
    weight = torch.rand(4, B, graph.edge_weight.numel() // 2, H).double()
    topology = Topology.from_edge_index(graph.edge_index, N)
    out = vmap(lambda x, w: conv(x, topology, w, mask))(x, weight)
    flat = conv(x.flatten(0, 1), topology, weight.flatten(0, 1), mask)
    assert_same(out, flat.view_as(x))


def test_masks_of_samples(make_conv):
    graph = random_graph(N, 12)
    conv = make_conv().double()
    x, mask = torch.randn(B, N, F).double(), torch.rand(B, N) < 0.5
    mask[:, 0] = True
    out = vmap(lambda x, mask: conv(x, graph.edge_index, mask=mask))(x, mask)
    expected = [
        conv(*pair, mask=own)
        for *pair, own in zip(x, [graph.edge_index] * B, mask, strict=True)
    ]
    assert_same(out, torch.stack(expected))


def test_values_are_checked_where_they_can_be_read(make_conv):
    graph = random_graph(N, 12)
    conv = make_conv()
    x, bad = torch.randn(B, N, F), torch.full((N, F), torch.nan)
    one_way = graph.edge_index[:, :3]
    with pytest.raises(ValueError, match='reverse edge'):
        vmap(lambda x: conv(x, one_way))(x)
    with pytest.raises(ValueError, match='finite'):
        grad(lambda x: conv(x, graph.edge_index).sum())(bad)
    with pytest.raises(ValueError, match='one graph for all samples'):
        vmap(conv)(x, graph.edge_index.expand(B, -1, -1))


@pytest.mark.parametrize('stack', [UnrolledGLR, UnrolledGTV])
def test_stack(stack):
    graph = random_graph(N, 12)
    model = stack(3).double()
    xs, mask = torch.randn(B, N, 3).double(), torch.rand(N) < 0.5
    mask[0] = True

    def call(params, x):
        data = Data(x=x, edge_index=graph.edge_index, mask=mask)
        return functional_call(model, params, (data,))

    def loss(params, x):
        return call(params, x).sin().sum()

    params = dict(model.named_parameters())
    detached = {name: value.detach() for name, value in params.items()}
    found = vmap(grad(loss), (None, 0))(detached, xs)
    for k, x in enumerate(xs):
        assert_same(vmap(call, (None, 0))(detached, xs)[k], call(params, x))
        model.zero_grad()
        loss(params, x).backward()
        for name, value in params.items():
            wanted = torch.zeros_like(value)
            wanted = wanted if value.grad is None else value.grad
            assert_same(found[name][k], wanted)


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 13),
    reason='PyTorch 2.11 cannot compile functions that `vmap` transforms',
)
def test_compiled_samples(make_conv):
    graph = random_graph(N, 12)
    topology, conv = Topology.from_edge_index(graph.edge_index, N), make_conv()
    x, weight = torch.randn(B, N, F), graph.edge_weight[: topology.num_edges]

    def on_samples(x):
        return vmap(lambda x: conv(x, topology, weight))(x)

    assert_compiles(on_samples, x, backend='aot_eager')
