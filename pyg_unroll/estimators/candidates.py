"""Ways to fill in a signal that an estimator chooses from and blends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyg_unroll.estimators.kriging import LocalKriging
from pyg_unroll.estimators.problem import GraphName, InterpolationProblem
from pyg_unroll.estimators.smoothing import Smoother

# Nodes up to which the posterior is exact, and random probes beyond.
_EXACT_NODES = 1500
_PROBES = 128


class Candidate(Protocol):
    """One way to fill in a signal."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def tune(
        self, problem: InterpolationProblem, y: Tensor, folds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Learns its parameters from known nodes.

        Args:
            problem: The nodes.
            y: Centred signals, zero where unknown, :math:`(N, F)`.
            folds: Fold of each known node :math:`(K)`.

        Returns:
            Predictions of the known nodes, each from the other folds
            :math:`(K, F)`, and their standard deviations but for a common
            factor :math:`(K)`.
        """

    def predict(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """Predicts all nodes, :math:`(N, F)`."""

    def deviation(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """Standard deviations at all nodes but for a factor, :math:`(N)`."""


@dataclass
class GraphCandidate:
    """Smoothness on a graph, of order 1 or 2, degrees normalised or not."""

    graph: GraphName
    order: int
    normalized: bool = False
    trust: float = 1e4
    ridge: float = 1e-5

    @property
    def name(self) -> str:
        """Graph and prior."""
        kind = ', normalized' if self.normalized else ''
        return f'{self.graph} graph, order {self.order}{kind}'

    def _smoother(self, problem: InterpolationProblem) -> Smoother:
        topology, weight = problem.graphs[self.graph]
        out = Smoother.build(topology, weight, self.order, self.normalized)
        out.trust, out.ridge = self.trust, self.ridge
        return out

    def tune(
        self, problem: InterpolationProblem, y: Tensor, folds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Candidate`."""
        smoother = self._smoother(problem)
        held_out = smoother.tune(y, problem.known, folds)
        self.trust, self.ridge = smoother.trust, smoother.ridge
        variance = smoother.variance_left_out(
            problem.known, _num_probes(problem)
        )
        return held_out, (variance + 1 / self.trust).sqrt()

    def predict(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        out, residual = self._smoother(problem).predict(y, problem.known)
        problem.report(self.name, residual)
        return out

    def deviation(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        variance = self._smoother(problem).variance(
            problem.known, _num_probes(problem)
        )
        return (variance.clamp(min=1e-12) + 1 / self.trust).sqrt()


def _num_probes(problem: InterpolationProblem) -> int:
    count = problem.num_nodes
    return count if count <= _EXACT_NODES else _PROBES


@dataclass
class KrigingCandidate:
    """Kriging from near points, by coordinates or with covariates, too."""

    kriging: LocalKriging
    covariates: bool

    @property
    def name(self) -> str:
        """Features and smoothness."""
        what = 'position and covariates' if self.covariates else 'position'
        return f'kriging by {what}, Matérn {self.kriging.smoothness:g}'

    def _features(self, problem: InterpolationProblem) -> Tensor:
        return problem.features if self.covariates else problem.coordinates

    def tune(
        self, problem: InterpolationProblem, y: Tensor, folds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Candidate`."""
        points = self._features(problem)[problem.known]
        values = y[problem.known]
        self.kriging.fit(points, values)
        mean, variance = torch.zeros_like(values), values.new_zeros(len(values))
        for fold in range(int(folds.max()) + 1):
            left, out = folds != fold, folds == fold
            mean[out], variance[out] = self.kriging.predict(
                points[left], values[left], points[out]
            )
        return mean, variance.sqrt()

    def predict(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        return self._run(problem, y)[0]

    def deviation(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        return self._run(problem, y)[1].sqrt()

    def _run(
        self, problem: InterpolationProblem, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        points, known = self._features(problem), problem.known
        return self.kriging.predict(points[known], y[known], points)
