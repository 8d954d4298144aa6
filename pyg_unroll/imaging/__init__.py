"""Images: to data and back, colour filter arrays, and restorers."""

from pyg_unroll.imaging.blocks import DifferenceBlock, GuidedBlock
from pyg_unroll.imaging.cfa import CFA_PATTERNS, cfa_mask, mosaic
from pyg_unroll.imaging.defects import find_defects
from pyg_unroll.imaging.demosaic import Demosaic
from pyg_unroll.imaging.features import CNNFeatures
from pyg_unroll.imaging.filters import local_interpolation
from pyg_unroll.imaging.graph_demosaic import GraphDemosaic
from pyg_unroll.imaging.images import (
    data_to_image,
    image_to_data,
    to_unit_range,
    white_level,
)
from pyg_unroll.imaging.inpaint import Inpaint
from pyg_unroll.imaging.restorer import Restorer
from pyg_unroll.imaging.wrappers import SelfEnsemble, Tiled

__all__ = [
    'CFA_PATTERNS',
    'CNNFeatures',
    'Demosaic',
    'DifferenceBlock',
    'GraphDemosaic',
    'GuidedBlock',
    'Inpaint',
    'Restorer',
    'SelfEnsemble',
    'Tiled',
    'cfa_mask',
    'data_to_image',
    'find_defects',
    'image_to_data',
    'local_interpolation',
    'mosaic',
    'to_unit_range',
    'white_level',
]
