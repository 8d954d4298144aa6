"""Graph layers and models."""

from pyg_unroll.nn.conv import GLRConv, GTVConv
from pyg_unroll.nn.models import GraphDemosaic, UnrolledGLR, UnrolledGTV

__all__ = ['GLRConv', 'GTVConv', 'GraphDemosaic', 'UnrolledGLR', 'UnrolledGTV']
