"""Blends of candidates, stacked by cross-validation on known sites."""

from dataclasses import dataclass, field
from itertools import product
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.inputs import SiteSignal
from pyg_unroll.estimators.kriging import SMOOTHNESS, Kriging
from pyg_unroll.estimators.progress import progress
from pyg_unroll.estimators.smoothing import DENSE_SITES, GraphSmoother
from pyg_unroll.estimators.trends import Detrended, Rest

# A predictor of all sites. `tune` learns its settings and returns predictions
# of the known sites, each from the other folds `[K, F]`, and their deviations
# but for a common factor `[K]`.
Candidate: TypeAlias = GraphSmoother | Kriging | Detrended

# Known sites below which trees do not split.
_TREES_FROM = 40
# Known sites for each feature of a metric.
_PER_FEATURE = 4

# Observations that the ridge of the stacking weights counts as.
_RIDGE = 100


@dataclass
class Blend:
    """A weighted sum of candidates."""

    terms: list[tuple[float, Candidate]]
    # Predictions of the known sites, each from other folds `[K, F]`, and
    # deviations of the candidates there; nothing if they are preset.
    held_out: Tensor = field(default_factory=lambda: torch.zeros(0))
    deviations: list[Tensor] = field(default_factory=list)

    @classmethod
    def tune(cls, signal: SiteSignal, options: tuple[bool, int]) -> Self:
        """Tunes all candidates that the data allow, and blends them; options
        are the use of kriging and the seed.
        """
        kriging, seed = options
        folds = _folds(len(signal.values), len(signal.y), seed)
        candidates = _candidates(signal, kriging, seed)
        tuned = [
            candidate.tune(signal, folds)
            for candidate in progress(candidates, 'candidates')
        ]
        guesses = torch.stack([guess for guess, _ in tuned], -1)
        weights = stacking_weights(guesses, signal.values)
        terms = list(zip(weights.tolist(), candidates, strict=True))
        return cls(terms, guesses @ weights, [spread for _, spread in tuned])

    @classmethod
    def preset(cls, signal: SiteSignal) -> Self:
        """For observations that are too few to learn from."""
        graph = next(iter(signal.sites.graphs), None)
        if graph is not None:
            return cls([(1.0, GraphSmoother(graph, 1))])
        kriging = Kriging(1.5, covariates=not signal.sites.num_coordinates)
        kriging.preset(signal)
        return cls([(1.0, kriging)])

    def predict(self, signal: SiteSignal) -> Tensor:
        """Predicts all sites, `[M, F]`."""
        out = torch.zeros_like(signal.y)
        for weight, candidate in self.terms:
            if weight > 0:
                out += weight * candidate.predict(signal)
        return out

    def metric(self) -> Tensor | None:
        """Metric of the kriging candidate of the largest weight, of those
        with covariates if there are such.
        """
        terms = [
            (candidate.covariates, weight, candidate.factor)
            for weight, candidate in self.terms
            if isinstance(candidate, Kriging)
        ]
        if not terms:
            return None
        *_, factor = max(terms, key=lambda term: term[:2])
        return factor.T @ factor


def _candidates(
    signal: SiteSignal, kriging: bool, seed: int
) -> list[Candidate]:
    """All candidates that the data allow."""
    sites = signal.sites
    out: list[Candidate] = [
        GraphSmoother(name, *kind)
        for name in sites.graphs
        for kind in ((1, False), (2, False), (1, True))
    ]
    _, num_coordinates, num_covariates = sites.sizes
    known = len(signal.values)
    kinds = [False] * (num_coordinates > 0)
    if num_covariates and known >= _PER_FEATURE * sites.features.size(1):
        kinds.append(True)
    if kriging:
        out += [
            Kriging(smoothness, covariates, seed)
            for covariates, smoothness in product(kinds, SMOOTHNESS)
        ]
    trends = ['linear'] * (sites.features.size(1) > 0)
    if num_covariates and known >= _TREES_FROM:
        trends.append('trees')
    for trend in trends:
        rest: Rest = Kriging(1.5, not num_coordinates, seed)
        if sites.graphs and not (kriging and num_coordinates):
            rest = GraphSmoother(next(iter(sites.graphs)), 1)
        out.append(Detrended(trend, rest, seed))
    return out


def stacking_weights(guesses: Tensor, target: Tensor) -> Tensor:
    """Stacking weights of held-out predictions `[K, F, C]` for observations
    `[K, F]`: non-negative least squares with a ridge towards weights that sum
    to one, those of candidates as likely as their errors on a quarter of the
    observations tell.
    """
    from scipy.optimize import nnls  # late: slow to load

    count, features, candidates = guesses.shape
    error = (guesses - target.unsqueeze(-1)).square().mean((0, 1))
    least = error.min().clamp(min=1e-12)
    safe = torch.softmax(-count / 8 * (error.clamp(min=1e-12) / least).log(), 0)
    # One row for each weight, and for their sum.
    ridge = torch.eye(candidates, dtype=target.dtype)
    ridge = torch.cat([ridge, candidates**0.5 * ridge.new_ones(1, candidates)])
    size = (_RIDGE * features * least).sqrt()
    weights, _ = nnls(
        torch.cat([guesses.flatten(0, 1), size * ridge]).numpy(),
        torch.cat([target.flatten(), size * (ridge @ safe)]).numpy(),
    )
    return torch.from_numpy(weights)


def _folds(count: int, num_sites: int, seed: int) -> Tensor:
    """Fold of each known site; one each on small graphs."""
    folds = 10 if count <= 300 else 5
    if num_sites <= DENSE_SITES or count <= folds:
        folds = count
    order = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(order % folds)
