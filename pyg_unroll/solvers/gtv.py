"""Graph total variation, to a certified tolerance."""

from typing import Any

import torch
from torch import Tensor

from pyg_unroll.checks import check_parameters
from pyg_unroll.ops.admm import TotalVariation
from pyg_unroll.solvers.conjugate_gradient import conjugate_gradient
from pyg_unroll.solvers.problem import (
    CHECKS,
    Parts,
    SmoothnessProblem,
    SolverResult,
    check_range,
)

# Iterations between looks at the duality gap and the balance of residuals.
_CHECK_EVERY = 10


def gtv(
    x: Tensor,
    edge_index: Any,
    edge_weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    confidence: Tensor | None = None,
    fidelity: str = 'hard',
    mu: float | Tensor = 1.0,
    tol: float = 1e-4,
    max_steps: int = 5_000,
    fill: float | str | None = None,
) -> SolverResult:
    r"""Minimises graph total variation to a certified tolerance.

    The exact twin of :class:`~pyg_unroll.nn.GTVConv` with one head: with a
    mask and :obj:`fidelity='hard'`

    .. math::
        \arg\min_{\mathbf{z}} \sum_{\{i,j\}} w_{ij} |z_i - z_j| \quad
        \textrm{s.t.} \quad \mathbf{z}_{\textrm{known}} =
        \mathbf{x}_{\textrm{known}},

    otherwise :math:`\arg\min_{\mathbf{z}} \sum_i c_i (z_i - x_i)^2 + \mu
    \sum_{\{i,j\}} w_{ij} |z_i - z_j|`, by ADMM in float64 with a penalty that
    balances primal and dual residual. It stops by the duality gap: the
    objective is proven to be within :obj:`tol`, relatively, of the optimum,
    that of each feature and connected component.
    The minimiser need not be unique.

    Args:
        x (torch.Tensor): Node signals :math:`(N, F)`; unknown entries are
            ignored and may be NaN.
        edge_index (torch.Tensor, EdgeIndex, SparseTensor or Topology): The
            undirected graph.
        edge_weight (torch.Tensor, optional): See :func:`glr`.
        mask (torch.Tensor, optional): See :func:`glr`.
        confidence (torch.Tensor, optional): See :func:`glr`.
        fidelity (str, optional): See :func:`glr`.
        mu (float or torch.Tensor, optional): See :func:`glr`.
        tol (float, optional): Tolerance of the duality gap relative to the
            objective, for each feature and connected component.
            (default: :obj:`1e-4`)
        max_steps (int, optional): Largest number of iterations.
            (default: :obj:`5000`)
        fill (float or str, optional): See :func:`glr`.

    Returns:
        :class:`SolverResult`, in the type of :obj:`x`.

    Raises:
        ValueError: If an argument has a wrong shape, type or value, nodes
            cannot be interpolated, or an argument requires gradients.

    Warns:
        ConvergenceWarning: If the tolerance was not reached.
    """
    check_parameters(CHECKS, locals())
    problem = SmoothnessProblem.read(
        x, edge_index, edge_weight, mask, confidence, fidelity, mu, fill
    )
    weights = 'edge_index' if edge_weight is None else 'edge_weight'
    given = {
        'x': problem.signal.x,
        weights: problem.weight,
        'confidence': problem.signal.confidence,
        'mu': problem.mu,
    }
    for name, value in given.items():
        learns = value is not None and value.requires_grad
        if learns and torch.is_grad_enabled():
            raise ValueError(
                f"{name!r} requires gradients, but 'gtv' is not "
                f"differentiable; use 'GTVConv' to learn, or call it under "
                f"'torch.no_grad()'"
            )
    if problem.signal.confidence is not None and problem.start.numel():
        size, *factors = problem.sizes
        name = "'mu' times 'edge_weight' over 'x'"
        check_range(name, 1 / size if size else 0.0, *factors)
    out, gap, num_steps = _solve(problem, tol, max_steps)
    return problem.result('gtv', out, gap, num_steps, tol)


@torch.no_grad()
def _solve(
    problem: SmoothnessProblem, tol: float, max_steps: int
) -> tuple[Tensor, float, int]:
    if problem.start.numel() == 0:
        return problem.start, 0.0, 0
    topology, signal, start = problem.topology, problem.signal, problem.start
    nodes = Parts.of(problem.part)
    edges = nodes._replace(number=problem.part[topology.src.long()])
    weight = problem.weight.unsqueeze(1)
    if nodes.total > 1:  # each starts from its own mean
        trust = torch.zeros_like(start)
        trust = (
            trust if signal.confidence is None else trust + signal.confidence
        )
        if signal.free is not None:
            trust = torch.where(signal.free, trust, 1)
        start = torch.where(trust > 0, start, nodes.center(trust, signal.x)[0])
    # At unit scale, one initial penalty suits all problems.
    low, high = nodes.reduce(start, 'amin'), nodes.reduce(start, 'amax')
    middle, size = nodes.spread((low + high) / 2), nodes.spread(high - low)
    size = torch.where(size > 0, size, 1)
    unit = torch.ones_like(low[:, :1])
    if topology.num_edges:
        heaviest = edges.reduce(weight, 'amax')
        unit = torch.where(heaviest > 0, heaviest, unit)
    variation = TotalVariation(
        topology,
        (weight / edges.spread(unit)).squeeze(1),
        (signal.x - middle) / size,
        signal.confidence,
        signal.free,
        problem.mu * nodes.spread(unit) / size,
    )
    x = (start - middle) / size
    rho = torch.full_like(size[0], 4.0)
    flow = variation.gradient(x)
    dual = torch.zeros_like(flow)
    system = variation.system(rho)
    parts = nodes, edges
    gap, num_steps = _gap(variation, x, flow, dual, *parts), 0

    def solve(x: Tensor, residual: Tensor) -> Tensor:
        return x + conjugate_gradient(system, residual, 0.1, 50)[0]

    while num_steps < max_steps and gap > tol:
        for _ in range(min(_CHECK_EVERY, max_steps - num_steps)):
            old_flow, old_dual = flow, dual
            x, flow, dual = variation.iterate(x, flow, dual, rho, solve, system)
            num_steps += 1
        gap = _gap(variation, x, flow, dual, *parts)
        # Keep primal and dual residuals alike, by ever smaller moves of the
        # penalty, so that ADMM converges.
        primal = (dual - old_dual).norm(dim=0) / rho
        change = (flow - old_flow).norm(dim=0)
        factor = 1 + 1 / (1 + num_steps / 100)
        rho = torch.where(primal > 3 * change, rho * factor, rho)
        rho = torch.where(change > 3 * primal, rho / factor, rho)
        system = variation.system(rho)
    return x * size + middle, gap, num_steps


def _gap(
    variation: TotalVariation,
    x: Tensor,
    flow: Tensor,
    dual: Tensor,
    nodes: Parts,
    edges: Parts,
) -> float:
    r"""Largest relative duality gap over features and components.

    For any :math:`|p| \le 1` with :math:`q = B^{\top} W p`, no objective is
    smaller than :math:`\min_z \sum_i c_i (z_i - y_i)^2 / \mu + q_i z_i`, with
    :math:`z` between the smallest and the largest observation.
    """
    dual = dual.clamp(-1, 1)
    q = variation.divergence(dual)
    y = variation.observed.expand_as(x)
    low, high = x.new_tensor(-0.5), x.new_tensor(0.5)
    best = torch.where(q > 0, low, high)
    fit = bound = torch.zeros_like(x)
    if variation.confidence is not None:
        c = (variation.confidence / variation.mu).expand_as(x)
        inner = y - q / (2 * torch.where(c > 0, c, 1))
        best = torch.where(c > 0, inner.clamp(low, high), best)
        fit, bound = c * (x - y).square(), c * (best - y).square()
    if variation.free is not None:  # entries that are held have no c
        best = torch.where(variation.free, best, y)
    primal = nodes.reduce(fit, 'sum') + edges.reduce(flow.abs(), 'sum')
    dual_value = nodes.reduce(bound + q * best, 'sum')
    # Large weights that cancel leave an error of rounding.
    noise = variation.weight.unsqueeze(1) * dual.abs()
    noise = 4 * torch.finfo(x.dtype).eps * edges.reduce(noise, 'sum')
    gap = primal - dual_value + noise
    return float(torch.where(gap == 0, 0, gap / primal).max())
