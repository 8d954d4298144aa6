"""The assertions for users fail on wrong code, and only on that."""

import pytest
import torch
from torch_geometric.data import Data

from pyg_unroll import GLRConv
from pyg_unroll.graph import Topology
from pyg_unroll.testing import (
    assert_batch_equals_loop,
    assert_compiles,
    assert_exports,
    assert_laplacian,
    assert_permutation_equivariant,
    assert_same,
)

PATH = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])


@pytest.mark.parametrize(
    ('actual', 'expected'),
    [
        (torch.ones(2), torch.ones(2) + 1e-3),
        (torch.ones(2), torch.ones(2).double()),
        (torch.ones(2), torch.ones(1)),
        (torch.tensor([1]), torch.tensor([2])),
        ((torch.ones(2), torch.ones(1)), (torch.ones(2), torch.zeros(1))),
        ((torch.ones(2),), (torch.ones(2), torch.ones(1))),
    ],
)
def test_same(actual, expected):
    assert_same(expected, expected)
    with pytest.raises(AssertionError):
        assert_same(actual, expected)


def test_laplacian():
    topology = Topology.from_edge_index(PATH, 4)
    weight = torch.tensor([1.0, 2.0, 3.0])
    assert_laplacian(topology, weight)
    assert_laplacian(topology, torch.stack([weight, weight], 1))
    with pytest.raises(AssertionError, match=r'head 0 has an eigenvalue -'):
        assert_laplacian(topology, -weight)
    with pytest.raises(AssertionError, match='head 1'):
        assert_laplacian(topology, torch.stack([weight, -weight], 1))


def test_permutation_equivariant():
    x, weight = torch.rand(4, 2), torch.ones(6)
    assert_permutation_equivariant(GLRConv(2), x, PATH, weight)

    def numbered(x, edge_index, edge_weight, mask):
        return x * torch.arange(4.0).view(-1, 1)

    torch.manual_seed(0)  # of an order that is not the given one
    with pytest.raises(AssertionError):
        assert_permutation_equivariant(numbered, x, PATH, weight)


def test_batch_equals_loop():
    examples = [Data(x=torch.rand(n, 2), edge_index=PATH) for n in (4, 5)]
    assert_batch_equals_loop(lambda data: data.x - 1, examples)
    with pytest.raises(AssertionError):
        assert_batch_equals_loop(lambda data: data.x - data.x.mean(), examples)
    with pytest.raises(AssertionError, match='at least two examples'):
        assert_batch_equals_loop(lambda data: data.x, examples[:1])

    def centred(data):
        data = data.clone()
        data.x = data.x - data.x.mean()
        return data

    assert_batch_equals_loop(lambda data: data.clone(), examples)
    with pytest.raises(AssertionError):
        assert_batch_equals_loop(centred, examples)


class Doubled(torch.autograd.Function):
    """The identity, whose derivative is wrong."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        scale = 1.0 if torch.compiler.is_compiling() else 2.0
        return scale * grad


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: (x.detach(), x)])
def test_compiles(wrap):
    x = torch.rand(3, requires_grad=True)
    compiles = {'backend': 'aot_eager'}
    assert_compiles(lambda x: wrap(x.sin()), x, **compiles)

    def breaks(x):
        torch._dynamo.graph_break()
        return wrap(x.sin())

    with pytest.raises(torch._dynamo.exc.Unsupported):
        assert_compiles(breaks, x, **compiles)

    def changes(x):
        return wrap(x + 1 if torch.compiler.is_compiling() else x)

    with pytest.raises(AssertionError):
        assert_compiles(changes, x, **compiles)
    with pytest.raises(AssertionError):
        assert_compiles(lambda x: wrap(Doubled.apply(x)), x, **compiles)

    def detaches(x):
        out = x.sin()
        return wrap(out.detach() if torch.compiler.is_compiling() else out)

    with pytest.raises(AssertionError, match='requires_grad'):
        assert_compiles(detaches, x, **compiles)


def test_exports():
    class Differs(torch.nn.Module):
        def forward(self, x):
            return x + 1 if torch.compiler.is_compiling() else x

    assert_exports(torch.nn.Linear(2, 3), torch.rand(4, 2))
    with pytest.raises(AssertionError):
        assert_exports(Differs(), torch.rand(4, 2))
