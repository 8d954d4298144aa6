"""Blocks that improve an estimate of images: a net, and graph layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.imaging import priors
from pyg_unroll.imaging.cfa import sensor_values
from pyg_unroll.imaging.color_differences import ColorDifferences
from pyg_unroll.imaging.features import CellFeatures
from pyg_unroll.imaging.images import to_images, to_node_mask, to_signals
from pyg_unroll.inputs import Fidelity
from pyg_unroll.transforms import MahalanobisGraph

# Channels of the context, of every first estimate.
CONTEXT_CHANNELS = 2

# Unit of the noise that nets are shown.
_NOISE_SCALE = 10.0

# Units of a net's outputs: first outputs are small corrections, features are
# far enough apart to tell pixels from each other.
_GUIDE_SCALE = 0.1
_FEATURE_SCALE = 3.0

# Softplus is one there.
_SOFTPLUS_ONE = 0.5413248546


@dataclass(frozen=True, eq=False)
class Scene:
    """Images `[B, C, H, W]` as blocks see them: with their first estimate, the
    context that nets see besides the estimate `[B, 2, H, W]`, the reference
    that estimates are shown relative to `[B, 1, H, W]`, and the level of their
    noise, if they are noisy, likewise.
    """

    image: Tensor
    mask: Tensor
    estimate: Tensor
    context: Tensor
    reference: Tensor
    noise_std: Tensor | None
    topology: Topology

    def shown(self, estimate: Tensor) -> Tensor:
        """The input of a net, for the current estimate."""
        shown = [self.context, estimate - self.reference]
        if self.noise_std is not None:
            noise = _NOISE_SCALE * self.noise_std
            shown.append(noise.expand_as(self.reference))
        return torch.cat(shown, 1)


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
        cell (int, optional): Side of the cells of pixels that the net works
            on, that of the pattern of a mosaic: :obj:`2` for Bayer,
            :obj:`3` for X-Trans. (default: :obj:`2`)

    Raises:
        ValueError: If an argument is not one of the above.
    """

    def __init__(
        self,
        channels: int = 3,
        hidden_channels: int = 32,
        feature_channels: int = 4,
        heads: int = 2,
        num_layers: int = 6,
        prior: priors.Prior = 'glr',
        steps: Sequence[int] | None = None,
        fidelity: Fidelity = 'hard',
        weight_floor: float | None = None,
        cell: int = 2,
    ) -> None:
        super().__init__()
        sizes = {
            'channels': channels,
            'hidden_channels': hidden_channels,
            'feature_channels': feature_channels,
            'heads': heads,
        }
        config = priors.block_config(
            sizes, num_layers, prior, steps, weight_floor, cell
        )
        self.config = {**config, 'fidelity': fidelity}
        self.channels = channels
        self.fidelity: Fidelity = fidelity
        is_soft = fidelity == 'soft'
        # Guide, features of the graph, confidence.
        self.output_sizes = [channels, feature_channels, int(is_soft)]
        seen = channels + CONTEXT_CHANNELS + is_soft
        out = sum(self.output_sizes)
        self.features = CellFeatures(
            seen, hidden_channels, out, num_layers, cell
        )
        self.metric = MahalanobisGraph(
            feature_channels, heads, floor=config['weight_floor']
        )
        # The rest of an image beside its guide varies by some hundredths.
        options = {'rho': 3200.0} if prior == 'gtv' else {}
        self.conv = priors.make_conv(
            prior, config['steps'], heads, fidelity=fidelity, **options
        )
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
        guide = estimate + _GUIDE_SCALE * guide
        confidence = None
        if self.fidelity == 'soft':
            # One at first, at every known sample.
            confidence = F.softplus(to_signals(trust) + _SOFTPLUS_ONE)
            confidence = confidence.expand(-1, -1, self.channels)
        rest, state = self.conv.solve(
            to_signals(torch.where(mask, image - guide, 0)),
            scene.topology,
            self.metric.edge_weights(
                to_signals(_FEATURE_SCALE * features), scene.topology
            ),
            mask=to_node_mask(mask),
            confidence=confidence,
            warm_start=to_signals(torch.zeros_like(guide)),
            state=state,
        )
        out = guide + to_images(rest, guide.shape[2:])
        if self.fidelity == 'hard':
            out = torch.where(mask, image, out)
        return out, state


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
        cell (int, optional): The same. (default: :obj:`2`)

    Raises:
        ValueError: If an argument is not one of the above.
    """

    channels = 3
    fidelity: Fidelity = 'hard'

    def __init__(
        self,
        hidden_channels: int = 32,
        feature_channels: int = 4,
        heads: int = 2,
        **options: Unpack[priors.BlockOptions],
    ) -> None:
        super().__init__()
        sizes = {
            'hidden_channels': hidden_channels,
            'feature_channels': feature_channels,
            'heads': heads,
        }
        self.config = priors.block_config(sizes, **options)
        # Guide, features of both graphs, gain, confidence, share kept.
        self.output_sizes = [3, feature_channels, feature_channels, 1, 2, 1]
        seen = self.channels + CONTEXT_CHANNELS
        out = sum(self.output_sizes)
        num_layers, prior, steps, floor, cell = (
            self.config[name] for name in priors.BlockOptions.__annotations__
        )
        self.features = CellFeatures(
            seen, hidden_channels, out, num_layers, cell
        )
        self.step = ColorDifferences(
            prior, steps, steps, feature_channels, heads, floor
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
        guide = _GUIDE_SCALE * guide
        smooth_state, fill_state = state or (None, None)
        sensor = sensor_values(scene.image, mask)
        base = estimate[:, 1:2].expand_as(estimate)
        green, chroma = base[:, 1:2], (estimate - base)[:, ::2]
        green, smooth_state = self.step.correct_green(
            sensor,
            mask,
            green,
            chroma,
            topology,
            features=[_FEATURE_SCALE * smooth_features],
            confidence=F.softplus(3 * trust + _SOFTPLUS_ONE),
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
            features=[_FEATURE_SCALE * fill_features],
            guide=relative,
            state=fill_state,
        )
        return out, (smooth_state, fill_state)


Block: TypeAlias = DifferenceBlock | GuidedBlock
