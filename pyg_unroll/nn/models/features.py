"""Shallow nets that give each node the features its graph is made from."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MLP, Linear

from pyg_unroll.data import data_to_image


class CNNFeatures(torch.nn.Module):
    r"""A shallow convolutional net on the pixels of images.

    Args:
        in_channels (int): Number of input channels :math:`C`.
        hidden_channels (int): Width of the hidden layers.
        out_channels (int): Number of features :math:`D`.
        num_layers (int, optional): Number of 3 x 3 convolutions, at least 2.
            (default: :obj:`3`)

    Shapes:
        - **input:** node signals :math:`(|\mathcal{V}|, C)` and data with
          :obj:`height` and :obj:`width`
        - **output:** node features :math:`(|\mathcal{V}|, D)`
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        width = [in_channels] + [hidden_channels] * (num_layers - 1)
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

    def forward(self, x: Tensor, data: Data) -> Tensor:
        """Computes the features."""
        if isinstance(data, Batch) and not _equal_sizes(data):
            sizes = data.ptr.diff().tolist()
            parts = zip(x.split(sizes), data.to_data_list(), strict=True)
            return torch.cat([self(part, single) for part, single in parts])
        image = data_to_image(data, x)
        batched = image if image.dim() == 4 else image.unsqueeze(0)
        features = self.net(batched)
        return features.permute(0, 2, 3, 1).reshape(x.size(0), -1)


def _equal_sizes(data: Batch) -> bool:
    height = torch.as_tensor(data.height).view(-1)
    width = torch.as_tensor(data.width).view(-1)
    return bool((height == height[0]).all() & (width == width[0]).all())


class MLPFeatures(torch.nn.Module):
    r"""A multi-layer perceptron on points: signal, mask and position.

    Args:
        in_channels (int): Number of input channels :math:`C`, positions
            included.
        hidden_channels (int): Width of the hidden layers.
        out_channels (int): Number of features :math:`D`.
        num_layers (int, optional): Number of linear layers, at least 2.
            (default: :obj:`3`)

    Shapes:
        - **input:** node signals :math:`(|\mathcal{V}|, C - P)` and data with
          :obj:`pos` :math:`(|\mathcal{V}|, P)`
        - **output:** node features :math:`(|\mathcal{V}|, D)`
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        self.net = MLP(
            in_channels=in_channels,
            hidden_channels=hidden_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            norm=None,
        )

    @property
    def head(self) -> Linear:
        """The last linear layer."""
        return self.net.lins[-1]

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.net.reset_parameters()

    def forward(self, x: Tensor, data: Data) -> Tensor:
        """Computes the features."""
        if data.get('pos') is None:
            raise ValueError(
                "'data' has no positions; set 'data.pos', for example with "
                "'pyg_unroll.points_to_data'"
            )
        seen = torch.cat([x, data.pos.to(x.dtype)], dim=-1)
        if seen.size(-1) != self.net.in_channels:
            expected = self.net.in_channels - x.size(-1)
            raise ValueError(
                f"'data.pos' must have {expected} coordinates (got "
                f"{data.pos.size(-1)}); set 'pos_channels' accordingly"
            )
        return self.net(seen)
