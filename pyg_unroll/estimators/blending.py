"""Blends of candidates, stacked by cross-validation on known sites."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.inputs import Sites
from pyg_unroll.estimators.kriging import SMOOTHNESS, LocalKriging
from pyg_unroll.estimators.smoothing import DENSE_SITES, GraphSmoother

# A predictor of signals from known sites. `tune` learns its settings and
# returns predictions of the known sites, each from the other folds `[K, F]`,
# and their deviations but for a common factor `[K]`.
Candidate: TypeAlias = GraphSmoother | LocalKriging

# Known sites below which nothing is learned.
LEAST_KNOWN = 8
# Principal components that are tuned one by one, and known sites below which
# only the first is.
_OWN_COMPONENTS = 4
_FEW_SITES = 100
# Observations that the ridge of the stacking weights counts as.
_RIDGE = 10


@dataclass
class Blend:
    """A weighted sum of candidates for some of the principal components."""

    columns: slice
    terms: list[tuple[float, Candidate]]

    def predict(self, sites: Sites, known: Tensor, y: Tensor) -> Tensor:
        """Predicts the components at all sites."""
        part = y[:, self.columns]
        out = torch.zeros_like(part)
        for weight, candidate in self.terms:
            if weight > 0:
                out += weight * candidate.predict(sites, known, part)
        return out

    def metric(self, covariates: bool) -> Tensor | None:
        """Metric of the kriging candidate of the largest weight, among those
        with covariates or those without.
        """
        terms = [
            (weight, candidate.factor)
            for weight, candidate in self.terms
            if isinstance(candidate, LocalKriging)
            and candidate.covariates == covariates
        ]
        if not terms:
            return None
        _, factor = max(terms, key=lambda term: term[0])
        return factor.T @ factor


@dataclass
class FeatureFit:
    r"""The fit of the features that are known at the same nodes.

    Attributes:
        features (torch.Tensor): Indices of the features :math:`(F)`.
        center, scale (torch.Tensor): Their means and units.
        rotation (torch.Tensor): Principal components :math:`(R, F)`.
        replicate_errors (torch.Tensor): Absolute errors of known nodes, each
            predicted from the others of its site :math:`(T, F)`.
        blends (list[Blend]): Blends of the components.
        error_model (Candidate or None): Candidate whose posterior deviations
            normalise the errors; :obj:`None` for errors of one size.
        errors, normalized_errors (torch.Tensor): Absolute errors of known
            sites, each predicted from other folds, and over their deviations
            :math:`(K, F)`; empty if nothing was learned.
    """

    features: Tensor
    center: Tensor
    scale: Tensor
    rotation: Tensor
    replicate_errors: Tensor
    blends: list[Blend] = field(default_factory=list)
    error_model: Candidate | None = None
    errors: Tensor = field(default_factory=lambda: torch.zeros(0))
    normalized_errors: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def make(
        cls,
        sites: Sites,
        features: Tensor,
        samples: bool,
        kriging: bool,
        seed: int,
    ) -> FeatureFit:
        """Fits some features, by the arguments of the estimator."""
        known, mean = sites.average(features)
        values = mean[known]
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
        replicates = sites.replicate_errors(features)
        fit = cls(features, center, scale, rotation[:rank], replicates)
        y = fit._components(known, mean)
        if len(known) < LEAST_KNOWN or not bool(y.any()):
            # Too few observations to learn from: a preset smoother.
            preset = GraphSmoother(next(iter(sites.graphs)), 1)
            fit.blends.append(Blend(slice(0, rank), [(1.0, preset)]))
            return fit
        folds = _folds(len(known), len(y), seed)
        held_out = torch.zeros_like(y[known])
        deviations: list[tuple[Candidate, Tensor]] = []
        for columns in _groups(rank, len(known)):
            candidates = _candidates(sites, kriging, seed)
            target = y[:, columns]
            tuned = [c.tune(sites, known, target, folds) for c in candidates]
            guesses = torch.stack([guess for guess, _ in tuned], -1)
            weights = _weights(guesses, target[known])
            terms = list(zip(weights.tolist(), candidates, strict=True))
            fit.blends.append(Blend(columns, terms))
            held_out[:, columns] = guesses @ weights
            if not deviations:
                found = (deviation for _, deviation in tuned)
                deviations = list(zip(candidates, found, strict=True))
        fit.errors = (fit._signals(held_out) - values).abs()
        fit.error_model, deviation = _likeliest(deviations, fit.errors)
        fit.normalized_errors = fit.errors / deviation.unsqueeze(1)
        return fit

    def _components(self, known: Tensor, x: Tensor) -> Tensor:
        """Principal components of signals, zero where unknown."""
        y = x.new_zeros((x.size(0), self.rotation.size(0)))
        y[known] = (x[known] - self.center) / self.scale @ self.rotation.T
        return y

    def _signals(self, y: Tensor) -> Tensor:
        """The inverse of `_components`."""
        return y @ self.rotation * self.scale + self.center

    def predict(self, sites: Sites) -> Tensor:
        """Predicts all nodes; those of a known site get its mean."""
        known, x = sites.average(self.features)
        y = self._components(known, x)
        out = [blend.predict(sites, known, y) for blend in self.blends]
        signals = self._signals(torch.cat(out, 1))
        signals[known] = x[known]
        return signals[sites.site]

    def half_width(self, sites: Sites, coverage: float) -> Tensor:
        """Half the width of intervals at all nodes."""
        # Fewer errors have no conformal quantile.
        least = max(LEAST_KNOWN, math.ceil(coverage / (1 - coverage) - 1e-9))
        if len(self.errors) < least:
            raise ValueError(
                f'intervals of coverage={coverage} need {least} known nodes '
                f'with different values (feature {int(self.features[0])} of '
                f"'data.x' had fewer)"
            )
        known, x = sites.average(self.features)
        deviation = x.new_ones(x.size(0))
        if self.error_model is not None:
            y = self._components(known, x)[:, self.blends[0].columns]
            deviation = self.error_model.deviation(sites, known, y)
        quantile = _quantile(self.normalized_errors, coverage)
        width = deviation.unsqueeze(1) * quantile
        # Missing nodes of known sites err as replicates do. With too few of
        # these: the noise of a node is at most its error when left out, and
        # two nodes differ by the root of two times that.
        if len(self.replicate_errors) >= least:
            width[known] = _quantile(self.replicate_errors, coverage)
        else:
            width[known] = 2**0.5 * _quantile(self.errors, coverage)
        return width[sites.site]


def _candidates(sites: Sites, kriging: bool, seed: int) -> list[Candidate]:
    """All candidates that the data allow."""
    out: list[Candidate] = [
        GraphSmoother(name, *kind)
        for name in sites.graphs
        for kind in ((1, False), (2, False), (1, True))
    ]
    _, num_coordinates, num_covariates = sites.sizes
    if kriging and num_coordinates:
        out += [
            LocalKriging(smoothness, covariates, seed)
            for covariates in ((False, True) if num_covariates else (False,))
            for smoothness in SMOOTHNESS
        ]
    return out


def _quantile(values: Tensor, coverage: float) -> Tensor:
    """Conformal quantile of each column."""
    count = len(values)
    rank = min(math.ceil((count + 1) * coverage), count)  # but for rounding
    return values.kthvalue(rank, 0).values


def _weights(guesses: Tensor, target: Tensor) -> Tensor:
    """Stacking weights of held-out predictions `[K, F, C]` for observations
    `[K, F]`: non-negative least squares with a ridge towards equal weights.
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
    # The ridge may not shrink the sum of the weights.
    out = torch.from_numpy(weights)
    blended = guesses @ out
    gain = (blended * target).sum() / blended.square().sum().clamp(min=1e-300)
    shrunk = gain.clamp(1.0, 1 + 2 * _RIDGE / count)
    return out * shrunk


def _folds(count: int, num_sites: int, seed: int) -> Tensor:
    """Fold of each known site; one each on small graphs."""
    folds = 10 if count <= 300 else 5
    if num_sites <= DENSE_SITES or count <= folds:
        folds = count
    order = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(order % folds)


def _groups(rank: int, known: int) -> list[slice]:
    """Components that share settings: strong ones alone, weak ones all."""
    own = 1 if known < _FEW_SITES else _OWN_COMPONENTS
    if rank <= _OWN_COMPONENTS:
        own = rank
    groups = [slice(k, k + 1) for k in range(own)]
    return [*groups, slice(own, rank)] if own < rank else groups


def _likeliest(
    deviations: list[tuple[Candidate, Tensor]], errors: Tensor
) -> tuple[Candidate | None, Tensor]:
    """The deviations under which errors are most likely, or constant ones."""

    def loss(deviation: Tensor) -> float:
        ratio = errors / deviation.unsqueeze(1)
        scale = ratio.square().mean(0).clamp(min=1e-30).log() / 2
        return float(deviation.log().mean() + scale.mean())

    options: list[tuple[Candidate | None, Tensor]] = [
        (None, errors.new_ones(errors.size(0))),
        *((candidate, d.clamp(min=1e-12)) for candidate, d in deviations),
    ]
    return min(options, key=lambda option: loss(option[1]))
