"""One block of a stack: a feature net, its graph, and a solver layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv
from pyg_unroll.nn.models.features import (
    CellFeatures,
    CNNFeatures,
    MLPFeatures,
)
from pyg_unroll.transforms import MahalanobisGraph

# Units of a net's outputs: first outputs are small corrections, features are
# far enough apart to tell pixels from each other.
GUIDE_SCALE = 0.1
FEATURE_SCALE = 3.0

# Where softplus is one.
SOFTPLUS_ONE = 0.5413248546

# Runs a layer: of the layer, its state in the block before, signal, graph and
# weights; returns the estimate and the state.
RunConv = Callable[..., tuple[Tensor, Any]]


class UnrolledBlock(torch.nn.Module):
    """A feature net, the graph learned from it, and a solver layer.

    Args:
        features (torch.nn.Module): The net.
        metric (MahalanobisGraph): The graph.
        conv (SmoothnessConv): The layer.
        output_sizes (sequence of int): Channels of the net's output: guide,
            features, confidence; some may be 0.
    """

    def __init__(
        self,
        features: CNNFeatures | MLPFeatures | CellFeatures,
        metric: MahalanobisGraph,
        conv: SmoothnessConv,
        output_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.features = features
        self.metric = metric
        self.conv = conv
        self.output_sizes = list(output_sizes)

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.features.reset_parameters()
        self.metric.reset_parameters()
        self.conv.reset_parameters()

    @property
    def reach(self) -> int:
        """How many pixels away an estimate can matter, on images."""
        # The weight of an edge depends on the degrees at its ends.
        radius = cast(CellFeatures, self.features).radius
        return radius + self.conv.num_hops + 2

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
        """Improves an estimate of images.

        Args:
            out (torch.Tensor): Output of the net, :math:`(B, K, H, W)`.
            estimate (torch.Tensor): The estimate :math:`(B, C, H, W)`.
            base (torch.Tensor): What the signal is interpolated relative to
                if the net gives no guide, of that shape.
            image (torch.Tensor): Measured samples where known.
            mask (torch.Tensor): True where known, :math:`(B, C, H, W)` or
                :math:`(1, C, H, W)`.
            topology (Topology): The grid.
            run_conv (callable): See :obj:`RunConv`.
            state (Any): State of the block before.

        Returns:
            Estimate and state.
        """
        guide, features, trust = out.split(self.output_sizes, 1)
        start = estimate - base
        if guide.size(1):
            base = estimate + GUIDE_SCALE * guide
            start = torch.zeros_like(base)
        confidence = None
        if trust.size(1):
            # One at first, at every known sample.
            confidence = F.softplus(to_nodes(trust) + SOFTPLUS_ONE)
            confidence = confidence.expand(-1, -1, image.size(1))
        known = to_nodes(mask)
        rest, state = run_conv(
            self.conv,
            state,
            to_nodes(torch.where(mask, image - base, 0)),
            topology,
            self.metric.edge_weights(
                to_nodes(FEATURE_SCALE * features), topology
            ),
            mask=known[0] if known.size(0) == 1 else known,
            confidence=confidence,
            warm_start=to_nodes(start),
        )
        estimate = base + rest.mT.reshape(base.shape)
        if confidence is None:
            estimate = torch.where(mask, image, estimate)
        return estimate, state


def to_nodes(images: Tensor) -> Tensor:
    """Images `[B, C, H, W]` to node signals `[B, H * W, C]`."""
    return images.flatten(2).mT
