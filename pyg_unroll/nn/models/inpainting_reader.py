"""Scenes of images of which some pixels are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_boolean
from pyg_unroll.nn.models.filters import box, reflect, smooth
from pyg_unroll.nn.models.scene import Scene, SceneReader

# Smoothing steps on each level of the pyramid.
_SWEEPS = 3
_TINY = 1e-12


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
        check_boolean('data.mask', mask)
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
