"""Graph-smoothness solvers, unrolled into PyTorch Geometric layers."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pyg_unroll import ops, solvers
from pyg_unroll.graph import Topology
from pyg_unroll.imaging import (
    Demosaic,
    GraphDemosaic,
    Inpaint,
    cfa_mask,
    data_to_image,
    image_to_data,
    mosaic,
)
from pyg_unroll.inputs import FillWarning
from pyg_unroll.nn import GLRConv, GTVConv, UnrolledGLR, UnrolledGTV
from pyg_unroll.transforms import (
    GridGraph,
    InterpolateFeatures,
    KNNGraph,
    MahalanobisGraph,
    TemporalProduct,
    from_product,
    points_to_data,
)

if TYPE_CHECKING:
    from pyg_unroll.estimators import GraphInterpolator as GraphInterpolator
    from pyg_unroll.estimators import (
        TemporalInterpolator as TemporalInterpolator,
    )
    from pyg_unroll.estimators import fill_raster as fill_raster

_ESTIMATORS = 'GraphInterpolator', 'TemporalInterpolator', 'fill_raster'


def __getattr__(name: str) -> Any:
    # Late: scikit-learn, which they are built on, is an extra and slow to
    # load. Hence not in `__all__`, of which `import *` loads each.
    if name in _ESTIMATORS:
        try:
            return getattr(import_module('pyg_unroll.estimators'), name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{name} needs the package '{error.name}'; install it by "
                "pip install 'pyg_unroll[estimators]'"
            ) from error
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


try:
    __version__ = version('pyg_unroll')
except PackageNotFoundError:  # on the path, but not installed
    __version__ = 'unknown'

__all__ = [
    'Demosaic',
    'FillWarning',
    'GLRConv',
    'GTVConv',
    'GraphDemosaic',
    'GridGraph',
    'Inpaint',
    'InterpolateFeatures',
    'KNNGraph',
    'MahalanobisGraph',
    'TemporalProduct',
    'Topology',
    'UnrolledGLR',
    'UnrolledGTV',
    'cfa_mask',
    'data_to_image',
    'from_product',
    'image_to_data',
    'mosaic',
    'ops',
    'points_to_data',
    'solvers',
]
