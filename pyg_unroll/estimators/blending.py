"""Blends of candidates, stacked by cross-validation on known sites."""

import math
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.inputs import Sites, SiteSignal
from pyg_unroll.estimators.kriging import SMOOTHNESS, LocalKriging
from pyg_unroll.estimators.smoothing import DENSE_SITES, GraphSmoother

# A predictor of all sites. `tune` learns its settings and returns predictions
# of the known sites, each from the other folds `[K, F]`, and their deviations
# but for a common factor `[K]`.
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

    def predict(self, signal: SiteSignal) -> Tensor:
        """Predicts the components at all sites."""
        part = signal.columns(self.columns)
        out = torch.zeros_like(part.y)
        for weight, candidate in self.terms:
            if weight > 0:
                out += weight * candidate.predict(part)
        return out

    def metric(self) -> Tensor | None:
        """Metric of the kriging candidate of the largest weight, of those
        with covariates if there are such.
        """
        terms = [
            (candidate.covariates, weight, candidate.factor)
            for weight, candidate in self.terms
            if isinstance(candidate, LocalKriging)
        ]
        if not terms:
            return None
        *_, factor = max(terms, key=lambda term: term[:2])
        return factor.T @ factor


@dataclass
class FeatureFit:
    """The fit of the features that are known at the same nodes."""

    features: Tensor  # their indices, [F]
    center: Tensor  # their means, [F]
    scale: Tensor  # their units, [F]
    rotation: Tensor  # principal components, [R, F]
    # Absolute errors of known nodes, each predicted from the others of its
    # site, [T, F].
    replicate_errors: Tensor
    blends: list[Blend] = field(default_factory=list)  # of the components
    # Candidate whose posterior deviations normalise errors, if any does.
    error_model: Candidate | None = None
    # Absolute errors of known sites, each predicted from other folds, and
    # over their deviations, [K, F]; empty if nothing was learned.
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
    ) -> Self:
        """Fits some features, by the arguments of the estimator."""
        signal = sites.average(features)
        center = signal.values.mean(0)
        centred = signal.values - center
        spread = signal.values.std(0, correction=0)
        if samples:
            spread = centred.square().mean().sqrt().expand_as(spread)
        # A constant signal has no unit.
        scale = torch.where(spread > 1e-12 * center.abs(), spread, 1)
        _, size, rotation = torch.linalg.svd(
            centred / scale, full_matrices=False
        )
        rank = max(int((size > 1e-9 * size.max().clamp(min=1)).sum()), 1)
        replicates = sites.replicate_errors(features)
        fit = cls(features, center, scale, rotation[:rank], replicates)
        components = fit._components(signal)
        if len(centred) < LEAST_KNOWN or not bool(components.y.any()):
            # Too few observations to learn from: a preset smoother.
            preset = GraphSmoother(next(iter(sites.graphs)), 1)
            fit.blends.append(Blend(slice(0, rank), [(1.0, preset)]))
        else:
            fit._learn(components, signal.values, kriging, seed)
        return fit

    def _learn(
        self, components: SiteSignal, values: Tensor, kriging: bool, seed: int
    ) -> None:
        """Tunes candidates and blends them, and keeps the errors."""
        held_out = torch.zeros_like(components.values)
        folds = _folds(len(values), len(components.y), seed)
        strongest: list[tuple[Candidate, Tensor]] = []
        for columns in _groups(held_out.size(1), len(values)):
            candidates = _candidates(components.sites, kriging, seed)
            target = components.columns(columns)
            tuned = [c.tune(target, folds) for c in candidates]
            guesses = torch.stack([guess for guess, _ in tuned], -1)
            weights = _weights(guesses, target.values)
            terms = list(zip(weights.tolist(), candidates, strict=True))
            self.blends.append(Blend(columns, terms))
            held_out[:, columns] = guesses @ weights
            spreads = (deviation for _, deviation in tuned)
            strongest = strongest or list(zip(candidates, spreads, strict=True))
        self.errors = (self._signals(held_out) - values).abs()
        self.error_model, deviation = _likeliest(strongest, self.errors)
        self.normalized_errors = self.errors / deviation.unsqueeze(1)

    def _components(self, signal: SiteSignal) -> SiteSignal:
        """Principal components of signals."""
        x = signal.values
        y = x.new_zeros((len(signal.y), len(self.rotation)))
        y[signal.known] = (x - self.center) / self.scale @ self.rotation.T
        return SiteSignal(signal.sites, signal.known, y)

    def _signals(self, y: Tensor) -> Tensor:
        """The inverse of `_components`."""
        return y @ self.rotation * self.scale + self.center

    def predict(self, sites: Sites) -> Tensor:
        """Predicts all nodes; those of a known site get its mean."""
        signal = sites.average(self.features)
        components = self._components(signal)
        out = [blend.predict(components) for blend in self.blends]
        signals = self._signals(torch.cat(out, 1))
        signals[signal.known] = signal.values
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
        signal = sites.average(self.features)
        deviation = signal.y.new_ones(len(signal.y))
        if self.error_model is not None:
            strongest = self._components(signal).columns(self.blends[0].columns)
            deviation = self.error_model.deviation(strongest)
        quantile = _quantile(self.normalized_errors, coverage)
        width = deviation.unsqueeze(1) * quantile
        # Missing nodes of known sites err as replicates do. With too few of
        # these: the noise of a node is at most its error when left out, and
        # two nodes differ by the root of two times that.
        if len(self.replicate_errors) >= least:
            width[signal.known] = _quantile(self.replicate_errors, coverage)
        else:
            width[signal.known] = 2**0.5 * _quantile(self.errors, coverage)
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
    own = rank
    if rank > _OWN_COMPONENTS:
        own = 1 if known < _FEW_SITES else _OWN_COMPONENTS
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
