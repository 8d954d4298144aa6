"""Blends of candidates, learned by predicting known nodes from others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.candidates import (
    Candidate,
    GraphCandidate,
    KrigingCandidate,
)
from pyg_unroll.estimators.kriging import SMOOTHNESS, LocalKriging
from pyg_unroll.estimators.problem import InterpolationProblem
from pyg_unroll.estimators.smoothing import DENSE_NODES

# Known places below which nothing is learned.
LEAST_KNOWN = 8
# Components of several signals that get parameters of their own.
_OWN_COMPONENTS = 4
_FEW_PLACES = 100
# Places that the pull of blends towards equal shares is worth.
_RIDGE = 10


@dataclass
class Blend:
    """Some components of the signals, and how they are filled in.

    Attributes:
        columns (slice): Which components.
        candidates (list): Ways to fill them in.
        weights (torch.Tensor): How much of each, float64.
    """

    columns: slice
    candidates: list[Candidate]
    weights: Tensor

    def predict(self, problem: InterpolationProblem, y: Tensor) -> Tensor:
        """Predicts all places."""
        part = y[:, self.columns]
        out = torch.zeros_like(part)
        for weight, candidate in zip(
            self.weights.tolist(), self.candidates, strict=True
        ):
            if weight > 0:
                out += weight * candidate.predict(problem, part)
        return out

    def metric(self, covariates: bool) -> Tensor | None:
        """The metric of the kriging candidate that has most weight, among
        those that use covariates or those that do not.
        """
        chosen = [
            (weight, candidate.kriging.factor)
            for weight, candidate in zip(
                self.weights.tolist(), self.candidates, strict=True
            )
            if isinstance(candidate, KrigingCandidate)
            and candidate.covariates == covariates
        ]
        if not chosen:
            return None
        factor = max(chosen, key=lambda pair: pair[0])[1]
        return factor.T @ factor


@dataclass
class FeatureFit:
    r"""What was learned of the features that are known at the same nodes.

    Attributes:
        features (torch.Tensor): Which features of the signal.
        center (torch.Tensor): Their means.
        scale (torch.Tensor): Their units.
        rotation (torch.Tensor): Principal components :math:`(R, F)`.
        blends (list[Blend]): How components are filled in.
        shape (Candidate or None): Whose deviations errors follow; if
            :obj:`None`, errors are of one size everywhere.
        ratios (torch.Tensor): Errors of known places, each predicted from
            others, over their deviations :math:`(K, F)`; empty if nothing
            was learned.
        errors (torch.Tensor): Those errors themselves :math:`(K, F)`.
        twins (torch.Tensor): Errors of known nodes, each predicted by others
            at its place :math:`(T, F)`.
    """

    features: Tensor
    center: Tensor
    scale: Tensor
    rotation: Tensor
    blends: list[Blend] = field(default_factory=list)
    shape: Candidate | None = None
    ratios: Tensor = field(default_factory=lambda: torch.zeros(0))
    errors: Tensor = field(default_factory=lambda: torch.zeros(0))
    twins: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def make(
        cls,
        problem: InterpolationProblem,
        x: Tensor,
        features: Tensor,
        samples: bool,
        kriging: bool,
        seed: int,
    ) -> FeatureFit:
        """Learns from known places; arguments as of the estimator."""
        known = problem.known
        values = x[known]
        center = values.mean(0)
        spread = values.std(0, correction=0)
        if samples:
            total = (values - center).square().mean().sqrt()
            spread = total.expand_as(spread)
        # A constant signal has no unit.
        scale = torch.where(spread > 1e-12 * center.abs(), spread, 1)
        _, size, rotation = torch.linalg.svd(
            (values - center) / scale, full_matrices=False
        )
        rank = max(int((size > 1e-9 * size.max().clamp(min=1)).sum()), 1)
        fit = cls(features, center, scale, rotation[:rank])
        y = fit.components(problem, x)
        if len(known) < LEAST_KNOWN or not bool(y.any()):
            # Too little to learn from: the plain prior.
            preset = GraphCandidate(next(iter(problem.graphs)), 1)
            one = torch.ones(1, dtype=torch.float64)
            fit.blends.append(Blend(slice(0, rank), [preset], one))
            return fit
        folds = _folds(len(known), problem.num_nodes, seed)
        held_out = torch.zeros_like(y[known])
        shapes: list[tuple[Candidate, Tensor]] = []
        for columns in _groups(rank, len(known)):
            candidates = _candidates(problem, kriging, seed)
            target = y[:, columns]
            tuned = [c.tune(problem, target, folds) for c in candidates]
            guesses = torch.stack([guess for guess, _ in tuned], -1)
            weights = _weights(guesses, target[known])
            blend = Blend(columns, candidates, weights)
            fit.blends.append(blend)
            held_out[:, columns] = guesses @ blend.weights
            if not shapes:
                deviations = (deviation for _, deviation in tuned)
                shapes = list(zip(candidates, deviations, strict=True))
        fit.errors = (fit.signals(held_out) - values).abs()
        fit.shape, deviation = _likeliest(shapes, fit.errors)
        fit.ratios = fit.errors / deviation.unsqueeze(1)
        return fit

    def components(self, problem: InterpolationProblem, x: Tensor) -> Tensor:
        """Principal components of signals, zero where unknown."""
        known = problem.known
        y = x.new_zeros((x.size(0), self.rotation.size(0)))
        y[known] = (x[known] - self.center) / self.scale @ self.rotation.T
        return y

    def signals(self, y: Tensor) -> Tensor:
        """Undoes :meth:`components`."""
        return y @ self.rotation * self.scale + self.center

    def predict(self, problem: InterpolationProblem, x: Tensor) -> Tensor:
        """Signals of all places; known ones are unchanged."""
        y = self.components(problem, x)
        out = torch.cat([b.predict(problem, y) for b in self.blends], 1)
        out = self.signals(out)
        out[problem.known] = x[problem.known]
        return out

    def half_width(
        self, problem: InterpolationProblem, x: Tensor, coverage: float
    ) -> Tensor:
        """Half the width of intervals at all places.

        Raises:
            ValueError: If too few nodes were known.
        """
        least = _least_known(coverage)
        if len(self.ratios) < least:
            raise ValueError(
                f'intervals of coverage={coverage} need {least} known nodes '
                f'with different values (feature {int(self.features[0])} of '
                f"'data.x' had fewer)"
            )
        deviation = x.new_ones(x.size(0))
        if self.shape is not None:
            y = self.components(problem, x)[:, self.blends[0].columns]
            deviation = self.shape.deviation(problem, y)
        width = deviation.unsqueeze(1) * _quantile(self.ratios, coverage)
        # A missing node beside known ones at its place is like those that have
        # others at theirs. Where these are too few: what a node has of its own
        # is at most its error when left out, and two nodes differ by twice it.
        if len(self.twins) >= least:
            width[problem.known] = _quantile(self.twins, coverage)
        else:
            width[problem.known] = 2**0.5 * _quantile(self.errors, coverage)
        return width


def _candidates(
    problem: InterpolationProblem, kriging: bool, seed: int
) -> list[Candidate]:
    """All that the data allow."""
    out: list[Candidate] = [
        GraphCandidate(name, *kind)
        for name in problem.graphs
        for kind in ((1, False), (2, False), (1, True))
    ]
    count = problem.coordinates.size(1)
    if kriging and count:
        has_covariates = problem.features.size(1) > count
        out += [
            KrigingCandidate(LocalKriging(smoothness, count, seed), covariates)
            for covariates in ((False, True) if has_covariates else (False,))
            for smoothness in SMOOTHNESS
        ]
    return out


def _least_known(coverage: float) -> int:
    """How many values have a conformal quantile, which is one of them."""
    return max(LEAST_KNOWN, math.ceil(coverage / (1 - coverage) - 1e-9))


def _quantile(values: Tensor, coverage: float) -> Tensor:
    """Conformal quantile of each column."""
    count = len(values)
    rank = min(math.ceil((count + 1) * coverage), count)  # but for rounding
    return values.kthvalue(rank, 0).values


def _weights(guesses: Tensor, target: Tensor) -> Tensor:
    """Non-negative least squares; what few places say nothing of, evenly.

    Args:
        guesses (torch.Tensor): Held-out predictions :math:`(K, F, C)`.
        target (torch.Tensor): What was known :math:`(K, F)`.
    """
    from scipy.optimize import nnls  # late: slow to load

    count, features, candidates = guesses.shape
    error = (guesses - target.unsqueeze(-1)).square().mean((0, 1)).min()
    size = _RIDGE * features * error.clamp(min=1e-12)
    ridge = torch.eye(candidates, dtype=target.dtype) * size.sqrt()
    weights, _ = nnls(
        torch.cat([guesses.flatten(0, 1), ridge]).numpy(),
        torch.cat([target.flatten(), ridge.new_zeros(candidates)]).numpy(),
    )
    # The ridge is for the shares alone: their sum is a matter of the data.
    out = torch.from_numpy(weights)
    blended = guesses @ out
    gain = (blended * target).sum() / blended.square().sum().clamp(min=1e-300)
    shrunk = gain.clamp(1.0, 1 + 2 * _RIDGE / count)
    return out * shrunk


def _folds(count: int, num_places: int, seed: int) -> Tensor:
    """Fold of each known place: on small graphs each is one."""
    folds = 10 if count <= 300 else 5
    if num_places <= DENSE_NODES or count <= folds:
        folds = count
    order = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(order % folds)


def _groups(rank: int, known: int) -> list[slice]:
    """Components that share parameters: the weak ones all."""
    own = 1 if known < _FEW_PLACES else _OWN_COMPONENTS
    if rank <= _OWN_COMPONENTS:
        own = rank
    groups = [slice(k, k + 1) for k in range(own)]
    return [*groups, slice(own, rank)] if own < rank else groups


def _likeliest(
    shapes: list[tuple[Candidate, Tensor]], errors: Tensor
) -> tuple[Candidate | None, Tensor]:
    """The deviations under which errors are most likely, or constant ones."""
    options: list[tuple[Candidate | None, Tensor]] = [
        (None, errors.new_ones(errors.size(0))),
        *((candidate, d.clamp(min=1e-12)) for candidate, d in shapes),
    ]

    def loss(option: tuple[Candidate | None, Tensor]) -> float:
        deviation = option[1]
        ratio = errors / deviation.unsqueeze(1)
        scale = ratio.square().mean(0).clamp(min=1e-30).log() / 2
        return float(deviation.log().mean() + scale.mean())

    return min(options, key=loss)
