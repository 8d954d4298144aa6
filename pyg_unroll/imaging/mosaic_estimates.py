"""First estimates of mosaics: what trained blocks improve, and see."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.imaging import filters
from pyg_unroll.imaging.block_restorer import FirstEstimate
from pyg_unroll.imaging.blocks import DifferenceBlock
from pyg_unroll.imaging.cfa import cell_phase, sensor_values
from pyg_unroll.imaging.defects import complete
from pyg_unroll.imaging.noise import smooth_noise


class BayerEstimate(FirstEstimate):
    """The first estimate of Bayer mosaics: green along edges, then bilinear
    colour differences.
    """

    block = DifferenceBlock
    channels = 3
    cell = 2
    # Differences (2), their variation (1 + 2) on one side (4).
    receptive_field = 10

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """Row and column of the first cell with red at its top left."""
        return cell_phase(mask, 'Bayer')

    def fill(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`FirstEstimate`: defective pixels."""
        return complete(image, mask, ['Bayer'])

    def __call__(
        self, image: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate, context (sensor values, and second differences along the
        row minus those along the column, which tell the direction of edges),
        and reference.
        """
        sensor = sensor_values(image, mask)
        green = filters.directional_green(
            sensor, mask[:, 1:2].expand_as(sensor)
        )
        chroma = filters.local_mean(sensor - green, mask[:, ::2])
        red, blue = (green + chroma).split(1, dim=1)
        edges = filters.correlate(
            sensor, filters.SECOND_DIFFERENCE, -1
        ) - filters.correlate(sensor, filters.SECOND_DIFFERENCE, -2)
        return (
            torch.cat([red, green, blue], dim=1),
            torch.cat([sensor, 5 * edges], dim=1),
            sensor,
        )

    def noise_std(self, image: Tensor, mask: Tensor) -> Tensor:
        r"""Estimates the standard deviation of the noise, :math:`(B)`.

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
        height, width = (size // 2 * 2 for size in image.shape[-2:])
        sensor = sensor_values(image, mask)[..., :height, :width]
        planes = F.pixel_unshuffle(sensor, 2)
        found = []
        for rows, cols in ((-1, -1), (-1, 1), (1, -1)):
            part = _second(_second(planes, rows, -2), cols, -1)
            size = part.abs().flatten(1) / 6  # of unit gain
            quartile = size.kthvalue((size.size(1) + 3) // 4, 1).values
            found.append(quartile / 0.31864)
        return torch.stack(found).amin(0)

    def smooth(self, image: Tensor, mask: Tensor, noise_std: Tensor) -> Tensor:
        """See :class:`FirstEstimate`: cells of 2 x 2 samples are smoothed."""
        cells = F.pixel_unshuffle(sensor_values(image, mask), 2)
        cells = smooth_noise(cells, F.avg_pool2d(noise_std, 2))
        return torch.where(mask, F.pixel_shuffle(cells, 2), 0)


class XTransEstimate(FirstEstimate):
    """The first estimate of X-Trans mosaics, whose 3 x 3 cells have the same
    places of green, and red and blue by turns.
    """

    block = DifferenceBlock
    channels = 3
    cell = 3
    # Green (2) and its variation (1 + 2), colour differences (2).
    receptive_field = 7

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """Row and column of the first cell with green at its corners."""
        return cell_phase(mask, 'X-Trans')

    def fill(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`FirstEstimate`: defective pixels."""
        return complete(image, mask, ['X-Trans'])

    def __call__(
        self, image: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate, context (sensor values, and the sign of each site: red 1,
        blue -1), and reference.
        """
        sensor = sensor_values(image, mask)
        green = filters.green_along_lines(
            sensor, mask[:, 1:2].expand_as(sensor)
        )
        chroma = filters.local_mean(sensor - green, mask[:, ::2], filters.WIDE)
        red, blue = (green + chroma).split(1, dim=1)
        is_red, is_blue = mask[:, ::2].to(image.dtype).split(1, dim=1)
        site = (is_red - is_blue).expand_as(sensor)
        return (
            torch.cat([red, green, blue], dim=1),
            torch.cat([sensor, site], dim=1),
            sensor,
        )


def _second(x: Tensor, sign: int, dim: int) -> Tensor:
    """Each value twice, plus or minus its neighbours along a dimension."""
    size = x.size(dim) - 2
    before, x, after = (x.narrow(dim, k, size) for k in range(3))
    return torch.add(2 * x, before + after, alpha=sign)
