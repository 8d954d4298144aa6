"""Unrolled solvers as graph layers, and stacks of them."""

from pyg_unroll.nn.features import MLPFeatures
from pyg_unroll.nn.glr_conv import GLRConv
from pyg_unroll.nn.gtv_conv import GTVConv
from pyg_unroll.nn.smoothness_conv import Iterate
from pyg_unroll.nn.unrolled import UnrolledGLR, UnrolledGTV

__all__ = [
    'GLRConv',
    'GTVConv',
    'Iterate',
    'MLPFeatures',
    'UnrolledGLR',
    'UnrolledGTV',
]
