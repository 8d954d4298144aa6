"""Green of a mosaic, from differences between colours."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_unroll.imaging.filters import SECOND_DIFFERENCE, box, correlate

# Weights of the colour differences 0 to 4 pixels away on one side.
_TAPS = (0.44, 0.28, 0.16, 0.08, 0.04)
_POWER = 3
_FLOOR = 1e-4


def directional_green(mosaic: Tensor, green: Tensor) -> Tensor:
    r"""Interpolates green along edges of a Bayer mosaic.

    At each pixel, the second-order difference of the mosaic along the row
    estimates green minus the other colour, likewise along the column
    (Hamilton and Adams, 1997). Four one-sided means of these differences,
    towards left, right, up and down, are weighed by the inverse cube of their
    variation in that direction (after Pekkucuksen and Altunbasak, 2010).

    Args:
        mosaic (torch.Tensor): Sensor values :math:`(B, 1, H, W)`, on which
            green sites alternate with others along rows and columns.
        green (torch.Tensor): True at green sites, boolean
            :math:`(B, 1, H, W)`.

    Returns:
        Green :math:`(B, 1, H, W)`, exact at green sites.
    """
    sign = 2.0 * green.to(mosaic.dtype) - 1.0
    after = [0.0] * 4 + [tap / sum(_TAPS) for tap in _TAPS]
    ahead = [0.0] * 4 + [1.0]
    total = weight = torch.zeros_like(mosaic)
    for dim in (-1, -2):
        difference = sign * (mosaic - correlate(mosaic, SECOND_DIFFERENCE, dim))
        change = correlate(difference, [-1.0, 0.0, 1.0], dim).abs()
        variation = 25 * box(change, 2)
        for taps, shift in ((after, ahead), (after[::-1], ahead[::-1])):
            # The window of the variation lies on the side of the mean.
            side = (correlate(variation, shift, dim) + _FLOOR) ** -_POWER
            total = total + side * correlate(difference, taps, dim)
            weight = weight + side
    return torch.where(green, mosaic, mosaic + total / weight)
