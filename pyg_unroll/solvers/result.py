"""What a solver returns."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from torch import Tensor


class SolverResult(NamedTuple):
    r"""Solution of a solver, with the evidence for it.

    Attributes:
        x (torch.Tensor): The signal :math:`(N, F)`.
        residual (float): What the tolerance was compared with, the largest
            over features: for :func:`~pyg_unroll.solvers.glr` the relative
            residual, for :func:`~pyg_unroll.solvers.gtv` the relative
            duality gap, a bound of the distance to the optimum.
        num_steps (int): Number of iterations.
        converged (bool): Whether the tolerance was reached.
    """

    x: Tensor
    residual: float
    num_steps: int
    converged: bool


class ConvergenceWarning(RuntimeWarning):
    """A solver stopped before it reached its tolerance."""


def warn_unconverged(
    solver: str, residual: float, tol: float, num_steps: int
) -> None:
    """Makes a missed tolerance visible."""
    warnings.warn(
        f"'{solver}' reached {residual:.1e} instead of the tolerance "
        f"{tol:.1e} in {num_steps} steps; raise 'max_steps' or 'tol'",
        ConvergenceWarning,
        stacklevel=3,
    )
