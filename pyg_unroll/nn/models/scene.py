"""How images are prepared for a net: their start, and what it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import can_read_values, check_signal, check_tensor


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


def check_images(image: Tensor, mask: Tensor, channels: int) -> None:
    """Raises a `ValueError` unless an image and its mask fit each other, and
    something finite is known of each channel.
    """
    shape = f'[batch, {channels}, height, width]'
    check_tensor('image', image, shape)
    check_tensor('mask', mask, shape)
    if image.dim() != 4 or image.size(1) != channels:
        raise ValueError(
            f"'image' must have shape {shape} (got {list(image.shape)}); one "
            f"image needs '.unsqueeze(0)'"
        )
    check_signal('image', image)
    fits = mask.dim() == 4 and mask.size(0) in (1, image.size(0))
    fits = fits and mask.shape[1:] == image.shape[1:]
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"'mask' must be boolean, True where known, of shape "
            f'{list(image.shape)} or {[1, *image.shape[1:]]} (got '
            f'{mask.dtype} of {list(mask.shape)})'
        )
    if not can_read_values():
        return
    if not bool((image.isfinite() | ~mask).all()):
        raise ValueError(
            "'image' must be finite where it is known; mark other pixels as "
            "False in 'mask'"
        )
    if not bool(mask.flatten(2).any(2).all()):
        raise ValueError(
            "'mask' has no known pixel in a channel: there is nothing to "
            'interpolate from; mark the measured ones as True'
        )


class SceneReader(ABC):
    """Makes the scene of images; without parameters.

    Attributes:
        num_context: Number of context channels :math:`K`.
        radius: How many pixels away a value can matter for :meth:`read`.
    """

    num_context: int
    radius: int

    @abstractmethod
    def mask(self, data: Data) -> Tensor:
        """The mask of data, True where known, :math:`(N, C)`.

        Raises:
            ValueError: If the data is not what the reader is for.
        """

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
    def fill(self, image: Tensor, mask: Tensor) -> Tensor:
        """Fills in what can only be seen from afar, on whole images."""

    @abstractmethod
    def read(self, image: Tensor, mask: Tensor) -> Scene:
        """Makes the scene of filled images with cells in phase, both
        :math:`(B, C, H, W)`; the mask may have :math:`B = 1`.
        """

    @abstractmethod
    def base(self, estimate: Tensor) -> Tensor:
        """What signals are interpolated relative to if nets give no guide."""

    @abstractmethod
    def noise_std(self, image: Tensor, mask: Tensor) -> Tensor:
        """Estimates the standard deviation of the noise, :math:`(B)`."""
