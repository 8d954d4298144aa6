"""How images are prepared for a net: their start, and what it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_unroll.data import cfa_mask
from pyg_unroll.nn.models.directional_green import (
    correlate,
    directional_green,
    local_interpolation,
)


@dataclass
class Scene:
    """Images, and what is known of them at first.

    Args:
        estimate (torch.Tensor): First estimate :math:`(B, C, H, W)`.
        context (torch.Tensor): What the nets see besides the estimate,
            :math:`(B, K, H, W)`.
        reference (torch.Tensor): Image :math:`(B, 1, H, W)` that estimates
            are shown relative to.
    """

    estimate: Tensor
    context: Tensor
    reference: Tensor


class SceneReader(ABC):
    """Makes the scene of images; without parameters.

    Attributes:
        num_context: Number of context channels :math:`K`.
        radius: How many pixels away a known value can matter.
    """

    num_context: int
    radius: int

    @abstractmethod
    def offset(self, mask: Tensor) -> tuple[int, int]:
        """Rows and columns to add at the top and left, so that 2 x 2 cells
        are in phase.

        Args:
            mask (torch.Tensor): True where known, :math:`(B, C, H, W)`.

        Raises:
            ValueError: If the model is not made for such a mask.
        """

    @abstractmethod
    def read(self, image: Tensor, mask: Tensor) -> Scene:
        """Makes the scene of images with cells in phase, both
        :math:`(B, C, H, W)`; the mask may have :math:`B = 1`.
        """


class MosaicReader(SceneReader):
    """Bayer mosaics: green along edges, then colour differences."""

    num_context = 2
    # Differences (2), their variation (1 + 2) on one side (2), twice one more
    # for the colour differences.
    radius = 10

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

    def read(self, image: Tensor, mask: Tensor) -> Scene:
        """See the base class."""
        sensor = torch.where(mask, image, 0).sum(1, keepdim=True)
        green = directional_green(sensor, mask[:, 1:2].expand_as(sensor))
        chroma = local_interpolation(
            (sensor - green).expand(-1, 2, -1, -1), mask[:, ::2]
        )
        red, blue = (green + chroma).split(1, dim=1)
        # Second differences along the row minus those along the column say
        # which way edges run.
        second = (-0.25, 0.5, 0.5, 0.5, -0.25)
        edges = correlate(sensor, second, -1) - correlate(sensor, second, -2)
        return Scene(
            estimate=torch.cat([red, green, blue], dim=1),
            context=torch.cat([sensor, 5 * edges], dim=1),
            reference=sensor,
        )


# Rows and columns to add before each pattern to make it start as RGGB does.
_PHASES = {'RGGB': (0, 0), 'GRBG': (0, 1), 'GBRG': (1, 0), 'BGGR': (1, 1)}
