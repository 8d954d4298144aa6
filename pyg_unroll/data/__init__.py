"""Signals to PyG data and back."""

from pyg_unroll.data.cfa import CFA_PATTERNS, cfa_mask, mosaic
from pyg_unroll.data.images import data_to_image, image_to_data, to_unit_range
from pyg_unroll.data.points import points_to_data

__all__ = [
    'CFA_PATTERNS',
    'cfa_mask',
    'data_to_image',
    'image_to_data',
    'mosaic',
    'points_to_data',
    'to_unit_range',
]
