r"""An iteration of ADMM on graph total variation, for layer and solver."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops import backend, operators
from pyg_unroll.ops.reference import admm as reference
from pyg_unroll.ops.reference.admm import shrink
from pyg_unroll.ops.system import LaplacianSystem


def admm_step(
    topology: Topology,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    """The part along the edges, as one operator, in one pass.

    See :func:`.reference.admm.admm_step`; here its scalars are operands of
    their own, :math:`(H)` each. The derivative computes again what the pass
    had computed along the edges.
    """
    scalars = torch.stack([rho_previous, rho, relaxation])
    b, new_dual = _admm_step(topology, weight, x, dual, scalars)
    return b, new_dual


def _runner(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """The kernel of this name, of the backend in use."""

    def run(topology: Topology, *operands: Tensor) -> tuple[Tensor, ...]:
        _, x, *_ = operands
        kernel = getattr(backend.kernels('admm', x), name)
        results = kernel(topology, *backend.numbers(*operands))
        return tuple(v.to(x.dtype) for v in results)

    return run


_OPERANDS = 'Tensor weight, Tensor x, Tensor dual, Tensor scalars'
_admm_step = backend.Operator(
    'admm_step',
    _OPERANDS,
    '(Tensor, Tensor)',
    _runner('admm_step'),
    lambda _, weight, x, dual, scalars: (
        backend.empty_like(x),
        backend.empty_like(dual),
    ),
)
_admm_step_backward = backend.Operator(
    'admm_step_backward',
    f'{_OPERANDS}, Tensor grad_b, Tensor grad_dual',
    '(Tensor, Tensor, Tensor, Tensor)',
    _runner('admm_step_backward'),
    lambda _, *operands: tuple(map(backend.empty_like, operands[:4])),
)


def _derivative(
    ctx: Any, topology: Topology, operands: Any, *grads: Tensor
) -> Any:
    if not torch.is_grad_enabled():
        return _admm_step_backward(topology, *operands, *grads)
    composed = partial(
        reference.admm_step,
        topology,
        to_edges=operators.to_edges,
        to_nodes=operators.to_nodes,
    )
    return backend.differentiate(composed, operands, grads)


_admm_step.set_derivative(
    lambda ctx, *inputs: inputs[:-1],  # all but the result
    _derivative,
)


@dataclass(frozen=True, eq=False)
class TotalVariation:
    r"""The problem :math:`\min_x \sum_i c_i (x_i - y_i)^2 / \mu + \|z\|_1`
    subject to :math:`z = W B x`, with known entries held if :math:`c` is
    :obj:`None`. :math:`W B x` is the weighted gradient.
    """

    topology: Topology
    weight: Tensor  # [E, H]
    # Broadcastable to [N, F, H]: y, c >= 0, and which are free, if not all.
    observed: Tensor
    confidence: Tensor | None
    free: Tensor | None
    mu: Tensor  # scalar or [H]

    def gradient(self, x: Tensor) -> Tensor:
        r"""The weighted gradient :math:`w_{ij} (x_i - x_j)`."""
        gradient = operators.gradient(self.topology, x)
        return self.weight.unsqueeze(1) * gradient

    def divergence(self, z: Tensor) -> Tensor:
        """The adjoint of :meth:`gradient`."""
        flow = self.weight.unsqueeze(1) * z
        return operators.divergence(self.topology, flow)

    def system(self, rho: Tensor) -> LaplacianSystem:
        r"""The system :math:`2 c / (\mu \rho) + L_{w^2}` of the signal."""
        confidence = self.confidence
        if confidence is not None:
            confidence = confidence * (2 / (self.mu * rho))
        return LaplacianSystem.build(
            self.topology, self.weight.square(), confidence, self.free
        )

    def iterate(
        self,
        x: Tensor,
        flow: Tensor,
        dual: Tensor,
        rho: Tensor,
        solve: Callable[[Tensor, Tensor], Tensor],
        system: LaplacianSystem,
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""One iteration of ADMM.

        .. math::
            z &= \mathrm{shrink}(W B x + p / \rho, 1 / \rho)

            x &\leftarrow \arg\min_x c (x - y)^2 / \mu +
            \rho / 2 \| W B x - z + p / \rho \|^2

            p &\leftarrow p + \rho (W B x - z)

        The weighted gradient of :obj:`x` is :obj:`flow`, :math:`p` the
        :obj:`dual` variable, in :math:`[-1, 1]` at the optimum, and the
        :obj:`system` that of :obj:`rho`; :obj:`solve` maps a start and its
        residual to the (approximate) solution. Returns the next estimate, its
        gradient and dual variable.
        """
        scaled = dual / rho
        target = shrink(flow + scaled, 1 / rho)
        residual = self.divergence(target - scaled - flow)
        if system.confidence is not None:
            residual = residual + system.confidence * (self.observed - x)
        x = solve(x, system.restrict(residual))
        flow = self.gradient(x)
        return x, flow, dual + rho * (flow - target)
