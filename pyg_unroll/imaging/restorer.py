"""The interface of restorers of images."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.imaging.data import restore_data
from pyg_unroll.imaging.tiles import restore_in_tiles


class Restorer(torch.nn.Module):
    r"""Base class of models that restore images: it cuts them into windows,
    which a subclass restores.

    Args:
        margin (int): Even number of pixels to mirror around images.
        max_pixels (int): Larger images are worked on in tiles.
    """

    def __init__(self, margin: int, max_pixels: int) -> None:
        super().__init__()
        self.margin = margin
        self.max_pixels = max_pixels

    def forward(self, data: Data) -> Tensor:
        """Restores the images of data, see the class."""
        return restore_data(self, data)

    def restore(
        self,
        image: Tensor,
        mask: Tensor,
        noise_std: Tensor | float | None = None,
    ) -> Tensor:
        r"""Restores images.

        Images are mirrored at the border, and large ones are worked on in
        tiles, with the same result to rounding.

        Args:
            image (torch.Tensor): Images :math:`(B, C, H, W)`, measured
                samples where known.
            mask (torch.Tensor): True where known, boolean,
                :math:`(B, C, H, W)` or :math:`(1, C, H, W)`.
            noise_std (torch.Tensor or float, optional): Standard deviation of
                the noise, in the unit of the image: a number, one for each
                image :math:`(B)`, or a map :math:`(B, 1, H, W)`; for models
                that take samples as noisy, and estimated if :obj:`None`.
                (default: :obj:`None`)

        Returns:
            Images :math:`(B, C, H, W)`; known samples are unchanged, unless
            they are taken as noisy.

        Raises:
            ValueError: If shapes or types do not fit, known samples are not
                finite, the mask is not what the model is for, or the noise is
                negative or not asked for.
        """
        return restore_in_tiles(self, image, mask, noise_std, self.max_pixels)

    @property
    @abstractmethod
    def receptive_field(self) -> int:
        """Number of pixels from which a sample can matter, even; of
        :class:`~pyg_unroll.imaging.Inpaint` after the first fill.
        """

    @abstractmethod
    def phase(self, mask: Tensor) -> tuple[int, int]:
        """Rows and columns to add at the top and left for 2 x 2 cells to be
        in phase.
        """

    @abstractmethod
    def noise_level(
        self, image: Tensor, mask: Tensor, noise_std: Tensor | float | None
    ) -> Tensor | None:
        """The noise of images, :math:`(B, 1, 1, 1)` or a map
        :math:`(B, 1, H, W)`; :obj:`None` where samples are held.

        Raises:
            ValueError: If it is negative, has another shape or is not asked
                for.
        """

    @abstractmethod
    def prepare(
        self, image: Tensor, mask: Tensor, noise_std: Tensor | float | None
    ) -> tuple[Tensor, ...]:
        """Checks the arguments of :meth:`restore` and does on whole images
        what cannot be done on windows; returns the images to be cut.
        """

    @abstractmethod
    def run(self, *images: Tensor) -> Tensor:
        """Restores windows, of even height and width, of the images of
        :meth:`prepare`.
        """
