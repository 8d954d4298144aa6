"""Stacks of unrolled solvers and learned graphs."""

from pyg_unroll.nn.models.filters import local_interpolation
from pyg_unroll.nn.models.graph_demosaic import GraphDemosaic
from pyg_unroll.nn.models.unrolled_glr import UnrolledGLR
from pyg_unroll.nn.models.unrolled_gtv import UnrolledGTV

__all__ = [
    'GraphDemosaic',
    'UnrolledGLR',
    'UnrolledGTV',
    'local_interpolation',
]
