"""Graph smoothers whose strength is chosen on known nodes held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops import degree
from pyg_unroll.ops.system import LaplacianSystem
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient

# Trust in observations, and pull towards the mean, in units of a node's degree.
TRUST = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4)
RIDGE = (1e-8, 1e-5, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)

# Nodes up to which systems are inverted instead, every known node its own fold.
DENSE_NODES = 500

# Numbers that one solve works on: many settings at once as heads.
_MAX_NUMBERS = 2**24


@dataclass
class Smoother:
    r"""The minimiser of :math:`\sum_i c_i (x_i - y_i)^2 + \epsilon \|x\|^2 +
    x^{\top} P x` for the prior :math:`P` of a graph, of order 1 or 2.

    Attributes:
        topology (Topology): The graph.
        weight (torch.Tensor): Weights with a mean degree of one, float64
            :math:`(E)`.
        order (int): 1 for :math:`P = L`, 2 for :math:`L D^{-1} L`.
        unit (torch.Tensor): What the signal is smooth relative to,
            :math:`(N, 1)`: one, or the square roots of the degrees, which
            makes the Laplacian the symmetrically normalised one.
        trust (float): :math:`c` at known nodes.
        ridge (float): :math:`\epsilon`.
    """

    topology: Topology
    weight: Tensor
    order: int
    unit: Tensor
    trust: float = 1e2
    ridge: float = 1e-3

    @classmethod
    def build(
        cls, topology: Topology, weight: Tensor, order: int, normalized: bool
    ) -> Smoother:
        """Scales the weights."""
        total = degree(topology, weight.unsqueeze(1))
        mean = total.mean().clamp(min=1e-300)
        unit = torch.ones_like(total)
        if normalized:
            unit = (total / mean).clamp(min=1e-6).sqrt()
        return cls(topology, weight / mean, order, unit)

    def _system(self, diagonal: Tensor) -> LaplacianSystem:
        """The system of the signal over its unit; diagonal `[N, G]`."""
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
        r"""Solves for several settings at once, each a head.

        Args:
            y (torch.Tensor): Observations :math:`(N, F)`.
            confidence (torch.Tensor): :math:`c`, :math:`(N, G)`.
            ridge (torch.Tensor): :math:`\epsilon`, :math:`(G)`.
            tol (float): Relative residual.
            max_steps (int): Largest number of steps.

        Returns:
            Signals :math:`(N, F, G)` and the residual that was reached.
        """
        settings = ridge.numel()
        per_setting = max(y.numel() + self.weight.numel(), 1)
        step = max(1, _MAX_NUMBERS // per_setting)
        parts, worst = [], 0.0
        for first in range(0, settings, step):
            chosen = slice(first, first + step)
            c = confidence[:, chosen]
            out, residual, _ = conjugate_gradient(
                self._system(c + ridge[chosen]),
                (c * self.unit).unsqueeze(1) * y.unsqueeze(-1),
                tol,
                max_steps,
            )
            parts.append(out * self.unit.unsqueeze(-1))
            worst = max(worst, residual)
        return torch.cat(parts, -1), worst

    def held_out(
        self,
        y: Tensor,
        known: Tensor,
        folds: Tensor,
        settings: list[tuple[float, float]],
    ) -> Tensor:
        r"""Predicts each known node from the other folds.

        Args:
            y (torch.Tensor): Observations :math:`(N, F)`.
            known (torch.Tensor): Indices of known nodes :math:`(K)`.
            folds (torch.Tensor): Fold of each of them :math:`(K)`.
            settings (list[tuple[float, float]]): Trust and ridge.

        Returns:
            Predictions :math:`(K, F, G)`, one per setting.
        """
        count = int(folds.max()) + 1
        trust, ridge = torch.tensor(settings, dtype=y.dtype).T
        seen = (folds.unsqueeze(1) != torch.arange(count)).to(y.dtype)
        confidence = y.new_zeros((y.size(0), count, len(settings)))
        confidence[known] = seen.unsqueeze(-1) * trust
        out, _ = self.solve(
            y,
            confidence.flatten(1),
            ridge.repeat(count),
            tol=1e-5,  # of a residual that trusted nodes dominate
            max_steps=2000,
        )
        out = out[known].unflatten(2, (count, len(settings)))
        return out[torch.arange(len(known)), :, folds]

    def tune(self, y: Tensor, known: Tensor, folds: Tensor) -> Tensor:
        """Chooses trust and ridge; returns the predictions held out,
        :math:`(K, F)`.
        """
        if self.topology.num_nodes <= DENSE_NODES:
            return self._tune_dense(y, known)
        row, col = TRUST.index(10.0), RIDGE.index(0.01)
        tried: dict[tuple[int, int], Tensor] = {}

        def error(place: tuple[int, int]) -> float:
            return float((tried[place] - y[known]).square().mean())

        # One line of the grid after the other, until nothing moves.
        for turn in range(6):
            line = [
                (k, col) if turn % 2 == 0 else (row, k)
                for k in range(len(RIDGE if turn % 2 else TRUST))
            ]
            new = [place for place in line if place not in tried]
            if new:
                values = [(TRUST[i], RIDGE[j]) for i, j in new]
                found = self.held_out(y, known, folds, values)
                tried |= dict(zip(new, found.unbind(-1), strict=True))
            best = min(line, key=error)
            if best == (row, col) and turn > 1:
                break
            row, col = best
        self.trust, self.ridge = TRUST[row], RIDGE[col]
        return tried[row, col]

    def _tune_dense(self, y: Tensor, known: Tensor) -> Tensor:
        """Tries the whole grid; each known node is left out on its own, in
        closed form.
        """
        size = len(y)
        eye = torch.eye(size, dtype=y.dtype)
        prior = self._system(eye.new_zeros((size, 1)))(eye.unsqueeze(-1))
        prior = prior.squeeze(-1)
        unit = self.unit.squeeze(1)
        best, out = math.inf, y[known]
        for trust in TRUST:
            c = y.new_zeros(size)
            c[known] = trust
            for ridge in RIDGE:
                matrix = prior + torch.diag((c + ridge) * unit.square())
                inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
                inverse = unit.unsqueeze(1) * inverse * unit
                fitted = (inverse @ (c.unsqueeze(1) * y))[known]
                share = 1 - trust * inverse.diagonal()[known]
                change = (y[known] - fitted) / share.clamp(min=1e-9).unsqueeze(
                    1
                )
                error = float(change.square().mean())
                if error < best:
                    best, out = error, y[known] - change
                    self.trust, self.ridge = trust, ridge
        return out

    def predict(self, y: Tensor, known: Tensor) -> tuple[Tensor, float]:
        """The signal at all nodes :math:`(N, F)`, and the residual."""
        confidence = y.new_zeros((y.size(0), 1))
        confidence[known] = self.trust
        ridge = y.new_tensor([self.ridge])
        out, residual = self.solve(y, confidence, ridge, 1e-6, 20_000)
        return out.squeeze(-1), residual

    def variance(self, known: Tensor, num_probes: int, seed: int = 0) -> Tensor:
        r"""Diagonal of the posterior covariance :math:`(\mathrm{diag}(c) +
        \epsilon + P)^{-1}`, :math:`(N)`.

        Exact up to :obj:`num_probes` nodes, else by Hutchinson's estimator
        with so many random signs.
        """
        system, _ = self._posterior(known)
        out = _diagonal(system, lambda probes: probes, num_probes, seed)
        return out * self.unit.square().squeeze(1)

    def variance_left_out(
        self, known: Tensor, num_probes: int, seed: int = 0
    ) -> Tensor:
        r"""Variance that each known node would have without its observation,
        :math:`(K)`: :math:`v / (1 - c v)` for the posterior variance
        :math:`v`.

        With strong trust :math:`1 - c v` is tiny. As the diagonal of
        :math:`(\mathrm{diag}(c) + \epsilon + P)^{-1} (\epsilon + P)` it is
        estimated itself, not as a difference.
        """
        system, prior = self._posterior(known)
        alone = _diagonal(system, prior, num_probes, seed)[known]
        # Random signs leave some noise, around zero where it matters least.
        alone = alone.clamp(min=0.1 * float(alone.median()), max=1 - 1e-9)
        return (1 - alone) / (self.trust * alone.clamp(min=1e-12))

    def _posterior(
        self, known: Tensor
    ) -> tuple[LaplacianSystem, LaplacianSystem]:
        """Posterior precision and the part of the prior, of the signal over
        its unit.
        """
        trust = self.weight.new_zeros((self.topology.num_nodes, 1))
        trust[known] = self.trust
        ridge = torch.full_like(trust, self.ridge)
        return self._system(trust + ridge), self._system(ridge)


def _diagonal(
    system: LaplacianSystem,
    factor: Callable[[Tensor], Tensor],
    num_probes: int,
    seed: int,
) -> Tensor:
    """Diagonal of the system's inverse times a factor, :math:`(N)`."""
    size = system.topology.num_nodes
    if size <= num_probes:
        probes = torch.eye(size, dtype=torch.float64)
    else:
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (size, num_probes), generator=generator)
        probes = 2.0 * signs.double() - 1
    out = torch.zeros(size, dtype=torch.float64)
    width = max(1, _MAX_NUMBERS // size)
    for part in probes.split(width, 1):
        solved, _, _ = conjugate_gradient(
            system, factor(part.unsqueeze(-1)), 1e-4, 2000
        )
        out += (part * solved.squeeze(-1)).sum(1)
    return out if size <= num_probes else out / num_probes
