"""Estimators: fit and predict, without settings."""

from pyg_unroll.estimators.graph_interpolator import GraphInterpolator

__all__ = ['GraphInterpolator']
