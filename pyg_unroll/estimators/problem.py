"""What an estimator solves: nodes of which some are known."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.solvers import ConvergenceWarning

GraphName: TypeAlias = Literal['given', 'unweighted', 'sharpened', 'nearest']

# Residual of a final solve beyond which a user is told.
_TOLERANCE = 1e-5


@dataclass
class InterpolationProblem:
    r"""Nodes of which some are known.

    Attributes:
        known (torch.Tensor): Indices of the known ones :math:`(K)`.
        coordinates (torch.Tensor): Positions, float64 :math:`(N, P)`;
            :math:`P = 0` if there are none.
        features (torch.Tensor): Positions and covariates :math:`(N, D)`.
        graphs (dict): Edges and weights :math:`(E)` by name.
    """

    known: Tensor
    coordinates: Tensor
    features: Tensor
    graphs: dict[GraphName, tuple[Topology, Tensor]]

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.features.size(0)

    def report(self, name: str, residual: float) -> None:
        """Makes a missed tolerance visible."""
        if residual > _TOLERANCE:
            warnings.warn(
                f'{name}: the residual is {residual:.1e} instead of '
                f'{_TOLERANCE:.0e}',
                ConvergenceWarning,
                stacklevel=2,
            )
