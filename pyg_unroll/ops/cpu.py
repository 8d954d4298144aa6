"""The CPU backend: numba's kernels on all of PyTorch's threads.

Half precision is computed in float32. Work is cut by the size of the problem
alone, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.graph import Arrays
from pyg_unroll.ops import cpu_kernels as kernels
from pyg_unroll.ops import cpu_steps as steps
from pyg_unroll.ops import reference, threads
from pyg_unroll.ops.reference import accumulate_type
from pyg_unroll.ops.simd import Lanes

# Numbers of a block: as many as the vector registers hold.
_BLOCK = 64
# Numbers that one call of a kernel works on: enough to outweigh the call.
_CHUNK = 2**17
# Numbers that a kernel keeps of a pixel's window.
_SCRATCH = 256

_Kernel = Callable[..., None]
_NO_GRID = (np.zeros(5, np.int64), *(np.empty(0, np.int64),) * 2)


def _launch(
    kernel: _Kernel,
    rows: int,
    width: int,
    *arguments: Any,
    partial: Any = None,
) -> None:
    """Calls a kernel on chunks of rows, with a row of `partial` for each."""
    step = max(_CHUNK // width, 1)
    bounds = [*range(0, rows, step), rows]
    chunks = list(enumerate(pairwise(bounds)))

    count = max(min(torch.get_num_threads(), len(chunks)), 1)

    def work(k: int) -> None:
        scratch = np.empty(_SCRATCH, np.int64)
        # Neighbouring chunks to one thread, for its caches.
        mine = slice(*(len(chunks) * t // count for t in (k, k + 1)))
        for number, chunk in chunks[mine]:
            last = () if partial is None else (partial[number],)
            kernel(*chunk, scratch, *arguments, *last)

    threads.run(work, count)


def _blocks(features: int, heads: int) -> list[tuple[Lanes, int, int]]:
    """Cuts a node's numbers: (size, first feature, first head)."""
    if heads > _BLOCK:
        columns = [(h, min(_BLOCK, heads - h)) for h in range(0, heads, _BLOCK)]
        return [
            (Lanes(1, size), f, h)
            for f in range(features)
            for h, size in columns
        ]
    step = max(_BLOCK // heads, 1)
    return [
        (Lanes(min(step, features - f), heads), f, 0)
        for f in range(0, features, step)
    ]


@lru_cache(maxsize=64)
def _grid(
    grid: tuple[int, ...], num_nodes: int, num_edges: int
) -> tuple[Any, Any, Any]:
    """The tables by which kernels walk a pixel grid."""
    if not grid:
        return _NO_GRID
    height, width = grid[:2]
    offsets = list(zip(grid[2::2], grid[3::2], strict=True))
    size = len(offsets)
    rows = max(row for row, _ in offsets)
    columns = max(abs(col) for _, col in offsets)
    if size >= _SCRATCH or width <= 4 * columns or height <= 2 * rows:
        return _NO_GRID
    # The number of edges that start at each pixel of a row, summed.
    line = np.arange(height)
    per_row = sum(
        (line + row < height) * (width - abs(col)) for row, col in offsets
    )
    before = sum(  # at the columns left of the first with the whole window
        np.sum(np.arange(columns) + col >= 0) * (line + row < height)
        for row, col in offsets
    )
    start = np.concatenate([[0], np.cumsum(per_row)])[:-1]
    starts = start + before - (line * width + columns) * size
    backwards = offsets[::-1]
    steps = np.array([row * width + col for row, col in backwards])
    images = num_nodes // (height * width)
    head = [height, width, 2 * columns, rows, num_edges // max(images, 1)]
    table = np.array(head + [row for row, _ in backwards])
    return (table, starts.astype(np.int64), steps)


def _flat(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().reshape(-1).numpy() for tensor in tensors]


def _numbers(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, and of a type that the kernels know."""
    dtype = accumulate_type(tensors[0].dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _row_blocks(
    graph: Arrays, weight: Tensor, shape: torch.Size, walk: bool = True
) -> Any:
    """Yields the first arguments of a kernel over rows, for each block.

    If `walk`, the kernel finds its way on pixel grids.
    """
    features, heads = shape[1:]
    num_nodes, num_edges = graph.rowptr.size(0) - 1, graph.src.size(0)
    tables = _grid(graph.grid, num_nodes, num_edges) if walk else _NO_GRID
    first = [tuple(_flat(graph.rowptr, graph.col, graph.edge_id))]
    if walk:
        first.append(tables)
    for lanes, f, h in _blocks(features, heads):
        place = (features * heads, f * heads + h, heads, h)
        lanes = replace(lanes, window=tables[2].size)
        yield (*first, place, lanes), lanes.features * lanes.heads


def to_edges(graph: Arrays, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_edges`."""
    (values,) = _numbers(x)
    num_edges = graph.src.size(0)
    out = values.new_empty((num_edges, *x.shape[1:]))
    width = values[0].numel() if values.size(0) else 0
    arrays = _flat(values, out)
    edges = _flat(graph.src, graph.dst)
    for lanes, _, h in _blocks(1, width) if width else ():
        place, sign = (width, h, width, h), -1 if signed else 1
        rest = (*edges, sign, place, lanes, *arrays)
        _launch(kernels.to_edges, num_edges, lanes.heads, *rest)
    return out.to(x.dtype)


def to_nodes(graph: Arrays, z: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.to_nodes`."""
    (values,) = _numbers(z)
    num_nodes = graph.rowptr.size(0) - 1
    out = values.new_empty((num_nodes, *z.shape[1:]))
    width = out[0].numel() if num_nodes else 0
    arrays = _flat(values, out)
    index = tuple(_flat(graph.rowptr, graph.col, graph.edge_id))
    for lanes, _, h in _blocks(1, width) if width else ():
        place, sign = (width, h, width, h), -1 if signed else 1
        rest = (index, sign, place, lanes, *arrays)
        _launch(kernels.to_nodes, num_nodes, lanes.heads, *rest)
    return out.to(z.dtype)


def laplacian(graph: Arrays, weight: Tensor, x: Tensor) -> Tensor:
    """See :func:`.reference.laplacian`."""
    values, weights = _numbers(x, weight)
    out = torch.empty_like(values)
    arrays = _flat(weights, values, out)
    for first, width in _row_blocks(graph, weights, x.shape):
        _launch(kernels.laplacian, x.size(0), width, *first, *arrays)
    return out.to(x.dtype)


def edge_dot(graph: Arrays, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`.reference.edge_dot`."""
    one, other = _numbers(a, b)
    out = one.new_empty((graph.src.size(0), a.size(2)))
    if a.size(1) == 0:
        return out.zero_().to(a.dtype)
    arrays = (*_flat(one, other), a is b, *_flat(out))
    for first, width in _row_blocks(graph, out, a.shape):
        _launch(kernels.edge_dot, a.size(0), width, *first, *arrays)
    return out.to(a.dtype)


def log_degree(graph: Arrays, distance: Tensor) -> Tensor:
    """See :func:`.reference.log_degree`."""
    (values,) = _numbers(distance)
    out = to_nodes(graph, values.neg().exp_(), False).log_()
    num_nodes, heads = out.shape
    index = tuple(_flat(graph.rowptr, graph.col, graph.edge_id))
    rest = (index, heads, reference.LEAST_LOG, *_flat(values, out))
    _launch(kernels.shifted_log_degree, num_nodes, max(heads, 1), *rest)
    return out.to(distance.dtype)


def log_degree_backward(
    graph: Arrays, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """See :func:`.reference.log_degree_backward`."""
    operands = distance, log_degree, grad
    return reference.log_degree_backward(graph, *operands, to_edges)


def cg_step(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    residual: Tensor,
    direction: Tensor,
    alpha: Tensor,
    beta: Tensor,
    alpha_next: Tensor,
) -> Tensor:
    """See :func:`.reference.cg_step`."""
    out = torch.empty_like(direction)
    arrays = _flat(weight, direction, out, x, residual)
    last = (
        *_diagonal(diagonal),
        *_diagonal(confidence, diagonal),
        *_flat(torch.stack([alpha, beta, alpha_next])),
    )
    for first, width in _row_blocks(graph, weight, x.shape):
        rest = (*first, *arrays, *last)
        _launch(steps.cg_step, x.size(0), width, *rest)
    return out


def cg_step_backward(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    q: Tensor,
    direction: Tensor,
    previous: Tensor | None,
    grad_direction: Tensor,
    grad_x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    beta_previous: Tensor,
    grad_weight: Tensor,
    sum_diagonal: Tensor,
    sum_confidence: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`.reference.cg_step_backward`."""
    out = torch.empty_like(q)
    if previous is None:  # the first direction has none before it
        previous, beta_previous = direction, torch.zeros_like(beta)
        is_first = True
    else:
        is_first = False
    if sum_confidence is None:
        sum_confidence = q[:0]
    arrays = _flat(weight, q, out, direction, previous, grad_direction, grad_x)
    last = (
        *_diagonal(diagonal),
        *_diagonal(confidence, diagonal),
        *_flat(torch.stack([alpha, beta, beta_previous])),
        *_flat(grad_weight, sum_diagonal, sum_confidence),
    )
    partial = _partial(q, 2)
    for first, width in _row_blocks(graph, weight, q.shape):
        _launch(
            steps.cg_step_backward,
            q.size(0),
            width,
            *first,
            *arrays,
            *last,
            partial=partial,
        )
    dots = _sums(partial, 2)
    return out, dots[0], torch.zeros_like(beta) if is_first else dots[1]


def admm_step(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.admm_step`."""
    b, new_dual = torch.empty_like(x), torch.empty_like(dual)
    coefficients = torch.stack([rho_previous, rho, 1 / rho, relaxation])
    arrays = _flat(weight, x, dual, coefficients, b, new_dual)
    for first, width in _row_blocks(graph, weight, x.shape, False):
        _launch(steps.admm_step, x.size(0), width, *first, *arrays)
    return b, new_dual


def admm_step_backward(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
    grad_b: Tensor,
    grad_dual: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`.reference.admm_step_backward`."""
    grad_x, grad_old = torch.empty_like(x), torch.empty_like(dual)
    grad_weight = torch.zeros_like(weight)
    coefficients = torch.stack([rho_previous, rho, 1 / rho, relaxation])
    arrays = _flat(weight, x, dual, coefficients, grad_b, grad_dual)
    outputs = _flat(grad_x, grad_weight, grad_old)
    partial = _partial(x, 3)
    for first, width in _row_blocks(graph, weight, x.shape, False):
        _launch(
            steps.admm_step_backward,
            x.size(0),
            width,
            *first,
            *arrays,
            *outputs,
            partial=partial,
        )
    sums = _sums(partial, 3)
    return grad_x, grad_weight, grad_old, sums[0], sums[1], sums[2]


def _partial(x: Tensor, count: int) -> Any:
    """Room for some sums of each chunk and head."""
    chunks = x.numel() // _CHUNK * 2 + 2
    return np.zeros((chunks, count * x.size(2)), _flat(x)[0].dtype)


def _sums(partial: Any, count: int) -> list[Tensor]:
    # Copies: outputs of a registered operator may not share memory.
    sums = partial.sum(0).reshape(count, -1)
    return [torch.from_numpy(row.copy()) for row in sums]


def _diagonal(
    value: Tensor | None, like: Tensor | None = None
) -> tuple[Any, int]:
    """A diagonal's numbers, and how many features it tells apart."""
    if value is None:
        assert like is not None
        return _flat(like)[0][:0], 0
    return _flat(value)[0], value.size(1)
