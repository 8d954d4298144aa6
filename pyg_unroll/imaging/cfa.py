"""Colour filter arrays: the samples of an image that a sensor measures."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import check_choice, check_finite, check_positive
from pyg_unroll.imaging.images import check_image, image_to_data, to_unit_range

BAYER_PATTERNS = ('RGGB', 'BGGR', 'GRBG', 'GBRG')
_TILES: dict[str, tuple[str, ...]] = {
    **{name: (name[:2], name[2:]) for name in BAYER_PATTERNS},
    'X-Trans': ('GBGGRG', 'RGRBGB', 'GBGGRG', 'GRGGBG', 'BGBRGR', 'GRGGBG'),
}
CFA_PATTERNS: tuple[str, ...] = tuple(_TILES)

# Patterns in phase, and the side of their cells, in which green has the same
# places: red and blue as well, or by turns.
CELLS = {'Bayer': ('RGGB', 2), 'X-Trans': ('X-Trans', 3)}


def cfa_mask(
    pattern: str,
    height: int,
    width: int,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""The colour that each pixel of a sensor measures.

    Args:
        pattern (str): One of :obj:`'RGGB'`, :obj:`'BGGR'`, :obj:`'GRBG'`,
            :obj:`'GBRG'` (Bayer, row by row from the top left) and
            :obj:`'X-Trans'`.
        height (int): Number of rows.
        width (int): Number of columns.
        device (torch.device, optional): Device of the result.

    Returns:
        Boolean mask :math:`(3, H, W)`, one True per pixel, channels red,
        green, blue.

    Raises:
        ValueError: If the pattern is unknown.
    """
    check_choice('pattern', pattern, CFA_PATTERNS)
    check_positive('height', height)
    check_positive('width', width)
    tile = torch.tensor(
        [['RGB'.index(colour) for colour in row] for row in _TILES[pattern]],
        dtype=torch.uint8,
        device=device,
    )
    rows = torch.arange(height, device=device) % tile.size(0)
    cols = torch.arange(width, device=device) % tile.size(1)
    colour = tile[rows[:, None], cols]
    return colour == torch.arange(3, device=device).view(3, 1, 1)


def mosaic(image: Tensor, pattern: str = 'RGGB') -> Data:
    r"""Keeps of an image what a sensor with a colour filter array measures.

    Args:
        image (torch.Tensor): Colour image :math:`(3, H, W)` of which to keep
            one colour per pixel, or the raw values of a sensor
            :math:`(1, H, W)`; with a leading batch dimension if there are
            several. Unsigned integers of 8 or 16 bits are scaled to
            :math:`[0, 1]`. Trained weights expect raw values as photographs
            have them: black level subtracted, white balanced, one is white,
            encoded with the transfer function of sRGB.
        pattern (str, optional): Colour filter array, see :func:`cfa_mask`.
            (default: :obj:`'RGGB'`)

    Returns:
        :class:`~torch_geometric.data.Data` (or
        :class:`~torch_geometric.data.Batch`) with :obj:`x`
        :math:`(H W, 3)`, zero where unknown, boolean :obj:`mask` of the same
        shape, :obj:`pos`, :obj:`height`, :obj:`width` and :obj:`pattern`.

    Raises:
        ValueError: If the image has not 1 or 3 channels, holds NaN or
            infinity, or the pattern is unknown.
    """
    check_image(
        image,
        '[3, height, width], or [1, height, width] for raw sensor values',
        'permute an image whose channels come last',
        channels=(1, 3),
    )
    if image.dim() == 4:
        return Batch.from_data_list([mosaic(part, pattern) for part in image])
    image = to_unit_range(image)
    check_finite('image', image)
    mask = cfa_mask(pattern, image.size(1), image.size(2), image.device)
    # Colours last in memory, as the nodes are: large images are not copied.
    mask = mask.permute(1, 2, 0).contiguous()
    x = torch.where(mask, image.permute(1, 2, 0), 0)
    data = image_to_data(x.permute(2, 0, 1))
    data.mask = mask.view(-1, 3)
    data.pattern = pattern
    return data


def sensor_values(image: Tensor, mask: Tensor) -> Tensor:
    """The measured value of each pixel, `[B, 1, H, W]`."""
    return torch.where(mask, image, 0).sum(1, keepdim=True)


def check_one_color(mask: Tensor) -> None:
    """Raises a `ValueError` unless each pixel of a mask `[B, 3, H, W]`
    measures one colour.
    """
    bad = mask.sum(1, dtype=torch.uint8) != 1
    if bool(bad.any()):
        k, row, col = bad.nonzero()[0].tolist()
        raise ValueError(
            f"'mask' must be True for one of three colours at each pixel (got "
            f'{mask[k, :, row, col].tolist()} at pixel ({row}, {col})); make '
            f"it with 'pyg_unroll.mosaic'"
        )


def find_pattern(
    mask: Tensor, arrays: Sequence[str] = tuple(CELLS)
) -> tuple[Tensor, tuple[int, int]]:
    """The whole pattern that a mask is part of, both `[1, 3, H, W]`, and row
    and column of its first cell, see `CELLS`; a `ValueError` if it is none of
    some arrays in any phase.
    """
    height, width = mask.shape[-2:]
    for pattern, cell in (CELLS[name] for name in arrays):
        side = len(_TILES[pattern])
        if mask.size(1) != 3 or min(height, width) < side:
            continue
        shape = height + side - 1, width + side - 1
        shifted = cfa_mask(pattern, *shape, mask.device)
        for row, col in product(range(side), repeat=2):
            whole = shifted[None, :, row : row + height, col : col + width]
            corner = ..., slice(2 * side), slice(2 * side)
            if all(not (mask[k] & ~whole[k]).any() for k in (corner, ...)):
                return whole, (-row % cell, -col % cell)
    cure = 'pixels that measure nothing are filled in for these only'
    if len(arrays) == 1:
        cure = (
            'for other colour filter arrays, there is '
            "'pyg_unroll.imaging.GraphDemosaic'"
        )
    names = ' or '.join(arrays)
    sizes = [f'{len(_TILES[CELLS[name][0]])}' for name in arrays]
    raise ValueError(
        f"'mask' must be that of {names} sensors, in any phase, or a part of "
        f'it, on at least {" or ".join(f"{s} x {s}" for s in sizes)} pixels; '
        f'{cure}'
    )


def cell_phase(mask: Tensor, array: str) -> tuple[int, int]:
    """Row and column of the first cell of masks `[B, 3, H, W]`; a `ValueError`
    unless they are of one array and phase.
    """
    phases = {find_pattern(part, [array])[1] for part in mask.split(1)}
    if len(phases) > 1:
        raise ValueError(
            f"'mask' must be in one phase for all images of a batch (got "
            f'cells that begin at {sorted(phases)}); restore them one by one, '
            f'or as data'
        )
    return phases.pop()
