"""A block that works on the differences between colours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv
from pyg_unroll.nn.models.directional_green import (
    CHROMA_SCALE,
    DETAIL_RATIO,
    FILL_SCALE,
    LUMA_SCALE,
    detail_ratio,
)
from pyg_unroll.nn.models.features import CellFeatures
from pyg_unroll.nn.models.unrolled_block import (
    FEATURE_SCALE,
    GUIDE_SCALE,
    SOFTPLUS_ONE,
    RunConv,
    to_nodes,
)
from pyg_unroll.transforms import MahalanobisGraph


class DifferenceBlock(torch.nn.Module):
    r"""Green from colour differences, then colour differences from green, on
    two learned graphs: :class:`~pyg_unroll.nn.GraphDemosaic` in the hands of
    a feature net.

    1. A layer smooths the differences :math:`d` of red and blue to green, on a
       graph of green, :math:`d` and features; each pixel has its own trust in
       :math:`d`. Green at the sites of other colours follows the smoothed
       differences by a gain of each pixel.
    2. A layer interpolates the differences to the corrected green from their
       known sites, on a graph of green and features, relative to a guide: a
       share, of each pixel, of what was estimated before, and a correction.

    Args:
        in_channels (int): Channels that the net is shown.
        hidden_channels (int): Width of the net.
        feature_channels (int): Features :math:`F` of each graph.
        heads (int): Graphs learned in parallel.
        num_layers (int): Layers of the net.
        smooth_conv (SmoothnessConv): The first layer.
        fill_conv (SmoothnessConv): The second layer.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        feature_channels: int,
        heads: int,
        num_layers: int,
        smooth_conv: SmoothnessConv,
        fill_conv: SmoothnessConv,
    ) -> None:
        super().__init__()
        # Guide, features of both graphs, gain, trust, share kept.
        self.output_sizes = [3, feature_channels, feature_channels, 1, 2, 1]
        self.features = CellFeatures(
            in_channels, hidden_channels, sum(self.output_sizes), num_layers
        )
        self.smooth_metric = MahalanobisGraph(
            3 + feature_channels, heads, normalization=None
        )
        self.fill_metric = MahalanobisGraph(
            1 + feature_channels, heads, normalization=None
        )
        self.smooth_conv = smooth_conv
        self.fill_conv = fill_conv
        self.gain_limit = torch.nn.Parameter(torch.empty(()))

    @property
    def reach(self) -> int:
        """How many pixels away an estimate can matter."""
        # The gain looks four pixels far; a weight depends on both its ends.
        smooth = max(self.smooth_conv.num_hops, 4) + 1
        return self.features.radius + smooth + self.fill_conv.num_hops + 1

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.features.reset_parameters()
        self.smooth_conv.reset_parameters()
        self.fill_conv.reset_parameters()
        with torch.no_grad():
            self.gain_limit.fill_(1.0)
            for metric in (self.smooth_metric, self.fill_metric):
                for head, matrix in enumerate(metric.weight):
                    torch.nn.init.eye_(matrix).mul_(2.0**-head)

    def restore(
        self,
        out: Tensor,
        estimate: Tensor,
        base: Tensor,
        image: Tensor,
        mask: Tensor,
        topology: Topology,
        run_conv: RunConv,
        state: Any,
    ) -> tuple[Tensor, Any]:
        """See :class:`~pyg_unroll.nn.models.unrolled_block.UnrolledBlock`;
        the base is green.
        """
        guide, smooth_features, fill_features, gain, trust, keep = out.split(
            self.output_sizes, 1
        )
        guide = GUIDE_SCALE * guide
        smooth_state, fill_state = state or (None, None)
        is_green, is_chroma = mask[:, 1:2], mask[:, ::2]
        sensor = torch.where(mask, image, 0).sum(1, keepdim=True)
        green, chroma = base[:, 1:2], (estimate - base)[:, ::2]

        shown = [
            green / LUMA_SCALE,
            chroma / CHROMA_SCALE,
            FEATURE_SCALE * smooth_features,
        ]
        smoothed, smooth_state = run_conv(
            self.smooth_conv,
            smooth_state,
            to_nodes(chroma),
            topology,
            self.smooth_metric.edge_weights(
                to_nodes(torch.cat(shown, 1)), topology
            ),
            confidence=to_nodes(F.softplus(3 * trust + SOFTPLUS_ONE)),
        )
        smoothed = smoothed.mT.reshape(chroma.shape)
        ratio = detail_ratio(chroma, green) / DETAIL_RATIO
        gain = self.gain_limit * torch.sigmoid(3 * gain - 4 * ratio.log())
        smoothed = torch.lerp(chroma, smoothed, gain)
        at_sites = torch.where(is_chroma, smoothed, 0).sum(1, keepdim=True)
        corrected = sensor - at_sites + guide[:, 1:2]
        green = torch.where(is_green, sensor, corrected)

        known = to_nodes(is_chroma)
        guide = guide[:, ::2]
        relative = torch.sigmoid(3 * keep - 1) * chroma + guide
        shown = [green / FILL_SCALE, FEATURE_SCALE * fill_features]
        rest, fill_state = run_conv(
            self.fill_conv,
            fill_state,
            to_nodes(torch.where(is_chroma, sensor - green, 0) - relative),
            topology,
            self.fill_metric.edge_weights(
                to_nodes(torch.cat(shown, 1)), topology
            ),
            mask=known[0] if known.size(0) == 1 else known,
            warm_start=to_nodes(chroma + guide - relative),
        )
        chroma = relative + rest.mT.reshape(chroma.shape)
        red, blue = (green + chroma).split(1, 1)
        estimate = torch.cat([red, green, blue], 1)
        return torch.where(mask, image, estimate), (smooth_state, fill_state)
