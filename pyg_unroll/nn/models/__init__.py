"""Stacks of unrolled solvers and learned graphs."""

from pyg_unroll.nn.models.unrolled_glr import UnrolledGLR
from pyg_unroll.nn.models.unrolled_gtv import UnrolledGTV

__all__ = ['UnrolledGLR', 'UnrolledGTV']
