"""The linear system behind every layer and solver, and its iterations."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.cg import cg_iterates, cg_steps
from pyg_unroll.ops.operators import degree, laplacian
from pyg_unroll.ops.reference.cg import Matrix
from pyg_unroll.ops.reference.operators import accumulate_type


@dataclass(frozen=True, eq=False)
class LaplacianSystem:
    r"""The operator :math:`A = \mathrm{diag}(c) + P` on the free entries.

    The prior :math:`P` is the Laplacian :math:`L_w`, or of second order
    :math:`L_w D_w^{-1} L_w` with the degrees :math:`D_w`. :math:`A` is
    symmetric positive semidefinite. Entries that are not free are held:
    rows and columns of :math:`A` there are zero.
    """

    topology: Topology
    weight: Tensor  # [E, H]
    # Broadcastable to [N, F, H]: c >= 0, and the free entries, if not all.
    confidence: Tensor | None
    free: Tensor | None
    # The preconditioner c + D_w, infinite where A has an empty row.
    diagonal: Tensor
    # D_w of a prior of second order, infinite at isolated nodes, [N, 1, H].
    degree: Tensor | None

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
        """Computes the preconditioner, and degrees if they are not given, and
        collects the parts.
        """
        if degrees is None:
            degrees = degree(topology, weight)
        diagonal = degrees.unsqueeze(1)
        degrees = None if order == 1 else _divisor(diagonal)
        if confidence is not None:
            diagonal = diagonal + confidence
        return cls(
            topology, weight, confidence, free, _divisor(diagonal), degrees
        )

    def prior(self, x: Tensor) -> Tensor:
        """Applies :math:`P`, half the gradient of the smoothness prior."""
        out = laplacian(self.topology, self.weight, x)
        if self.degree is None:
            return out
        return laplacian(self.topology, self.weight, out / self.degree)

    def restrict(self, x: Tensor) -> Tensor:
        """Zero outside the free entries."""
        return x if self.free is None else torch.where(self.free, x, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Applies :math:`A` to a signal that vanishes on held entries."""
        out = self.prior(x)
        if self.confidence is not None:
            out = out + self.confidence * x
        return self.restrict(out)

    def residual(self, x: Tensor, observed: Tensor) -> Tensor:
        r"""The residual :math:`c (y - x) - P x` on the free entries."""
        out = -self.prior(x)
        if self.confidence is not None:
            out = out + self.confidence * (observed - x)
        return self.restrict(out)

    def iterate(
        self,
        x: Tensor,
        b: Tensor | None,
        alpha: Tensor,
        beta: Tensor,
        checkpoint: bool = False,
    ) -> Tensor:
        r"""Runs conjugate-gradient-like steps with given coefficients.

        .. math::
            v_k &= D^{-1} r_k + \beta_k v_{k-1}

            x_{k+1} &= x_k + \alpha_k v_k

            r_{k+1} &= r_k - \alpha_k A v_k

        The start is :obj:`x`, and :math:`b - A x` the first residual, with
        :math:`b = 0` if :obj:`None`; :obj:`alpha` are step sizes
        :math:`(K, H)` and :obj:`beta` momenta :math:`(K - 1, H)`. To
        :obj:`checkpoint` keeps nothing of the steps for the derivative, but
        runs them again.
        """
        return cg_steps(self.matrix(), x, b, alpha, beta, checkpoint)

    def iterates(
        self, x: Tensor, b: Tensor | None, alpha: Tensor, beta: Tensor
    ) -> Iterator[Tensor]:
        """Yields the signal after each step of :meth:`iterate`, bit for bit.
        Derivatives are not recorded.
        """
        return cg_iterates(self.matrix(), x, b, alpha, beta)

    def matrix(self) -> Matrix:
        """Its parts, as kernels take them."""
        # Nothing moves where the diagonal is infinite.
        diagonal, confidence = self.diagonal, self.confidence
        if self.free is not None:
            diagonal = torch.where(self.free, diagonal, float('inf'))
        if confidence is not None:
            confidence = confidence.expand(-1, -1, self.weight.size(1))
        parts = diagonal, confidence, self.degree
        return Matrix(self.topology, self.weight, *parts)


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
