"""Unrolled solvers as graph layers."""

from pyg_unroll.nn.conv.glr_conv import GLRConv
from pyg_unroll.nn.conv.gtv_conv import GTVConv

__all__ = ['GLRConv', 'GTVConv']
