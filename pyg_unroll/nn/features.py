"""Feature nets: the base class of them, and a perceptron on each node."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import MLP, Linear
from torch_geometric.nn.inits import reset

from pyg_unroll.checks import check_count, check_parameters, check_positive

_SIZES = 'in_channels', 'out_channels', 'hidden_channels', 'num_layers'
_CHECKS = dict.fromkeys(_SIZES, check_positive) | {'pos_channels': check_count}


class FeatureNet(torch.nn.Module):
    """Base class of nets on the estimate, the mask and the position of each
    node; its arguments are those of :class:`MLPFeatures`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 8,
        hidden_channels: int = 32,
        num_layers: int = 3,
        pos_channels: int = 0,
    ) -> None:
        check_parameters(_CHECKS, locals())
        super().__init__()
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels
        self.pos_channels = pos_channels
        hidden = [hidden_channels] * (num_layers - 1)
        self.net: Any = self.make_net(
            [2 * in_channels + pos_channels, *hidden, out_channels]
        )

    @abstractmethod
    def make_net(self, sizes: Sequence[int]) -> torch.nn.Module:
        """Makes the net, with layers between so many channels."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        reset(self.net)

    def forward(self, x: Tensor, mask: Tensor, data: Data) -> Tensor:
        """Computes the features."""
        seen = [x, mask.to(x.dtype)]
        if self.pos_channels:
            pos = data.get('pos')
            if not isinstance(pos, Tensor):
                raise ValueError(
                    "'data' has no positions; set 'data.pos', for example "
                    "with 'pyg_unroll.points_to_data'"
                )
            if pos.dim() != 2 or pos.size(1) != self.pos_channels:
                raise ValueError(
                    f"'data.pos' must have {self.pos_channels} coordinates "
                    f"(got {list(pos.shape)}); set 'pos_channels' accordingly"
                )
            seen.append(pos.to(x.dtype))
        return self.run(torch.cat(seen, dim=-1), data)

    def run(self, seen: Tensor, data: Data) -> Tensor:
        """Applies the net to what is seen of each node."""
        out: Tensor = self.net(seen)
        return out


class MLPFeatures(FeatureNet):
    r"""A multi-layer perceptron on the estimate and the mask of each node,
    and on its position.

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        out_channels (int, optional): Number of features :math:`D`; with a
            guide, :math:`C` of them are the guide. (default: :obj:`8`)
        hidden_channels (int, optional): Width of the hidden layers.
            (default: :obj:`32`)
        num_layers (int, optional): Number of linear layers.
            (default: :obj:`3`)
        pos_channels (int, optional): Number of coordinates :math:`P` of
            :obj:`data.pos`, best scaled to unit size by
            :class:`~torch_geometric.transforms.NormalizeScale`; positions are
            not looked at if :obj:`0`. (default: :obj:`0`)

    Shapes:
        - **input:** estimate :math:`(|\mathcal{V}|, C)`, mask, True where
          known, of that shape, and data, with :obj:`pos`
          :math:`(|\mathcal{V}|, P)` if it is looked at
        - **output:** node features :math:`(|\mathcal{V}|, D)`

    Raises:
        ValueError: If positions are missing or have other coordinates.
    """

    def make_net(self, sizes: Sequence[int]) -> MLP:
        """See :class:`FeatureNet`."""
        return MLP(list(sizes), norm=None)

    @property
    def head(self) -> Linear:
        """The last linear layer."""
        return self.net.lins[-1]
