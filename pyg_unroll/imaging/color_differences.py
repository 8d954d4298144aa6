"""Colour differences on graphs: the step that `GraphDemosaic` takes once and
a trained block takes with the outputs of its net.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.imaging.filters import box, smooth
from pyg_unroll.imaging.images import to_images, to_node_mask, to_signals
from pyg_unroll.imaging.priors import Prior, make_conv
from pyg_unroll.transforms import MahalanobisGraph

# Changes that count as an edge, on graphs on which differences are smoothed
# (of luma and of chroma) and filled in (of luma).
_LUMA_SCALE = 0.15
_CHROMA_SCALE = 0.07
_FILL_SCALE = 0.3
# The ratio of detail of chroma to that of luma at which half of the smoothing
# is undone.
DETAIL_RATIO = 0.04


class ColorDifferences(torch.nn.Module):
    r"""Green from smoothed colour differences, then colour differences from
    green, on two learned graphs.

    1. :meth:`correct_green` smooths the differences :math:`d` of red and blue
       to green on a graph of green and :math:`d`. Green at the sites of other
       colours follows the smoothed differences :math:`z` by :math:`d + a (z -
       d)` with

       .. math::
           a = a_{\max} \, \sigma \left( g - 4 \log \frac{\rho}{\rho_0}
           \right), \qquad \rho = \frac{\textrm{local energy of high-pass } d}
           {\textrm{local energy of high-pass green}},

       hence not where chroma is as rich in detail as luma.
    2. :meth:`fill` interpolates the differences to the corrected green from
       their known sites, on a graph of green.

    Layers have the sizes of :obj:`.priors.make_conv`.
    """

    def __init__(
        self,
        prior: Prior,
        smooth_steps: Sequence[int],
        fill_steps: Sequence[int],
        feature_channels: int = 0,
        heads: int = 1,
        weight_floor: float = 0.0,
    ) -> None:
        super().__init__()
        metric = partial(MahalanobisGraph, heads=heads, normalization=None)
        self.smooth_metric, self.fill_metric = (
            metric(size + feature_channels, floor=weight_floor)
            for size in (3, 1)
        )
        # Colour differences vary by some hundredths.
        options: dict[str, Any] = {
            'glr': ({'mu': 0.5}, {'order': 2}),
            'gtv': ({'mu': 0.01, 'rho': 20.0}, {'rho': 200.0}),
        }
        smooth, fill = options[prior]
        self.smooth_conv = make_conv(prior, smooth_steps, heads, **smooth)
        self.fill_conv = make_conv(prior, fill_steps, heads, **fill)
        self.gain_limit = torch.nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of pixels from which an input can matter."""
        # The gain looks four pixels far; a weight depends on both its ends.
        smooth = max(self.smooth_conv.receptive_field, 4) + 1
        return smooth + self.fill_conv.receptive_field + 1

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.smooth_conv.reset_parameters()
        self.fill_conv.reset_parameters()
        with torch.no_grad():
            self.gain_limit.fill_(1.0)
            for metric in (self.smooth_metric, self.fill_metric):
                for head, matrix in enumerate(metric.weight):
                    torch.nn.init.eye_(matrix).mul_(2.0**-head)

    def correct_green(
        self,
        sensor: Tensor,
        mask: Tensor,
        green: Tensor,
        chroma: Tensor,
        topology: Topology,
        features: Sequence[Tensor] = (),
        confidence: Tensor | None = None,
        gain: Tensor | float = 0.0,
        guide: Tensor | float = 0.0,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Corrects green by smoothed differences of red and blue to it.

        Measured values :obj:`sensor` and green are :math:`(B, 1, H, W)`,
        :obj:`chroma` and its :obj:`confidence` :math:`(B, 2, H, W)`,
        :obj:`features` further features of the graph, :obj:`gain`
        :math:`g`, and :obj:`guide` is added to the correction. Returns green,
        exact at its sites, and the state of the layer.
        """
        shown = [green / _LUMA_SCALE, chroma / _CHROMA_SCALE, *features]
        smoothed, state = self.smooth_conv.solve(
            to_signals(chroma),
            topology,
            self.smooth_metric.edge_weights(
                to_signals(torch.cat(shown, 1)), topology
            ),
            confidence=None if confidence is None else to_signals(confidence),
            state=state,
        )
        smoothed = to_images(smoothed, chroma.shape[2:])
        ratio = _detail_ratio(chroma, green) / DETAIL_RATIO
        share = self.gain_limit * torch.sigmoid(gain - 4 * ratio.log())
        smoothed = torch.lerp(chroma, smoothed, share)
        at_sites = torch.where(mask[:, ::2], smoothed, 0).sum(1, keepdim=True)
        corrected = sensor - at_sites + guide
        return torch.where(mask[:, 1:2], sensor, corrected), state

    def fill(
        self,
        sensor: Tensor,
        mask: Tensor,
        green: Tensor,
        start: Tensor,
        topology: Topology,
        features: Sequence[Tensor] = (),
        guide: Tensor | float = 0.0,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Interpolates the differences to green from their known sites,
        relative to a guide and from a start, both :math:`(B, 2, H, W)`; the
        other arguments are those of :meth:`correct_green`.

        Returns:
            Colours :math:`(B, 3, H, W)`, measured samples as they are, and
            the state of the layer.
        """
        is_chroma = mask[:, ::2]
        shown = [green / _FILL_SCALE, *features]
        rest, state = self.fill_conv.solve(
            to_signals(torch.where(is_chroma, sensor - green, 0) - guide),
            topology,
            self.fill_metric.edge_weights(
                to_signals(torch.cat(shown, 1)), topology
            ),
            mask=to_node_mask(is_chroma),
            warm_start=to_signals(start - guide),
            state=state,
        )
        chroma = guide + to_images(rest, start.shape[2:])
        red, blue = (green + chroma).split(1, 1)
        out = torch.cat([red, green, blue], 1)
        return torch.where(mask, sensor, out), state


def _detail_ratio(chroma: Tensor, luma: Tensor) -> Tensor:
    """Local energy of the fine detail of chroma over that of luma."""

    def energy(x: Tensor) -> Tensor:
        detail = x - smooth(x, [0.25, 0.5, 0.25])
        return box(detail.square(), 3) + 3e-5

    return energy(chroma) / energy(luma)
