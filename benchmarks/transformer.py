"""A conventional transformer on image windows, to compare with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.imaging.blocks import CONTEXT_CHANNELS
from pyg_unroll.imaging.demosaic import MosaicEstimate

_WINDOW = 8


class _Block(torch.nn.Module):
    """Self-attention within windows of 8 x 8 cells, then a perceptron."""

    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.first_norm = torch.nn.LayerNorm(channels)
        self.attention = torch.nn.MultiheadAttention(
            channels, heads, batch_first=True
        )
        self.second_norm = torch.nn.LayerNorm(channels)
        self.perceptron = torch.nn.Sequential(
            torch.nn.Linear(channels, 4 * channels),
            torch.nn.GELU(),
            torch.nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Cells `[B, H, W, C]`."""
        batch, height, width, channels = x.shape
        y = self.first_norm(x).roll((-self.shift, -self.shift), (1, 2))
        grid = (height // _WINDOW, _WINDOW, width // _WINDOW, _WINDOW)
        y = y.view(batch, *grid, channels).transpose(2, 3)
        y = y.reshape(-1, _WINDOW**2, channels)
        y, _ = self.attention(y, y, y, need_weights=False)
        y = y.view(batch, grid[0], grid[2], _WINDOW, _WINDOW, channels)
        y = y.transpose(2, 3).reshape(x.shape)
        x = x + y.roll((self.shift, self.shift), (1, 2))
        return x + self.perceptron(self.second_norm(x))


class WindowTransformer(torch.nn.Module):
    """Demosaics RGGB mosaics from the same start, and with the same tail, as
    :class:`~pyg_unroll.Demosaic`, by blocks of learned queries, keys and
    values.

    Args:
        channels (int): Width.
        heads (int): Heads of each block.
        depth (int): Number of blocks; every second one is shifted.
    """

    def __init__(
        self, channels: int = 96, heads: int = 4, depth: int = 8
    ) -> None:
        super().__init__()
        self.first_estimate = MosaicEstimate()
        seen = 4 * (3 + CONTEXT_CHANNELS)
        self.head = torch.nn.Conv2d(seen, channels, 3, padding=1)
        self.blocks = torch.nn.ModuleList(
            _Block(channels, heads, k % 2 * _WINDOW // 2) for k in range(depth)
        )
        self.tail = torch.nn.Conv2d(channels, 12, 3, padding=1)
        with torch.no_grad():
            self.tail.weight.mul_(0.1)
            torch.nn.init.zeros_(self.tail.bias)

    def estimates(
        self, image: Tensor, mask: Tensor, noise_std: None = None
    ) -> list[Tensor]:
        """As :meth:`pyg_unroll.Demosaic.estimates`; one estimate."""
        with torch.autocast(image.device.type, enabled=False):
            start, context, reference = self.first_estimate(image, mask)
        shown = torch.cat([context, start - reference], 1)
        cells = F.pixel_unshuffle(shown, 2)
        height, width = cells.shape[-2:]
        pad = (0, -width % _WINDOW, 0, -height % _WINDOW)
        x = self.head(F.pad(cells, pad, mode='replicate'))
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        out = self.tail(x.permute(0, 3, 1, 2))[..., :height, :width]
        out = F.pixel_shuffle(out, 2).to(image.dtype)
        return [torch.where(mask, image, start + 0.1 * out)]

    def restore(
        self, image: Tensor, mask: Tensor, noise_std: None = None
    ) -> Tensor:
        """As :meth:`pyg_unroll.Demosaic.restore`, for even sizes."""
        return self.estimates(image, mask)[-1]
