"""Solvers that say that they have converged, at weights of any size, by
rational arithmetic.

`CERTIFICATES=2000 pytest tests/solvers/test_certificates.py` takes so many
graphs of each kind.
"""

import os
import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data
from torch_geometric.testing import withPackage

from pyg_unroll import KNNGraph
from pyg_unroll.solvers import ConvergenceWarning, glr, gtv

GRAPHS = int(os.environ.get('CERTIFICATES', '40'))
TOL = 1e-8


class Problem:
    """A random graph of one or several components, whose signals have sizes of
    their own, and whose weights and `mu` span many orders of magnitude.
    """

    def __init__(self, chance, kind, spread, log_mu, most=20):
        size = self.size = int(chance.integers(2, most))
        order = chance.permutation(size)
        path = np.stack([order[:-1], order[1:]])
        extra = chance.integers(size, size=(2, chance.integers(0, 2 * size)))
        if chance.random() < 0.3:
            path, extra = path[:, chance.random(size - 1) < 0.8], extra[:, :0]
        pairs = np.sort(np.concatenate([path, extra], 1), 0)
        self.pairs = np.unique(pairs[:, pairs[0] < pairs[1]], axis=1)
        weight = 10 ** chance.uniform(-spread, spread, self.pairs.shape[1])
        self.weight, self.mu = weight, 10.0**log_mu
        links = sp.coo_array((weight, self.pairs), shape=(size, size))
        self.part = sp.csgraph.connected_components(links, False)[1]
        level = 10.0 ** chance.integers(-3, 4, size)[self.part]
        self.x = 20 * chance.integers(2) + level * chance.normal(size=size)
        self.hard = kind == 'hard'
        self.trust = np.ones(size)
        if kind != 'all':
            first = np.unique(self.part, return_index=True)[1]
            seen = np.isin(np.arange(size), first) | (chance.random(size) < 0.3)
            self.trust = seen.astype(float)
        if kind == 'soft':
            self.trust *= 10 ** chance.uniform(-spread, spread, size)

    def solve(self, x=None, solver=glr, tol=TOL, **kwargs):
        pairs = torch.from_numpy(self.pairs)
        x = torch.from_numpy(self.x).unsqueeze(1) if x is None else x
        trust = torch.from_numpy(self.trust)
        known = trust > 0
        if not self.hard:
            kwargs |= {'fidelity': 'soft', 'confidence': trust, 'mu': self.mu}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ConvergenceWarning)
            return solver(
                torch.where(known.unsqueeze(1), x, torch.nan),
                torch.cat([pairs, pairs.flip(0)], 1),
                torch.from_numpy(self.weight).repeat(2),
                None if known.all() and not self.hard else known,
                tol=tol,
                **kwargs,
            )

    def exact(self):
        """By elimination of rational numbers."""
        size, known = self.size, self.trust > 0
        matrix = [[Fraction(0)] * (size + 1) for _ in range(size)]
        weight = [Fraction(w) for w in self.weight.tolist()]
        for (i, j), w in zip(self.pairs.T.tolist(), weight, strict=True):
            for a, b in ((i, j), (j, i)):
                matrix[a][a] += w
                matrix[a][b] -= w
        # As floating-point numbers have them: weights relative to mu.
        trust = [Fraction(c / self.mu) for c in self.trust.tolist()]
        for i, x in enumerate(map(Fraction, self.x.tolist())):
            if self.hard and known[i]:
                matrix[i] = [Fraction(0)] * (size + 1)
                matrix[i][i], matrix[i][-1] = Fraction(1), x
            elif not self.hard:
                matrix[i][i] += trust[i]
                matrix[i][-1] = trust[i] * x
        for k, row in enumerate(matrix):
            for other in matrix[k + 1 :]:
                if factor := other[k] / row[k]:
                    for j in range(k, size + 1):
                        other[j] -= factor * row[j]
        x = [Fraction(0)] * size
        for k in reversed(range(size)):
            rest = sum(matrix[k][j] * x[j] for j in range(k + 1, size))
            x[k] = (matrix[k][-1] - rest) / matrix[k][k]
        return x

    def error(self, found):
        """Largest error, relative to the range of its component and what
        rounding leaves of its values.
        """
        exact, worst = self.exact(), 0.0
        known = self.trust > 0
        for part in np.unique(self.part):
            inside = self.part == part
            x = self.x[inside & known]
            weight = None if self.hard else self.trust[inside & known]
            middle = np.average(x, weights=weight)
            size = np.abs(x - middle).max() + 1e-7 * np.abs(x).max()
            for i in np.flatnonzero(inside):
                change = Fraction(float(found[i])) - exact[i]
                worst = max(worst, abs(float(change)) / size)
        return worst


def check(kind, spread, log_mu, seed, **kwargs):
    """Errors of converged results; returns how many there are not."""
    alarms = 0
    for number in range(GRAPHS):
        chance = np.random.default_rng((seed, number))
        # The corners are as likely as what is between.
        choice = chance.uniform(-1, 1), *chance.integers(-1, 2, 2)
        log = log_mu * (choice[0] if choice[2] else choice[1])
        size = spread * (abs(choice[0]) if choice[2] > 0 else 1)
        problem = Problem(chance, kind, size, log)
        result = problem.solve(**kwargs)
        alarms += not result.converged
        if result.converged:
            error = problem.error(result.x[:, 0])
            assert error <= 10 * TOL, (number, error)
    return alarms


@pytest.mark.parametrize('kind', ['all', 'soft', 'hard'])
def test_any_weights(kind):
    assert check(kind, 12, 9, seed=0) <= GRAPHS / 100


@pytest.mark.parametrize('kind', ['all', 'soft', 'hard'])
def test_ordinary_weights(kind):
    assert check(kind, 1, 2, seed=1) == 0


@pytest.mark.parametrize('preconditioner', ['jacobi', 'amg'])
def test_mean_of_close_points(preconditioner):
    # 1'(I + mu L) z = 1'x: the mean stays.
    if preconditioner == 'amg':
        pytest.importorskip('pyamg')
    data = Data(pos=0.01 * torch.rand(400, 2, dtype=torch.float64))
    topology = KNNGraph(6).topology(data)
    ends = data.pos[torch.stack([topology.src, topology.dst]).long()]
    weight = 1 / (ends[0] - ends[1]).square().sum(1)
    x = 20 + torch.randn(400, 1).double()
    result = glr(x, topology, weight, preconditioner=preconditioner)
    assert result.converged
    assert abs(float(result.x.mean() - x.mean())) < 1e-9


@pytest.mark.parametrize('kind', ['all', 'soft', 'hard'])
def test_derivatives_at_any_weights(kind):
    # Those of a weighted sum of the solution, which is linear in the signal.
    for seed in range(10):
        problem = Problem(np.random.default_rng(seed), kind, 6, 0, 12)
        x = torch.from_numpy(problem.x).unsqueeze(1).requires_grad_()
        factor = torch.linspace(-1, 2, problem.size).double()
        found = problem.solve(x=x).x[:, 0]
        (grad,) = torch.autograd.grad((factor * found).sum(), x)
        rows = []
        for k in range(problem.size):
            problem.x = np.eye(problem.size)[k]
            rows.append([float(value) for value in problem.exact()])
        expected = torch.tensor(rows).double() @ factor
        close = expected.abs().max() * 1e-6
        torch.testing.assert_close(grad[:, 0], expected, rtol=0, atol=close)


@withPackage('pyamg')
@pytest.mark.parametrize('kind', ['all', 'soft', 'hard'])
def test_multigrid(kind):
    assert check(kind, 12, 9, seed=2, preconditioner='amg') <= GRAPHS / 100


def smallest_variation(problem, part):
    """Of one component, by all cuts between its known values (Coarea)."""
    nodes = np.flatnonzero(problem.part == part)
    known = problem.trust[nodes] > 0
    inside = np.isin(problem.pairs[0], nodes)
    ends = np.searchsorted(nodes, problem.pairs[:, inside])
    weight = [Fraction(w) for w in problem.weight[inside].tolist()]
    levels = np.unique(problem.x[nodes][known]).tolist()
    above = np.zeros((2 ** int((~known).sum()), len(nodes)), bool)
    choices = np.arange(len(above))[:, None]
    above[:, ~known] = choices >> np.arange((~known).sum()) & 1
    total = Fraction(0)
    for low, high in pairwise(levels):
        above[:, known] = problem.x[nodes][known] > low
        cut = above[:, ends[0]] ^ above[:, ends[1]]
        values = (
            sum((w for w, c in zip(weight, row, strict=True) if c), Fraction(0))
            for row in cut.tolist()
        )
        total += (Fraction(high) - Fraction(low)) * min(values)
    return total


@pytest.mark.parametrize('spread', [0.5, 2, 12])
def test_total_variation(spread):
    alarms = 0
    for number in range(GRAPHS):
        chance = np.random.default_rng((number, 3))
        problem = Problem(chance, 'hard', spread, 0, 9)
        result = problem.solve(solver=gtv, tol=1e-4, max_steps=500)
        alarms += not result.converged
        x = list(map(Fraction, result.x[:, 0].tolist()))
        for part in np.unique(problem.part) if result.converged else ():
            found = sum(
                Fraction(w) * abs(x[i] - x[j])
                for w, (i, j) in zip(
                    problem.weight.tolist(), problem.pairs.T, strict=True
                )
                if problem.part[i] == part
            )
            best = smallest_variation(problem, part)
            assert best <= found <= best * Fraction(1 + 1e-4), number
    assert spread > 1 or not alarms
