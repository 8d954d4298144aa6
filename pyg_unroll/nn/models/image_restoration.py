"""What stacks do with images that are worked on as scenes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import can_read_values, check_not_half
from pyg_unroll.data import data_to_image
from pyg_unroll.graph import Topology
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv
from pyg_unroll.nn.models.difference_block import DifferenceBlock
from pyg_unroll.nn.models.scene import SceneReader, check_images
from pyg_unroll.nn.models.storage import Storage
from pyg_unroll.nn.models.tiling import run_in_tiles
from pyg_unroll.nn.models.unrolled_block import UnrolledBlock
from pyg_unroll.nn.models.views import average_views
from pyg_unroll.ops.signal import Fidelity, MaskedSignal
from pyg_unroll.transforms import GridGraph, KNNGraph
from pyg_unroll.transforms.utils import examples_of

# Pixels mirrored around an image, even: room for the layers to forget that
# convolutions see zeros outside.
MARGIN = 18

# Unit of the noise that nets are shown.
_NOISE_SCALE = 10.0


class ImageRestoration(Storage):
    """Restores images that a :class:`SceneReader` prepares: the part of the
    stacks that the domains :obj:`'mosaic'` and :obj:`'inpainting'` need.
    """

    reader: SceneReader | None
    blocks: torch.nn.ModuleList
    graph: GridGraph | KNNGraph
    domain: str
    guide: bool
    fidelity: Fidelity
    in_channels: int
    max_pixels: int
    num_views: int

    @abstractmethod
    def _run_conv(
        self,
        conv: SmoothnessConv,
        state: Any,
        x: Tensor,
        topology: Topology,
        weight: Tensor,
        **kwargs: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """Runs the layer; returns the estimate and what to pass on."""

    def _blocks(self) -> list[UnrolledBlock | DifferenceBlock]:
        return cast('list[UnrolledBlock | DifferenceBlock]', list(self.blocks))

    def _scene_reader(self) -> SceneReader:
        if self.reader is None:
            raise ValueError(
                f'the model was built with domain={self.domain!r}; whole '
                f"images need domain='mosaic' or domain='inpainting'"
            )
        return self.reader

    def _forward_scene(self, data: Data) -> Tensor:
        reader = self._scene_reader()
        if isinstance(data, Batch):
            parts = examples_of(data)
            if data.get('noise_std') is not None:
                # One for each image, or one set on the batch for all.
                std = torch.as_tensor(data.noise_std).view(-1)
                if len(std) not in (1, len(parts)):
                    raise ValueError(
                        f"'data.noise_std' must be one value or one for each "
                        f'of {len(parts)} image(s) (got {len(std)})'
                    )
                for part, value in zip(
                    parts, std.expand(len(parts)), strict=True
                ):
                    part.noise_std = value
            return torch.cat([self(part) for part in parts])
        mask = reader.mask(data)
        # What stands at unknown entries has no meaning here.
        MaskedSignal.read(
            torch.where(mask, data.x, 0),
            *(mask, None, self.fidelity),
            name='data.x',
        )
        out = self.restore(
            data_to_image(data)[None],
            data_to_image(data, mask)[None],
            data.get('noise_std'),
        )
        return out[0].permute(1, 2, 0).reshape(-1, self.in_channels)

    def restore(
        self,
        image: Tensor,
        mask: Tensor,
        noise_std: Tensor | float | None = None,
    ) -> Tensor:
        r"""Restores images, for :obj:`domain='mosaic'` and
        :obj:`domain='inpainting'`.

        Images are mirrored at the border. Images of more than
        :obj:`max_pixels` are worked on in tiles that overlap by the receptive
        field, so that the result is the same to rounding. With
        :obj:`num_views`, the results of as many mirrored and transposed copies
        are averaged.

        Args:
            image (torch.Tensor): Images :math:`(B, C, H, W)`, measured
                samples where known.
            mask (torch.Tensor): True where known, boolean,
                :math:`(B, C, H, W)` or :math:`(1, C, H, W)`.
            noise_std (torch.Tensor or float, optional): Standard deviation of
                the noise, in the unit of the image, of each image
                :math:`(B)` or of all; for :obj:`fidelity='soft'` only, and
                estimated if :obj:`None`. (default: :obj:`None`)

        Returns:
            Images :math:`(B, C, H, W)`; under hard fidelity, known samples
            are unchanged.

        Raises:
            ValueError: If shapes or types do not fit, known samples are not
                finite, the mask is not what the model is for, the noise is
                negative or not asked for, or the model has another domain.
        """
        reader = self._scene_reader()
        self._check_scene(image, mask)
        noise_std = self._noise_std(image, mask, noise_std)

        def run(image: Tensor, mask: Tensor) -> Tensor:
            return run_in_tiles(
                lambda part, known: self._estimates(part, known, noise_std)[-1],
                (reader.fill(image, mask), mask),
                self.max_pixels,
                self.receptive_field,
                MARGIN,
                reader.offset(mask),
            )

        out = average_views(run, (image, mask), self.num_views)
        if noise_std is None and self.num_views > 1:
            out = torch.where(mask, image, out)  # not to rounding only
        return out

    def _check_scene(self, image: Tensor, mask: Tensor) -> tuple[int, int]:
        """Refuses what the model is not for; returns the mask's offset."""
        check_images(image, mask, self.in_channels)
        self._check_type('image', image)
        if not can_read_values():
            return 0, 0  # what `estimates` asks for
        return self._scene_reader().offset(mask)

    def _check_type(self, name: str, x: Any) -> None:
        dtype = next(self.parameters()).dtype
        check_not_half('model', dtype)
        is_other = isinstance(x, Tensor) and x.dtype != dtype
        if (
            is_other
            and x.is_floating_point()
            and not torch.is_autocast_enabled(x.device.type)
        ):
            raise ValueError(
                f"'{name}' must have the type of the model, {dtype} (got "
                f"{x.dtype}); convert one of them with '.to({dtype})'"
            )

    def _noise_std(
        self, image: Tensor, mask: Tensor, noise_std: Tensor | float | None
    ) -> Tensor | None:
        """The noise of each image, `[B, 1, 1, 1]`; None under hard fidelity."""
        if self.fidelity == 'hard':
            if noise_std is not None:
                raise ValueError(
                    f"'noise_std' was given (got {noise_std}), but the model "
                    f"holds known entries; use one with fidelity='soft'"
                )
            return None
        if noise_std is None:
            noise = self._scene_reader().noise_std(image, mask)
            return noise.view(-1, 1, 1, 1)
        noise = torch.as_tensor(
            noise_std, dtype=image.dtype, device=image.device
        )
        fits = noise.numel() in (1, image.size(0))
        can_read = can_read_values()
        if fits and can_read:
            fits = bool((noise.isfinite() & (noise >= 0)).all())
        if not fits:
            raise ValueError(
                f"'noise_std' must be finite and non-negative, one value or "
                f'one for each of {image.size(0)} image(s) (got {noise_std})'
            )
        largest = image.abs().amax()
        if can_read and bool((noise > largest).any() & (largest > 0)):
            raise ValueError(
                f"'noise_std' must be in the unit of the image, such as "
                f'20 / 255 in [0, 1] (got {noise_std}; the largest value is '
                f'{float(largest):.3g})'
            )
        return noise.view(-1, 1, 1, 1)

    @property
    def receptive_field(self) -> int:
        """How many pixels away a sample can matter, even, for
        :obj:`domain='mosaic'`; for :obj:`'inpainting'` after the fill.
        """
        radius = self._scene_reader().radius
        radius += sum(block.reach for block in self._blocks())
        return radius + radius % 2

    def estimates(
        self,
        image: Tensor,
        mask: Tensor,
        noise_std: Tensor | float | None = None,
    ) -> list[Tensor]:
        r"""Runs the blocks on images as they are, to train on them.

        Can be captured in a CUDA graph, by
        :func:`torch.cuda.make_graphed_callables`; values are not checked then.

        Args:
            image (torch.Tensor): Images :math:`(B, C, H, W)` of even size; of
                a mosaic, red at the top left.
            mask (torch.Tensor): The mask, :math:`(B, C, H, W)` or
                :math:`(1, C, H, W)`.
            noise_std (torch.Tensor or float, optional): See :meth:`restore`.
                (default: :obj:`None`)

        Returns:
            The estimate of each block, :math:`(B, C, H, W)`; about
            :attr:`receptive_field` pixels along the border are worse.

        Raises:
            ValueError: As :meth:`restore`, and if a size is odd or a mosaic
                does not begin with red.
        """
        reader = self._scene_reader()
        offset = self._check_scene(image, mask)
        if offset != (0, 0) or image.size(2) % 2 or image.size(3) % 2:
            raise ValueError(
                f"'image' must have an even size, and a mosaic red at the top "
                f'left (got {list(image.shape)}, which lacks {offset[0]} '
                f"row(s) and {offset[1]} column(s)); use 'restore' for others"
            )
        noise_std = self._noise_std(image, mask, noise_std)
        with torch.autocast(image.device.type, enabled=False):
            filled = reader.fill(image, mask)
        return self._estimates(filled, mask, noise_std)

    def _estimates(
        self, image: Tensor, mask: Tensor, noise_std: Tensor | None
    ) -> list[Tensor]:
        """The estimates of filled images."""
        reader = self._scene_reader()
        with torch.autocast(image.device.type, enabled=False):
            # Nothing to learn here, and half precision would spoil it.
            scene = reader.read(image, mask)
        estimate, state = scene.estimate, None
        grid = Data(x=image[0, 0].reshape(-1, 1))
        grid.height, grid.width = image.shape[-2:]
        topology = self.graph.topology(grid)
        extra = []
        if noise_std is not None:
            extra.append((_NOISE_SCALE * noise_std).expand_as(scene.reference))
        results = []
        for block in self._blocks():
            shown = [scene.context, estimate - scene.reference, *extra]
            out = block.features(torch.cat(shown, 1)).to(image.dtype)
            estimate, state = block.restore(
                out,
                estimate,
                reader.base(estimate),
                image,
                mask,
                topology,
                self._run_conv,
                state,
            )
            results.append(estimate)
        return results
