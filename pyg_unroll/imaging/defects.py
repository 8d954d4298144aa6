"""Pixels of a sensor that measure nothing: found, and filled in by a graph."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.checks import can_read_values, check_between
from pyg_unroll.imaging.cfa import (
    CELLS,
    check_one_color,
    find_pattern,
    sensor_values,
)
from pyg_unroll.imaging.filters import WIDE, local_mean
from pyg_unroll.imaging.images import white_level
from pyg_unroll.imaging.restorer import read_images
from pyg_unroll.solvers import glr

# Pixels of its colour that a pixel is compared with lie in a square around it.
_REACH = 2

# Change of the other colours, of the white level, that counts as an edge, and
# the least weight: all pixels are joined.
_EDGE = 0.05
_LEAST = 1e-3

# A small light or a fine texture moves the pixels beside it, too, off the mean
# of their colour: a defect is so many times as far out as they are.
_ALONE = 2.0

# Pixels that are searched at once, and the rows around them that matter.
_STRIP = 2**20
_MARGIN = 4


def find_defects(image: Tensor, mask: Tensor, threshold: float = 0.1) -> Tensor:
    r"""Finds hot and dead pixels of mosaics. A pixel is one if it lies beyond
    all pixels of its colour nearby but one, both by itself and relative to the
    other colours, and by far more than the pixels beside it differ from those
    of their colours.

    .. code-block:: python

        defects = find_defects(image, mask)
        colours = model.restore(image, mask & ~defects)

    Args:
        image (torch.Tensor): Mosaics :math:`(B, 3, H, W)`.
        mask (torch.Tensor): True where known, boolean, :math:`(B, 3, H, W)`
            or :math:`(1, 3, H, W)`; one colour for each pixel, or none where
            a defect is known already.
        threshold (float, optional): Least distance from the others, as a
            share of the image's white level. (default: :obj:`0.1`)

    Returns:
        True at defects that were not known, boolean, :math:`(B, 1, H, W)`.

    Raises:
        ValueError: If shapes or types do not fit, a pixel has several
            colours, known values are not finite, or the threshold is not
            positive.
    """
    check_between('threshold', threshold)
    read_images(image, mask, 3, allow_unknown=True)
    measured = mask.any(1, keepdim=True)
    image, mask = complete(image, mask)
    check_one_color(mask)
    level = white_level(image, mask)
    height, width = image.shape[2:]
    found = torch.empty_like(image[:, :1], dtype=torch.bool)
    step = max(_STRIP // width, 1)
    for top in range(0, height, step):
        first, end = max(top - _MARGIN, 0), top + step
        rows = ..., slice(first, end + _MARGIN), slice(None)
        strip = _stand_out(image[rows] / level, mask[rows], threshold)
        found[:, :, top:end] = strip[:, :, top - first :][:, :, :step]
    return found & measured


def _stand_out(image: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """See :func:`find_defects`, of images whose white level is one."""
    sensor = sensor_values(image, mask)
    others = torch.where(mask, 0, local_mean(image, mask) / 2)
    relative = sensor - others.sum(1, keepdim=True)
    beyond, apart = _outliers(sensor, mask)
    beyond = torch.minimum(beyond, _outliers(relative, mask)[0])
    _, beside = _largest_two(_around(apart, 1, 0.0), apart)
    return beyond > threshold + _ALONE * beside


def complete(
    image: Tensor, mask: Tensor, arrays: Sequence[str] = tuple(CELLS)
) -> tuple[Tensor, Tensor]:
    """Mosaics whose pixels that measure nothing are filled in, and their
    masks, without holes then; a `ValueError` if there are holes in other than
    some arrays.
    """
    if not can_read_values(mask) or bool(mask.any(1).all()):
        return image, mask
    whole = torch.cat([find_pattern(m, arrays)[0] for m in mask.split(1)])
    return fill_defects(image, mask, whole), whole


def fill_defects(image: Tensor, mask: Tensor, whole: Tensor) -> Tensor:
    """Fills in what a mask lacks of a whole one, both of mosaics: by the graph
    Laplacian regulariser on a graph of pixels of one colour, whose weights fall
    off with the distance and where the other colours differ.
    """
    height, width = image.shape[2:]
    measured = mask.any(1).expand(image.size(0), -1, -1)
    node, edge = _pairs(~measured, whole).unique(return_inverse=True)
    row, col = node % (height * width) // width, node % width
    length = _change(row, edge) ** 2 + _change(col, edge) ** 2
    # Both ends have one colour: the change of the two others counts, where
    # they are seen at all.
    shown = local_mean(image, mask, WIDE) / white_level(image, mask)
    seen = local_mean(mask.to(image.dtype), mask, WIDE) > 0
    shown = _at(torch.where(whole, 0, shown), node)
    both = _at(seen.expand_as(image), node)[edge].all(0)
    change = torch.where(both, _change(shown, edge) / _EDGE, 0)
    weight = (_LEAST + torch.exp(-change.square().sum(1))) / length
    known = measured.flatten()[node]
    filled = sensor_values(image, mask).flatten()
    result = glr(
        filled[node].unsqueeze(1),
        torch.cat([edge, edge.flip(0)], 1),
        weight.repeat(2),
        mask=known,
    )
    filled = filled.scatter(0, node[~known], result.x[~known, 0])
    return torch.where(whole, filled.view(-1, 1, height, width), 0)


def _pairs(hole: Tensor, whole: Tensor) -> Tensor:
    """Pixels near each other, of one colour and one of them a hole, by their
    numbers in `[B, H, W]`, each pair once, `[2, E]`.
    """
    _, height, width = hole.shape
    number, row, col = hole.nonzero().unsqueeze(1).unbind(-1)
    near = torch.tensor(list(_offsets(_REACH)), device=hole.device)
    to_row, to_col = row + near[:, 0], col + near[:, 1]  # [K, 24]
    is_inside = (to_row >= 0) & (to_row < height)
    is_inside &= (to_col >= 0) & (to_col < width)
    start = ((number * height + row) * width + col).expand_as(to_row)
    start = start[is_inside]
    end = ((number * height + to_row) * width + to_col)[is_inside]
    colour = _colours(whole)[:, 0].expand_as(hole).reshape(-1)
    is_same = colour[start] == colour[end]
    start, end = start[is_same], end[is_same]
    # One number for a pair: `unique` along a dimension is far slower.
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    key = (low * hole.numel() + high).unique()
    return torch.stack([key // hole.numel(), key % hole.numel()])


def _at(images: Tensor, node: Tensor) -> Tensor:
    """Values of images `[B, C, H, W]` at pixels, `[N, C]`."""
    return images.movedim(1, -1).flatten(0, 2)[node]


def _change(value: Tensor, edge: Tensor) -> Tensor:
    """Differences of values of nodes along edges `[2, E]`."""
    return value[edge[0]] - value[edge[1]]


def _colours(mask: Tensor) -> Tensor:
    """The number of the colour of each pixel, `[B, 1, H, W]`."""
    return mask.byte().argmax(1, keepdim=True)


def _offsets(reach: int) -> Iterator[tuple[int, int]]:
    """Rows and columns to the other pixels of a square."""
    steps = range(-reach, reach + 1)
    return ((row, col) for row in steps for col in steps if row or col)


def _around(x: Tensor, reach: int, outside: float) -> Iterator[Tensor]:
    """Images shifted to each pixel of a square."""
    height, width = x.shape[2:]
    x = F.pad(x, [reach] * 4, value=outside)
    for row, col in _offsets(reach):
        row, col = row + reach, col + reach
        yield x[..., row : row + height, col : col + width]


def _largest_two(values: Iterable[Tensor], like: Tensor) -> list[Tensor]:
    """The largest of some images at each pixel, and the second."""
    first = second = torch.full_like(like, -torch.inf)
    for value in values:
        second = torch.maximum(second, torch.minimum(first, value))
        first = torch.maximum(first, value)
    return [first, second]


def _outliers(sensor: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of values beyond those of their colour nearby, but for one of
    these, and from the mean of those but the largest and the smallest.
    """
    colour = _colours(mask).to(sensor.dtype)
    is_same = [c == colour for c in _around(colour, _REACH, -1.0)]
    chosen = [bool(same.any()) for same in is_same]

    def nearby(x: Tensor, other: float) -> Iterator[Tensor]:
        values = zip(is_same, _around(x, _REACH, 0.0), strict=True)
        for same, value in compress(values, chosen):
            yield torch.where(same, value, other)

    (most, high), (least, low) = (
        _largest_two(nearby(x, -torch.inf), x) for x in (sensor, -sensor)
    )
    # At the border of tiny images, there are no three to compare with.
    count = sum(is_same, torch.zeros_like(sensor))
    total = sum(nearby(sensor, 0.0), torch.zeros_like(sensor))
    mean = (total - most + least) / (count - 2)
    beyond = torch.maximum(sensor - high, -low - sensor)
    beyond, apart = beyond.clamp(min=0), (sensor - mean).abs()
    return torch.where(count > 2, beyond, 0), torch.where(count > 2, apart, 0)
