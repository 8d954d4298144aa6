"""Assertions for code that builds on the library, used by its own tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch_geometric.data import Batch, Data

from pyg_unroll.graph import Topology
from pyg_unroll.ops import laplacian

#: Tolerances of `torch.testing.assert_close` for results of each type.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {'rtol': 1e-10, 'atol': 1e-10},
    torch.float32: {'rtol': 1e-5, 'atol': 1e-5},
    torch.float16: {'rtol': 5e-3, 'atol': 5e-3},
    torch.bfloat16: {'rtol': 4e-2, 'atol': 4e-2},
}


def assert_same(actual: Any, expected: Any) -> None:
    r"""Asserts that tensors, or containers of them, agree up to rounding.

    Args:
        actual (torch.Tensor or Sequence): One or several tensors.
        expected (torch.Tensor or Sequence): The same, of equal shapes and
            types.

    Raises:
        AssertionError: If a shape or type differs, or values differ by more
            than :obj:`TOLERANCES` allows for their type.
    """
    if isinstance(expected, Tensor):
        tolerance = TOLERANCES.get(expected.dtype, {'rtol': 0, 'atol': 0})
        torch.testing.assert_close(
            actual, expected, rtol=tolerance['rtol'], atol=tolerance['atol']
        )
        return
    assert len(actual) == len(expected), (len(actual), len(expected))
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


def assert_laplacian(topology: Topology, weight: Tensor) -> None:
    r"""Asserts that :func:`~pyg_unroll.ops.laplacian` is one for the weights:
    symmetric, positive semidefinite and with zero row sums.

    Builds the dense matrix, hence for small graphs only.

    Args:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`(E)` or :math:`(E, H)`.

    Raises:
        AssertionError: If the matrix of a head lacks one of the properties.
    """
    weight = weight.detach()
    weight = weight.unsqueeze(-1) if weight.dim() == 1 else weight
    basis = torch.eye(topology.num_nodes).to(weight).unsqueeze(-1)
    basis = basis.expand(-1, -1, weight.size(1))
    # Column by column: kernels are compiled for each number of features.
    columns = [laplacian(topology, weight, e) for e in basis.split(1, dim=1)]
    matrices = torch.cat(columns, dim=1).permute(2, 0, 1).double()
    tolerance = TOLERANCES[weight.dtype]['rtol']
    for head, matrix in enumerate(matrices):
        limit = tolerance * max(float(matrix.abs().max()), 1e-30)
        many, smallest = limit * len(matrix), torch.linalg.eigvalsh(matrix)[0]
        for fault, size, allowed in (
            ('is not symmetric by ', (matrix - matrix.mT).abs().max(), limit),
            ('has a row sum of ', matrix.sum(1).abs().max(), many),
            ('has an eigenvalue -', -smallest, many),
        ):
            message = f'the Laplacian of head {head} {fault}{float(size):.1e}'
            assert size <= allowed, message


def assert_permutation_equivariant(
    function: Callable[..., Tensor],
    x: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    r"""Asserts that renaming the nodes renames the result, and nothing else.

    The order of the edges is changed, too.

    Args:
        function (callable): A layer, called as :obj:`function(x, edge_index,
            edge_weight, mask)`, that returns node signals :math:`(N, *)`.
        x (torch.Tensor): Node signals :math:`(N, F)`.
        edge_index (torch.Tensor): Edges :math:`(2, 2E)`.
        edge_weight (torch.Tensor, optional): Weights :math:`(2E)` or
            :math:`(2E, H)`. (default: :obj:`None`)
        mask (torch.Tensor, optional): Boolean :math:`(N)` or :math:`(N, F)`.
            (default: :obj:`None`)

    Raises:
        AssertionError: If the results differ by more than rounding.
    """
    order = torch.randperm(x.size(0), device=x.device)
    name = torch.empty_like(order)
    name[order] = torch.arange(x.size(0), device=x.device)
    column = torch.randperm(edge_index.size(1), device=x.device)
    renamed = function(
        x[order],
        name[edge_index][:, column],
        None if edge_weight is None else edge_weight[column],
        None if mask is None else mask[order],
    )
    assert_same(renamed, function(x, edge_index, edge_weight, mask)[order])


def assert_batch_equals_loop(
    function: Callable[[Data], Tensor | Data], examples: Sequence[Data]
) -> None:
    r"""Asserts that a batch gives what its examples give one by one.

    Args:
        function (callable): A model that returns node signals
            :math:`(N, *)`, or a transform that returns data.
        examples (Sequence[Data]): The examples, at least two.

    Raises:
        AssertionError: If the results differ by more than rounding, or if a
            transformed batch cannot be taken apart into the transformed
            examples.
    """
    assert len(examples) > 1, 'give at least two examples'
    batch = Batch.from_data_list(list(examples))
    single = [function(example) for example in examples]
    together = function(batch)
    if isinstance(together, Tensor):
        parts = [part for part in single if isinstance(part, Tensor)]
        assert_same(together, torch.cat(parts))
        return
    assert isinstance(together, Batch), type(together).__name__
    for actual, expected in zip(together.to_data_list(), single, strict=True):
        assert isinstance(expected, Data)
        assert set(actual.keys()) == set(expected.keys()), (
            f'a batch has {sorted(actual.keys())}, an example '
            f'{sorted(expected.keys())}'
        )
        for key, value in expected.to_dict().items():
            if isinstance(value, Tensor):
                assert_same(actual[key], value)


def assert_compiles(
    module: Callable[..., Any],
    *args: Any,
    backend: str = 'inductor',
    **kwargs: Any,
) -> None:
    r"""Asserts that :meth:`torch.compile` takes a module without a graph
    break and that results, their :obj:`requires_grad` and gradients stay the
    same.

    Args:
        module (callable): A module or function of tensors.
        *args (Any): Its arguments; floating-point tensors among them that
            require gradients get them compared.
        backend (str, optional): Backend of :meth:`torch.compile`;
            :obj:`'aot_eager'` is fast and finds graph breaks, too.
            (default: :obj:`'inductor'`)
        **kwargs (Any): Further arguments.

    Raises:
        AssertionError: If results or gradients differ by more than rounding,
            or a result requires gradients one way only.
    """
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    outputs = [run(*args, **kwargs) for run in (compiled, module)]
    assert_same(*outputs)
    parts = [tree_leaves(output) for output in outputs]
    required = [[x.requires_grad for x in tensors] for tensors in parts]
    assert required[0] == required[1], (
        f"'requires_grad' of the results is {required[0]} compiled and "
        f'{required[1]} otherwise'
    )
    values = [*args, *kwargs.values()]
    if isinstance(module, torch.nn.Module):
        values += module.parameters()
    wanted = [x for x in values if isinstance(x, Tensor) and x.requires_grad]
    if wanted and any(required[0]):
        grads = []
        for tensors in parts:
            loss = [x.square().sum() for x in tensors if x.requires_grad]
            grad = torch.autograd.grad(loss, wanted, materialize_grads=True)
            grads.append(grad)
        assert_same(*grads)


def assert_exports(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    r"""Asserts that :func:`torch.export.export` takes a module and that the
    exported program gives the same result.

    Args:
        module (torch.nn.Module): The module.
        *args (Any): Its arguments.
        **kwargs (Any): Further arguments.

    Raises:
        AssertionError: If the results differ by more than rounding.
    """
    program = torch.export.export(module, args, kwargs)
    assert_same(program.module()(*args, **kwargs), module(*args, **kwargs))
