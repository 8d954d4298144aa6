"""The problem of graph total variation, for layer and solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.operators import divergence, gradient
from pyg_unroll.ops.system import LaplacianSystem


def shrink(z: Tensor, threshold: Tensor) -> Tensor:
    """Soft threshold, the proximal map of the absolute value."""
    return z - z.clamp(-threshold, threshold)


@dataclass(frozen=True, eq=False)
class TotalVariation:
    r"""The problem :math:`\min_x \sum_i c_i (x_i - y_i)^2 / \mu + \|z\|_1`
    subject to :math:`z = W B x`, with known entries held if :math:`c` is
    :obj:`None`. :math:`W B x` is the weighted gradient.

    Attributes:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        signal (Observations): Observations :math:`y` and confidence.
        mu (torch.Tensor): Weight of the prior, scalar or :math:`(H)`.
    """

    topology: Topology
    weight: Tensor
    signal: Any
    mu: Tensor

    def gradient(self, x: Tensor) -> Tensor:
        r"""The weighted gradient :math:`w_{ij} (x_i - x_j)`."""
        return self.weight.unsqueeze(1) * gradient(self.topology, x)

    def divergence(self, z: Tensor) -> Tensor:
        """The adjoint of :meth:`gradient`."""
        return divergence(self.topology, self.weight.unsqueeze(1) * z)

    def system(self, rho: Tensor) -> LaplacianSystem:
        r"""The system :math:`2 c / (\mu \rho) + L_{w^2}` of the signal."""
        confidence = self.signal.confidence
        if confidence is not None:
            confidence = confidence * (2 / (self.mu * rho))
        return LaplacianSystem.build(
            self.topology, self.weight.square(), confidence, self.signal.free
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

        Args:
            x (torch.Tensor): Estimate :math:`(N, F, H)`.
            flow (torch.Tensor): Its weighted gradient :math:`(E, F, H)`.
            dual (torch.Tensor): Dual variable :math:`p`, in
                :math:`[-1, 1]` at the optimum, :math:`(E, F, H)`.
            rho (torch.Tensor): Penalty, scalar or :math:`(H)`.
            solve (callable): Maps a start and its residual to the
                (approximate) solution of :obj:`system`.
            system (LaplacianSystem): What :meth:`system` gives for
                :obj:`rho`.

        Returns:
            The next estimate, its weighted gradient and dual variable.
        """
        scaled = dual / rho
        target = shrink(flow + scaled, 1 / rho)
        residual = self.divergence(target - scaled - flow)
        if system.confidence is not None:
            residual = residual + system.confidence * (self.signal.x - x)
        x = solve(x, system.restrict(residual))
        flow = self.gradient(x)
        return x, flow, dual + rho * (flow - target)
