r"""The edges' part of an ADMM iteration as one operator, in one pass.

Its derivative computes again what the pass had computed along the edges. For
derivatives of higher order it is composed of the operators of
:mod:`.dispatch`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.backend import Ints, Tensors, arrays, backend
from pyg_unroll.ops.fused import (
    differentiate,
    empty_like,
    no_grads,
    numbers,
    save_operands,
    topology_of,
)
from pyg_unroll.ops.operators import divergence, gradient

_define = torch.library.custom_op


def admm_step(
    topology: Topology,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`.reference.admm_step`."""
    operands = (weight, x, dual, rho_previous, rho, relaxation)
    b, new_dual = _admm_step(*topology.operands, *operands)
    return b, new_dual


@_define('pyg_unroll::admm_step', mutates_args=())
def _admm_step(
    graph: Tensors,
    grid: Ints,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    operands = numbers(weight, x, dual, rho_previous, rho, relaxation)
    b, new_dual = backend(x).admm_step(arrays(graph, grid), *operands)
    return b.to(x.dtype), new_dual.to(x.dtype)


@_admm_step.register_fake
def _(graph: Tensors, grid: Ints, *args: Any) -> tuple[Tensor, ...]:
    return empty_like(args[1]), empty_like(args[2])


@_define('pyg_unroll::admm_step_backward', mutates_args=())
def _admm_step_backward(
    graph: Tensors,
    grid: Ints,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
    grad_b: Tensor,
    grad_dual: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    operands = numbers(
        weight, x, dual, rho_previous, rho, relaxation, grad_b, grad_dual
    )
    grads = backend(x).admm_step_backward(arrays(graph, grid), *operands)
    return tuple(grad.to(x.dtype) for grad in grads)


@_admm_step_backward.register_fake
def _(graph: Tensors, grid: Ints, *args: Any) -> tuple[Tensor, ...]:
    return tuple(empty_like(operand) for operand in args[:6])


def _admm_backward(
    ctx: Any, grad_b: Tensor, grad_dual: Tensor
) -> tuple[Any, ...]:
    *graph, weight, x, dual, rho_previous, rho, relaxation = ctx.saved_tensors
    operands = weight, x, dual, rho_previous, rho, relaxation
    none = no_grads(graph)
    if not torch.is_grad_enabled():
        grads = _admm_step_backward(
            graph, ctx.grid, *operands, grad_b, grad_dual
        )
        return *none, *grads
    composed = partial(_composed_step, topology_of(graph, ctx.grid))
    return *none, *differentiate(composed, operands, (grad_b, grad_dual))


def _composed_step(
    topology: Topology,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    """The step one operator at a time."""
    flow = weight.unsqueeze(1) * gradient(topology, x)
    p = dual + rho_previous * flow
    scaled = flow + p / rho
    excess = scaled - scaled.clamp(-1 / rho, 1 / rho) - flow
    target = flow + relaxation * excess
    b = divergence(topology, weight.unsqueeze(1) * (target - p / rho))
    return b, p - rho * target


_admm_step.register_autograd(_admm_backward, setup_context=save_operands)
