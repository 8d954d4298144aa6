"""Gaussian processes on points, sparse: each point given its near ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

SMOOTHNESS = (0.5, 1.5, 2.5)

# Neighbours that a point is predicted from, and while fitting.
_NEIGHBORS = 40
_FIT_NEIGHBORS = 12
# Points whose likelihood is maximised: enough for a few parameters.
_FIT_POINTS = 400
_CHUNK = 2000
_JITTER = 1e-8


@dataclass
class LocalKriging:
    r"""Ordinary kriging from the nearest neighbours, with a learned metric.

    The covariance of two points is a Matérn function of their Mahalanobis
    distance :math:`\|\mathbf{R} (\mathbf{f}_i - \mathbf{f}_j)\|`, plus noise
    of relative variance :math:`\eta`. Scale, :math:`\mathbf{R}` and
    :math:`\eta` maximise the likelihood of known points, each given the
    nearest of those before it in a random order (Vecchia, 1988; `Datta et
    al., 2016 <https://doi.org/10.1080/01621459.2015.1044091>`_): the sparse
    twin of a Gaussian process, whose cost grows linearly.

    Args:
        smoothness (float): :math:`\nu` of the Matérn function, one of
            :obj:`0.5`, :obj:`1.5` and :obj:`2.5`.
        num_coordinates (int): How many of the features are coordinates,
            of one unit; the others are covariates.
        seed (int): Seed of the order of points.

    Attributes:
        factor (torch.Tensor): :math:`\mathbf{R}`, :math:`(D, D)`.
        noise (float): :math:`\eta`.
    """

    smoothness: float
    num_coordinates: int
    seed: int = 0
    factor: Tensor = field(default_factory=lambda: torch.empty(0))
    noise: float = 0.0

    def fit(self, features: Tensor, y: Tensor) -> LocalKriging:
        r"""Fits metric and noise.

        Args:
            features (torch.Tensor): Features of known points, float64
                :math:`(N, D)`.
            y (torch.Tensor): Their values, centred, float64 :math:`(N, F)`.
        """
        base = self._base(features)
        scaled = features * base
        y = y / y.square().mean().sqrt().clamp(min=1e-30)
        best = torch.zeros(0)
        for part in range(2):
            # The metric decides who is near: choose neighbours once more.
            near = scaled if part == 0 else scaled @ self._factor(best).T
            sets = _vecchia_sets(near, self.seed + part)

            def loss(
                theta: Tensor, sets: tuple[Tensor, Tensor] = sets
            ) -> Tensor:
                return self._loss(theta, scaled, y, *sets)

            if part == 0:
                with torch.no_grad():
                    best = min(self._starts(features.size(1)), key=loss)
            best = _minimise(loss, best, steps=20 if part == 0 else 10)
        self.factor = self._factor(best) * base
        self.noise = math.exp(float(best[-1].clamp(-16, 4)))
        return self

    def predict(
        self, features: Tensor, y: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Predicts points from known ones.

        Args:
            features (torch.Tensor): Features of known points :math:`(N, D)`.
            y (torch.Tensor): Their values :math:`(N, F)`.
            query (torch.Tensor): Features of other points :math:`(M, D)`.

        Returns:
            Means :math:`(M, F)` and variances of an observation, relative to
            the variance of the process, :math:`(M)`.
        """
        known, wanted = features @ self.factor.T, query @ self.factor.T
        near = _nearest(known, wanted, _NEIGHBORS)
        means, variances = [], []
        for part, place in zip(
            near.split(_CHUNK), wanted.split(_CHUNK), strict=True
        ):
            weight, variance = self._weights(known[part], place)
            # Ordinary kriging: the mean is unknown, weights sum to one.
            means.append(torch.einsum('nk,nkf->nf', weight, y[part]))
            variances.append(variance)
        if not means:
            return y.new_empty((0, y.size(1))), y.new_empty(0)
        return torch.cat(means), torch.cat(variances)

    def _weights(self, near: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `[M, K]` of ordinary kriging, and variances `[M]`."""
        among = self._covariance(_squared(near, near))
        cross = self._correlation(_squared(place.unsqueeze(1), near))
        sides = torch.stack([cross.squeeze(1), torch.ones_like(near[..., 0])])
        solved, ones = torch.linalg.solve(among, sides.movedim(0, -1)).unbind(
            -1
        )
        missing = 1 - solved.sum(-1)
        weight = solved + (missing / ones.sum(-1)).unsqueeze(-1) * ones
        explained = (sides[0] * solved).sum(-1)
        variance = 1 - explained + missing.square() / ones.sum(-1)
        return weight, variance.clamp(min=0) + self.noise

    def _correlation(self, squared: Tensor) -> Tensor:
        """Matérn functions of squared distances."""
        scale = math.sqrt(2 * self.smoothness)
        r = scale * squared.clamp(min=1e-12).sqrt()
        factor: Tensor | float = 1.0
        if self.smoothness == 1.5:
            factor = 1 + r
        elif self.smoothness == 2.5:
            factor = 1 + r + r.square() / 3
        return factor * torch.exp(-r)

    def _covariance(
        self, squared: Tensor, noise: Tensor | float | None = None
    ) -> Tensor:
        """Covariances among observations: noise on the diagonal."""
        eye = torch.eye(squared.size(-1), dtype=squared.dtype)
        diagonal = 1 + (self.noise if noise is None else noise) + _JITTER
        return torch.lerp(self._correlation(squared), diagonal * eye, eye)

    def _loss(
        self, theta: Tensor, scaled: Tensor, y: Tensor, *sets: Tensor
    ) -> Tensor:
        """Negative logarithmic likelihood per point, scale maximised."""
        target, near = sets
        points = scaled @ self._factor(theta).T
        noise = theta[-1].clamp(-16, 4).exp()
        others = points[near]
        among = self._covariance(_squared(others, others), noise)
        cross = self._correlation(
            _squared(points[target].unsqueeze(1), others)
        ).squeeze(1)
        weight = torch.linalg.solve(among, cross)
        variance = (1 + noise - (weight * cross).sum(1)).clamp(min=1e-10)
        error = y[target] - torch.einsum('nk,nkf->nf', weight, y[near])
        scale = (error.square() / variance.unsqueeze(1)).mean(0)
        if scale.numel() > 8:  # samples of one signal
            scale = scale.mean().unsqueeze(0)
        # A weak prior keeps what the data say nothing of where it is.
        size = scaled.size(1)
        prior = 1e-4 * (theta[:size] - 2).square().sum()
        return (
            0.5 * variance.log().mean()
            + 0.5 * (scale + 1e-12).log().mean()
            + prior
        )

    def _base(self, features: Tensor) -> Tensor:
        """Units of the features: the extent of space, covariates' spread."""
        base = torch.ones(features.size(1), dtype=features.dtype)
        count = self.num_coordinates
        if count:
            ordered = features[:, :count].sort(0).values
            extent = (ordered[-1] - ordered[0]).max()
            # One point far away must not make one of all others.
            quarter = len(ordered) // 4
            middle = (ordered[-1 - quarter] - ordered[quarter]).max()
            if middle > 0:
                extent = torch.minimum(extent, 10 * middle)
            base[:count] = 1 / extent.clamp(min=1e-30)
        if count < features.size(1):
            extra = features[:, count:]
            spread = extra.std(0, correction=0)
            # What is the same at all known points tells nothing of others.
            varies = spread > 1e-9 * extra.abs().amax(0)
            base[count:] = torch.where(varies, 1 / (3 * spread), 0)
        return base

    def _starts(self, size: int) -> list[Tensor]:
        extra = size * (size - 1) // 2
        count = self.num_coordinates
        starts = []
        for scale in (0.5, 2.0, 3.5):
            for noise in (-7.0, -2.5, 0.0):
                theta = torch.zeros(size + extra + 1, dtype=torch.float64)
                theta[:count], theta[count:size] = scale, -1.0
                theta[-1] = noise
                starts.append(theta)
        return starts

    def _factor(self, theta: Tensor) -> Tensor:
        """Triangular R: logarithms of its diagonal, then relative rest."""
        size = int((math.isqrt(8 * theta.numel() - 7) - 1) // 2)
        # Of a signal without structure, any scale is likely: none overflows.
        scale = theta[:size].clamp(-16, 16).exp()
        lower = torch.tril_indices(size, size, -1)
        rest = torch.zeros(size, size, dtype=theta.dtype).index_put(
            (lower[0], lower[1]), theta[size:-1]
        )
        return scale.unsqueeze(1) * rest + torch.diag(scale)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances `[..., N, M]` of points."""
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


def _nearest(points: Tensor, query: Tensor, count: int) -> Tensor:
    """Indices `[M, K]` of the nearest points."""
    from scipy.spatial import KDTree  # late: slow to load

    count = min(count, points.size(0))
    tree = KDTree(points.detach().numpy())
    _, near = tree.query(query.detach().numpy(), k=[*range(1, count + 1)])
    return torch.from_numpy(near).view(-1, count)


def _vecchia_sets(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Points, and the nearest of those before each in a random order.

    Nearest among the first half of them or more: a tree per doubling.
    """
    total = points.size(0)
    chance = np.random.default_rng(seed)
    order = torch.from_numpy(chance.permutation(total))
    shuffled = points[order]
    count = min(_FIT_NEIGHBORS, max(2, total // 3), total - 1)
    targets, sets = [], []
    begin = count
    while begin < total:
        end = min(2 * begin, total)
        targets.append(torch.arange(begin, end))
        sets.append(_nearest(shuffled[:begin], shuffled[begin:end], count))
        begin = end
    target, near = torch.cat(targets), torch.cat(sets)
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
