"""The part of an iteration of ADMM along the edges, in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.reference import operators


def shrink(z: Tensor, threshold: Tensor) -> Tensor:
    """Soft threshold, the proximal map of the absolute value."""
    return z - z.clamp(-threshold, threshold)


def admm_step(
    topology: Topology,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    scalars: Tensor,
    to_edges: Callable[..., Tensor] = operators.to_edges,
    to_nodes: Callable[..., Tensor] = operators.to_nodes,
) -> tuple[Tensor, Tensor]:
    r"""The part of an iteration of ADMM along the edges.

    With the weighted gradient :math:`g = W B x`:

    .. math::
        p &= q + \rho_{-} g

        t &= g + a (\mathrm{shrink}(g + p / \rho, 1 / \rho) - g)

        b &= B^{\top} W (t - p / \rho), \qquad q' = p - \rho t

    The dual :math:`q` lacks the last gradient; the scalars :math:`(3, H)` are
    :math:`\rho_{-}`, the penalty of the iteration before (zero if :math:`q` is
    :math:`p`), the penalty :math:`\rho` and the over-relaxation :math:`a`.
    Differences along edges, and their adjoint, may be differentiable operators.
    Returns :math:`b` and :math:`q'`.
    """
    rho_previous, rho, relaxation = scalars
    flow = weight.unsqueeze(1) * to_edges(topology, x, True)
    p = dual + rho_previous * flow
    shrunk = shrink(flow + p / rho, 1 / rho)
    target = flow + relaxation * (shrunk - flow)
    b = to_nodes(topology, weight.unsqueeze(1) * (target - p / rho), True)
    return b, p - rho * target


def admm_step_backward(
    topology: Topology, *operands: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The adjoint of :func:`admm_step`, of its operands and the derivatives by
    its results.
    """
    weight, x, dual, scalars, grad_b, grad_dual = operands
    rho_previous, rho, relaxation = scalars
    w = weight.unsqueeze(1)
    d = operators.to_edges(topology, x, True)
    flow = w * d
    p = dual + rho_previous * flow
    shrunk = shrink(flow + p / rho, 1 / rho)
    excess = shrunk - flow
    target = flow + relaxation * excess

    slope = operators.to_edges(topology, grad_b, True)
    grad_u = w * slope
    grad_target = grad_u - rho * grad_dual
    grad_s = torch.where(shrunk == 0, 0, relaxation * grad_target)
    grad_p = grad_dual + (grad_s - grad_u) / rho
    grad_flow = (1 - relaxation) * grad_target + grad_s + rho_previous * grad_p
    grad_weight = ((target - p / rho) * slope + grad_flow * d).sum(1)
    grad_rho = (
        grad_s * (shrunk.sign() / rho) / rho
        + (grad_u - grad_s) * p / rho**2
        - target * grad_dual
    )
    grad_x = operators.to_nodes(topology, w * grad_flow, True)
    sums = (grad_p * flow, grad_rho, grad_target * excess)
    grad_scalars = torch.stack([value.sum((0, 1)) for value in sums])
    return grad_weight, grad_x, grad_p, grad_scalars
