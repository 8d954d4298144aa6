"""Shallow convolutional nets that graphs of pixels are learned from."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import check_parameters, check_positive
from pyg_unroll.imaging.images import data_to_image
from pyg_unroll.transforms.grid_graph import image_shapes

_SIZES = dict.fromkeys(
    ('in_channels', 'out_channels', 'hidden_channels', 'num_layers'),
    check_positive,
)


class CNNFeatures(torch.nn.Module):
    r"""A shallow convolutional net on the pixels of images.

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        out_channels (int, optional): Number of features :math:`D`; with a
            guide, :math:`C` of them are the guide. (default: :obj:`8`)
        hidden_channels (int, optional): Width of the hidden layers.
            (default: :obj:`32`)
        num_layers (int, optional): Number of 3 x 3 convolutions.
            (default: :obj:`3`)

    Shapes:
        - **input:** estimate :math:`(|\mathcal{V}|, C)`, mask, True where
          known, of that shape, and data with :obj:`height` and :obj:`width`
        - **output:** node features :math:`(|\mathcal{V}|, D)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 8,
        hidden_channels: int = 32,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        check_parameters(_SIZES, locals())
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels
        width = [2 * in_channels] + [hidden_channels] * (num_layers - 1)
        layers: list[torch.nn.Module] = []
        for before, after in pairwise(width):
            layers += [
                torch.nn.Conv2d(before, after, 3, padding=1),
                torch.nn.ReLU(),
            ]
        head = torch.nn.Conv2d(width[-1], out_channels, 3, padding=1)
        self.net = torch.nn.Sequential(*layers, head)

    @property
    def head(self) -> torch.nn.Conv2d:
        """The last convolution."""
        return cast(torch.nn.Conv2d, self.net[-1])

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for module in self.net:
            if isinstance(module, torch.nn.Conv2d):
                module.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor, data: Data) -> Tensor:
        """Computes the features."""
        return self._features(torch.cat([x, mask.to(x.dtype)], dim=-1), data)

    def _features(self, x: Tensor, data: Data) -> Tensor:
        if isinstance(data, Batch) and len(set(image_shapes(data))) > 1:
            parts = zip(
                x.split(data.ptr.diff().tolist()),
                data.to_data_list(),
                strict=True,
            )
            return torch.cat([self._features(*part) for part in parts])
        image = data_to_image(data, x)
        batched = image if image.dim() == 4 else image.unsqueeze(0)
        features = self.net(batched)
        return features.permute(0, 2, 3, 1).reshape(x.size(0), -1)


class CellFeatures(torch.nn.Module):
    r"""A residual convolutional net on the 2 x 2 cells of images: at half
    resolution, with four times the channels, it costs a quarter.

    Args:
        in_channels (int): Number of input channels :math:`C`.
        hidden_channels (int): Width of the hidden layers.
        out_channels (int): Number of output channels :math:`D`.
        num_layers (int, optional): Number of 3 x 3 convolutions, even and at
            least 2; between the first and the last, each pair is a residual
            block. (default: :obj:`6`)

    Shapes:
        - **input:** images :math:`(B, C, H, W)`, :math:`H` and :math:`W` even
        - **output:** images :math:`(B, D, H, W)`
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 6,
    ) -> None:
        super().__init__()
        check_parameters(_SIZES, locals())
        if num_layers < 2 or num_layers % 2:
            raise ValueError(
                f"'num_layers' must be even and at least 2 (got {num_layers})"
            )
        self.hidden_channels = hidden_channels
        width = [4 * in_channels] + [hidden_channels] * (num_layers - 1)
        self.body = torch.nn.ModuleList(
            torch.nn.Conv2d(before, after, 3, padding=1)
            for before, after in pairwise(width)
        )
        self.head = torch.nn.Conv2d(width[-1], 4 * out_channels, 3, padding=1)
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of pixels from which an input can matter."""
        return 2 * (len(self.body) + 1) + 1

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for conv in (*self.body, self.head):
            cast(torch.nn.Conv2d, conv).reset_parameters()
        with torch.no_grad():
            # Corrections start small.
            self.head.weight.mul_(0.1)
            torch.nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the features."""
        first, *rest = self.body
        # With channels last, convolutions on the CPU take half the time.
        cells = F.pixel_unshuffle(x, 2).to(memory_format=torch.channels_last)
        x = first(cells).relu()
        for inner, outer in zip(rest[::2], rest[1::2], strict=True):
            x = x + outer(inner(x).relu())
        return F.pixel_shuffle(self.head(x.relu()), 2)
