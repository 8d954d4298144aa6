"""Candidates by smoothness on a graph, tuned by cross-validation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_unroll.estimators.inputs import GraphName, Sites
from pyg_unroll.graph import Topology
from pyg_unroll.ops import degree
from pyg_unroll.ops.system import LaplacianSystem
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


@dataclass
class _Prior:
    """The prior `L`, or `L D^-1 L` of order 2, of a graph of mean degree one
    for the signal over its unit `[M, 1]`.
    """

    topology: Topology
    weight: Tensor
    unit: Tensor
    order: int

    def system(self, diagonal: Tensor) -> LaplacianSystem:
        """The prior plus a diagonal `[M, G]` of the signal itself."""
        return LaplacianSystem.build(
            self.topology,
            self.weight.unsqueeze(1).expand(-1, diagonal.size(1)).contiguous(),
            (diagonal * self.unit.square()).unsqueeze(1),
            None,
            self.order,
        )

    def solve(
        self,
        y: Tensor,
        confidence: Tensor,
        ridge: Tensor,
        tol: float,
        max_steps: int,
    ) -> tuple[Tensor, float]:
        """Signals `[M, F, G]` from observations `[M, F]` for settings
        `[M, G]` and `[G]`, each a head; and the relative residual.
        """
        per_setting = max(y.numel() + self.weight.numel(), 1)
        step = max(1, _MAX_NUMBERS // per_setting)
        parts, worst = [], 0.0
        for c, epsilon in zip(
            confidence.split(step, 1), ridge.split(step), strict=True
        ):
            out, residual, _ = conjugate_gradient(
                self.system(c + epsilon),
                (c * self.unit).unsqueeze(1) * y.unsqueeze(-1),
                tol,
                max_steps,
            )
            parts.append(out * self.unit.unsqueeze(-1))
            worst = max(worst, residual)
        return torch.cat(parts, -1), worst


@dataclass
class GraphSmoother:
    r"""The minimiser of :math:`\sum_i c_i (x_i - y_i)^2 + \epsilon \|x\|^2 +
    x^{\top} P x` for the prior :math:`P` of a graph: :math:`L`, or :math:`L
    D^{-1} L` of order 2, with :math:`L` symmetrically normalised or not.

    At known sites :math:`c` is :obj:`trust`; :obj:`ridge` is
    :math:`\epsilon`. Posterior variances are exact up to :obj:`num_probes`
    sites, else Hutchinson's estimates from so many random signs.
    """

    graph: GraphName
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

    def tune(
        self, sites: Sites, known: Tensor, y: Tensor, folds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Chooses trust and ridge; returns held-out predictions `[K, F]` and
        their deviations `[K]`.
        """
        if len(y) <= DENSE_SITES:
            held_out = self._leave_one_out(sites, known, y)
        else:
            held_out = self._cross_validate(sites, known, y, folds)
        variance = self.variance_left_out(sites, known)
        return held_out, (variance + 1 / self.trust).sqrt()

    def predict(self, sites: Sites, known: Tensor, y: Tensor) -> Tensor:
        """Predicts all sites, `[M, F]`."""
        confidence = y.new_zeros((y.size(0), 1))
        confidence[known] = self.trust
        out, residual = self._prior(sites).solve(
            y, confidence, y.new_tensor([self.ridge]), 1e-6, 20_000
        )
        if residual > _TOLERANCE:
            warnings.warn(
                f'{self.name}: the residual is {residual:.1e} instead of '
                f'{_TOLERANCE:.0e}',
                ConvergenceWarning,
                stacklevel=2,
            )
        return out.squeeze(-1)

    def deviation(self, sites: Sites, known: Tensor, y: Tensor) -> Tensor:
        r"""Posterior deviations of observations at all sites but for a factor,
        `[M]`, by the diagonal of :math:`(\mathrm{diag}(c) + \epsilon +
        P)^{-1}`.
        """
        prior = self._prior(sites)
        system, _ = self._posterior(prior, known)
        variance = self._diagonal(system, lambda probes: probes)
        variance = variance * prior.unit.square().squeeze(1)
        return (variance.clamp(min=1e-12) + 1 / self.trust).sqrt()

    def held_out(
        self,
        sites: Sites,
        known: Tensor,
        y: Tensor,
        folds: Tensor,
        settings: list[tuple[float, float]],
    ) -> Tensor:
        """Predicts each known site from the other folds, for settings of
        trust and ridge, `[K, F, G]`.
        """
        count = int(folds.max()) + 1
        trust, ridge = torch.tensor(settings, dtype=y.dtype).T
        seen = (folds.unsqueeze(1) != torch.arange(count)).to(y.dtype)
        confidence = y.new_zeros((y.size(0), count, len(settings)))
        confidence[known] = seen.unsqueeze(-1) * trust
        out, _ = self._prior(sites).solve(
            y,
            confidence.flatten(1),
            ridge.repeat(count),
            tol=1e-5,  # of a residual that trusted sites dominate
            max_steps=2000,
        )
        out = out[known].unflatten(2, (count, len(settings)))
        return out[torch.arange(len(known)), :, folds]

    def variance_left_out(self, sites: Sites, known: Tensor) -> Tensor:
        r"""Posterior variance of each known site without its observation,
        :math:`v / (1 - c v)` of the posterior variance :math:`v`, `[K]`.

        With strong trust :math:`1 - c v` cancels. It is estimated directly,
        as the diagonal of :math:`(\mathrm{diag}(c) + \epsilon + P)^{-1}
        (\epsilon + P)`.
        """
        system, precision = self._posterior(self._prior(sites), known)
        alone = self._diagonal(system, precision)[known]
        # The noise of random signs can exceed small entries.
        alone = alone.clamp(min=0.1 * float(alone.median()), max=1 - 1e-9)
        return (1 - alone) / (self.trust * alone.clamp(min=1e-12))

    def _prior(self, sites: Sites) -> _Prior:
        topology, weight = sites.graphs[self.graph]
        total = degree(topology, weight.unsqueeze(1))
        mean = total.mean().clamp(min=1e-300)
        unit = torch.ones_like(total)
        if self.normalized:
            unit = (total / mean).clamp(min=1e-6).sqrt()
        return _Prior(topology, weight / mean, unit, self.order)

    def _posterior(
        self, prior: _Prior, known: Tensor
    ) -> tuple[LaplacianSystem, LaplacianSystem]:
        """Precisions of posterior and prior, of the signal over its unit."""
        trust = torch.zeros_like(prior.unit)
        trust[known] = self.trust
        ridge = torch.full_like(trust, self.ridge)
        return prior.system(trust + ridge), prior.system(ridge)

    def _diagonal(
        self, system: LaplacianSystem, factor: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Diagonal of the system's inverse times a factor, `[M]`."""
        size, count = system.topology.num_nodes, self.num_probes
        if count is None:
            count = size if size <= _EXACT_SITES else _PROBES
        if size <= count:
            probes = torch.eye(size, dtype=torch.float64)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            signs = torch.randint(0, 2, (size, count), generator=generator)
            probes = 2.0 * signs.double() - 1
        out = torch.zeros(size, dtype=torch.float64)
        width = max(1, _MAX_NUMBERS // size)
        for part in probes.split(width, 1):
            solved, _, _ = conjugate_gradient(
                system, factor(part.unsqueeze(-1)), 1e-4, 2000
            )
            out += (part * solved.squeeze(-1)).sum(1)
        return out if size <= count else out / count

    def _cross_validate(
        self, sites: Sites, known: Tensor, y: Tensor, folds: Tensor
    ) -> Tensor:
        """Searches the grid of settings line by line, by turns in trust and
        ridge, until the best stays; returns its held-out predictions.
        """
        row, col = TRUST.index(10.0), RIDGE.index(0.01)
        tried: dict[tuple[int, int], Tensor] = {}

        def error(cell: tuple[int, int]) -> float:
            return float((tried[cell] - y[known]).square().mean())

        for turn in range(6):
            line = [
                (k, col) if turn % 2 == 0 else (row, k)
                for k in range(len(RIDGE if turn % 2 else TRUST))
            ]
            new = [cell for cell in line if cell not in tried]
            if new:
                values = [(TRUST[i], RIDGE[j]) for i, j in new]
                found = self.held_out(sites, known, y, folds, values)
                tried |= dict(zip(new, found.unbind(-1), strict=True))
            best = min(line, key=error)
            if best == (row, col) and turn > 1:
                break
            row, col = best
        self.trust, self.ridge = TRUST[row], RIDGE[col]
        return tried[row, col]

    def _leave_one_out(self, sites: Sites, known: Tensor, y: Tensor) -> Tensor:
        """Searches the whole grid of settings, each known site left out in
        closed form; returns the best predictions.
        """
        prior, eye = self._prior(sites), torch.eye(len(y), dtype=y.dtype)
        precision = prior.system(torch.zeros_like(prior.unit))(
            eye.unsqueeze(-1)
        ).squeeze(-1)
        unit = prior.unit.squeeze(1)
        best, out = math.inf, y[known]
        for trust in TRUST:
            c = y.new_zeros(len(y))
            c[known] = trust
            for ridge in RIDGE:
                matrix = precision + torch.diag((c + ridge) * unit.square())
                inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
                inverse = unit.unsqueeze(1) * inverse * unit
                fitted = (inverse @ (c.unsqueeze(1) * y))[known]
                share = 1 - trust * inverse.diagonal()[known]
                share = share.clamp(min=1e-9).unsqueeze(1)
                change = (y[known] - fitted) / share
                error = float(change.square().mean())
                if error < best:
                    best, out = error, y[known] - change
                    self.trust, self.ridge = trust, ridge
        return out
