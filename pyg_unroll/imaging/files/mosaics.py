"""Mosaics that are stored as grey images, as industrial cameras write them."""

from pathlib import Path

import torch
from torch import Tensor

from pyg_unroll.checks import check_between
from pyg_unroll.imaging.cfa import cfa_mask
from pyg_unroll.imaging.files.photos import finish, read_stored, reading
from pyg_unroll.imaging.files.raw import RawPhoto

# Change from pixel to pixel over that to the next but one; below one in
# photographs, one in noise.
_ALTERNATING = 1.05


def read_mosaic(
    path: str | Path, pattern: str, white: float | None = None
) -> RawPhoto:
    r"""Reads a mosaic that is stored as a grey image. Its values stay as they
    are: no white balance, no colour matrix, no transfer function.

    Args:
        path (str or Path): A file of one channel that
            :func:`~pyg_unroll.imaging.files.read_photo` reads.
        pattern (str): The colour filter array of the pixels as they are
            stored, see :func:`~pyg_unroll.imaging.cfa_mask`.
        white (float, optional): The value of white, such as 1023 of 10 bits in
            16; that of the file if :obj:`None`, often the largest of its type.
            (default: :obj:`None`)

    Raises:
        ImportError: If a package of the extra :obj:`images` is missing.
        ValueError: If the file is not such an image, a value exceeds
            :obj:`white`, or the pattern is unknown.
    """
    tile = cfa_mask(pattern, 6, 6).byte().argmax(0).byte()
    path = Path(path)
    if white is not None:
        check_between('white', white)
    with reading(path):
        stored = read_stored(path)
        if stored.pixels.shape[2] != 1:
            raise ValueError('it has several channels, a mosaic one')
        stored.white = white or stored.white
        flip, stored.flip = stored.flip, 0
        sensor = finish(stored)
    matrix = torch.eye(3, dtype=torch.float64)
    return RawPhoto(sensor, tile, matrix, flip)


def looks_like_mosaic(image: Tensor) -> bool:
    """Says whether a grey image is probably the mosaic of a Bayer sensor:
    values differ less from the next but one than from the next.

    Args:
        image (torch.Tensor): Image :math:`(1, H, W)`.
    """
    ratios = []
    for dim in (1, 2):
        lines = image.movedim(dim, 0)
        near, far = (
            float((lines[step:] - lines[:-step]).abs().mean())
            for step in (1, 2)
        )
        ratios.append(near > _ALTERNATING * far)
    return min(image.shape[1:]) > 2 and all(ratios)
