"""A block that works on the differences between colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.checks import Checks, check_parameters
from pyg_unroll.imaging.color_differences import ColorDifferences
from pyg_unroll.imaging.features import CellFeatures
from pyg_unroll.imaging.guided_block import (
    FEATURE_SCALE,
    GUIDE_SCALE,
    SOFTPLUS_ONE,
    GuidedBlock,
)
from pyg_unroll.imaging.priors import Prior, complete
from pyg_unroll.imaging.scene import CONTEXT_CHANNELS, Scene
from pyg_unroll.inputs import Fidelity


class DifferenceBlock(torch.nn.Module):
    r"""A convolutional net, and the step of
    :class:`~pyg_unroll.imaging.GraphDemosaic` on colour differences with its
    outputs: features of both graphs, confidence and gain of each pixel, and a
    guide.

    Args:
        hidden_channels (int, optional): Width of the net.
            (default: :obj:`32`)
        feature_channels (int, optional): Features of each graph.
            (default: :obj:`4`)
        heads (int, optional): See :class:`GuidedBlock`, and so on.
            (default: :obj:`2`)
        num_layers (int, optional): The same. (default: :obj:`6`)
        prior (str, optional): The same. (default: :obj:`'glr'`)
        steps (sequence of int, optional): Size of both layers.
            (default: :obj:`None`)
        weight_floor (float, optional): The same. (default: :obj:`None`)

    Raises:
        ValueError: If an argument is not one of the above.
    """

    channels = 3
    fidelity: Fidelity = 'hard'
    _checks: ClassVar[Checks] = {
        name: check
        for name, check in GuidedBlock._checks.items()
        if name not in ('channels', 'fidelity')
    }

    def __init__(
        self,
        hidden_channels: int = 32,
        feature_channels: int = 4,
        heads: int = 2,
        num_layers: int = 6,
        prior: Prior = 'glr',
        steps: Sequence[int] | None = None,
        weight_floor: float | None = None,
    ) -> None:
        values = locals()
        super().__init__()
        check_parameters(self._checks, values)
        self.config = complete({name: values[name] for name in self._checks})
        steps, floor = self.config['steps'], self.config['weight_floor']
        # Guide, features of both graphs, gain, confidence, share kept.
        self.output_sizes = [3, feature_channels, feature_channels, 1, 2, 1]
        self.features = CellFeatures(
            self.channels + CONTEXT_CHANNELS,
            hidden_channels,
            sum(self.output_sizes),
            num_layers,
        )
        self.step = ColorDifferences(
            prior, steps, steps, feature_channels, heads, weight_floor=floor
        )

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.features.reset_parameters()
        self.step.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of pixels from which an estimate can matter."""
        return self.features.receptive_field + self.step.receptive_field

    def forward(
        self,
        scene: Scene,
        estimate: Tensor,
        state: tuple[Tensor | None, ...] | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Improves an estimate, see :meth:`GuidedBlock.forward`."""
        mask, topology = scene.mask, scene.topology
        out = self.features(scene.shown(estimate)).to(estimate.dtype)
        guide, smooth_features, fill_features, gain, trust, keep = out.split(
            self.output_sizes, 1
        )
        guide = GUIDE_SCALE * guide
        smooth_state, fill_state = state or (None, None)
        sensor = torch.where(mask, scene.image, 0).sum(1, keepdim=True)
        base = estimate[:, 1:2].expand_as(estimate)
        green, chroma = base[:, 1:2], (estimate - base)[:, ::2]
        green, smooth_state = self.step.correct_green(
            sensor,
            mask,
            green,
            chroma,
            topology,
            features=[FEATURE_SCALE * smooth_features],
            confidence=F.softplus(3 * trust + SOFTPLUS_ONE),
            gain=3 * gain,
            guide=guide[:, 1:2],
            state=smooth_state,
        )
        # Relative to a share of the estimate before, and a correction.
        guide = guide[:, ::2]
        relative = torch.sigmoid(3 * keep - 1) * chroma + guide
        out, fill_state = self.step.fill(
            sensor,
            mask,
            green,
            chroma + guide,
            topology,
            features=[FEATURE_SCALE * fill_features],
            guide=relative,
            state=fill_state,
        )
        return out, (smooth_state, fill_state)
