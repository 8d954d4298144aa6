"""The base of modules that wrap any restorer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.imaging.data import restore_data


class Wrapper(torch.nn.Module):
    """A restorer that hands on to another what it does not change.

    Args:
        restorer (torch.nn.Module): The restorer that is wrapped.
    """

    restorer: Any  # a module of any class with the methods of a restorer

    def __init__(self, restorer: torch.nn.Module) -> None:
        super().__init__()
        self.restorer = restorer

    def forward(self, data: Data) -> Tensor:
        """Restores the images of data; see the restorer."""
        return restore_data(self, data)

    def restore(
        self,
        image: Tensor,
        mask: Tensor,
        noise_std: Tensor | float | None = None,
    ) -> Tensor:
        """Restores images; see the restorer."""
        out: Tensor = self.restorer.restore(image, mask, noise_std)
        return out

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """That of the restorer."""
        phase: tuple[int, int] = self.restorer.phase(mask)
        return phase

    def noise_level(
        self, image: Tensor, mask: Tensor, noise_std: Tensor | float | None
    ) -> Tensor | None:
        """That of the restorer."""
        level: Tensor | None = self.restorer.noise_level(image, mask, noise_std)
        return level
