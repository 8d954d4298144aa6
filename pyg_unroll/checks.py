"""Checks of arguments: the fault, the value received, and the remedy."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Batch, Data


def can_read_values(*values: Any) -> bool:
    """Whether the values of tensors, if any are given, can be looked at: not
    while a function is compiled by :meth:`torch.compile` or captured in a CUDA
    graph, nor where they stand for all samples of :func:`torch.vmap`.
    """
    if torch.compiler.is_compiling() or any(map(is_batched, values)):
        return False
    # Without CUDA there is no such function.
    is_capturing = torch.cuda.is_current_stream_capturing
    return not (torch.cuda.is_initialized() and is_capturing())


def is_batched(value: Any) -> bool:
    """Whether a tensor stands for all samples of :func:`torch.vmap`."""
    functorch: Any = torch._C._functorch
    if not isinstance(value, Tensor):
        return False
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    return bool(functorch.is_batchedtensor(value))


def check_tensor(name: str, value: Any, shape: str) -> None:
    """Raises a `ValueError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"'{name}' must be a tensor of shape {shape} (got "
            f"'{type(value).__name__}'); convert it with 'torch.as_tensor'"
        )


def check_shape(
    name: str, value: Any, *shapes: Sequence[Any], note: str = ''
) -> None:
    """Raises a `ValueError` unless `value` is a tensor of one of some shapes,
    in which a word stands for any size.
    """
    sizes = value.shape if isinstance(value, Tensor) else None
    if sizes is not None and any(_fits(sizes, shape) for shape in shapes):
        return
    *others, last = (f'[{", ".join(map(str, shape))}]' for shape in shapes)
    listed = f'{", ".join(others)} or {last}' if others else last
    check_tensor(name, value, listed)
    got = list(value.shape)
    raise ValueError(f"'{name}' must have shape {listed} (got {got}){note}")


def _fits(sizes: Sequence[int], shape: Sequence[Any]) -> bool:
    if len(sizes) != len(shape):
        return False
    pairs = zip(sizes, shape, strict=True)
    return all(n == size or isinstance(n, str) for size, n in pairs)


def check_boolean(name: str, mask: Tensor) -> None:
    """Raises a `ValueError` unless a mask is boolean."""
    if mask.dtype != torch.bool:
        raise ValueError(
            f"'{name}' must be boolean (got {mask.dtype}); convert it with "
            f"'mask.bool()' or compare, 'mask > 0'"
        )


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; it is not copied."""
    # Both extremes are NaN if a value is.
    extremes = value.aminmax() if value.numel() else ()
    return all(bool(extreme.isfinite()) for extreme in extremes)


def check_finite(name: str, value: Tensor) -> None:
    """Raises a `ValueError` if a tensor holds NaN or infinity."""
    if not is_finite(value):
        place = (~value.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"'{name}' must be finite (got {float(value[tuple(place)])} at "
            f"index {place}); replace it, for example with 'nan_to_num'"
        )


def check_signal(name: str, x: Tensor) -> None:
    """Raises a `ValueError` unless a signal is floating point."""
    if not x.is_floating_point():
        raise ValueError(
            f"'{name}' must be floating point (got {x.dtype}); convert it "
            f"with '{name}.float()', 8-bit images with '{name}.float() / 255'"
        )


def check_not_half(name: str, dtype: torch.dtype) -> None:
    """Raises a `ValueError` for a type of too small a range for graphs that
    are learned.
    """
    if dtype == torch.float16:
        raise ValueError(
            f"'{name}' must not be of type torch.float16, in which small "
            f"weights vanish; convert it with '.to(torch.bfloat16)'"
        )


def check_model_type(model: torch.nn.Module, name: str, x: Any) -> None:
    """Raises a `ValueError` unless a model and its input are of one type that
    graphs can be learned in; autocast converts between them.
    """
    dtype = next(model.parameters()).dtype
    check_not_half('model', dtype)
    is_float = isinstance(x, Tensor) and x.is_floating_point()
    is_other = is_float and x.dtype != dtype
    if is_other and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"'{name}' must have the type of the model, {dtype} (got "
            f"{x.dtype}); convert one of them with '.to({dtype})'"
        )


def check_data(data: Any) -> None:
    """Raises a `ValueError` unless `data` is homogeneous data."""
    if not isinstance(data, Data):
        raise ValueError(
            f"'data' must be a homogeneous 'Data' or 'Batch' (got "
            f"'{type(data).__name__}'); make it with 'image_to_data', "
            f"'mosaic', 'points_to_data' or 'Data(x=..., edge_index=...)'"
        )


def check_one_graph(data: Any) -> None:
    """Raises a `ValueError` unless `data` is of one graph."""
    check_data(data)
    if isinstance(data, Batch):
        raise ValueError(
            "'data' must be one graph (got a batch); take its graphs one by "
            "one, by 'data.to_data_list()'"
        )


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of any kind, NumPy's too."""
    is_number = isinstance(value, (Integral, torch.SymInt))
    return is_number and not isinstance(value, bool)


# Raises a `ValueError` unless a value, of this name, is good.
Check: TypeAlias = Callable[[str, Any], None]
# By name of an argument of a constructor, its check.
Checks: TypeAlias = Mapping[str, Check]


def check_parameters(checks: Checks, values: Any) -> None:
    """Checks the arguments of a constructor, by name, as :obj:`locals()`
    gives them, by the table of its class.
    """
    for name, check in checks.items():
        check(name, values[name])


def _check_that(is_good: Callable[[Any], bool], must: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_good(value):
            raise ValueError(f"'{name}' must {must} (got {value!r})")

    return check


check_positive = _check_that(
    lambda value: is_integer(value) and value >= 1, 'be a positive integer'
)
check_count = _check_that(
    lambda value: is_integer(value) and value >= 0, 'be a non-negative integer'
)
check_non_negative = _check_that(
    lambda value: isinstance(value, Real) and 0 <= float(value) < math.inf,
    'be a finite, non-negative number',
)


def one_of(*choices: Any) -> Check:
    """The check that a value is one of some choices."""
    must = f'be one of {", ".join(map(repr, choices))}'
    return _check_that(lambda value: value in choices, must)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises a `ValueError` unless `value` is one of some choices."""
    one_of(*choices)(name, value)


def check_between(
    name: str, value: Any, low: float = 0.0, high: float = math.inf
) -> None:
    """Raises a `ValueError` unless `value` is a number between two others."""
    must = f'lie in ({low:g}, {high:g})'
    if low == 0 and high == math.inf:
        must = 'be positive and finite'
    is_good = isinstance(value, Real) and low < float(value) < high
    _check_that(lambda _: is_good, must)(name, value)


def optional(check: Check) -> Check:
    """A check that lets :obj:`None` pass."""
    return lambda name, value: None if value is None else check(name, value)


def check_edge_weight(edge_weight: Any, columns: int) -> None:
    """Raises a `ValueError` unless there is a real weight per column of the
    edge index, or per edge of a topology.
    """
    note = (
        ": one row per column of 'edge_index', or per undirected edge of a "
        "'Topology'"
    )
    shapes = [columns], [columns, 'heads']
    check_shape('edge_weight', edge_weight, *shapes, note=note)
    if edge_weight.is_complex():
        raise ValueError(
            f"'edge_weight' must be real (got {edge_weight.dtype}); take its "
            f"size, 'edge_weight.abs()'"
        )


def check_weights(name: str, weight: Tensor, src: Tensor, dst: Tensor) -> None:
    """Raises a `ValueError` unless weights `[E]` or `[E, H]` of edges between
    nodes are finite and non-negative.
    """
    weight = weight.detach()
    # Comparisons with NaN are false, hence the form of the test.
    if weight.numel() == 0 or bool(
        (weight.amin() >= 0) & (weight.amax() < math.inf)
    ):
        return
    bad = ~((weight >= 0) & (weight < math.inf))
    edge = int(bad.nonzero()[0, 0])
    raise ValueError(
        f"'{name}' must be finite and non-negative (got "
        f'{float(weight[bad][0])} for edge ({int(src[edge])}, '
        f"{int(dst[edge])})); use a kernel such as 'exp(-distance)'"
    )


def check_indices(edge_index: Tensor) -> None:
    """Raises a `ValueError` for a tensor that cannot hold edge indices."""
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'edge_index' must have shape [2, num_edges] (got "
            f'{list(edge_index.shape)}); transpose it if its rows are edges, '
            f"or give an adjacency matrix as '.to_sparse_csr()'"
        )
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"'edge_index' must hold integers (got {edge_index.dtype}); "
            f"convert it with '.long()'"
        )


def check_edge_index(edge_index: Tensor, num_nodes: int) -> None:
    """Raises a `ValueError` for indices that are those of no graph."""
    if not isinstance(num_nodes, (int, torch.SymInt)) or num_nodes < 0:
        raise ValueError(
            f"'num_nodes' must be a non-negative integer (got {num_nodes!r})"
        )
    check_indices(edge_index)
    _refuse(
        ((edge_index < 0) | (edge_index >= num_nodes)).any(0),
        edge_index,
        f'is out of range: edge {{}} in a graph of {num_nodes} nodes; give '
        f"'x' one row per node, or relabel the nodes with "
        f"'torch_geometric.utils.remove_isolated_nodes'",
    )
    _refuse(
        edge_index[0] == edge_index[1],
        edge_index,
        'has a self-loop at edge {}; remove it with '
        "'torch_geometric.utils.remove_self_loops'",
    )


def check_pairs(key: Tensor, edge_index: Tensor, order: Tensor) -> None:
    """Raises a `ValueError` unless edges are there once in each direction.

    The keys, in ascending order, are even for one direction of an edge and
    one more for the other.
    """
    same, near = key[1:] == key[:-1], key[1:] // 2 == key[:-1] // 2
    _refuse(
        pad(same, (1, 0)),
        edge_index,
        'has a duplicate edge for {}; merge duplicates with '
        "'torch_geometric.utils.coalesce'",
        order,
    )
    _refuse(
        ~(pad(near, (1, 0)) | pad(near, (0, 1))),
        edge_index,
        'has no reverse edge for {}; make the graph undirected with '
        "'torch_geometric.utils.to_undirected'",
        order,
    )


def _refuse(
    bad: Tensor, edge_index: Tensor, fault: str, order: Tensor | None = None
) -> None:
    """Raises a `ValueError` that names the first of the bad edges."""
    if bool(bad.any()):
        first = bad.nonzero()[0]
        first = first if order is None else order[first]
        i, j = edge_index[:, int(first)].tolist()
        raise ValueError(f"'edge_index' {fault.format(f'({i}, {j})')}")
