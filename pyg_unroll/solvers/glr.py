"""The graph Laplacian regulariser, to a tolerance."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.checks import check_parameters, one_of
from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.solvers.conjugate_gradient import ImplicitSolve, Settings
from pyg_unroll.solvers.multigrid import multigrid
from pyg_unroll.solvers.problem import (
    CHECKS,
    SmoothnessProblem,
    SolverResult,
    settle,
)

_CHECKS = {
    **CHECKS,
    'order': one_of(1, 2),
    'preconditioner': one_of('jacobi', 'amg'),
}


def glr(
    x: Tensor,
    edge_index: Any,
    edge_weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    order: int = 1,
    confidence: Tensor | None = None,
    fidelity: str = 'hard',
    mu: float | Tensor = 1.0,
    fill: float | str | None = None,
    tol: float = 1e-8,
    max_steps: int = 10_000,
    preconditioner: str = 'jacobi',
) -> SolverResult:
    r"""Minimises the graph Laplacian regulariser to a tolerance.

    The exact twin of :class:`~pyg_unroll.nn.GLRConv` with one head: with a
    mask and :obj:`fidelity='hard'`

    .. math::
        \arg\min_{\mathbf{z}} \mathbf{z}^{\top} \mathbf{L} \mathbf{z} \quad
        \textrm{s.t.} \quad \mathbf{z}_{\textrm{known}} =
        \mathbf{x}_{\textrm{known}},

    otherwise :math:`\arg\min_{\mathbf{z}} \sum_i c_i (z_i - x_i)^2 + \mu
    \mathbf{z}^{\top} \mathbf{L} \mathbf{z}`, by preconditioned
    conjugate gradients in float64. Where weights of first order are of very
    different size, a small residual proves nothing, and the largest error,
    relative to the range of each connected component, is bounded by spanning
    trees of large weights (Vaidya, 1991), which precondition then, too.

    It is differentiable, to any order, by known entries, weights, confidence
    and :obj:`mu` at the price of one more solve, without storing the steps;
    derivatives are wrong if it did not converge.

    Args:
        x (torch.Tensor): Node signals :math:`(N, F)`; unknown entries are
            ignored and may be NaN.
        edge_index (torch.Tensor, EdgeIndex, SparseTensor or Topology): The
            undirected graph.
        edge_weight (torch.Tensor, optional): Symmetric, non-negative weights
            :math:`(2E)`; all ones if :obj:`None`. (default: :obj:`None`)
        mask (torch.Tensor, optional): True where known, boolean :math:`(N)`
            or :math:`(N, F)`; all are noisy observations if :obj:`None`.
            (default: :obj:`None`)
        order (int, optional): :obj:`2` replaces the prior by
            :math:`\| \mathbf{D}^{-1/2} \mathbf{L} \mathbf{z} \|^2`. Its
            system is much worse conditioned, and errors are not bounded.
            (default: :obj:`1`)
        confidence (torch.Tensor, optional): Weights :math:`c_i \ge 0` of
            noisy observations, of the shape of a mask.
            (default: :obj:`None`)
        fidelity (str, optional): :obj:`'hard'` or :obj:`'soft'`.
            (default: :obj:`'hard'`)
        mu (float or torch.Tensor, optional): Weight of the prior where
            observations are noisy. (default: :obj:`1.0`)
        fill (float or str, optional): Value of entries that no path of
            positive weight joins to a known one, or :obj:`'mean'` of the
            feature's known entries; :obj:`None` refuses such graphs.
            (default: :obj:`None`)
        tol (float, optional): Tolerance of the residual
            :math:`\|r\|_{D^{-1}}` relative to the right-hand side's, for each
            feature and connected component; of the proven error where weights
            differ much in size. (default: :obj:`1e-8`)
        max_steps (int, optional): Largest number of steps.
            (default: :obj:`10000`)
        preconditioner (str, optional): :obj:`'jacobi'` or :obj:`'amg'`, a
            cycle of algebraic multigrid by pyamg (extra :obj:`amg`): its
            number of steps hardly grows with the distance to known entries,
            which pays on large graphs of which few are known. On the CPU,
            of first order only.
            (default: :obj:`'jacobi'`)

    Returns:
        :class:`SolverResult`, in the type of :obj:`x`.

    Raises:
        ValueError: If an argument has a wrong shape, type or value, or nodes
            cannot be interpolated.
        ImportError: If :obj:`preconditioner='amg'` and pyamg is missing.

    Warns:
        ConvergenceWarning: If the tolerance was not reached.
    """
    check_parameters(_CHECKS, locals())
    problem = SmoothnessProblem.read(
        x, edge_index, edge_weight, mask, confidence, fidelity, mu, fill
    )
    signal, weight = problem.signal, problem.weight
    scale = signal.confidence
    if scale is not None:
        scale = scale / problem.mu
    build = partial(LaplacianSystem.build, problem.topology, order=order)
    system = build(weight, scale, signal.free)
    cycle = multigrid(system) if preconditioner == 'amg' else None
    settings = Settings(build, tol, max_steps, cycle, 1.0)
    parts = weight, system.diagonal, scale, signal.free, problem.part
    operands = *parts, signal.x, problem.start
    means, unit = settle(
        problem.topology, *(v if v is None else v.detach() for v in operands)
    )
    start = problem.start
    if len(means):
        start = torch.where(means == start, start, means)
    # Solve for the correction of the start: its right-hand side carries the
    # derivatives by the observations.
    right = system.residual(start, signal.x)
    correction, residual, num_steps = ImplicitSolve.apply(
        settings,
        weight,
        scale,
        signal.free,
        problem.part,
        right / unit if len(means) else right,
    )
    out = start + (unit * correction if len(means) else correction)
    return problem.result('glr', out, residual, num_steps, tol)
