"""Scenes of Bayer mosaics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.data import cfa_mask
from pyg_unroll.data.cfa import check_mosaic
from pyg_unroll.nn.models.directional_green import directional_green
from pyg_unroll.nn.models.filters import (
    SECOND_DIFFERENCE,
    bilinear,
    correlate,
)
from pyg_unroll.nn.models.scene import Scene, SceneReader

# Rows and columns to add before each pattern to make it start as RGGB does.
_PHASES = {'RGGB': (0, 0), 'GRBG': (0, 1), 'GBRG': (1, 0), 'BGGR': (1, 1)}


class MosaicReader(SceneReader):
    """Bayer mosaics: green along edges, then colour differences."""

    num_context = 2
    # Differences (2), their variation (1 + 2) on one side (4).
    radius = 10

    def mask(self, data: Data) -> Tensor:
        """See the base class."""
        return check_mosaic(data)

    def offset(self, mask: Tensor) -> tuple[int, int]:
        """See the base class."""
        height, width = mask.shape[-2:]
        if mask.size(1) == 3 and min(height, width) >= 2:
            for pattern, offset in _PHASES.items():
                bayer = cfa_mask(pattern, height, width, mask.device)
                if torch.equal(mask, bayer.expand_as(mask)):
                    return offset
        raise ValueError(
            f"'data.mask' must be that of a Bayer pattern, one of "
            f'{tuple(_PHASES)}, on at least 2 x 2 pixels; for other colour '
            f"filter arrays, there is 'pyg_unroll.GraphDemosaic'"
        )

    def fill(self, image: Tensor, mask: Tensor) -> Tensor:
        """See the base class; a mosaic has no large holes."""
        return image

    def read(self, image: Tensor, mask: Tensor) -> Scene:
        """See the base class."""
        sensor = _sensor(image, mask)
        green = directional_green(sensor, mask[:, 1:2].expand_as(sensor))
        chroma = bilinear((sensor - green).expand(-1, 2, -1, -1), mask[:, ::2])
        red, blue = (green + chroma).split(1, dim=1)
        # Second differences along the row minus those along the column say
        # which way edges run.
        edges = correlate(sensor, SECOND_DIFFERENCE, -1) - correlate(
            sensor, SECOND_DIFFERENCE, -2
        )
        return Scene(
            estimate=torch.cat([red, green, blue], dim=1),
            context=torch.cat([sensor, 5 * edges], dim=1),
            reference=sensor,
        )

    def base(self, estimate: Tensor) -> Tensor:
        """See the base class; differences to green are smooth in colours."""
        return estimate[:, 1:2].expand_as(estimate)

    def noise_std(self, image: Tensor, mask: Tensor) -> Tensor:
        r"""See the base class.

        Differences of second order along rows and columns of each colour's
        plane (Immerkær, 1996); the lower quartile of their sizes over that of
        a normal distribution, as larger ones are of fine texture. A regular
        pattern has one frequency, noise has all: of differences along rows
        and columns and of those along one and means along the other, the
        smallest counts.
        """
        if min(image.shape[-2:]) < 6:
            raise ValueError(
                'a mosaic of less than 6 x 6 pixels does not show its noise; '
                "set 'data.noise_std'"
            )
        planes = F.pixel_unshuffle(_crop(_sensor(image, mask), 2), 2)
        found = []
        for rows, cols in ((-1, -1), (-1, 1), (1, -1)):
            part = _second(_second(planes, rows, -2), cols, -1)
            size = part.abs().flatten(1) / 6  # of unit gain
            quartile = size.kthvalue((size.size(1) + 3) // 4, 1).values
            found.append(quartile / 0.31864)
        return torch.stack(found).amin(0)


def _sensor(image: Tensor, mask: Tensor) -> Tensor:
    """The one value of each pixel that is known."""
    return torch.where(mask, image, 0).sum(1, keepdim=True)


def _second(x: Tensor, sign: int, dim: int) -> Tensor:
    """Each value twice, plus or minus its neighbours along a dimension."""
    size = x.size(dim) - 2
    before, x, after = (x.narrow(dim, k, size) for k in range(3))
    return torch.add(2 * x, before + after, alpha=sign)


def _crop(image: Tensor, unit: int) -> Tensor:
    """Cuts off what exceeds a multiple of `unit` pixels."""
    height, width = (size // unit * unit for size in image.shape[-2:])
    return image[..., :height, :width]
