"""One image seen in several ways."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyg_unroll.checks import check_choice

# Bits: mirror columns, mirror rows, transpose (last). The first 2 or 4 differ
# as much as any: what runs along rows in one runs along columns in the next.
_VIEWS = (0, 7, 2, 5, 1, 3, 4, 6)


def check_num_views(num_views: int) -> None:
    """Raises a ValueError for a number of views that there is not."""
    check_choice('num_views', num_views, (1, 2, 4, 8))


def average_views(
    function: Callable[..., Tensor],
    images: tuple[Tensor, ...],
    num_views: int,
) -> Tensor:
    r"""Applies a function to mirrored and transposed images and averages what
    it returns, turned back: a geometric self-ensemble (Timofte et al., "Seven
    Ways to Improve Example-Based Single Image Super Resolution", CVPR 2016).

    Args:
        function (callable): Takes the same view of each image and returns
            images of that size.
        images (tuple[torch.Tensor]): Images :math:`(B, C, H, W)`.
        num_views (int): 1, 2, 4 or 8 views; the first is the image itself.

    Returns:
        Images :math:`(B, C', H, W)`.

    Raises:
        ValueError: If there are not so many views.
    """
    check_num_views(num_views)
    first, *others = _VIEWS[:num_views]
    out = function(*(_turn(image, first) for image in images))
    for view in others:
        part = function(*(_turn(image, view) for image in images))
        out += _turn_back(part, view)
    return out / num_views if others else out


def _turn(image: Tensor, view: int) -> Tensor:
    image = image.flip(-1) if view & 1 else image
    image = image.flip(-2) if view & 2 else image
    return image.mT if view & 4 else image


def _turn_back(image: Tensor, view: int) -> Tensor:
    image = image.mT if view & 4 else image
    image = image.flip(-2) if view & 2 else image
    return image.flip(-1) if view & 1 else image
