"""Inpainting by trained graph layers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.imaging.block_restorer import BlockRestorer, FirstEstimate
from pyg_unroll.imaging.blocks import Block, GuidedBlock
from pyg_unroll.imaging.filters import box, smooth_mirrored

# Smoothing steps on each level of the pyramid.
_SWEEPS = 3
_TINY = 1e-12


class Inpaint(BlockRestorer):
    r"""Fills in missing pixels of images, by graph layers on learned graphs
    that start from a pyramid.

    .. code-block:: python

        model = Inpaint.from_pretrained('random')
        data = image_to_data(image)
        data.mask = known  # [num_pixels]
        filled = model(data)  # node signals
        image = model.restore(image, mask)  # images

    Args:
        blocks (sequence of torch.nn.Module, optional): The blocks, all
            :class:`~pyg_unroll.imaging.GuidedBlock`; two of three channels if
            :obj:`None`. (default: :obj:`None`)
        neighbors (int, optional): See :class:`~pyg_unroll.imaging.Demosaic`.
            (default: :obj:`8`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with images :obj:`x`
          :math:`(|\mathcal{V}|, C)`, boolean :obj:`mask`
          :math:`(|\mathcal{V}|)` or :math:`(|\mathcal{V}|, C)`, True where
          known, :obj:`height`, :obj:`width`, and for noisy samples
          :obj:`noise_std`, the standard deviation of the noise in the unit of
          :obj:`x`
        - **output:** images :math:`(|\mathcal{V}|, C)`

    Raises:
        ValueError: If the data has no mask, or its shapes do not fit.
    """

    def __init__(
        self, blocks: Sequence[Block] | None = None, neighbors: int = 8
    ) -> None:
        super().__init__(PyramidEstimate(), blocks, neighbors)


class PyramidEstimate(FirstEstimate):
    """The first estimate of images with missing pixels: push and pull through
    a pyramid of coarser images (Gortler et al., 1996), smoothed on each level.
    """

    block = GuidedBlock
    channels = None
    cell = 2
    receptive_field = 4

    def fill(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`FirstEstimate`: all missing pixels."""
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
                near = smooth_mirrored(out, (0.25, 0.5, 0.25))
                out = torch.lerp(near, known, trust)
        return torch.where(mask, image, out), mask

    def __call__(
        self, image: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate, context (share of known channels, and local grey), and
        reference.
        """
        share = mask.to(image.dtype).mean(1, keepdim=True)
        grey = box(image.mean(1, keepdim=True), self.receptive_field)
        return image, torch.cat([share.expand_as(grey), grey], dim=1), grey
