"""Transforms that make graphs, and signals without gaps on them."""

from pyg_unroll.transforms.grid_graph import GridGraph
from pyg_unroll.transforms.interpolate_features import InterpolateFeatures
from pyg_unroll.transforms.mahalanobis_graph import MahalanobisGraph
from pyg_unroll.transforms.points import KNNGraph, points_to_data
from pyg_unroll.transforms.temporal_product import TemporalProduct, from_product

__all__ = [
    'GridGraph',
    'InterpolateFeatures',
    'KNNGraph',
    'MahalanobisGraph',
    'TemporalProduct',
    'from_product',
    'points_to_data',
]
