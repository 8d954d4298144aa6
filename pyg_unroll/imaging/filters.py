"""Local filters on images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Second-order difference along a line of a mosaic: of the same colour at the
# ends, of the other beside; half of the pixel itself is left.
SECOND_DIFFERENCE = (-0.25, 0.5, 0.5, 0.5, -0.25)

# Weights that fall off linearly over one pixel, and over two.
_LINEAR = (0.5, 1.0, 0.5)
WIDE = (1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3)

# Weights of the colour differences 0 to 4 pixels away on one side.
_TAPS = (0.44, 0.28, 0.16, 0.08, 0.04)
_POWER = 3
_FLOOR = 1e-4

# Weights of the greens one pixel away on a line, and up to two.
_NEAR = (1.0, 0.0, 1.0)
_BEYOND = (0.5, 1.0, 0.0, 1.0, 0.5)
_LINE_FLOOR = 1e-3
# Variation of the mean of both directions, of the sum of theirs.
_ACROSS = 0.4


def mirrored(
    x: Tensor,
    rows: slice,
    cols: slice,
    lines: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """A window of images, from below zero to beyond the last row and column:
    they are mirrored about a first and a last row and column, those of the
    border if none are given, as often as it takes.
    """
    if lines is None:
        lines = [(0, size - 1) for size in x.shape[-2:]]
    for dim, window, (low, high) in zip(
        (-2, -1), (rows, cols), lines, strict=True
    ):
        index = torch.arange(window.start, window.stop, device=x.device)
        is_inside = (index >= 0) & (index < x.size(dim))
        period = max(2 * (high - low), 1)
        far = (index - low) % period
        far = low + torch.minimum(far, period - far)
        x = x.index_select(dim, torch.where(is_inside, index, far))
    return x


def correlate(x: Tensor, taps: Sequence[float], dim: int) -> Tensor:
    """Correlates images with an odd number of taps along rows (dimension -1)
    or columns (-2).
    """
    radius, size = len(taps) // 2, x.size(dim)
    pad = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    # The callers' margins are wider than any filter: the edge is cut off.
    padded = F.pad(flat, pad, mode='replicate')
    # A sum of shifted images: convolutions are slow with a single channel.
    out = torch.zeros_like(flat)
    for shift, tap in enumerate(taps):
        if tap != 0:
            out.add_(padded.narrow(dim, shift, size), alpha=tap)
    return out.view(x.shape)


def smooth(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Correlates with a separable filter."""
    return correlate(correlate(x, taps, -1), taps, -2)


def smooth_mirrored(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Correlates images, mirrored at the border, with a separable filter."""
    margin = len(taps) // 2
    inner = slice(margin, -margin)
    if min(x.shape[-2:]) > margin:  # once is enough
        x = F.pad(x, [margin] * 4, mode='reflect')
    else:
        rows, cols = (slice(-margin, size + margin) for size in x.shape[-2:])
        x = mirrored(x, rows, cols)
    return smooth(x, taps)[..., inner, inner]


def box(x: Tensor, radius: int) -> Tensor:
    """Local mean over a square of `2 * radius + 1` pixels."""
    size = 2 * radius + 1
    return smooth(x, [1 / size] * size)


def local_interpolation(x: Tensor, mask: Tensor) -> Tensor:
    r"""Fills unknown pixels by the weighted mean of the known ones nearby.

    On a Bayer pattern this is bilinear interpolation; where a pattern leaves
    larger holes, weights fall off linearly over two pixels.

    Args:
        x (torch.Tensor): Images :math:`(B, C, H, W)`.
        mask (torch.Tensor): True where known, boolean :math:`(B, C, H, W)`.

    Returns:
        Images :math:`(B, C, H, W)`, known pixels unchanged.
    """
    if bool((smooth_mirrored(mask.to(x.dtype), _LINEAR) > 0).all()):
        return local_mean(x, mask)
    return local_mean(x, mask, WIDE)


def local_mean(
    x: Tensor, mask: Tensor, taps: Sequence[float] = _LINEAR
) -> Tensor:
    """Fills unknown pixels by a weighted mean; by default, this is bilinear
    interpolation of a Bayer pattern.
    """
    total = smooth_mirrored(torch.where(mask, x, 0), taps)
    share = smooth_mirrored(mask.to(x.dtype), taps)
    # A tiny image may lack a colour: leave it black.
    return torch.where(mask, x, total / share.clamp(min=1e-6))


def green_along_lines(mosaic: Tensor, green: Tensor) -> Tensor:
    r"""Interpolates green of an X-Trans mosaic.

    Three estimates are weighed by the inverse cube of the variation around:
    linear ones along the row and the column, between the two neighbours or
    from one and the pixel beyond the other, and the mean over both, where an
    edge lies across, or in lines of other arrays that have no green.

    Values are :math:`(B, 1, H, W)`; sites of green stay as they are.
    """
    known, share = torch.where(green, mosaic, 0), green.to(mosaic.dtype)
    mean = local_mean(mosaic, green)
    values, variations = [], []
    for dim in (-1, -2):
        near, wide = (
            correlate(known, taps, dim)
            / correlate(share, taps, dim).clamp(min=1e-6)
            for taps in (_NEAR, _BEYOND)
        )
        is_between = correlate(share, _NEAR, dim) > 1.5
        value = torch.where(is_between, near, wide)
        is_near = correlate(share, [1.0] * 5, dim) > 0.5
        value = torch.where(is_near, value, mean)
        value = torch.where(green, mosaic, value)
        change = correlate(value, [-1.0, 0.0, 1.0], dim).abs()
        values.append(value)
        variations.append(box(change, 2))
    values.append(mean)
    variations.append(_ACROSS * (variations[0] + variations[1]))
    trust = (torch.cat(variations, 1) + _LINE_FLOOR) ** -_POWER
    share = trust / trust.sum(1, keepdim=True)
    total = (share * torch.cat(values, 1)).sum(1, keepdim=True)
    return torch.where(green, mosaic, total)


def directional_green(mosaic: Tensor, green: Tensor) -> Tensor:
    r"""Interpolates green along edges of a Bayer mosaic.

    At each pixel, the second-order difference of the mosaic along the row
    estimates green minus the other colour, likewise along the column
    (Hamilton and Adams, 1997). Four one-sided means of these differences,
    towards left, right, up and down, are weighed by the inverse cube of their
    variation in that direction (after Pekkucuksen and Altunbasak, 2010).

    Green sites alternate with others along rows and columns of sensor values
    :math:`(B, 1, H, W)`; they stay as they are.
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
