"""How images are prepared for a net: their start, and what it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import can_read_values, check_signal, check_tensor
from pyg_unroll.data import cfa_mask
from pyg_unroll.data.cfa import check_mosaic
from pyg_unroll.nn.models.directional_green import directional_green
from pyg_unroll.nn.models.filters import (
    SECOND_DIFFERENCE,
    bilinear,
    box,
    correlate,
    reflect,
    smooth,
)

SceneDomain: TypeAlias = Literal['mosaic', 'inpainting']


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
        a normal distribution, as larger ones are of fine texture.
        """
        if min(image.shape[-2:]) < 6:
            raise ValueError(
                'a mosaic of less than 6 x 6 pixels does not show its noise; '
                "set 'data.noise_std'"
            )
        planes = F.pixel_unshuffle(_crop(_sensor(image, mask), 2), 2)
        for dim in (-2, -1):
            planes = planes.diff(n=2, dim=dim)
        size = planes.abs().flatten(1) / 6  # of unit gain
        quartile = size.kthvalue((size.size(1) + 3) // 4, 1).values
        return quartile / 0.31864


class InpaintingReader(SceneReader):
    """Images of which some pixels are known: push and pull through a pyramid
    of coarser images (Gortler et al., 1996), smoothed on each level.
    """

    num_context = 2
    radius = 4

    def mask(self, data: Data) -> Tensor:
        """See the base class."""
        x, mask = data.get('x'), data.get('mask')
        if not isinstance(x, Tensor) or x.dim() != 2:
            raise ValueError(
                f"'data.x' must be an image of shape [num_pixels, channels] "
                f'(got {list(x.shape) if isinstance(x, Tensor) else x}); make '
                f"it with 'image_to_data'"
            )
        shapes = (x.shape, x.shape[:1], (x.size(0), 1))
        if mask is None or mask.shape not in shapes:
            raise ValueError(
                f"'data' must have a 'mask', True where known, of shape "
                f'[{x.size(0)}] or {list(x.shape)} '
                f'(got {None if mask is None else list(mask.shape)})'
            )
        return mask.view(x.size(0), -1).expand_as(x)

    def offset(self, mask: Tensor) -> tuple[int, int]:
        """See the base class; any mask will do."""
        return 0, 0

    def fill(self, image: Tensor, mask: Tensor) -> Tensor:
        """See the base class."""
        share = mask.to(image.dtype).expand_as(image)
        levels = [(torch.where(mask, image, 0), share)]
        while max(levels[-1][0].shape[-2:]) > 1:
            value, share = (
                F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False)
                for part in levels[-1]
            )
            levels.append((value, share))
        value, share = levels[-1]
        out = value / share.clamp(min=_TINY)
        for value, share in reversed(levels):
            out = F.interpolate(out, value.shape[-2:], mode='bilinear')
            known = value / share.clamp(min=_TINY)
            # A few known pixels are enough to set the mean of a cell.
            trust = share / (share + 0.1 * (1 - share))
            out = torch.lerp(out, known, trust)
            for _ in range(_SWEEPS):
                near = smooth(reflect(out, 1), (0.25, 0.5, 0.25))
                out = torch.lerp(near[..., 1:-1, 1:-1], known, trust)
        return torch.where(mask, image, out)

    def read(self, image: Tensor, mask: Tensor) -> Scene:
        """See the base class."""
        share = mask.to(image.dtype).mean(1, keepdim=True)
        grey = box(image.mean(1, keepdim=True), self.radius)
        return Scene(
            estimate=image,
            context=torch.cat([share.expand_as(grey), grey], dim=1),
            reference=grey,
        )

    def base(self, estimate: Tensor) -> Tensor:
        """See the base class."""
        return torch.zeros_like(estimate)

    def noise_std(self, image: Tensor, mask: Tensor) -> Tensor:
        """See the base class; scattered pixels do not show their noise."""
        raise ValueError("'data.noise_std' must be given for this model")


READERS: dict[SceneDomain, type[SceneReader]] = {
    'mosaic': MosaicReader,
    'inpainting': InpaintingReader,
}

# Rows and columns to add before each pattern to make it start as RGGB does.
_PHASES = {'RGGB': (0, 0), 'GRBG': (0, 1), 'GBRG': (1, 0), 'BGGR': (1, 1)}

# Smoothing steps on each level of the pyramid.
_SWEEPS = 3
_TINY = 1e-12


def _sensor(image: Tensor, mask: Tensor) -> Tensor:
    """The one value of each pixel that is known."""
    return torch.where(mask, image, 0).sum(1, keepdim=True)


def _crop(image: Tensor, unit: int) -> Tensor:
    """Cuts off what exceeds a multiple of `unit` pixels."""
    height, width = (size // unit * unit for size in image.shape[-2:])
    return image[..., :height, :width]
