"""Transforms that make graphs from images, points and features."""

from pyg_unroll.transforms.grid_graph import GridGraph
from pyg_unroll.transforms.knn_graph import KNNGraph
from pyg_unroll.transforms.mahalanobis_graph import MahalanobisGraph

__all__ = ['GridGraph', 'KNNGraph', 'MahalanobisGraph']
