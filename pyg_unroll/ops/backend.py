"""Choice of kernels, and operators as PyTorch knows them."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyg_unroll.graph import Topology
from pyg_unroll.ops import func
from pyg_unroll.ops.reference.operators import accumulate_type

# By type of device: our package of kernels, and the package that it needs.
_BACKENDS = {'cpu': ('cpu', 'numba'), 'cuda': ('cuda', 'triton')}
# The package of kernels in use by type of device, chosen at first use.
chosen: dict[str, str] = {}


def kernels(family: str, operand: Tensor) -> Any:
    """Returns the kernels for the device of an operand.

    Those of :mod:`.cpu` (numba) or :mod:`.cuda` (Triton), and of
    :mod:`.reference` where they are missing: packages of the same modules, one
    for each family of operators, with the same functions.
    """
    device = operand.device.type
    if device not in chosen:
        chosen[device] = _choose(device)
    return _module(chosen[device], family)


@cache
def _module(name: str, family: str) -> Any:
    path = f'pyg_unroll.ops.{name}.{family}'
    if find_spec(path) is None:
        return _module('reference', family)
    return import_module(path)


def _choose(device: str) -> str:
    if device not in _BACKENDS:
        return 'reference'
    name, package = _BACKENDS[device]
    try:
        import_module(f'pyg_unroll.ops.{name}.operators')
    except ImportError as error:
        warnings.warn(
            f"graph operators on '{device}' run in plain PyTorch, several "
            f'times slower than with {package!r} ({error}): install it with '
            f"'pip install {package}'",
            stacklevel=3,
        )
        return 'reference'
    return name


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
    """

    def __init__(
        self,
        name: str,
        operands: str,
        results: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
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
        on_batch = unpacked(partial(func.apply, func.on_batch, self))
        _LIBRARY.impl(name, on_batch, 'Batched')
        self._name = name
        self.keep: Any = lambda *_: ()
        self.derivative: Any = None
        self._call = getattr(torch.ops.pyg_unroll, name).default

    def __call__(self, topology: Topology, *operands: Any) -> Any:
        """Applies the operator."""
        if func.is_transformed() and not torch.compiler.is_compiling():
            how = func.Transformed.apply
            return func.apply(how, self, topology, *operands)
        return self._call(*topology.pack(), *operands)

    def _on_samples(
        self, info: Any, in_dims: Any, graph: Any, grid: Any, *operands: Any
    ) -> tuple[Any, int]:
        """Adds samples of :func:`torch.vmap` to the heads."""
        topology = Topology.unpack(graph, grid)
        how = func.on_heads(tree_leaves(in_dims[2:]), info.batch_size)
        return func.apply(how, self, topology, *operands), -2

    def set_derivative(
        self,
        keep: Callable[..., Sequence[Tensor | None]],
        derivative: Callable[..., Sequence[Tensor | None]],
    ) -> None:
        """Registers the derivative.

        Of the context, all operands and the result, `keep` returns what is
        saved; of the context, the topology, what was saved and the derivatives
        by the results, `derivative` returns those by the operands.
        """
        self.keep, self.derivative = keep, derivative
        operator = self._call

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

        _LIBRARY.impl(self._name, call, 'Autograd', with_keyset=True)


def needs_grad(*operands: Any) -> bool:
    """Whether the derivative by one of some operands will be asked for."""
    return torch.is_grad_enabled() and any(
        isinstance(v, Tensor) and v.requires_grad for v in operands
    )


def differentiate(
    function: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor | None],
    grads: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Derivatives by those operands that need them, themselves differentiable
    if derivatives are recorded.
    """
    # One operand may depend on another: only what is direct counts here.
    wanted = [
        v is not None
        and v.is_floating_point()
        and (v.requires_grad or func.is_past(v))
        for v in operands
    ]

    def of_wanted(*values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        pairs = zip(operands, wanted, strict=True)
        return function(*(next(rest) if w else v for v, w in pairs))

    again = torch.is_grad_enabled()
    chosen: list[Any] = list(compress(operands, wanted))
    with torch.enable_grad():
        if any(map(func.is_past, chosen)):
            values = torch.func.vjp(of_wanted, *chosen)[1](grads)
        else:
            chosen = [v.view_as(v) for v in chosen]
            values = torch.autograd.grad(
                of_wanted(*chosen),
                chosen,
                grads,
                create_graph=again,
                allow_unused=True,
            )
    found = iter(values)
    return [next(found) if w else None for w in wanted]


def differentiate_again(
    function: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor | None],
    grads: tuple[Tensor, ...],
    weights: Sequence[Tensor],
) -> list[Tensor | None]:
    """Derivatives, by operands and gradients, of a weighted sum of what
    :func:`differentiate` returns.
    """
    first, last = len(operands), len(operands) + len(grads)

    def weighted(*values: Any) -> tuple[Tensor]:
        found = differentiate(function, values[:first], values[first:last])
        pairs = zip(found, values[last:], strict=False)  # some are not floats
        products = [(v * w).sum() for v, w in pairs if v is not None]
        return (torch.stack(products).sum(),)

    one = grads[0].new_ones(())
    return differentiate(weighted, (*operands, *grads, *weights), (one,))[:last]


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous memory of the shape of a tensor."""
    return torch.empty_like(
        x, dtype=dtype, memory_format=torch.contiguous_format
    )


def numbers(*tensors: Tensor | None) -> Any:
    """Contiguous, and at least of single precision."""
    return tuple(
        None if v is None else v.to(accumulate_type(v.dtype)).contiguous()
        for v in tensors
    )


def like_operands(
    found: Sequence[Tensor | None], operands: Sequence[Any], like: Tensor
) -> tuple[Tensor, ...]:
    """Derivatives as an operator returns them: of the shapes of operands, and
    empty where there is none.
    """
    return tuple(
        like.new_empty(0)
        if value is None or operand is None
        else value.sum_to_size(operand.shape).to(like.dtype)
        for value, operand in zip(found, operands, strict=True)
    )


def empty_operands(operands: Sequence[Any], like: Tensor) -> tuple[Tensor, ...]:
    """Memory for such derivatives."""
    return tuple(
        like.new_empty(0) if v is None else empty_like(v, like.dtype)
        for v in operands
    )


def of_operands(
    grads: Sequence[Tensor], operands: Sequence[Any]
) -> list[Tensor | None]:
    """Such derivatives, none where there is no operand."""
    return [
        None if operand is None else grad
        for operand, grad in zip(operands, grads, strict=True)
    ]
