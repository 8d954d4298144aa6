"""Images to PyG data and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.transforms.grid_graph import image_shapes


def check_image(
    image: Any, shape: str, cure: str, channels: Sequence[int] | None = None
) -> None:
    """Raises a `ValueError` unless it is an image, or several, of a shape."""
    if (
        not isinstance(image, Tensor)
        or image.dim() not in (3, 4)
        or (channels is not None and image.size(-3) not in channels)
    ):
        got = list(image.shape) if hasattr(image, 'shape') else image
        raise ValueError(
            f"'image' must be a tensor of shape {shape}, with a leading batch "
            f'dimension if there are several (got {got}); {cure}'
        )
    if image.numel() == 0:
        raise ValueError(f"'image' is empty (got {list(image.shape)})")


def image_to_data(image: Tensor) -> Data:
    r"""Turns an image, or a batch of images, into node signals.

    Pixels become nodes in row-major order. The type is kept, so that
    :func:`data_to_image` gives back the same bits.

    Args:
        image (torch.Tensor): Image :math:`(C, H, W)`, or images
            :math:`(B, C, H, W)`, of any type.

    Returns:
        :class:`~torch_geometric.data.Data` with :obj:`x`
        :math:`(H W, C)`, :obj:`pos` :math:`(H W, 2)` in (row, column),
        :obj:`height` and :obj:`width`; a
        :class:`~torch_geometric.data.Batch` for several images.

    Raises:
        ValueError: If :obj:`image` is not of these shapes or is empty.
    """
    shape = '[channels, height, width]'
    check_image(image, shape, "a grey image needs '.unsqueeze(0)'")
    if image.dim() == 4:
        return Batch.from_data_list([image_to_data(single) for single in image])
    channels, height, width = image.shape
    pos = torch.empty((height, width, 2), device=image.device)
    pos[..., 0] = torch.arange(height, device=image.device).unsqueeze(1)
    pos[..., 1] = torch.arange(width, device=image.device)
    x = image.permute(1, 2, 0).reshape(-1, channels).contiguous()
    return Data(x=x, pos=pos.view(-1, 2), height=height, width=width)


def data_to_image(data: Data, x: Tensor | None = None) -> Tensor:
    r"""Turns node signals back into an image, or a batch of images.

    Args:
        data (Data or Batch): Data of :func:`image_to_data`.
        x (torch.Tensor, optional): The signal :math:`(N, C)`, for example a
            model's output; :obj:`data.x` if :obj:`None`.
            (default: :obj:`None`)

    Returns:
        Image :math:`(C, H, W)`; for a batch, images :math:`(B, C, H, W)`.

    Raises:
        ValueError: If sizes do not fit, or the images of a batch differ in
            size (take it apart with
            :meth:`~torch_geometric.data.Batch.to_data_list` then).
    """
    x = data.x if x is None else x
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"'x' must have shape [num_nodes, channels] (got {got})"
        )
    shapes = image_shapes(data)
    if len(set(shapes)) != 1:
        raise ValueError(
            "'data' holds images of different sizes; take it apart with "
            "'data.to_data_list()'"
        )
    (height, width), count = shapes[0], len(shapes)
    if x.size(0) != count * height * width:
        raise ValueError(
            f"'x' has {x.size(0)} rows, but {count} image(s) of {height} x "
            f'{width} have {count * height * width} pixels'
        )
    images = x.view(count, height, width, -1).permute(0, 3, 1, 2)
    return images if isinstance(data, Batch) else images[0]


def to_unit_range(image: Tensor) -> Tensor:
    r"""Converts an image to floating point, integers to :math:`[0, 1]`.

    Args:
        image (torch.Tensor): Unsigned integers of 8 or 16 bits are divided
            by 255 or 65535; floating point is returned as it is.

    Raises:
        ValueError: If :obj:`image` is of another type.
    """
    if image.is_floating_point():
        return image
    if image.dtype == torch.uint8:
        return image.float().div_(255)
    if image.dtype == torch.uint16:
        return image.float().div_(65535)
    raise ValueError(
        f"'image' must be floating point, uint8 or uint16 (got "
        f'{image.dtype}); divide it by its largest possible value'
    )


def white_level(image: Tensor, mask: Tensor) -> Tensor:
    r"""The value that one in a thousand pixels of an image exceeds: divided by
    it, images of any unit and exposure become alike, as restorers see them.

    Args:
        image (torch.Tensor): Images :math:`(B, C, H, W)`.
        mask (torch.Tensor): True where known, boolean, of the same shape or
            :math:`(1, C, H, W)`.

    Returns:
        Values :math:`(B, 1, 1, 1)`, one for black images.
    """
    level = torch.zeros_like(image[:, 0])
    for k in range(image.size(1)):  # large images are not copied as a whole
        known = torch.where(mask[:, k], image[:, k], 0)
        level = torch.maximum(level, known.abs())
    level = level.flatten(1)
    rank = level.size(1) - level.size(1) // 1000
    white = level.kthvalue(rank, 1).values
    # Black images stay as they are.
    return torch.where(white > 0, white, 1).view(-1, 1, 1, 1)


def to_signals(images: Tensor) -> Tensor:
    """Images `[B, C, H, W]` to node signals `[B, H * W, C]`, a view."""
    return images.flatten(2).mT


def to_node_mask(mask: Tensor) -> Tensor:
    """Masks `[B, C, H, W]` to those of node signals, `[H * W, C]` if B = 1."""
    known = to_signals(mask)
    return known[0] if known.size(0) == 1 else known


def to_images(signals: Tensor, size: Sequence[int]) -> Tensor:
    """Node signals `[B, H * W, C]` to images `[B, C, H, W]`."""
    return signals.mT.unflatten(2, tuple(size))
