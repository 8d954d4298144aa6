"""Estimators: fit and predict, all settings learned from the data."""

from pyg_unroll.estimators.graph_interpolator import GraphInterpolator
from pyg_unroll.estimators.rasters import fill_raster
from pyg_unroll.estimators.temporal_interpolator import TemporalInterpolator

__all__ = ['GraphInterpolator', 'TemporalInterpolator', 'fill_raster']
