"""The values that are hidden from a net in training: mosaics, holes, noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from augmentations import to_display, to_light
from patterns import Chance, letters, scratches
from torch import Tensor

from pyg_unroll import cfa_mask

_MOSAICS = {'bayer': 'RGGB', 'xtrans': 'X-Trans'}

# Pixels of a patch that are not scored: nothing is known beyond.
_BORDER = 8


class Sample(NamedTuple):
    """An image as a net sees it and as it should restore it; or a batch.

    Args:
        truth (torch.Tensor): Displayed values `[3, H, W]`.
        image (torch.Tensor): Values that the net sees, zero where unknown.
        mask (torch.Tensor): True where known, `[3, H, W]`.
        noise_std (torch.Tensor): Noise of :obj:`image`, `[]`.
        is_light (torch.Tensor): True if :obj:`image` is linear light, `[]`.
        number (torch.Tensor): That of the patch, `[]`.
    """

    truth: Tensor
    image: Tensor
    mask: Tensor
    noise_std: Tensor
    is_light: Tensor
    number: Tensor

    def to_truth(self, out: Tensor) -> Tensor:
        """Values of a net as they are displayed, `[B, 3, H, W]`."""
        if not self.is_light.any():
            return out
        is_light = self.is_light.view(-1, 1, 1, 1)
        return torch.where(is_light, to_display(out), out)


class Task:
    """Hides values of images.

    Args:
        mask (str): One of :attr:`MASKS`: an RGGB or an X-Trans mosaic,
            scattered holes of many kinds, or every second pixel of every
            second row.
        noise (float): The largest standard deviation of noise.
    """

    MASKS = ('bayer', 'xtrans', 'random', 'grid')

    def __init__(self, mask: str, noise: float = 0.0) -> None:
        if mask not in self.MASKS:
            raise ValueError(f"'mask' must be one of {self.MASKS} (got {mask})")
        self.mask = mask
        self.noise = noise

    def hide(
        self,
        truth: Tensor,
        chance: Chance,
        is_light: bool = False,
        number: int = 0,
    ) -> Sample:
        """Hides values of an image `[3, H, W]`, by masks and noise that vary
        as in training.
        """
        known = make_mask(self.mask, *truth.shape[1:], chance)
        # Little noise is as common as much, on a scale of decibels.
        std = self.noise * chance.uniform() ** 2
        return self._sample(truth, known, std, chance, is_light, number)

    def hide_to_score(self, truth: Tensor, chance: Chance) -> Sample:
        """The same with 30 % of scattered pixels, or 0.4 times the largest
        noise.
        """
        size = truth.shape[1:]
        if self.mask == 'random':
            known = _rgb(scattered(*size, 0.3, chance))
        else:
            known = make_mask(self.mask, *size, chance)
        return self._sample(truth, known, 0.4 * self.noise, chance)

    @staticmethod
    def _sample(
        truth: Tensor,
        mask: Tensor,
        std: float,
        chance: Chance,
        is_light: bool = False,
        number: int = 0,
    ) -> Sample:
        image = to_light(truth) if is_light else truth
        if std > 0:
            grain = chance.standard_normal(truth.shape, dtype=np.float32)
            image = image + std * torch.from_numpy(grain)
        return Sample(
            truth,
            torch.where(mask, image, 0),
            mask,
            torch.tensor(std, dtype=torch.float32),
            torch.tensor(is_light),
            torch.tensor(number),
        )


def make_mask(name: str, height: int, width: int, chance: Chance) -> Tensor:
    """The known values `[3, H, W]` of one of `Task.MASKS`."""
    if name in _MOSAICS:
        return cfa_mask(_MOSAICS[name], height, width)
    if name == 'grid':
        return _rgb(regular(height, width, 2, (0, 0)))
    return _rgb(holes(height, width, chance))


def holes(height: int, width: int, chance: Chance) -> np.ndarray:
    """Known pixels `[H, W]`: half of the time 10 to 80 % of them scattered,
    else a grid of 2 to 4 pixels, or all but thin scratches or text.
    """
    kind = chance.integers(6)
    side = max(height, width)
    if kind < 3:
        return scattered(height, width, chance.uniform(0.1, 0.8), chance)
    if kind == 3:
        step = int(chance.integers(2, 5))
        row, col = chance.integers(step, size=2)
        return regular(height, width, step, (row, col))
    covered = (scratches if kind == 4 else letters)(side, chance)
    known = covered[:height, :width] < 0.3
    known[0, 0] = True  # dense letters must leave something
    return known


def scattered(
    height: int, width: int, share: float, chance: Chance
) -> np.ndarray:
    """A share of known pixels."""
    known = np.zeros((height, width), dtype=bool)
    count = min(max(round(share * known.size), 1), known.size - 1)
    known.flat[chance.permutation(known.size)[:count]] = True
    return known


def regular(
    height: int, width: int, step: int, start: tuple[int, int]
) -> np.ndarray:
    """Known pixels on a grid."""
    known = np.zeros((height, width), dtype=bool)
    known[start[0] :: step, start[1] :: step] = True
    return known


def _rgb(known: np.ndarray) -> Tensor:
    return torch.from_numpy(known).expand(3, -1, -1)


def charbonnier(out: Tensor, truth: Tensor, knee: float) -> Tensor:
    """The Charbonnier loss of each patch, without its border, `[B]`."""
    inner = slice(_BORDER, -_BORDER)
    error = (out - truth)[..., inner, inner]
    return (error.square() + knee**2).sqrt().mean((1, 2, 3))
