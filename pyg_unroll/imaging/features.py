"""Shallow convolutional nets that graphs of pixels are learned from."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.imaging.images import data_to_image
from pyg_unroll.nn.features import FeatureNet
from pyg_unroll.transforms.grid_graph import image_shapes


class CNNFeatures(FeatureNet):
    r"""A shallow convolutional net on the pixels of images: on their estimate
    and mask, and on their position.

    Args:
        in_channels (int): See :class:`~pyg_unroll.nn.MLPFeatures`, likewise
            the others.
        out_channels (int, optional): Number of features.
            (default: :obj:`8`)
        hidden_channels (int, optional): Width of the hidden layers.
            (default: :obj:`32`)
        num_layers (int, optional): Number of 3 x 3 convolutions.
            (default: :obj:`3`)
        pos_channels (int, optional): Number of coordinates.
            (default: :obj:`0`)

    Shapes:
        - **input:** those of :class:`~pyg_unroll.nn.MLPFeatures`, and data
          with :obj:`height` and :obj:`width`
        - **output:** node features :math:`(|\mathcal{V}|, D)`
    """

    def make_net(self, sizes: Sequence[int]) -> torch.nn.Sequential:
        """See :class:`FeatureNet`."""
        layers: list[torch.nn.Module] = []
        for before, after in pairwise(sizes):
            conv = torch.nn.Conv2d(before, after, 3, padding=1)
            layers += [conv, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1])

    @property
    def head(self) -> torch.nn.Conv2d:
        """The last convolution."""
        return cast(torch.nn.Conv2d, self.net[-1])

    def run(self, seen: Tensor, data: Data) -> Tensor:
        """See :class:`FeatureNet`."""
        if isinstance(data, Batch) and len(set(image_shapes(data))) > 1:
            parts = seen.split(data.ptr.diff().tolist())
            examples = zip(parts, data.to_data_list(), strict=True)
            return torch.cat([self.run(*example) for example in examples])
        features: Tensor = self.net(data_to_image(data, seen))
        return features.flatten(-2).mT.reshape(seen.size(0), -1)


class CellFeatures(torch.nn.Module):
    """A residual convolutional net on images `[B, C, H, W]`, by an even number
    of 3 x 3 convolutions on their cells, which tile them: on 2 x 2 cells, at
    half resolution with four times the channels, it costs a quarter. Between
    the first and the last, each pair of layers is a residual block.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        cell: int,
    ) -> None:
        super().__init__()
        if num_layers % 2:
            raise ValueError(
                f"'num_layers' must be even and at least 2 (got {num_layers})"
            )
        self.hidden_channels = hidden_channels
        self.cell = cell
        width = [cell**2 * in_channels] + [hidden_channels] * (num_layers - 1)
        body = (
            torch.nn.Conv2d(before, after, 3, padding=1)
            for before, after in pairwise(width)
        )
        self.body: Any = torch.nn.ModuleList(body)
        size = cell**2 * out_channels
        self.head = torch.nn.Conv2d(width[-1], size, 3, padding=1)
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of pixels from which an input can matter."""
        return self.cell * (len(self.body) + 2) - 1

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for conv in (*self.body, self.head):
            conv.reset_parameters()
        with torch.no_grad():
            # Corrections start small.
            self.head.weight.mul_(0.1)
            torch.nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the features."""
        first, *rest = self.body
        # With channels last, convolutions on the CPU take half the time.
        cells = F.pixel_unshuffle(x, self.cell)
        cells = cells.to(memory_format=torch.channels_last)
        x = first(cells).relu_()
        for inner, outer in zip(rest[::2], rest[1::2], strict=True):
            x = outer(inner(x).relu_()).add_(x)
        # Twice in place, the first would have no derivative.
        x = x.relu_() if rest else x
        return F.pixel_shuffle(self.head(x), self.cell)
