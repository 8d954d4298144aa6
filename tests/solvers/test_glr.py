import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch_geometric.data import Batch, Data
from torch_geometric.testing import withPackage

from pyg_unroll import GLRConv, KNNGraph, Topology
from pyg_unroll.solvers import ConvergenceWarning, SolverResult, glr, gtv
from pyg_unroll.testing import assert_same
from tests.oracles import (
    dense_glr,
    dense_proximal,
    grid_graph,
    random_graph,
    relative_error,
    sparse_laplacian,
    spsolve_glr,
    superlu,
)

NAN = float('nan')


def knn_graph(num_nodes):
    data = KNNGraph(6)(Data(pos=torch.rand(num_nodes, 2)))
    topology = KNNGraph(6).topology(data)
    weight = torch.rand(topology.num_edges).double() + 0.1
    return data.edge_index, topology.directed_weight(weight), num_nodes


GRAPHS = {
    'grid': lambda: grid_graph(100, 90, dtype=torch.float64),
    'knn': lambda: knn_graph(8000),
    'random': lambda: random_graph(3000, 6000, dtype=torch.float64),
    'large grid': lambda: grid_graph(320, 313, dtype=torch.float64),
}


@pytest.mark.parametrize('name', GRAPHS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_against_spsolve(name, dtype):
    edge_index, weight, num_nodes = GRAPHS[name]()
    x = torch.randn(num_nodes, 1, dtype=torch.float64) + 2
    mask = torch.rand(num_nodes, 1) < 0.3
    # Each component needs a known node, also on the kNN graph.
    x, weight = x.to(dtype), weight.to(dtype)
    known_mean = x[mask].mean().item()
    result = glr(x, edge_index, weight, mask, tol=1e-12, fill=known_mean)
    exact = spsolve_glr(x, edge_index, weight, mask)
    lost = exact.isnan()
    assert not bool(lost.any())
    assert isinstance(result, SolverResult) and result.converged
    assert result.residual <= 1e-12 and result.num_steps > 0
    assert result.x.dtype == dtype
    limit = 1e-9 if dtype == torch.float64 else 1e-5
    assert relative_error(result.x, exact) <= limit
    assert torch.equal(result.x[mask], x[mask])


def small(dtype=torch.float64, num_nodes=8, features=2):
    graph = random_graph(num_nodes, num_nodes, None, dtype)
    x = torch.randn(num_nodes, features, dtype=dtype)
    mask = torch.rand(num_nodes, features) < 0.4
    mask[0], mask[1] = True, False
    return x, graph.edge_index, graph.edge_weight, mask


parametrize_order = pytest.mark.parametrize('order', [1, 2])


@parametrize_order
def test_mask_per_feature_and_per_node(order):
    x, edge_index, weight, mask = small()
    for known in (mask, mask[:, 0]):
        out = glr(x, edge_index, weight, known, tol=1e-12, order=order).x
        assert_same(out, dense_glr(x, edge_index, weight, known, order))


@parametrize_order
@pytest.mark.parametrize('mu', [0.1, 3.0])
def test_soft_fidelity(mu, order):
    x, edge_index, weight, mask = small()
    c = torch.rand(8).double() + 0.5
    for known, confidence in [(None, None), (mask, None), (mask, c), (None, c)]:
        total = torch.ones_like(x) if known is None else known.double()
        total = total if confidence is None else total * c[:, None]
        out = glr(
            x,
            edge_index,
            weight,
            known,
            confidence=confidence,
            fidelity='soft',
            mu=mu,
            order=order,
            tol=1e-12,
        ).x
        expected = dense_proximal(x, edge_index, weight, total, mu, order)
        assert_same(out, expected)


@parametrize_order
@torch.no_grad()
def test_is_the_limit_of_the_layer(order):
    x, edge_index, weight, mask = small()
    conv = GLRConv(200, order=order, spectrum=(0.01, 2.0**order))
    out = glr(x, edge_index, weight, mask, tol=1e-12, order=order).x
    layer = conv(x, edge_index, weight, mask)
    torch.testing.assert_close(layer, out, atol=1e-5, rtol=0)


@parametrize_order
def test_gradients_of_known_entries_and_weights(order):
    x, edge_index, weight, mask = small(num_nodes=5)
    topology = Topology.from_edge_index(edge_index, 5)
    weight = topology.undirected_weight(weight).squeeze(1)

    def function(x, weight):
        return glr(
            x, topology, weight, mask, tol=1e-13, max_steps=60, order=order
        ).x

    arguments = x.requires_grad_(), weight.requires_grad_()
    with warnings.catch_warnings():
        # The derivatives probe tolerances near the machine's own.
        warnings.simplefilter('ignore', ConvergenceWarning)
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments, fast_mode=True)


@parametrize_order
def test_gradients_of_confidence_and_mu(order):
    x, edge_index, weight, mask = small(num_nodes=5)
    c = torch.rand(5, 2).double() + 0.5
    mu = torch.tensor(0.7).double()

    def function(x, c, mu):
        return glr(
            x,
            edge_index,
            weight,
            mask,
            confidence=c,
            fidelity='soft',
            mu=mu,
            order=order,
            tol=1e-13,
            max_steps=60,
        ).x

    arguments = [y.requires_grad_() for y in (x, c, mu)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments, fast_mode=True)


def test_implicit_gradient_equals_unrolled_and_dense():
    x, edge_index, weight, mask = small()
    arguments = x.requires_grad_(), weight.requires_grad_()
    target = torch.randn_like(x)
    conv = GLRConv(150, spectrum=(0.01, 2.0)).double()
    grads = []
    for out in (
        glr(x, edge_index, weight, mask, tol=1e-13).x,
        dense_glr(x, edge_index, weight, mask),
        conv(x, edge_index, weight, mask),
    ):
        loss = (out - target).square().sum()
        grads.append(torch.autograd.grad(loss, arguments))
    implicit, dense, unrolled = grads
    # Unknown entries are ignored: no gradient there.
    assert bool((implicit[0][~mask] == 0).all())
    assert_same(implicit[0], dense[0])

    def symmetric(grad):
        # The dense matrix takes each direction for itself.
        topology = Topology.from_edge_index(edge_index, 8)
        return topology.undirected_weight(grad, validate_args=False)

    assert_same(symmetric(implicit[1]), symmetric(dense[1]))
    for one, other in zip(implicit, unrolled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_unreachable_nodes():
    # Components {0, 1, 2}, {3, 4} and {5}.
    edge_index = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    x = torch.tensor([[1.0], [0], [3], [9], [9], [9]])
    mask = torch.tensor([True, False, True, False, False, False])
    with pytest.raises(ValueError, match=r'3 node\(s\) \(3, 4, 5\).*fill'):
        glr(x, edge_index, mask=mask)
    out = glr(x, edge_index, mask=mask, fill=7).x
    assert_same(out.view(-1), torch.tensor([1.0, 2, 3, 7, 7, 7]))
    out = glr(x, edge_index, mask=mask, fill='mean').x
    assert_same(
        out.view(-1),
        torch.full((6,), 2.0).index_copy(
            0, torch.tensor([0, 2]), torch.tensor([1.0, 3.0])
        ),
    )
    with pytest.raises(ValueError, match="'fill' must be a finite number"):
        glr(x, edge_index, mask=mask, fill='median')


def test_unreachable_in_one_feature():
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    x = torch.arange(8.0).view(4, 2)
    mask = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 0]]).bool()
    with pytest.raises(ValueError, match=r'2 node\(s\) \(2, 3\)'):
        glr(x, edge_index, mask=mask)
    out = glr(x, edge_index, mask=mask, fill=-1.0).x
    expected = [[0, 1], [0, 1], [4, -1], [4, -1]]
    assert_same(out, torch.tensor(expected).float())


def test_many_unreachable_nodes_are_abbreviated():
    empty = torch.empty(2, 0, dtype=torch.long)
    x, mask = torch.rand(20, 1), torch.arange(20) == 0
    with pytest.raises(ValueError, match=r'\(1, 2, 3, 4, 5, \.\.\.\)'):
        glr(x, empty, mask=mask)
    out = glr(x, empty, mask=mask, fill='mean')
    assert_same(out.x, x[:1].expand(20, 1))
    assert out.converged


def test_zero_weights_cut_components():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x, mask = torch.rand(3, 1), torch.tensor([True, False, False])
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r'1 node\(s\) \(2\)'):
        glr(x, edge_index, weight, mask)
    out = glr(x, edge_index, weight, mask, fill=5).x
    assert_same(out[:, 0], torch.stack([x[0, 0], x[0, 0], torch.tensor(5.0)]))


def test_unreachable_with_soft_fidelity():
    edge_index = torch.tensor([[0, 1], [1, 0]])
    x, mask = torch.ones(3, 1), torch.tensor([True, False, False])
    with pytest.raises(ValueError, match=r'1 node\(s\) \(2\)'):
        glr(x, edge_index, mask=mask, fidelity='soft')
    out = glr(x, edge_index, mask=mask, fidelity='soft', fill=4).x
    assert_same(out.view(-1), torch.tensor([1.0, 1, 4]))
    # Without a mask, an isolated node keeps its observation.
    out = glr(torch.rand(3, 1), edge_index)
    assert out.converged and bool(out.x.isfinite().all())


def test_nan_at_unknown_entries():
    x, edge_index, weight, mask = small()
    expected = glr(x, edge_index, weight, mask).x
    missing = torch.where(mask, x, NAN)
    for fidelity in ('hard', 'soft'):
        kwargs = {'fidelity': fidelity}
        expected = glr(x, edge_index, weight, mask, **kwargs).x
        out = glr(missing, edge_index, weight, mask, **kwargs).x
        assert torch.equal(out, expected)
    x[0, 1] = NAN
    with pytest.raises(ValueError, match=r'finite where it is known.*node 0'):
        glr(x, edge_index, weight, mask)


def test_nan_at_unknown_entries_does_not_reach_gradients():
    x, edge_index, weight, mask = small()
    missing = torch.where(mask, x, NAN).requires_grad_()
    weight.requires_grad_()
    glr(missing, edge_index, weight, mask).x.square().sum().backward()
    assert bool(missing.grad.isfinite().all())
    assert bool(weight.grad.isfinite().all())


def test_unconverged_is_never_silent():
    graph = grid_graph(20, 20)
    x, mask = torch.rand(400, 1), torch.arange(400) == 0
    x[399], mask[399] = 3, True
    with pytest.warns(ConvergenceWarning, match="'glr' reached.*max_steps"):
        result = glr(x, *graph[:2], mask, max_steps=3)
    assert not result.converged and result.num_steps == 3
    assert result.residual > 1e-8
    assert bool(result.x.isfinite().all())


def test_unconverged_backward_is_never_silent():
    graph = grid_graph(20, 20, dtype=torch.float64)
    x, mask = torch.ones(400, 1).double(), torch.arange(400) == 0
    # A constant needs no steps, its adjoint does.
    x.requires_grad_()
    out = glr(x, *graph[:2], mask, max_steps=3).x
    with pytest.warns(ConvergenceWarning, match='backward'):
        (out * torch.randn_like(out)).sum().backward()


def test_constants_and_maximum_principle():
    x, edge_index, weight, mask = small(torch.float32)
    result = glr(torch.full_like(x, 0.3), edge_index, weight, mask)
    assert torch.equal(result.x, torch.full_like(x, 0.3))
    assert result.converged
    out = glr(x, edge_index, weight, mask[:, :1].expand_as(x)).x
    known = x[mask[:, 0]]
    assert bool((out >= known.amin(0) - 1e-6).all())
    assert bool((out <= known.amax(0) + 1e-6).all())


@pytest.mark.parametrize('scale', [1e-12, 1e12])
def test_scale_of_signal_and_weights(scale):
    x, edge_index, weight, mask = small()
    expected = glr(x, edge_index, weight, mask, tol=1e-12).x
    out = glr(x * scale, edge_index, weight, mask, tol=1e-12).x
    assert_same(out / scale, expected)
    out = glr(x, edge_index, weight * scale, mask, tol=1e-12).x
    assert_same(out, expected)


def test_batch():
    examples = []
    for num_nodes in (5, 9):
        x, edge_index, weight, mask = small(num_nodes=num_nodes)
        examples.append(
            Data(x=x, edge_index=edge_index, edge_weight=weight, mask=mask)
        )

    def solve(data):
        return glr(
            data.x, data.edge_index, data.edge_weight, data.mask, tol=1e-13
        ).x

    together = solve(Batch.from_data_list(examples))
    assert_same(together, torch.cat([solve(data) for data in examples]))


def test_layouts_and_device(device):
    x, edge_index, weight, mask = (y.to(device) for y in small())
    expected = glr(x, edge_index, weight, mask, tol=1e-12)
    assert expected.x.device.type == device.type
    adj = torch.sparse_coo_tensor(
        edge_index, weight, (8, 8), check_invariants=True
    ).coalesce()
    out = glr(x, adj.to_sparse_csr(), mask=mask, tol=1e-12).x
    assert_same(out, expected.x)
    assert_same(
        expected.x.cpu(),
        dense_glr(*(y.cpu() for y in (x, edge_index, weight, mask))),
    )


@pytest.mark.parametrize(
    'change, match',
    [
        ({'x': torch.rand(8)}, r'unsqueeze\(-1\)'),
        ({'x': torch.ones(8, 2).long()}, 'floating point'),
        ({'mask': torch.ones(8, 2)}, 'boolean'),
        ({'mask': torch.ones(7).bool()}, "'mask' must have shape"),
        ({'mask': torch.zeros(8).bool()}, 'no known entry'),
        ({'fidelity': 'strict'}, "'fidelity' must be one of"),
        ({'mu': 0.0}, "'mu' must be positive and finite"),
        ({'mu': torch.ones(2)}, r"'mu' must be one number .*\[2\]"),
        ({'mu': torch.tensor(-1.0)}, "'mu' must be positive and finite"),
        ({'order': 3}, "'order' must be one of 1, 2"),
        ({'tol': 0.0}, "'tol' must be positive and finite"),
        ({'max_steps': 0}, "'max_steps' must be a positive integer"),
        ({'edge_index': torch.tensor([[0], [1]])}, 'no reverse edge'),
        ({'confidence': torch.ones(8)}, "fidelity='soft'"),
    ],
)
def test_bad_input(change, match):
    x, edge_index, _, mask = small()
    arguments = {'x': x, 'edge_index': edge_index, 'mask': mask} | change
    with pytest.raises(ValueError, match=match):
        glr(**arguments)


def test_weights_of_several_heads():
    x, edge_index, weight, mask = small()
    with pytest.raises(ValueError, match=r'2 heads.*solve for each'):
        glr(x, edge_index, weight.unsqueeze(1).expand(-1, 2), mask)


@withPackage('pyamg')
@pytest.mark.parametrize('name', ['grid', 'knn'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_multigrid_against_spsolve(name, dtype):
    edge_index, weight, num_nodes = GRAPHS[name]()
    x = torch.randn(num_nodes, 1, dtype=torch.float64) + 2
    mask = torch.rand(num_nodes, 1) < 0.01
    lost = unreachable_nodes(edge_index, num_nodes, mask)
    mask = mask | lost
    x, weight = x.to(dtype), weight.to(dtype)
    result = glr(x, edge_index, weight, mask, tol=1e-12, preconditioner='amg')
    exact = spsolve_glr(x, edge_index, weight, mask)
    assert result.converged and result.residual <= 1e-12
    assert result.x.dtype == dtype
    limit = 1e-9 if dtype == torch.float64 else 1e-5
    assert relative_error(result.x, exact) <= limit
    assert torch.equal(result.x[mask], x[mask])
    plain = glr(x, edge_index, weight, mask, tol=1e-12)
    assert result.num_steps < plain.num_steps / 2


def unreachable_nodes(edge_index, num_nodes, mask):
    """Components without a known node, by SciPy."""
    row, col = edge_index.numpy()
    ones = np.ones(len(row))
    graph = sp.coo_array((ones, (row, col)), shape=(num_nodes, num_nodes))
    _, label = sp.csgraph.connected_components(graph)
    seen = np.isin(label, label[mask[:, 0].numpy()])
    return torch.from_numpy(~seen).unsqueeze(1)


@withPackage('pyamg')
def test_multigrid_of_several_masks_and_confidences():
    x, edge_index, weight, mask = small(num_nodes=60, features=4)
    mask[:, 3] = mask[:, 0]
    kwargs = {'tol': 1e-12, 'preconditioner': 'amg'}
    out = glr(x, edge_index, weight, mask, **kwargs).x
    assert_same(out, dense_glr(x, edge_index, weight, mask))
    c = torch.rand(60, 4).double() + 0.5
    kwargs |= {'mu': 3.0, 'fidelity': 'soft'}
    for known, confidence in [(None, None), (mask, c), (mask[:, 0], c[:, 0])]:
        total = torch.ones_like(x) if confidence is None else c
        if known is not None:
            total = known.view(60, -1) * confidence.view(60, -1)
        out = glr(
            *(x, edge_index, weight, known), confidence=confidence, **kwargs
        ).x
        expected = dense_proximal(x, edge_index, weight, total, 3.0)
        assert_same(out, expected)


@withPackage('pyamg')
def test_gradients_with_multigrid():
    x, edge_index, weight, mask = small(num_nodes=30)
    c = torch.rand(30, 2).double() + 0.5
    results = []
    for preconditioner in ('jacobi', 'amg'):
        arguments = [y.clone().requires_grad_() for y in (x, weight, c)]
        x_, weight_, c_ = arguments
        kwargs = {'tol': 1e-13, 'preconditioner': preconditioner}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ConvergenceWarning)
            hard = glr(x_, edge_index, weight_, mask, **kwargs).x
            soft = glr(
                *(x_, edge_index, weight_, mask),
                confidence=c_,
                fidelity='soft',
                **kwargs,
            ).x
            loss = (hard.square() + soft.square()).sum()
            first = torch.autograd.grad(loss, arguments, create_graph=True)
            again = sum(grad.square().sum() for grad in first)
            results.append((*first, *torch.autograd.grad(again, arguments)))
    for plain, multigrid in zip(*results, strict=True):
        torch.testing.assert_close(multigrid, plain, rtol=1e-7, atol=1e-9)


@withPackage('pyamg')
def test_multigrid_is_deterministic_and_refuses_what_it_cannot():
    x, edge_index, weight, mask = small(num_nodes=200)
    outs = [
        glr(x, edge_index, weight, mask, tol=1e-4, preconditioner='amg').x
        for _ in range(2)
    ]
    assert torch.equal(*outs)
    with pytest.raises(ValueError, match="'jacobi' with 'order=2'"):
        glr(x, edge_index, weight, mask, order=2, preconditioner='amg')
    with pytest.raises(
        ValueError, match="'preconditioner' must be one of 'jac"
    ):
        glr(x, edge_index, weight, mask, preconditioner='ilu')


def test_multigrid_without_pyamg(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyamg', None)
    x, edge_index, weight, mask = small()
    with pytest.raises(ImportError, match=r'pip install pyamg'):
        glr(x, edge_index, weight, mask, preconditioner='amg')


@withPackage('pyamg')
def test_multigrid_of_isolated_nodes():
    edge_index = torch.tensor([[0, 1], [1, 0]])
    x = torch.tensor([[1.0], [3.0], [7.0]])
    out = glr(x, edge_index, preconditioner='amg').x  # all are noisy
    assert_same(out, torch.tensor([[5 / 3], [7 / 3], [7.0]]))


@pytest.mark.parametrize('preconditioner', ['jacobi', 'amg'])
def test_points_in_random_order(preconditioner):
    # Large enough to be renumbered; a soft mask, and derivatives.
    if preconditioner == 'amg':
        pytest.importorskip('pyamg')
    count = 2**15 + 5
    data = KNNGraph(4)(Data(pos=torch.rand(count, 2)))
    topology = KNNGraph(4).topology(data)
    weight = topology.directed_weight(torch.rand(topology.num_edges) + 0.1)
    weight = weight.double().requires_grad_()
    x = torch.randn(count, 2).double().requires_grad_()
    kwargs = {'tol': 1e-11, 'preconditioner': preconditioner}
    mask = torch.rand(count) < 0.3
    with torch.inference_mode():  # the remembered order serves training, too
        glr(x, data.edge_index, weight, mask, fill=0.0, tol=1.0)
    out = glr(x, data.edge_index, weight, mask, fill=0.0, **kwargs).x
    lost = unreachable_nodes(data.edge_index, count, mask.unsqueeze(1))[:, 0]
    assert bool((out[lost] == 0).all())
    assert torch.equal(out[mask], x[mask])
    held = torch.where(lost.unsqueeze(1), 0, x.detach())
    known = mask | lost
    exact = spsolve_glr(held, data.edge_index, weight.detach(), known)
    assert relative_error(out, exact) < 1e-9
    # d <g, x> / dw_ij = -(x_i - x_j) (a_i - a_j), with the adjoint a.
    target = torch.randn(count, 2).double()
    grads = torch.autograd.grad((out * target).sum(), [x, weight])
    matrix = sparse_laplacian(data.edge_index, weight.detach(), count)
    free = (~known).numpy()
    inner = matrix[free][:, free]
    adjoint = np.zeros((count, 2))
    adjoint[free] = superlu(inner, target.numpy()[free])
    row, col = data.edge_index
    adjoint = torch.from_numpy(adjoint)
    expected = -((adjoint[row] - adjoint[col]) * (exact[row] - exact[col]))
    # Half of it in each direction.
    torch.testing.assert_close(
        grads[1], expected.sum(1) / 2, rtol=1e-6, atol=1e-7
    )
    right = target - torch.from_numpy(matrix @ adjoint.numpy())
    torch.testing.assert_close(
        grads[0][mask], right[mask], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize('solve', [glr, gtv])
def test_all_entries_known(solve):
    edge_index, weight = random_graph(8, 8)[:2]
    x, mask = torch.rand(8, 2), torch.ones(8).bool()
    held = solve(x, edge_index, weight, mask)
    assert torch.equal(held.x, x) and held.converged
    soft = solve(x, edge_index, weight, mask, fidelity='soft')
    assert_same(soft.x, solve(x, edge_index, weight).x)
