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
    """Images `[B, C, H, W]` with their first estimate, the context that nets
    see besides the estimate `[B, 2, H, W]`, the reference that estimates are
    shown relative to `[B, 1, H, W]`, and the level of their noise, if they are
    noisy, likewise.
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
