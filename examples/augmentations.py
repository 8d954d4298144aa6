"""Changes of photographs that training sees: pure functions of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Exponent between displayed values and light, and the value of light below
# which its inverse is a line: its slope must stay finite.
_GAMMA = 2.2
_TOE = 3e-3


def shrink(image: Tensor, side: int) -> Tensor:
    """Shrinks a square image `[C, S, S]` without aliasing."""
    if image.size(-1) == side:
        return image
    small = F.interpolate(
        image[None], (side, side), mode='bicubic', antialias=True
    )
    return small[0].clamp(0, 1)


def subsample_chroma(image: Tensor) -> Tensor:
    """Halves the resolution of an image without its luma, as most JPEG files
    have it.
    """
    luma = image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (luma * image).sum(0, keepdim=True)
    small = F.avg_pool2d((image - grey)[None], 2)
    chroma = F.interpolate(small, image.shape[1:], mode='bilinear')[0]
    return (grey + chroma).clamp(0, 1)


def white_balance(image: Tensor, gains: Tensor) -> Tensor:
    """Weighs the channels by gains, of which the largest becomes one."""
    return image * (gains / gains.max()).view(-1, 1, 1)


def orient(image: Tensor, rows: bool, cols: bool, transpose: bool) -> Tensor:
    """Mirrors rows, mirrors columns, exchanges both."""
    image = image.flip(-2) if rows else image
    image = image.flip(-1) if cols else image
    return image.mT if transpose else image


def to_light(image: Tensor) -> Tensor:
    """Linear light, as cameras measure it, of displayed values."""
    return image**_GAMMA


def to_display(light: Tensor) -> Tensor:
    """The inverse of :func:`to_light`, a line in the deepest shadows."""
    curve = light.clamp(min=_TOE) ** (1 / _GAMMA)
    line = light * _TOE ** (1 / _GAMMA - 1)
    return torch.where(light > _TOE, curve, line)


def detail(image: Tensor) -> float:
    """Mean absolute second difference."""
    rows, cols = image.diff(n=2, dim=1), image.diff(n=2, dim=2)
    return float(rows.abs().mean() + cols.abs().mean())
