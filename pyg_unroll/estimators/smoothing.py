"""Candidates by smoothness on a graph, tuned by cross-validation."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from pyg_unroll.estimators.inputs import Sites, SiteSignal
from pyg_unroll.ops import degree
from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.solvers import ConvergenceWarning
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient

# Confidence of observations and ridge, relative to the mean degree.
TRUST = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4)
RIDGE = (1e-8, 1e-5, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)

# Sites up to which tuning inverts dense systems and leaves one site out.
DENSE_SITES = 500
# Sites up to which posterior variances are exact, and random probes beyond.
_EXACT_SITES = 1500
_PROBES = 128
# Numbers in one solve: several settings are solved at once, as heads.
_MAX_NUMBERS = 2**24
# Residual of a final solve above which a user is warned.
_TOLERANCE = 1e-5


# The prior `L`, or `L D^-1 L` of order 2, of a graph of mean degree one, plus a
# diagonal `[M, G]`.
System: TypeAlias = Callable[[Tensor], LaplacianSystem]


@dataclass
class GraphSmoother:
    r"""The minimiser of :math:`\sum_i c_i (x_i - y_i)^2 + \epsilon \|x\|^2 +
    x^{\top} P x` for the prior :math:`P` of a graph: :math:`L`, or :math:`L
    D^{-1} L` of order 2, with :math:`L` symmetrically normalised or not.

    At known sites :math:`c` is :obj:`trust`; :obj:`ridge` is
    :math:`\epsilon`. Posterior variances are exact up to :obj:`num_probes`
    sites, else Hutchinson's estimates from so many random signs.
    """

    graph: str
    order: int
    normalized: bool = False
    trust: float = 1e4
    ridge: float = 1e-5
    num_probes: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Name in reports: graph and prior."""
        kind = ', normalized' if self.normalized else ''
        return f'{self.graph} graph, order {self.order}{kind}'

    def tune(self, signal: SiteSignal, folds: Tensor) -> tuple[Tensor, Tensor]:
        """Chooses trust and ridge, as a candidate of a blend."""
        if len(signal.y) <= DENSE_SITES:
            held_out = self._leave_one_out(signal)
        else:
            held_out = self._cross_validate(signal, folds)
        variance = self.variance_left_out(signal)
        return held_out, (variance + 1 / self.trust).sqrt()

    def predict(self, signal: SiteSignal) -> Tensor:
        """Predicts all sites, `[M, F]`."""
        trust, ridge = signal.y.new_tensor([[self.trust], [self.ridge]])
        out, residual = self._solve(signal, trust, ridge, 1e-6, 20_000)
        if residual > _TOLERANCE:
            warnings.warn(
                f'{self.name}: the residual is {residual:.1e} instead of '
                f'{_TOLERANCE:.0e}',
                ConvergenceWarning,
                stacklevel=2,
            )
        return out.squeeze(-1)

    def deviation(self, signal: SiteSignal) -> Tensor:
        r"""Posterior deviations of observations at all sites but for a factor,
        `[M]`, by the diagonal of :math:`(\mathrm{diag}(c) + \epsilon +
        P)^{-1}`.
        """
        _, unit = self._prior(signal.sites)
        variance = self._diagonal(signal, lambda probes: probes)
        variance = variance * unit.square().squeeze(1)
        return (variance.clamp(min=1e-12) + 1 / self.trust).sqrt()

    def held_out(
        self,
        signal: SiteSignal,
        folds: Tensor,
        settings: list[tuple[float, float]],
    ) -> Tensor:
        """Predicts each known site from the other folds, for settings of
        trust and ridge, `[K, F, G]`.
        """
        count = int(folds.max()) + 1
        trust, ridge = torch.tensor(settings, dtype=signal.y.dtype).T
        seen = (folds.unsqueeze(1) != torch.arange(count)).unsqueeze(-1)
        # Trusted sites dominate the residual, hence the tolerance.
        out, _ = self._solve(
            signal, (seen * trust).flatten(1), ridge.repeat(count), 1e-5, 2000
        )
        out = out[signal.known].unflatten(2, (count, len(settings)))
        return out[torch.arange(len(folds)), :, folds]

    def variance_left_out(self, signal: SiteSignal) -> Tensor:
        r"""Posterior variance of each known site without its observation,
        :math:`v / (1 - c v)` of the posterior variance :math:`v`, `[K]`.

        With strong trust :math:`1 - c v` cancels. It is estimated directly,
        as the diagonal of :math:`(\mathrm{diag}(c) + \epsilon + P)^{-1}
        (\epsilon + P)`.
        """
        system, unit = self._prior(signal.sites)
        precision = system(torch.full_like(unit, self.ridge))
        alone = self._diagonal(signal, precision)[signal.known]
        # The noise of random signs can exceed small entries.
        alone = alone.clamp(min=0.1 * float(alone.median()), max=1 - 1e-9)
        return (1 - alone) / (self.trust * alone.clamp(min=1e-12))

    def _prior(self, sites: Sites) -> tuple[System, Tensor]:
        """The system of the signal over its unit, and this unit `[M, 1]`."""
        topology, weight = sites.graphs[self.graph]
        total = degree(topology, weight.unsqueeze(1))
        mean = total.mean().clamp(min=1e-300)
        unit = torch.ones_like(total)
        if self.normalized:
            unit = (total / mean).clamp(min=1e-6).sqrt()
        weight = (weight / mean).unsqueeze(1)

        def system(diagonal: Tensor) -> LaplacianSystem:
            heads = weight.expand(-1, diagonal.size(1)).contiguous()
            confidence = (diagonal * unit.square()).unsqueeze(1)
            return LaplacianSystem.build(
                topology, heads, confidence, order=self.order
            )

        return system, unit

    def _solve(
        self,
        signal: SiteSignal,
        trust: Tensor,
        ridge: Tensor,
        tol: float,
        max_steps: int,
    ) -> tuple[Tensor, float]:
        """Signals `[M, F, G]` for settings `[K, G]` at known sites and `[G]`,
        each a head; and the relative residual.
        """
        system, unit = self._prior(signal.sites)
        y, (topology, _) = (
            signal.y.unsqueeze(-1),
            signal.sites.graphs[self.graph],
        )
        confidence = y.new_zeros((len(y), len(ridge)))
        confidence[signal.known] = trust
        step = max(1, _MAX_NUMBERS // (y.numel() + topology.num_edges))
        parts, worst = [], 0.0
        for c, epsilon in zip(
            confidence.split(step, 1), ridge.split(step), strict=True
        ):
            right = (c * unit).unsqueeze(1) * y
            out, residual, _ = conjugate_gradient(
                system(c + epsilon), right, tol, max_steps
            )
            parts.append(out * unit.unsqueeze(-1))
            worst = max(worst, residual)
        return torch.cat(parts, -1), worst

    def _diagonal(
        self, signal: SiteSignal, factor: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Diagonal of the posterior covariance, of the signal over its unit,
        times a factor, `[M]`.
        """
        system, unit = self._prior(signal.sites)
        precision = torch.full_like(unit, self.ridge)
        precision[signal.known] += self.trust
        posterior = system(precision)
        size, count = len(precision), self.num_probes
        if count is None:
            count = size if size <= _EXACT_SITES else _PROBES
        if size <= count:
            probes = torch.eye(size, dtype=torch.float64)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            signs = torch.randint(0, 2, (size, count), generator=generator)
            probes = 2.0 * signs.double() - 1
        out = torch.zeros(size, dtype=torch.float64)
        for part in probes.split(max(1, _MAX_NUMBERS // size), 1):
            right = factor(part.unsqueeze(-1))
            solved, _, _ = conjugate_gradient(posterior, right, 1e-4, 2000)
            out += (part * solved.squeeze(-1)).sum(1)
        return out if size <= count else out / count

    def _cross_validate(self, signal: SiteSignal, folds: Tensor) -> Tensor:
        """Searches the grid of settings line by line, by turns in trust and
        ridge, until the best stays; returns its held-out predictions.
        """
        best = 10.0, 0.01
        tried: dict[tuple[float, float], Tensor] = {}

        def error(setting: tuple[float, float]) -> float:
            change = tried[setting] - signal.values
            return float(change.square().mean())

        for turn in range(6):
            trust, ridge = best
            along = (TRUST, [ridge]) if turn % 2 == 0 else ([trust], RIDGE)
            line = list(product(*along))
            if new := [setting for setting in line if setting not in tried]:
                found = self.held_out(signal, folds, new)
                tried |= dict(zip(new, found.unbind(-1), strict=True))
            best = min(line, key=error)
            if best == (trust, ridge) and turn > 1:
                break
        self.trust, self.ridge = best
        return tried[best]

    def _leave_one_out(self, signal: SiteSignal) -> Tensor:
        """Searches the whole grid of settings, each known site left out in
        closed form; returns the best predictions.
        """
        system, unit = self._prior(signal.sites)
        eye = torch.eye(len(unit), dtype=unit.dtype).unsqueeze(-1)
        precision = system(torch.zeros_like(unit))(eye).squeeze(-1)
        size, modes = torch.linalg.eigh(precision / unit / unit.T)
        modes, size = modes[signal.known], size.clamp(min=0)
        values = signal.values
        best, out = math.inf, values
        for ridge in RIDGE:
            # Covariances of the known sites, with noise of variance 1 / trust.
            covariance = (modes / (size + ridge)) @ modes.T
            scale, basis = torch.linalg.eigh(covariance)
            turned = basis.T @ values
            for trust in TRUST:
                inverse = 1 / (scale.clamp(min=0) + 1 / trust).unsqueeze(1)
                change = basis @ (inverse * turned) / (basis.square() @ inverse)
                error = float(change.square().mean())
                if error < best:
                    best, out = error, values - change
                    self.trust, self.ridge = trust, ridge
        return out
