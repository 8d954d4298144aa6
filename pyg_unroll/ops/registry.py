"""Operators as PyTorch knows them: registered, differentiable to any order,
compiled, exported and transformed by :mod:`torch.func`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    _broadcast_to_and_flatten,
    tree_flatten,
    tree_leaves,
    tree_unflatten,
)

from pyg_unroll.graph import Topology

_functorch: Any = torch._C._functorch
_LIBRARY = torch.library.Library('pyg_unroll', 'FRAGMENT')


class Operator:
    r"""A function of a topology and operands, registered with PyTorch.

    :meth:`torch.compile` and :meth:`torch.export` see one opaque operation,
    whatever the backend. Each derivative is written with operators again,
    hence exists to any order, and nothing of size edges x features is kept.

    Operands and results are written in PyTorch's schema language; `fake` gives
    results of the same shape and type, of any values; results share no memory.
    (:func:`torch.library.custom_op` wraps it in more work than a small graph
    takes.) Heads are the last axis of each and do not mix: samples of
    :func:`torch.vmap` become further heads.

    Of the context, all operands and the result, `keep` returns what is saved;
    of the context, the topology, what was saved and the derivatives by the
    results, `derivative` returns those by the operands.
    """

    def __init__(
        self,
        name: str,
        operands: str,
        results: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        keep: Callable[..., Sequence[Tensor | None]] = lambda *_: (),
        derivative: Callable[..., Sequence[Tensor | None]] | None = None,
    ) -> None:
        def unpacked(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(graph: list[Tensor], grid: list[int], *rest: Any) -> Any:
                return function(Topology.unpack(graph, grid), *rest)

            return call

        schema = f'(Tensor[] graph, SymInt[] grid, {operands}) -> {results}'
        tag = torch.Tag.pt2_compliant_tag
        _LIBRARY.define(f'{name}{schema}', tags=(tag,))
        _LIBRARY.impl(name, unpacked(run), 'CompositeExplicitAutograd')
        qualified = f'pyg_unroll::{name}'
        torch.library.register_fake(qualified, unpacked(fake), lib=_LIBRARY)
        on_samples = self._on_samples
        torch.library.register_vmap(qualified, on_samples, lib=_LIBRARY)
        # The `vmap` of `torch.autograd`, an older one.
        older = unpacked(partial(_apply, on_batch, self))
        _LIBRARY.impl(name, older, 'Batched')
        self.keep, self.derivative = keep, derivative
        self._call = getattr(torch.ops.pyg_unroll, name).default
        if derivative is not None:
            recorded = _recorded(self._call, keep, derivative)
            _LIBRARY.impl(name, recorded, 'Autograd', with_keyset=True)

    def __call__(self, topology: Topology, *operands: Any) -> Any:
        """Applies the operator."""
        if is_transformed() and not torch.compiler.is_compiling():
            return _apply(_Transformed.apply, self, topology, *operands)
        return self._call(*topology.pack(), *operands)

    def _on_samples(
        self, info: Any, in_dims: Any, graph: Any, grid: Any, *operands: Any
    ) -> tuple[Any, int]:
        """Adds samples of :func:`torch.vmap` to the heads."""
        topology = Topology.unpack(graph, grid)
        how = on_heads(tree_leaves(in_dims[2:]), info.batch_size)
        return _apply(how, self, topology, *operands), -2


def _recorded(operator: Any, keep: Any, derivative: Any) -> Callable[..., Any]:
    """The operator, which records its derivative if that is asked for."""

    def run(keys: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            below = keys & torch._C._after_autograd_keyset
            return operator.redispatch(below, *inputs)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keys: Any, *inputs: Any) -> Any:
            out = run(keys, *inputs)
            graph, grid, *operands = inputs
            ctx.graph = graph, grid
            ctx.save_for_backward(*keep(ctx, *operands, out))
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            topology = Topology.unpack(*ctx.graph)
            found = derivative(ctx, topology, ctx.saved_tensors, *grads)
            return None, None, None, *found

    def call(keys: Any, *inputs: Any) -> Any:
        apply = Recorded.apply if needs_grad(*inputs) else run
        return apply(keys, *inputs)

    return call


def needs_grad(*operands: Any) -> bool:
    """Whether the derivative by one of some operands will be asked for."""
    return torch.is_grad_enabled() and any(
        isinstance(v, Tensor) and v.requires_grad for v in operands
    )


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous memory of the shape of a tensor."""
    return torch.empty_like(
        x, dtype=dtype, memory_format=torch.contiguous_format
    )


def iterations(
    name: str,
    operands: str,
    count: int,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    run_backward: Callable[..., Sequence[Tensor | None]],
    composed: Callable[..., tuple[Tensor, ...]],
) -> Operator:
    """Registers iterations as one operator, and their derivative as another.

    They `run` on operands and a number: every so many iterations, or never if
    zero, something is kept for the derivative, a list after `count` results.
    Of operands, number, list and derivatives by the results, some of them
    none, `run_backward` finds derivatives by the operands. Those of higher
    order are of the same iterations, `composed` of differentiable operators.
    """
    size = operands.count('Tensor')

    def like(grads: Iterable[Any]) -> Tensor:
        return next(grad for grad in grads if grad is not None)

    def backward_run(topology: Topology, *values: Any) -> tuple[Tensor, ...]:
        given, (every, kept, *grads) = values[:size], values[size:]
        grad = like(grads)
        found = run_backward(topology, given, every, kept, grads)
        # Empty where there is none, as an operator cannot return nothing.
        return tuple(
            grad.new_empty(0)
            if value is None or operand is None
            else value.sum_to_size(operand.shape).to(grad.dtype)
            for value, operand in zip(found, given, strict=True)
        )

    def backward_fake(topology: Topology, *values: Any) -> tuple[Tensor, ...]:
        grad = like(values[-count:])
        return tuple(
            empty_like(v, grad.dtype) if _is_float(v) else grad.new_empty(0)
            for v in values[:size]
        )

    def keep(ctx: Any, *inputs: Any) -> list[Tensor | None]:
        # Nobody differentiates what is kept: do not make its derivatives.
        ctx.set_materialize_grads(False)
        *given, ctx.every, (*_, kept) = inputs
        return [*given, *kept]

    def derivative(
        ctx: Any, topology: Topology, saved: Any, *grads: Tensor | None
    ) -> list[Tensor | None]:
        given, grads = saved[:size], grads[:count]
        if all(grad is None for grad in grads):
            return [None] * (size + 1)
        # Transforms always ask for derivatives to differentiate, but seldom do.
        if torch.is_grad_enabled() and not is_transformed():
            function = partial(composed, topology)
            return [*differentiate(function, given, grads), None]
        rest = ctx.every, list(saved[size:]), *grads
        pairs = zip(given, backward(topology, *given, *rest), strict=True)
        return [*(grad if _is_float(v) else None for v, grad in pairs), None]

    def keep_operands(ctx: Any, *inputs: Any) -> list[Tensor | None]:
        return [*inputs[:size], *inputs[size + 2 : -1]]

    def second_derivative(
        ctx: Any, topology: Topology, saved: Any, *weights: Tensor
    ) -> list[Tensor | None]:
        given = saved[:size], saved[size:], weights
        found = _differentiate_again(partial(composed, topology), *given)
        return [*found[:size], None, None, *found[size:]]

    given_grads = ', '.join(f'Tensor? grad_{k}' for k in range(count))
    backward = Operator(
        f'{name}_backward',
        f'{operands}, int every, Tensor[] kept, {given_grads}',
        f'({", ".join(["Tensor"] * size)})',
        backward_run,
        backward_fake,
        keep_operands,
        second_derivative,
    )
    results = f'({", ".join(["Tensor"] * count)}, Tensor[])'
    operands = f'{operands}, int every'
    return Operator(name, operands, results, run, fake, keep, derivative)


def _is_float(value: Any) -> bool:
    return value is not None and bool(value.is_floating_point())


def differentiate(
    function: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Any],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Derivatives by those operands that need them, themselves differentiable
    if derivatives are recorded.
    """
    # One operand may depend on another: only what is direct counts here.
    wanted = [
        _is_float(v) and (v.requires_grad or _is_past(v)) for v in operands
    ]
    has_grad = [grad is not None for grad in grads]

    def of_wanted(*values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        pairs = zip(operands, wanted, strict=True)
        out = function(*(next(rest) if w else v for v, w in pairs))
        return tuple(compress(out, has_grad))

    again = torch.is_grad_enabled()
    chosen: list[Any] = list(compress(operands, wanted))
    given: Any = tuple(compress(grads, has_grad))
    with torch.enable_grad():
        if any(map(_is_past, chosen)):
            values = torch.func.vjp(of_wanted, *chosen)[1](given)
        else:
            chosen = [v.view_as(v) for v in chosen]
            values = torch.autograd.grad(
                of_wanted(*chosen),
                chosen,
                given,
                create_graph=again,
                allow_unused=True,
            )
    found = iter(values)
    return [next(found) if w else None for w in wanted]


def _differentiate_again(
    function: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Any],
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor],
) -> list[Tensor | None]:
    """Derivatives, by operands and gradients, of a weighted sum of what
    :func:`differentiate` returns.
    """
    first, last = len(operands), len(operands) + len(grads)

    def weighted(*values: Any) -> tuple[Tensor]:
        found = differentiate(function, values[:first], values[first:last])
        pairs = zip(found, values[last:], strict=True)
        products = [(v * w).sum() for v, w in pairs if v is not None]
        return (torch.stack(products).sum(),)

    one = weights[0].new_ones(())
    return differentiate(weighted, (*operands, *grads, *weights), (one,))[:last]


def is_transformed() -> bool:
    """Whether a transform of :mod:`torch.func` is at work."""
    return torch._C._are_functorch_transforms_active()


def _is_past(value: Tensor) -> bool:
    """Whether a transform that has ended has left this tensor, which does not
    tell any more if a derivative by it is asked for.
    """
    return bool(_functorch.is_dead_tensor_wrapper(value))


@dataclass
class _Call:
    """An operator on a topology, of operands and results without nesting."""

    operator: Operator
    topology: Topology
    operands: TreeSpec
    results: Any = None  # their nesting, once there are any

    def __call__(self, *flat: Any) -> tuple[Tensor, ...]:
        operands = tree_unflatten(flat, self.operands)
        found = self.operator(self.topology, *operands)
        results, self.results = tree_flatten(found)
        return tuple(results)


# Applies a call to its operands.
Apply: TypeAlias = Callable[..., Sequence[Any]]


def _apply(how: Apply, operator: Any, topology: Topology, *values: Any) -> Any:
    """The results of an operator by a way to apply its call."""
    flat, spec = tree_flatten(values)
    call = _Call(operator, topology, spec)
    return tree_unflatten(how(call, *flat), call.results)


class _Transformed(torch.autograd.Function):
    """A call for transforms, which pass over derivatives registered with
    :mod:`torch.library`.
    """

    @staticmethod
    def forward(call: _Call, *flat: Any) -> tuple[Tensor, ...]:
        return call(*flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *flat = inputs
        operands = tree_unflatten(flat, ctx.call.operands)
        results = tree_unflatten(output, ctx.call.results)
        ctx.save_for_backward(*ctx.call.operator.keep(ctx, *operands, results))

    @staticmethod
    def backward(ctx: Any, *flat: Any) -> tuple[Any, ...]:
        call, grads = ctx.call, tree_unflatten(flat, ctx.call.results)
        grads = grads if isinstance(grads, tuple) else (grads,)
        kept = ctx.saved_tensors
        found = call.operator.derivative(ctx, call.topology, kept, *grads)
        found = tuple(found)
        # A list of operands has none.
        by_operands: Any = _broadcast_to_and_flatten(found, call.operands)
        return None, *by_operands

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: _Call, *flat: Any) -> Any:
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
