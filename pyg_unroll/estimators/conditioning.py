"""Ordinary kriging: a process of known covariance, given observations."""

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

# Observations up to which all are used, and neighbours of a place beyond.
_ALL = 500
_NEIGHBORS = 40
_CHUNK = 256  # places at once, which fit in a cache
_JITTER = 1e-8


@dataclass(frozen=True)
class Covariance:
    r"""Covariances, relative to the variance of a process: Matérn functions
    of the distances of places, and of observations, which have noise.
    """

    smoothness: float
    noise: Tensor | float

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Of the process at two sets of places, `[..., N, M]`."""
        # By products, small distances would be lost to rounding.
        exact = 'donot_use_mm_for_euclid_dist'
        distance = torch.cdist(a, b, compute_mode=exact).clamp(min=1e-6)
        r = math.sqrt(2 * self.smoothness) * distance
        factor: Tensor | float = 1.0
        if self.smoothness == 1.5:
            factor = 1 + r
        elif self.smoothness == 2.5:
            factor = 1 + r + r.square() / 3
        return factor * torch.exp(-r)

    def among(self, places: Tensor) -> Tensor:
        """Of observations, `[..., N, N]`."""
        eye = torch.eye(places.size(-2), dtype=places.dtype)
        diagonal = (1 + self.noise + _JITTER) * eye
        return torch.lerp(self.between(places, places), diagonal, eye)


class Process(Protocol):
    """A process given observations; its mean is unknown and constant."""

    def mean(self, query: Tensor) -> Tensor:
        """Means at places `[M, D]`, `[M, F]`."""

    def variance(self, query: Tensor) -> Tensor:
        """Variances of observations at places, relative to the variance of
        the process, `[M]`.
        """

    def left_out(self, folds: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each observation, given the other folds."""


Pair: TypeAlias = tuple[Tensor, Tensor]


class AllPoints:
    """A process given all observations `y` `[N, F]` at places `[N, D]`."""

    def __init__(self, covariance: Covariance, places: Tensor, y: Tensor):
        self.covariance, self.places, self.y = covariance, places, y
        one = torch.ones_like(places[:, :1])
        self.root = torch.linalg.cholesky(covariance.among(places))
        self.inverse = torch.cholesky_inverse(self.root)
        self.ones = self.inverse @ one
        self.total = self.ones.sum()
        self.level = self.ones.T @ y / self.total
        self.weight = self.inverse @ (y - self.level)

    def mean(self, query: Tensor) -> Tensor:
        """See `Process`."""
        parts = [
            self.level
            + self.covariance.between(part, self.places) @ self.weight
            for part in query.split(_CHUNK)
        ]
        return torch.cat(parts)

    def variance(self, query: Tensor) -> Tensor:
        """See `Process`."""
        parts = []
        for part in query.split(_CHUNK):
            cross = self.covariance.between(part, self.places)
            solved = torch.linalg.solve_triangular(
                self.root, cross.T, upper=False
            )
            explained = solved.square().sum(0)
            missing = 1 - (cross @ self.ones).squeeze(1)
            parts.append(1 - explained + missing.square() / self.total)
        return torch.cat(parts).clamp(min=0) + self.covariance.noise

    def left_out(self, folds: Tensor) -> Pair:
        """See `Process`; in closed form (Dubrule, 1983)."""
        reduced = self.inverse - self.ones @ self.ones.T / self.total
        residual = reduced @ self.y
        mean, variance = self.y.clone(), self.y.new_zeros(len(folds))
        for fold in range(int(folds.max()) + 1):
            out = (folds == fold).nonzero().squeeze(1)
            block = torch.linalg.inv(reduced[out.unsqueeze(1), out])
            mean[out] -= block @ residual[out]
            variance[out] = block.diagonal()
        return mean, variance.clamp(min=0)


class NearPoints:
    """A process given the nearest of observations only."""

    def __init__(self, covariance: Covariance, places: Tensor, y: Tensor):
        self.covariance, self.places, self.y = covariance, places, y
        self.neighbors = Neighbors(places)

    def mean(self, query: Tensor) -> Tensor:
        """See `Process`."""
        return self._predict(query)[0]

    def variance(self, query: Tensor) -> Tensor:
        """See `Process`."""
        return self._predict(query)[1]

    def left_out(self, folds: Tensor) -> Pair:
        """See `Process`."""
        mean, variance = torch.zeros_like(self.y), self.y.new_zeros(len(folds))
        for fold in range(int(folds.max()) + 1):
            left, out = folds != fold, folds == fold
            rest = condition(self.covariance, self.places[left], self.y[left])
            mean[out] = rest.mean(self.places[out])
            variance[out] = rest.variance(self.places[out])
        return mean, variance

    def _predict(self, query: Tensor) -> Pair:
        means, variances = [query.new_zeros((0, self.y.size(1)))], []
        for part in query.split(_CHUNK):
            near = self.neighbors.nearest(part, _NEIGHBORS)
            weight, variance = self._weights(self.places[near], part)
            means.append(torch.einsum('nk,nkf->nf', weight, self.y[near]))
            variances.append(variance)
        return torch.cat(means), torch.cat(variances)

    def _weights(self, near: Tensor, query: Tensor) -> Pair:
        """Weights `[M, K]`, which sum to one as the mean is unknown, and
        variances `[M]`.
        """
        among = torch.linalg.cholesky(self.covariance.among(near))
        cross = self.covariance.between(query.unsqueeze(1), near).squeeze(1)
        sides = torch.stack([cross, torch.ones_like(cross)], -1)
        solved, ones = torch.cholesky_solve(sides, among).unbind(-1)
        missing = 1 - solved.sum(-1)
        weight = solved + (missing / ones.sum(-1)).unsqueeze(-1) * ones
        explained = (cross * solved).sum(-1)
        variance = 1 - explained + missing.square() / ones.sum(-1)
        return weight, variance.clamp(min=0) + self.covariance.noise


def condition(covariance: Covariance, places: Tensor, y: Tensor) -> Process:
    """A process given observations `[N, F]` at scaled places `[N, D]`."""
    kind = AllPoints if len(places) <= _ALL else NearPoints
    return kind(covariance, places, y)


class Neighbors:
    """A search tree of places."""

    def __init__(self, places: Tensor) -> None:
        from scipy.spatial import KDTree  # late: slow to load

        self.tree = KDTree(places.numpy())

    def nearest(self, query: Tensor, count: int) -> Tensor:
        """Indices `[M, K]` of the places nearest to others `[M, D]`."""
        count = min(count, self.tree.n)
        _, near = self.tree.query(query.numpy(), k=[*range(1, count + 1)])
        return torch.from_numpy(near).view(-1, count)
