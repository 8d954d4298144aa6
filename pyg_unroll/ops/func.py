"""Operators under the transforms of :mod:`torch.func`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyg_unroll.graph import Topology

_functorch: Any = torch._C._functorch


def is_transformed() -> bool:
    """Whether a transform is at work."""
    return torch._C._are_functorch_transforms_active()


def is_past(value: Tensor) -> bool:
    """Whether a transform that has ended has left this tensor, which does not
    tell any more if a derivative by it is asked for.
    """
    return bool(_functorch.is_dead_tensor_wrapper(value))


@dataclass
class Call:
    """An operator on a topology, of operands and results without nesting."""

    operator: Any
    topology: Topology
    operands: TreeSpec
    results: Any = None  # their nesting, once there are any

    def __call__(self, *flat: Any) -> tuple[Tensor, ...]:
        """Calls the operator."""
        operands = tree_unflatten(flat, self.operands)
        found = self.operator(self.topology, *operands)
        results, self.results = tree_flatten(found)
        return tuple(results)


# Applies a call to its operands.
Apply: TypeAlias = Callable[..., Sequence[Any]]


def apply(how: Apply, operator: Any, topology: Topology, *operands: Any) -> Any:
    """The results of an operator by a way to apply its call."""
    flat, spec = tree_flatten(operands)
    call = Call(operator, topology, spec)
    return tree_unflatten(how(call, *flat), call.results)


class Transformed(torch.autograd.Function):
    """A call for transforms, which pass over derivatives registered with
    :mod:`torch.library`.
    """

    @staticmethod
    def forward(call: Call, *flat: Any) -> tuple[Tensor, ...]:
        """Calls the operator."""
        return call(*flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves what the operator keeps."""
        ctx.call, *flat = inputs
        operands = tree_unflatten(flat, ctx.call.operands)
        results = tree_unflatten(output, ctx.call.results)
        ctx.save_for_backward(*ctx.call.operator.keep(ctx, *operands, results))

    @staticmethod
    def backward(ctx: Any, *flat: Any) -> tuple[Any, ...]:
        """The operator's derivative."""
        call, grads = ctx.call, tree_unflatten(flat, ctx.call.results)
        grads = grads if isinstance(grads, tuple) else (grads,)
        kept = ctx.saved_tensors
        found = call.operator.derivative(ctx, call.topology, kept, *grads)
        return None, *tree_flatten(found)[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Call, *flat: Any) -> Any:
        """Adds the samples to the heads."""
        return on_heads(in_dims[1:], info.batch_size)(call, *flat), -2


def on_heads(dims: Iterable[int | None], size: int) -> Apply:
    """Calls a function with samples, along dimensions of some of its operands,
    among the heads, which come last; in its results, samples come before the
    heads.
    """

    def fold(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        if dim is not None:
            return value.movedim(dim, -2).flatten(-2)
        value = value.unsqueeze(-2)
        return value.expand(*value.shape[:-2], size, -1).flatten(-2)

    def unfold(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.unflatten(-1, (size, value.size(-1) // size))

    def call(function: Apply, *operands: Any) -> tuple[Any, ...]:
        return tuple(map(unfold, function(*map(fold, operands, dims))))

    return call


def on_batch(function: Apply, *operands: Any) -> Sequence[Any]:
    """Calls a function with the samples of an older `vmap`, that of
    :func:`torch.autograd.grad`, among the heads, if there are such.
    """
    batched = [
        isinstance(value, Tensor) and _functorch.is_legacy_batchedtensor(value)
        for value in operands
    ]
    if not any(batched):
        return function(*operands)
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    plain = [
        torch._remove_batch_dim(value, level, 0, 0) if is_batch else value
        for value, is_batch in zip(operands, batched, strict=True)
    ]
    size = plain[batched.index(True)].size(0)
    dims = (0 if is_batch else None for is_batch in batched)
    return [
        torch._add_batch_dim(value, value.dim() - 2, level)
        if isinstance(value, Tensor)
        else value
        for value in on_heads(dims, size)(function, *plain)
    ]
