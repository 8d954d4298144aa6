"""Images as a restorer's blocks see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyg_unroll.graph import Topology

# Channels of the context, of every initialiser.
CONTEXT_CHANNELS = 2

# Unit of the noise that nets are shown.
_NOISE_SCALE = 10.0


@dataclass(frozen=True, eq=False)
class Scene:
    """Images with their first estimate and the pixel grid.

    Attributes:
        image (torch.Tensor): Measured samples where known,
            :math:`(B, C, H, W)`.
        mask (torch.Tensor): True where known, :math:`(B, C, H, W)` or
            :math:`(1, C, H, W)`.
        estimate (torch.Tensor): First estimate :math:`(B, C, H, W)`.
        context (torch.Tensor): Images that nets see besides the estimate,
            :math:`(B, 2, H, W)`.
        reference (torch.Tensor): Image :math:`(B, 1, H, W)` that estimates
            are shown relative to.
        noise_std (torch.Tensor or None): Standard deviation of the noise,
            :math:`(B, 1, H, W)`, where samples are noisy.
        topology (Topology): The pixel grid.
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
            shown.append(
                (_NOISE_SCALE * self.noise_std).expand_as(self.reference)
            )
        return torch.cat(shown, 1)
