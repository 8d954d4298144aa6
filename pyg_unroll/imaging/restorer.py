"""The interface of restorers of images."""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import check_data
from pyg_unroll.imaging.filters import mirrored
from pyg_unroll.imaging.images import data_to_image, to_node_mask, to_signals
from pyg_unroll.imaging.tiles import (
    Window,
    mirror_lines,
    mirrored_frame,
    tile_workers,
    tiles_of,
)
from pyg_unroll.inputs import read_signal
from pyg_unroll.threads import run_all
from pyg_unroll.transforms.utils import examples_of

NoiseStd: TypeAlias = Tensor | float | None


class Restorer(torch.nn.Module):
    r"""Base class of models that restore images: it cuts them into windows,
    which a subclass restores.

    Args:
        margin (int): Number of pixels to mirror around images.
        max_pixels (int): Larger images are worked on in tiles.
        cell (int): Side of the cells that windows consist of, which divides
            the margin.
    """

    def __init__(self, margin: int, max_pixels: int, cell: int = 2) -> None:
        super().__init__()
        self.margin = margin
        self.max_pixels = max_pixels
        self.cell = cell

    def forward(self, data: Data) -> Tensor:
        """Restores the images of data, those of a batch that are of one size
        and phase together; see the class.
        """
        check_data(data)
        if data.get('mask') is None:
            raise ValueError(
                "'data' must have a 'mask', True where known; make mosaics "
                "with 'pyg_unroll.mosaic', or set 'data.mask'"
            )
        # The restorer says what must be known of each image.
        signal = read_signal(
            data.get('x'), data.mask, name='data.x', allow_unknown=True
        )
        data = copy.copy(data)
        data.x, data.mask = signal.x, signal.observed
        examples = examples_of(data) if isinstance(data, Batch) else [data]
        noise, count = data.get('noise_std'), len(examples)
        if noise is not None:
            noise = torch.as_tensor(noise, dtype=signal.x.dtype).view(-1)
            if len(noise) not in (1, count):
                raise ValueError(
                    f"'data.noise_std' must be one value or one for each of "
                    f'{count} image(s) (got {len(noise)})'
                )
            noise = noise.expand(count)
        groups: dict[Any, list[int]] = {}
        images = [data_to_image(example)[None] for example in examples]
        masks = [data_to_image(each, each.mask)[None] for each in examples]
        for number, mask in enumerate(masks):
            key = mask.shape, self.phase(mask)
            groups.setdefault(key, []).append(number)
        outs: dict[int, Tensor] = {}
        for members in groups.values():
            restored = self.restore(
                _join([images[k] for k in members]),
                _join([masks[k] for k in members]),
                None if noise is None else noise[members],
            )
            outs |= dict(zip(members, to_signals(restored), strict=True))
        return _join([outs[k] for k in range(count)])

    def restore(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd = None
    ) -> Tensor:
        r"""Restores images.

        Images are mirrored at the border and worked on in tiles, with the same
        result to rounding: large ones, and where derivatives are not recorded
        on the CPU also smaller ones, two tiles at once, in threads of their
        own, which modes and profilers of the calling thread do not see.

        Args:
            image (torch.Tensor): Images :math:`(B, C, H, W)`, measured
                samples where known.
            mask (torch.Tensor): True where known, boolean,
                :math:`(B, C, H, W)` or :math:`(1, C, H, W)`.
            noise_std (torch.Tensor or float, optional): Standard deviation of
                the noise, in the unit of the image: a number, one for each
                image :math:`(B)`, or a map :math:`(B, 1, H, W)`. If
                :obj:`None`, it is estimated by models trained with noise, and
                zero for others. (default: :obj:`None`)

        Returns:
            Images :math:`(B, C, H, W)`; known samples are unchanged, unless
            they are taken as noisy.

        Raises:
            ValueError: If shapes or types do not fit, known samples are not
                finite, the mask is not what the model is for, or the noise is
                negative or not asked for.
        """
        images = self.prepare(image, mask, noise_std)
        size, phase, cell = image.shape[-2:], self.phase(mask), self.cell
        first, frame = mirrored_frame(size, self.margin, phase, cell)
        lines = mirror_lines(size, phase, cell)
        workers = tile_workers(image.device)
        tiles = tiles_of(
            *(size, first, frame, self.halo(images)),
            *(self.max_pixels, workers, cell),
        )
        out = torch.empty_like(image, memory_format=torch.channels_last)
        # Small images share a tile.
        step = max(self.max_pixels // math.prod(frame), 1)
        starts = range(0, image.size(0), step)

        def work(job: tuple[int, tuple[Window, Window]]) -> None:
            start, ((row, to_row, from_row), (col, to_col, from_col)) = job
            chosen = slice(start, start + step)
            some = [v if v.size(0) == 1 else v[chosen] for v in images]
            part = self.run(*(mirrored(v, row, col, lines) for v in some))
            out[chosen, :, to_row, to_col] = part[..., from_row, from_col]

        run_all(work, product(starts, tiles), workers)
        return out

    @property
    @abstractmethod
    def receptive_field(self) -> int:
        """Number of pixels from which a sample can matter, those of whole
        cells; of :class:`~pyg_unroll.imaging.Inpaint` after the first fill.
        """

    def halo(self, images: Sequence[Tensor]) -> int:
        """Number of pixels by which windows of the images of :meth:`prepare`
        must overlap.
        """
        return self.receptive_field

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """Row and column of the first cell that is in phase; zero, if a
        subclass does not say so.
        """
        return 0, 0

    @abstractmethod
    def noise_level(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> Tensor | None:
        """The noise of images, :math:`(B, 1, 1, 1)` or a map
        :math:`(B, 1, H, W)`; :obj:`None` where samples are held.

        Raises:
            ValueError: If it is negative, has another shape or is not asked
                for.
        """

    @abstractmethod
    def prepare(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> tuple[Tensor, ...]:
        """Checks the arguments of :meth:`restore` and does on whole images
        what cannot be done on windows; returns the images to be cut.
        """

    @abstractmethod
    def run(self, *images: Tensor) -> Tensor:
        """Restores windows, which consist of whole cells, of the images of
        :meth:`prepare`.
        """


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenates, without a copy of an only part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def read_images(
    image: Any, mask: Any, channels: int | None, allow_unknown: bool = False
) -> None:
    """Raises a `ValueError` unless images `[B, C, H, W]` and their mask, which
    may have `B = 1`, fit each other, and known pixels are finite.
    """
    shape = f'[batch, {channels or "channels"}, height, width]'
    for name, value in (('image', image), ('mask', mask)):
        got = list(value.shape) if isinstance(value, Tensor) else value
        if not isinstance(value, Tensor) or value.dim() != 4:
            raise ValueError(
                f"'{name}' must be a tensor of shape {shape} (got {got}); one "
                f"image needs '.unsqueeze(0)'"
            )
    if channels is not None and image.size(1) != channels:
        raise ValueError(
            f"'image' must have shape {shape} (got {list(image.shape)})"
        )
    if mask.shape not in (image.shape, (1, *image.shape[1:])):
        raise ValueError(
            f"'mask' must have shape {list(image.shape)} or "
            f'{[1, *image.shape[1:]]} (got {list(mask.shape)})'
        )
    read_signal(
        to_signals(image),
        to_node_mask(mask),
        name='image',
        samples=True,
        allow_unknown=allow_unknown,
    )
