"""Demosaicing by trained graph layers."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.checks import check_choice
from pyg_unroll.imaging import filters
from pyg_unroll.imaging.block_restorer import BlockRestorer, FirstEstimate
from pyg_unroll.imaging.blocks import Block, DifferenceBlock
from pyg_unroll.imaging.cfa import BAYER_PATTERNS, bayer_phase, sensor_values
from pyg_unroll.imaging.export import write
from pyg_unroll.imaging.noise import smooth_noise


class Demosaic(BlockRestorer):
    r"""Reconstructs colour images from Bayer mosaics, by graph layers on
    learned graphs that start from directional filters.

    .. code-block:: python

        model = Demosaic.from_pretrained('bayer')
        colours = model(mosaic(image, 'RGGB'))  # node signals
        image = model.restore(image, mask)  # images

    Images have any size and any unit: they are divided by the value that one
    in a thousand of their pixels exceeds, and multiplied by it again. Samples
    come out as they were measured, bit for bit, unless they are noisy.

    Blocks that were trained without noise hold the samples. Where the noise is
    given, they are smoothed before, and images after, on graphs of patches
    whose distances are corrected for it.

    Args:
        blocks (sequence of torch.nn.Module, optional): The blocks, all
            :class:`~pyg_unroll.imaging.DifferenceBlock` or all
            :class:`~pyg_unroll.imaging.GuidedBlock`; two of the former if
            :obj:`None`. (default: :obj:`None`)
        neighbors (int, optional): Neighbours of a pixel, see
            :class:`~pyg_unroll.transforms.GridGraph`. (default: :obj:`8`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` of
          :func:`~pyg_unroll.imaging.mosaic`: :obj:`x` and boolean :obj:`mask`
          :math:`(|\mathcal{V}|, 3)`, :obj:`height`, :obj:`width`, and for
          noisy samples :obj:`noise_std`, the standard deviation of the noise
          in the unit of :obj:`x`, which blocks with :obj:`fidelity='soft'`
          estimate if it is absent
        - **output:** colours :math:`(|\mathcal{V}|, 3)`

    Raises:
        ValueError: If the data is no Bayer mosaic, or a block does not work
            on three channels.
    """

    def __init__(
        self, blocks: Sequence[Block] | None = None, neighbors: int = 8
    ) -> None:
        super().__init__(MosaicEstimate(), blocks, neighbors)

    def export(self, path: str | Path, pattern: str = 'RGGB') -> None:
        r"""Writes the model to a file for programs without this library: as
        ONNX, or as a package that PyTorch compiled ahead of time
        (AOTInductor). It takes a minute or some.

        The program takes one mosaic of any even size, 20 x 20 or more,
        measured as ``pattern`` says, and gives what :meth:`restore` does, to
        rounding. Its inputs and output, of the type of the model, are in this
        order:

        - ``mosaic`` :math:`(1, 1, H, W)`: the values of the sensor, in any
          unit
        - ``white_level`` :math:`(1)`: the positive value that :meth:`restore`
          divides images by, :func:`~pyg_unroll.imaging.white_level`. It is an
          input because a program that cuts a photograph into tiles has to
          give the same for all
        - ``noise_std`` :math:`(1)`, of models of noisy samples only: the
          standard deviation of the noise, in the unit of the mosaic
        - ``restored`` :math:`(1, 3, H, W)`: red, green, blue

        Borders are mirrored. Tiles begin at even rows and columns, and the
        outer :attr:`receptive_field` pixels of each, where they are not the
        border of the photograph, are to be cut off.

        Args:
            path (str or Path): The file, which is replaced once all is
                written: ``.onnx`` (extra ``export``), or ``.pt2`` for
                :func:`torch._inductor.aoti_load_package` on the kind of device
                that the model is on (needs a C++ compiler).
            pattern (str, optional): The Bayer pattern, see
                :func:`~pyg_unroll.imaging.cfa_mask`. (default: :obj:`'RGGB'`)

        Raises:
            ValueError: If the path has another ending or cannot be written,
                or the pattern is none of Bayer.
            ImportError: If onnx or onnxscript is missing.
        """
        check_choice('pattern', pattern, BAYER_PATTERNS)
        write(self, path, pattern)


class MosaicEstimate(FirstEstimate):
    """The first estimate of Bayer mosaics: green along edges, then bilinear
    colour differences.
    """

    block = DifferenceBlock
    channels = 3
    # Differences (2), their variation (1 + 2) on one side (4).
    receptive_field = 10

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """Rows and columns to add for the mask to start with red."""
        return bayer_phase(mask)

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


def _second(x: Tensor, sign: int, dim: int) -> Tensor:
    """Each value twice, plus or minus its neighbours along a dimension."""
    size = x.size(dim) - 2
    before, x, after = (x.narrow(dim, k, size) for k in range(3))
    return torch.add(2 * x, before + after, alpha=sign)
