"""Demosaicing by graph interpolation of colour differences, untrained."""

from typing import get_args

import torch
from torch import Tensor

from pyg_unroll.checks import check_choice, check_not_half
from pyg_unroll.imaging.cfa import check_one_color, sensor_values
from pyg_unroll.imaging.color_differences import DETAIL_RATIO, ColorDifferences
from pyg_unroll.imaging.defects import complete
from pyg_unroll.imaging.filters import (
    directional_green,
    green_along_lines,
    local_interpolation,
)
from pyg_unroll.imaging.images import white_level
from pyg_unroll.imaging.priors import Prior
from pyg_unroll.imaging.restorer import NoiseStd, Restorer, read_images
from pyg_unroll.transforms import GridGraph


class GraphDemosaic(Restorer):
    r"""Reconstructs a colour image from a mosaic by interpolating colour
    differences on graphs, without training.

    Colours of natural images differ from green by a signal that is smooth
    within objects, so that graph layers can interpolate :math:`R - G` and
    :math:`B - G` where they could not interpolate :math:`R` and :math:`B`:

    1. Green by directional filters.
    2. A layer smooths the colour differences on the graph of green and these
       differences, and green is corrected by them; a layer interpolates the
       differences to the corrected green on its graph, known entries held
       (:class:`~pyg_unroll.imaging.color_differences.ColorDifferences`).

    Pixels of Bayer and X-Trans mosaics that measure nothing are filled in
    before.

    Args:
        prior (str, optional): :obj:`'glr'`
            (:class:`~pyg_unroll.nn.GLRConv`) or :obj:`'gtv'`
            (:class:`~pyg_unroll.nn.GTVConv`). (default: :obj:`'glr'`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` of
          :func:`~pyg_unroll.imaging.mosaic`: :obj:`x` and boolean :obj:`mask`
          :math:`(|\mathcal{V}|, 3)`, :obj:`height`, :obj:`width`
        - **output:** colours :math:`(|\mathcal{V}|, 3)` in the units of
          :obj:`x`, of any unit; measured samples are unchanged

    Raises:
        ValueError: If the data is not a mosaic of three colours.
    """

    def __init__(self, prior: Prior = 'glr') -> None:
        # The margin is wider than the filters, and lets the layers forget the
        # border; they need less memory than those of trained models.
        super().__init__(margin=12, max_pixels=2_000_000)
        check_choice('prior', prior, get_args(Prior))
        self.prior = prior
        self.graph = GridGraph(8)
        smooth, fill = ((5,), (6,)) if prior == 'glr' else ((6, 4), (2, 4))
        self.step = ColorDifferences(prior, smooth, fill)
        self.chroma_ratio = torch.nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.step.reset_parameters()
        with torch.no_grad():
            self.step.gain_limit.fill_(1.5)
            self.chroma_ratio.fill_(DETAIL_RATIO)

    @property
    def receptive_field(self) -> int:
        """See :class:`Restorer`."""
        return 64  # more than filters and layers reach

    def noise_level(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> None:
        """See :class:`Restorer`."""
        if noise_std is not None:
            raise ValueError(
                f"'noise_std' was given (got {noise_std}), but "
                f"'GraphDemosaic' holds known entries; use 'Demosaic'"
            )

    def prepare(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> tuple[Tensor, ...]:
        """See :class:`Restorer`."""
        # Tiny images lack a colour.
        read_images(image, mask, 3, allow_unknown=True)
        image, mask = complete(image, mask)
        check_one_color(mask)
        check_not_half('image', image.dtype)
        self.noise_level(image, mask, noise_std)
        unit = white_level(image, mask)
        return image, mask, unit.expand(-1, -1, *image.shape[2:])

    def run(self, *images: Tensor) -> Tensor:
        """See :class:`Restorer`."""
        image, mask, unit = images
        out = unit * self._restore(image / unit, mask)
        return torch.where(mask, image, out)

    def _restore(self, image: Tensor, mask: Tensor) -> Tensor:
        is_green, is_chroma = mask[:, 1:2], mask[:, ::2]
        is_bayer = _is_checkerboard(is_green)
        if len(set(is_bayer)) > 1:
            parts = zip(image.split(1), mask.split(1), strict=True)
            return torch.cat([self._restore(*part) for part in parts])
        sensor = sensor_values(image, mask)
        height, width = image.shape[2:]
        topology = self.graph.pixels(height, width, image.device)
        fill_green = directional_green if is_bayer[0] else green_along_lines
        green = fill_green(sensor, is_green)
        chroma = local_interpolation(sensor - green, is_chroma)
        ratio = (self.chroma_ratio / DETAIL_RATIO).log()
        green, _ = self.step.correct_green(
            sensor, mask, green, chroma, topology, gain=4 * ratio
        )
        start = local_interpolation(sensor - green, is_chroma)
        return self.step.fill(sensor, mask, green, start, topology)[0]

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(prior={self.prior!r})'


def _is_checkerboard(green: Tensor) -> list[bool]:
    """True for masks in which green alternates along rows and columns."""
    along_row, along_column = (
        green.diff(dim=dim).flatten(1).all(1) for dim in (-1, -2)
    )
    return (along_row & along_column).tolist()
