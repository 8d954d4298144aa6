"""Candidates by ordinary kriging, with a learned metric."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.conditioning import (
    Covariance,
    Neighbors,
    Process,
    condition,
)
from pyg_unroll.estimators.inputs import SiteSignal, axis_units

SMOOTHNESS = (0.5, 1.5, 2.5)

# Neighbours of a point in the likelihood, and its points: enough for a few
# parameters.
_FIT_NEIGHBORS = 12
_FIT_POINTS = 400
# Features up to which the metric may turn their axes.
_TURNED = 6


@dataclass
class Kriging:
    r"""Ordinary kriging with a learned metric.

    The covariance of two points is a Matérn function of smoothness
    :math:`\nu` of their Mahalanobis distance :math:`\|\mathbf{R}
    (\mathbf{f}_i - \mathbf{f}_j)\|`, plus noise of relative variance
    :math:`\eta`. Scale, :math:`\mathbf{R}` and :math:`\eta` maximise the
    likelihood of known points, each given the nearest of those before it in a
    random order (Vecchia, 1988; `Datta et al., 2016
    <https://doi.org/10.1080/01621459.2015.1044091>`_): a sparse Gaussian
    process, whose cost grows linearly.

    Features are positions or, with :obj:`covariates`, these, too.
    """

    smoothness: float
    covariates: bool = False
    seed: int = 0
    factor: Tensor = field(default_factory=lambda: torch.empty(0))
    noise: float = 0.0
    # The process, given what was observed of a signal.
    _given: tuple[SiteSignal, Process] | None = None

    def tune(self, signal: SiteSignal, folds: Tensor) -> tuple[Tensor, Tensor]:
        """Fits metric and noise, as a candidate of a blend."""
        observed = signal.observed
        points = self._features(observed)[observed.known]
        self.fit(points, signal.values, signal.sites.num_coordinates)
        mean, variance = self._process(signal).left_out(folds)
        return mean, variance.sqrt()

    def preset(self, signal: SiteSignal) -> None:
        """Settings for observations that are too few to learn from."""
        observed = signal.observed
        points = self._features(observed)[observed.known]
        count = signal.sites.num_coordinates
        size = points.size(1)
        self.factor = metric_factor(_start(size, count, 1.0, -4.0), size)
        self.factor = self.factor * _units(points, count)
        self.noise = math.exp(-4.0)

    def predict(self, signal: SiteSignal) -> Tensor:
        """Predicts all sites, `[M, F]`."""
        return self._process(signal).mean(self._places(signal))

    def deviation(self, signal: SiteSignal) -> Tensor:
        """Posterior deviations of all sites but for a factor, `[M]`."""
        return self._process(signal).variance(self._places(signal)).sqrt()

    @property
    def name(self) -> str:
        """Name in reports: features and smoothness."""
        kind = 'position and covariates' if self.covariates else 'position'
        return f'kriging by {kind}, Matérn {self.smoothness:g}'

    def _process(self, signal: SiteSignal) -> Process:
        """The process given a signal, made once."""
        observed = signal.observed
        if self._given is None or self._given[0] is not observed:
            places = self._places(observed)[observed.known]
            covariance = Covariance(self.smoothness, self.noise)
            process = condition(covariance, places, observed.values)
            self._given = observed, process
        return self._given[1]

    def _places(self, signal: SiteSignal) -> Tensor:
        return self._features(signal) @ self.factor.T

    def _features(self, signal: SiteSignal) -> Tensor:
        """Features of all sites that the distance depends on."""
        sites = signal.sites
        return sites.features[
            :, : None if self.covariates else sites.num_coordinates
        ]

    def fit(self, features: Tensor, y: Tensor, num_coordinates: int) -> Self:
        """Fits metric and noise to centred values `[N, F]` of points of
        features `[N, D]`, of which the first are coordinates.
        """
        base = _units(features, num_coordinates)
        scaled = features * base
        y = y / y.square().mean().sqrt().clamp(min=1e-30)
        given = partial(self._loss, num_coordinates, scaled, y)
        loss = partial(given, *_vecchia_sets(scaled, self.seed))
        with torch.no_grad():
            starts = _starts(features.size(1), num_coordinates)
            best = _minimise(loss, min(starts, key=loss), steps=20)
        # Neighbours depend on the metric: they are chosen once more.
        size = features.size(1)
        places = scaled @ metric_factor(best, size).T
        near = _vecchia_sets(places, self.seed + 1)
        best = _minimise(partial(given, *near), best, steps=10)
        self.factor = metric_factor(best, size) * base
        self.noise = math.exp(float(best[-1].clamp(-16, 4)))
        return self

    def _loss(
        self,
        num_coordinates: int,
        scaled: Tensor,
        y: Tensor,
        target: Tensor,
        near: Tensor,
        theta: Tensor,
    ) -> Tensor:
        """Negative log-likelihood per point, maximised over the scale."""
        points = scaled @ metric_factor(theta, scaled.size(1)).T
        noise = theta[-1].clamp(-16, 4).exp()
        covariance = Covariance(self.smoothness, noise)
        among = covariance.among(points[near])
        beside = points[target].unsqueeze(1)
        cross = covariance.between(beside, points[near]).squeeze(1)
        weight = torch.linalg.solve(among, cross)
        variance = (1 + noise - (weight * cross).sum(1)).clamp(min=1e-10)
        error = y[target] - torch.einsum('nk,nkf->nf', weight, y[near])
        scale = (error.square() / variance.unsqueeze(1)).mean(0)
        if scale.numel() > 8:  # samples of one signal
            scale = scale.mean().unsqueeze(0)
        fit = 0.5 * variance.log().mean() + 0.5 * (scale + 1e-12).log().mean()
        prior = _prior(theta, scaled.size(1), num_coordinates)
        return fit + prior / len(target)


def _prior(theta: Tensor, size: int, num_coordinates: int) -> Tensor:
    """Negative logarithm of the prior of parameters: round metrics, of ranges
    about a third of the extent. Without it, a dozen points fit a metric that
    predicts 10 % worse.
    """
    space, extra = theta[:size].tensor_split([num_coordinates])
    stretch = 2 * (space - space.mean()).square().sum()
    stretch = stretch + 2 * theta[size:-1].square().sum()
    reach = 0.25 * (space - 1).square().sum() / max(num_coordinates, 1)
    reach = reach + 0.2 * (extra + 1).square().sum()
    return stretch + reach + 0.05 * (theta[-1] + 3).square()


def metric_factor(theta: Tensor, size: int) -> Tensor:
    """Triangular `R` of logarithms of its diagonal, then the other entries
    relative to it, if it has any; the noise is last.
    """
    # Any scale is likely of white noise: clamped, none overflows.
    scale = theta[:size].clamp(-16, 16).exp()
    if len(theta) == size + 1:
        return torch.diag(scale)
    lower = torch.tril_indices(size, size, -1)
    rest = torch.zeros(size, size, dtype=theta.dtype).index_put(
        (lower[0], lower[1]), theta[size:-1]
    )
    return scale.unsqueeze(1) * rest + torch.diag(scale)


def _units(features: Tensor, num_coordinates: int) -> Tensor:
    """Inverse units: extents of coordinates, the spread of covariates."""
    space, extra = features.tensor_split([num_coordinates], 1)
    unit = axis_units(space)
    if not extra.size(1):
        return unit
    spread = extra.std(0, correction=0)
    # A covariate that is constant at known points has no known effect.
    varies = spread > 1e-9 * extra.abs().amax(0)
    return torch.cat([unit, torch.where(varies, 1 / (3 * spread), 0)])


def _starts(size: int, num_coordinates: int) -> list[Tensor]:
    """Initial parameters for `metric_factor`."""
    return [
        _start(size, num_coordinates, scale, noise)
        for scale, noise in product((0.5, 2.0, 3.5), (-7.0, -2.5, 0.0))
    ]


def _start(size: int, count: int, scale: float, noise: float) -> Tensor:
    turns = size * (size - 1) // 2 if size <= _TURNED else 0
    theta = torch.zeros(size + turns + 1, dtype=torch.float64)
    theta[:size], theta[:count], theta[-1] = -1.0, scale, noise
    return theta


def _vecchia_sets(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Points, and near ones before each in a random order.

    A tree per doubling: the nearest among at least half of those before.
    """
    total = points.size(0)
    chance = np.random.default_rng(seed)
    order = torch.from_numpy(chance.permutation(total))
    shuffled = points[order]
    count = min(_FIT_NEIGHBORS, max(2, total // 3), total - 1)
    sets, begin = [], count
    while begin < total:
        tree, added = shuffled[:begin], shuffled[begin : 2 * begin]
        sets.append(Neighbors(tree).nearest(added, count))
        begin *= 2
    target, near = torch.arange(count, total), torch.cat(sets)
    if target.size(0) > _FIT_POINTS:
        chosen = np.sort(
            chance.choice(target.size(0), _FIT_POINTS, replace=False)
        )
        target, near = target[chosen], near[chosen]
    return order[target], order[near]


def _minimise(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> Tensor:
    """L-BFGS from a start; the start if a matrix is singular."""
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=steps,
        line_search_fn='strong_wolfe',
        tolerance_change=1e-5,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    try:
        with torch.enable_grad():
            optimizer.step(closure)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return start
    out = theta.detach()
    return out if bool(out.isfinite().all()) else start
