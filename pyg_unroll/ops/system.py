"""The linear system behind every layer and solver."""

from typing import Self

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.operators import degree, laplacian
from pyg_unroll.ops.reference.cg import Matrix, mean_difference, product
from pyg_unroll.ops.reference.operators import accumulate_type


class LaplacianSystem(Matrix):
    r"""The operator :math:`A = \mathrm{diag}(c) + P` on the free entries.

    The prior :math:`P` is the Laplacian :math:`L_w`, or of second order
    :math:`L_w D_w^{-1} L_w` with the degrees :math:`D_w`. :math:`A` is
    symmetric positive semidefinite. Entries that are not free are held:
    rows and columns of :math:`A` there are zero.
    """

    @classmethod
    def build(
        cls,
        topology: Topology,
        weight: Tensor,
        confidence: Tensor | None = None,
        free: Tensor | None = None,
        order: int = 1,
        degrees: Tensor | None = None,
    ) -> Self:
        """Computes the preconditioner :math:`c + D_w`, and degrees if they are
        not given, of weights :math:`(E, H)`, and of confidence and free
        entries, if not all, broadcastable to :math:`(N, F, H)`.
        """
        if degrees is None:
            degrees = degree(topology, weight)
        diagonal = degrees.unsqueeze(1)
        degrees = None if order == 1 else _divisor(diagonal)
        if confidence is not None:
            diagonal = diagonal + confidence
            confidence = confidence.expand(-1, -1, weight.size(1))
        diagonal = _divisor(diagonal)
        if free is not None:  # nothing moves where it is infinite
            diagonal = torch.where(free, diagonal, float('inf'))
        return cls(topology, weight, diagonal, confidence, degrees, free)

    def prior(self, x: Tensor) -> Tensor:
        """Applies :math:`P`, half the gradient of the smoothness prior."""
        mean = mean_difference(self, x, laplacian)
        return laplacian(self.topology, self.weight, mean)

    def restrict(self, x: Tensor) -> Tensor:
        """Zero outside the free entries."""
        return x if self.free is None else torch.where(self.free, x, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Applies :math:`A` to a signal that vanishes on held entries."""
        return self.restrict(product(self, x, laplacian))

    def residual(self, x: Tensor, observed: Tensor) -> Tensor:
        r"""The residual :math:`c (y - x) - P x` on the free entries."""
        out = -self.prior(x)
        if self.confidence is not None:
            out = out + self.confidence * (observed - x)
        return self.restrict(out)


def _divisor(diagonal: Tensor) -> Tensor:
    """The diagonal, infinite where it is too small to divide by.

    Divide by it: the derivative of a product with its inverse would overflow
    at nodes that are nearly isolated.
    """
    least = 1e4 * torch.finfo(accumulate_type(diagonal.dtype)).tiny
    return torch.where(diagonal > least, diagonal, float('inf'))


def chebyshev_coefficients(
    num_steps: int, lower: float, upper: float
) -> tuple[Tensor, Tensor]:
    r"""Coefficients that make `iterate` a Chebyshev semi-iteration.

    They minimise the worst error over operators whose preconditioned spectrum
    lies in :math:`[lower, upper]` (Golub and Varga, 1961); the eigenvalues of
    a Jacobi-preconditioned Laplacian are at most 2.

    Returns step sizes :math:`(K)` and momenta :math:`(K - 1)`.
    """
    center, radius = (upper + lower) / 2, (upper - lower) / 2
    alpha: list[float] = [1 / center]
    beta: list[float] = []
    for k in range(1, num_steps):
        momentum = (radius * alpha[-1] / 2) ** 2 * (2 if k == 1 else 1)
        alpha.append(1 / (center - momentum / alpha[-1]))
        beta.append(momentum)
    return torch.tensor(alpha), torch.tensor(beta)
