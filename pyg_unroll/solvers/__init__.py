"""Solvers that run to a tolerance: the exact twins of the layers."""

from pyg_unroll.solvers.glr import glr
from pyg_unroll.solvers.gtv import gtv
from pyg_unroll.solvers.problem import ConvergenceWarning, SolverResult

__all__ = ['ConvergenceWarning', 'SolverResult', 'glr', 'gtv']
