"""Candidates by ordinary kriging from nearest neighbours."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.inputs import Sites, SiteSignal

SMOOTHNESS = (0.5, 1.5, 2.5)

# Neighbours of a prediction, and of the likelihood.
_NEIGHBORS = 40
_FIT_NEIGHBORS = 12
# Points of the likelihood: enough for a few parameters.
_FIT_POINTS = 400
_CHUNK = 2000
_JITTER = 1e-8


@dataclass
class LocalKriging:
    r"""Ordinary kriging from the nearest neighbours, with a learned metric.

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

    def tune(self, signal: SiteSignal, folds: Tensor) -> tuple[Tensor, Tensor]:
        """Fits metric and noise, as a candidate of a blend."""
        points, values = self._features(signal.sites), signal.values
        points = points[signal.known]
        self.fit(points, values, signal.sites.num_coordinates)
        mean, variance = torch.zeros_like(values), values.new_zeros(len(values))
        for fold in range(int(folds.max()) + 1):
            left, out = folds != fold, folds == fold
            mean[out], variance[out] = self.krige(
                points[left], values[left], points[out]
            )
        return mean, variance.sqrt()

    def predict(self, signal: SiteSignal) -> Tensor:
        """Predicts all sites, `[M, F]`."""
        return self._krige_all(signal)[0]

    def deviation(self, signal: SiteSignal) -> Tensor:
        """Posterior deviations of all sites but for a factor, `[M]`."""
        return self._krige_all(signal)[1].sqrt()

    @property
    def name(self) -> str:
        """Name in reports: features and smoothness."""
        kind = 'position and covariates' if self.covariates else 'position'
        return f'kriging by {kind}, Matérn {self.smoothness:g}'

    def _krige_all(self, signal: SiteSignal) -> tuple[Tensor, Tensor]:
        points = self._features(signal.sites)
        return self.krige(points[signal.known], signal.values, points)

    def _features(self, sites: Sites) -> Tensor:
        count = None if self.covariates else sites.num_coordinates
        return sites.features[:, :count]

    def fit(self, features: Tensor, y: Tensor, num_coordinates: int) -> Self:
        """Fits metric and noise to centred values `[N, F]` of points of
        features `[N, D]`, of which the first are coordinates.
        """
        base = _units(features, num_coordinates)
        scaled = features * base
        y = y / y.square().mean().sqrt().clamp(min=1e-30)
        loss = partial(self._loss, scaled, y, *_vecchia_sets(scaled, self.seed))
        with torch.no_grad():
            starts = _starts(features.size(1), num_coordinates)
            best = _minimise(loss, min(starts, key=loss), steps=20)
        # Neighbours depend on the metric: they are chosen once more.
        near = _vecchia_sets(scaled @ metric_factor(best).T, self.seed + 1)
        best = _minimise(partial(self._loss, scaled, y, *near), best, steps=10)
        self.factor = metric_factor(best) * base
        self.noise = math.exp(float(best[-1].clamp(-16, 4)))
        return self

    def krige(
        self, features: Tensor, y: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicts points `[M, D]` from values `[N, F]` of others `[N, D]`.

        Returns:
            Means `[M, F]`, and variances of an observation relative to the
            variance of the process `[M]`.
        """
        known, wanted = features @ self.factor.T, query @ self.factor.T
        near = _nearest(known, wanted, _NEIGHBORS)
        means, variances = [], []
        for part, points in zip(
            near.split(_CHUNK), wanted.split(_CHUNK), strict=True
        ):
            weight, variance = self._weights(known[part], points)
            means.append(torch.einsum('nk,nkf->nf', weight, y[part]))
            variances.append(variance)
        return torch.cat(means), torch.cat(variances)

    def _weights(self, near: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `[M, K]` of ordinary kriging, which sum to one as the mean
        is unknown, and variances `[M]`.
        """
        among, cross = self._covariances(near, points, self.noise)
        sides = torch.stack([cross, torch.ones_like(cross)], -1)
        solved, ones = torch.linalg.solve(among, sides).unbind(-1)
        missing = 1 - solved.sum(-1)
        weight = solved + (missing / ones.sum(-1)).unsqueeze(-1) * ones
        explained = (cross * solved).sum(-1)
        variance = 1 - explained + missing.square() / ones.sum(-1)
        return weight, variance.clamp(min=0) + self.noise

    def _covariances(
        self, near: Tensor, points: Tensor, noise: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Covariances among observations `[M, K, K]`, with noise on the
        diagonal, and of these with each point `[M, K]`.
        """
        eye = torch.eye(near.size(1), dtype=near.dtype)
        diagonal = (1 + noise + _JITTER) * eye
        among = torch.lerp(self._correlation(near, near), diagonal, eye)
        cross = self._correlation(points.unsqueeze(1), near)
        return among, cross.squeeze(1)

    def _correlation(self, a: Tensor, b: Tensor) -> Tensor:
        """Matérn functions `[..., N, M]` of the distances of points."""
        squared = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
        scale = math.sqrt(2 * self.smoothness)
        r = scale * squared.clamp(min=1e-12).sqrt()
        factor: Tensor | float = 1.0
        if self.smoothness == 1.5:
            factor = 1 + r
        elif self.smoothness == 2.5:
            factor = 1 + r + r.square() / 3
        return factor * torch.exp(-r)

    def _loss(
        self,
        scaled: Tensor,
        y: Tensor,
        target: Tensor,
        near: Tensor,
        theta: Tensor,
    ) -> Tensor:
        """Negative log-likelihood per point, maximised over the scale."""
        points = scaled @ metric_factor(theta).T
        noise = theta[-1].clamp(-16, 4).exp()
        among, cross = self._covariances(points[near], points[target], noise)
        weight = torch.linalg.solve(among, cross)
        variance = (1 + noise - (weight * cross).sum(1)).clamp(min=1e-10)
        error = y[target] - torch.einsum('nk,nkf->nf', weight, y[near])
        scale = (error.square() / variance.unsqueeze(1)).mean(0)
        if scale.numel() > 8:  # samples of one signal
            scale = scale.mean().unsqueeze(0)
        # A weak prior holds scales that the data do not determine.
        size = scaled.size(1)
        prior = 1e-4 * (theta[:size] - 2).square().sum()
        fit = 0.5 * variance.log().mean() + 0.5 * (scale + 1e-12).log().mean()
        return fit + prior


def metric_factor(theta: Tensor) -> Tensor:
    """Triangular `R` of logarithms of its diagonal, then the other entries
    relative to it; the noise is last.
    """
    size = int((math.isqrt(8 * theta.numel() - 7) - 1) // 2)
    # Any scale is likely of white noise: clamped, none overflows.
    scale = theta[:size].clamp(-16, 16).exp()
    lower = torch.tril_indices(size, size, -1)
    rest = torch.zeros(size, size, dtype=theta.dtype).index_put(
        (lower[0], lower[1]), theta[size:-1]
    )
    return scale.unsqueeze(1) * rest + torch.diag(scale)


def _units(features: Tensor, num_coordinates: int) -> Tensor:
    """Inverse units: the extent of coordinates, the spread of covariates."""
    space, extra = features.tensor_split([num_coordinates], 1)
    ordered = space.sort(0).values
    extent = (ordered[-1] - ordered[0]).max()
    # Bounded by the interquartile range, for outliers.
    quarter = len(ordered) // 4
    middle = (ordered[-1 - quarter] - ordered[quarter]).max()
    if middle > 0:
        extent = torch.minimum(extent, 10 * middle)
    unit = (1 / extent.clamp(min=1e-30)).expand(num_coordinates)
    if not extra.size(1):
        return unit
    spread = extra.std(0, correction=0)
    # A covariate that is constant at known points has no known effect.
    varies = spread > 1e-9 * extra.abs().amax(0)
    return torch.cat([unit, torch.where(varies, 1 / (3 * spread), 0)])


def _starts(size: int, num_coordinates: int) -> list[Tensor]:
    """Initial parameters for `metric_factor`."""
    starts = []
    for scale, noise in product((0.5, 2.0, 3.5), (-7.0, -2.5, 0.0)):
        theta = torch.zeros(size * (size + 1) // 2 + 1, dtype=torch.float64)
        theta[:size], theta[:num_coordinates], theta[-1] = -1.0, scale, noise
        starts.append(theta)
    return starts


def _nearest(points: Tensor, query: Tensor, count: int) -> Tensor:
    """Indices `[M, K]` of the nearest points."""
    from scipy.spatial import KDTree  # late: slow to load

    count = min(count, points.size(0))
    tree = KDTree(points.numpy())
    _, near = tree.query(query.numpy(), k=[*range(1, count + 1)])
    return torch.from_numpy(near).view(-1, count)


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
        sets.append(_nearest(tree, added, count))
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
