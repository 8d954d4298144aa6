"""A block that interpolates images relative to a guide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.checks import (
    Checks,
    check_non_negative,
    check_parameters,
    check_positive,
    one_of,
    optional,
)
from pyg_unroll.imaging.features import CellFeatures
from pyg_unroll.imaging.images import to_images, to_signals
from pyg_unroll.imaging.priors import Prior, check_steps, complete, make_conv
from pyg_unroll.imaging.scene import CONTEXT_CHANNELS, Scene
from pyg_unroll.inputs import Fidelity
from pyg_unroll.transforms import MahalanobisGraph

# Units of a net's outputs: first outputs are small corrections, features are
# far enough apart to tell pixels from each other.
GUIDE_SCALE = 0.1
FEATURE_SCALE = 3.0

# Where softplus is one.
SOFTPLUS_ONE = 0.5413248546


class GuidedBlock(torch.nn.Module):
    r"""A convolutional net, the graph learned from its features, and a solver
    layer that interpolates images relative to a guide by the net.

    Args:
        channels (int, optional): Number of image channels :math:`C`.
            (default: :obj:`3`)
        hidden_channels (int, optional): Width of the net.
            (default: :obj:`32`)
        feature_channels (int, optional): Features of the graph.
            (default: :obj:`4`)
        heads (int, optional): Graphs learned in parallel.
            (default: :obj:`2`)
        num_layers (int, optional): Convolutions of the net, even.
            (default: :obj:`6`)
        prior (str, optional): :obj:`'glr'` or :obj:`'gtv'`.
            (default: :obj:`'glr'`)
        steps (sequence of int, optional): Size of the layer,
            :obj:`(num_steps,)` of :class:`~pyg_unroll.nn.GLRConv` or
            :obj:`(num_iters, num_steps)` of
            :class:`~pyg_unroll.nn.GTVConv`; :obj:`(5,)` or :obj:`(3, 2)` if
            :obj:`None`. (default: :obj:`None`)
        fidelity (str, optional): :obj:`'hard'` holds measured samples; with
            :obj:`'soft'` the net is shown the level of their noise and
            predicts the confidence of each pixel. (default: :obj:`'hard'`)
        weight_floor (float, optional): Added to each edge weight; :obj:`0.0`
            for GLR and :obj:`0.03` for GTV if :obj:`None`.
            (default: :obj:`None`)

    Raises:
        ValueError: If an argument is not one of the above.
    """

    _checks: ClassVar[Checks] = {
        'channels': check_positive,
        'hidden_channels': check_positive,
        'feature_channels': check_positive,
        'heads': check_positive,
        'num_layers': check_positive,
        'prior': one_of('glr', 'gtv'),
        'steps': optional(check_steps),
        'fidelity': one_of('hard', 'soft'),
        'weight_floor': optional(check_non_negative),
    }

    def __init__(
        self,
        channels: int = 3,
        hidden_channels: int = 32,
        feature_channels: int = 4,
        heads: int = 2,
        num_layers: int = 6,
        prior: Prior = 'glr',
        steps: Sequence[int] | None = None,
        fidelity: Fidelity = 'hard',
        weight_floor: float | None = None,
    ) -> None:
        values = locals()
        super().__init__()
        check_parameters(self._checks, values)
        self.config = complete({name: values[name] for name in self._checks})
        steps, floor = self.config['steps'], self.config['weight_floor']
        self.channels = channels
        self.fidelity: Fidelity = fidelity
        is_soft = fidelity == 'soft'
        # Guide, features of the graph, confidence.
        self.output_sizes = [channels, feature_channels, int(is_soft)]
        self.features = CellFeatures(
            channels + CONTEXT_CHANNELS + is_soft,
            hidden_channels,
            sum(self.output_sizes),
            num_layers,
        )
        self.metric = MahalanobisGraph(feature_channels, heads, floor=floor)
        # The rest of an image beside its guide varies by some hundredths.
        options = {'rho': 3200.0} if prior == 'gtv' else {}
        self.conv = make_conv(prior, steps, heads, fidelity=fidelity, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.features.reset_parameters()
        self.metric.reset_parameters()
        self.conv.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of pixels from which an estimate can matter."""
        # The weight of an edge depends on the degrees at its ends.
        conv = self.conv.receptive_field + 2
        return self.features.receptive_field + conv

    def forward(
        self, scene: Scene, estimate: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Improves an estimate :math:`(B, C, H, W)`, from the state of the
        layer in the block before; returns the next of both.
        """
        image, mask = scene.image, scene.mask
        out = self.features(scene.shown(estimate)).to(image.dtype)
        guide, features, trust = out.split(self.output_sizes, 1)
        guide = estimate + GUIDE_SCALE * guide
        confidence = None
        if self.fidelity == 'soft':
            # One at first, at every known sample.
            confidence = F.softplus(to_signals(trust) + SOFTPLUS_ONE)
            confidence = confidence.expand(-1, -1, self.channels)
        known = to_signals(mask)
        rest, state = self.conv.solve(
            to_signals(torch.where(mask, image - guide, 0)),
            scene.topology,
            self.metric.edge_weights(
                to_signals(FEATURE_SCALE * features), scene.topology
            ),
            mask=known[0] if known.size(0) == 1 else known,
            confidence=confidence,
            warm_start=to_signals(torch.zeros_like(guide)),
            state=state,
        )
        out = guide + to_images(rest, guide.shape[2:])
        if self.fidelity == 'hard':
            out = torch.where(mask, image, out)
        return out, state
