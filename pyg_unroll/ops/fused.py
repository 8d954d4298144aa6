"""What the registered operators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import arrays
from pyg_unroll.ops.reference import accumulate_type


def save_operands(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps the graph and all operands of an operator for its derivative."""
    graph, ctx.grid, *operands = inputs
    ctx.save_for_backward(*graph, *operands)


def no_grads(graph: Sequence[Tensor]) -> tuple[Any, None]:
    """Derivatives by the graph."""
    return [None] * len(graph), None


def topology_of(graph: list[Tensor], grid: list[int]) -> Topology:
    """A topology for the operators; its edge index cannot be asked for."""
    parts = arrays(graph, grid)
    return Topology(
        num_nodes=parts.rowptr.size(0) - 1,
        src=parts.src,
        dst=parts.dst,
        rowptr=parts.rowptr,
        col=parts.col,
        edge_id=parts.edge_id,
        sign=parts.sign,
        entry=parts.src,
        grid=parts.grid,
    )


def differentiate(
    function: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor | None],
    grads: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Differentiable derivatives by those operands that need them."""

    def alias(v: Tensor | None) -> Tensor | None:
        # One operand may depend on another: only what is direct counts here.
        return v.view_as(v) if v is not None and v.requires_grad else v

    inputs = [alias(v) for v in operands]
    wanted = [v for v in inputs if v is not None and v.requires_grad]
    values = torch.autograd.grad(
        function(*inputs), wanted, grads, create_graph=True, allow_unused=True
    )
    found = dict(zip(map(id, wanted), values, strict=True))
    return [found.get(id(v)) for v in inputs]


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous memory of the shape of a tensor."""
    return torch.empty_like(
        x, dtype=dtype, memory_format=torch.contiguous_format
    )


def numbers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous, and at least of single precision."""
    return tuple(v.to(accumulate_type(v.dtype)).contiguous() for v in tensors)
