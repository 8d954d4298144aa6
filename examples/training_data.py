"""Training data of `train.py`: patches of photographs, partly hidden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from photos import SUFFIXES, load_image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from pyg_unroll import cfa_mask


@dataclass
class Sample:
    """Images as a net sees them, and as it should restore them.

    Args:
        truth (torch.Tensor): Images `[B, 3, H, W]` in `[0, 1]`.
        image (torch.Tensor): The same with noise, zero where unknown.
        mask (torch.Tensor): True where known, `[B or 1, 3, H, W]`.
        noise_std (torch.Tensor or None): Noise of each image, `[B]`.
    """

    truth: Tensor
    image: Tensor
    mask: Tensor
    noise_std: Tensor | None = None

    def to(self, device: str) -> Sample:
        """Moves everything."""
        truth, image, mask, *noise = (v.to(device) for v in self.tensors)
        return Sample(truth, image, mask, *noise)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that there is."""
        known = self.truth, self.image, self.mask
        return known if self.noise_std is None else (*known, self.noise_std)


class Task:
    """The values that are hidden from a net.

    Args:
        name (str): `demosaic`, `demosaic-noisy` or `inpaint`.
    """

    NAMES = ('demosaic', 'demosaic-noisy', 'inpaint')

    def __init__(self, name: str) -> None:
        self.is_mosaic = name != 'inpaint'
        self.is_noisy = name == 'demosaic-noisy'

    def hide(
        self,
        truth: Tensor,
        generator: np.random.Generator,
        noise: float | None = None,
        known: float | None = None,
    ) -> Sample:
        """Hides part of images `[B, 3, H, W]`.

        Args:
            truth (torch.Tensor): The images.
            generator (numpy.random.Generator): The source of chance.
            noise (float, optional): Standard deviation of the noise if the
                task has any; random up to 50/255 by default.
            known (float, optional): Share of known pixels in inpainting; 10
                to 80 % or a regular grid by default.
        """
        count, _, height, width = truth.shape
        noise_std = None
        image = truth
        if self.is_noisy:
            # Little noise is as common as much, on a scale of decibels.
            std = 50 / 255 * generator.uniform(size=count) ** 2
            std = std if noise is None else np.full(count, noise)
            noise_std = torch.tensor(std, dtype=torch.float32)
            grain = generator.standard_normal(truth.shape, dtype=np.float32)
            grain_std = noise_std.view(-1, 1, 1, 1)
            image = truth + grain_std * torch.from_numpy(grain)
        if self.is_mosaic:
            mask = cfa_mask('RGGB', height, width)[None]
        else:
            chosen = [
                _some_pixels(height, width, known, generator)
                for _ in range(count)
            ]
            mask = torch.from_numpy(np.stack(chosen))[:, None].expand_as(truth)
        return Sample(truth, torch.where(mask, image, 0), mask, noise_std)


def _some_pixels(
    height: int, width: int, known: float | None, generator: np.random.Generator
) -> np.ndarray:
    """Known pixels `[H, W]`: one in four times a grid of 2 or 4 pixels."""
    mask = np.zeros((height, width), dtype=bool)
    if known is None and generator.random() < 0.25:
        step = 2 * int(generator.integers(1, 3))
        row, col = generator.integers(step, size=2)
        mask[row::step, col::step] = True
        return mask
    share = generator.uniform(0.1, 0.8) if known is None else known
    count = min(max(round(share * mask.size), 1), mask.size - 1)
    mask.flat[generator.permutation(mask.size)[:count]] = True
    return mask


class Patches(Dataset[Sample]):
    """Random patches of each step, which depend on seed, step and rank only.

    Args:
        images (list[torch.Tensor]): Photographs `[3, H, W]`, 8 or 16 bits.
        task (Task): The values to hide.
        side (int): Side of a patch, even.
        count (int): Patches per step.
        hard (int): Of so many candidates each, the one with most detail is
            taken, half of the time.
        subsampled (float): Share of patches with chroma at half resolution.
        limit (int): Number of different patches; 0 for no limit.
        seed (int): Seed.
        rank (int): The process that they are for.
    """

    def __init__(
        self,
        images: list[Tensor],
        task: Task,
        side: int,
        count: int,
        hard: int,
        subsampled: float,
        limit: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.images = images
        self.task = task
        self.side = side
        self.count = count
        self.hard = hard
        self.subsampled = subsampled
        self.limit = limit
        self.seed = seed
        self.rank = rank

    def __getitem__(self, step: int) -> Sample:
        """Patches of one step."""
        chance = np.random.default_rng((self.seed, self.rank, step))
        chosen = []
        for _ in range(self.count):
            place = chance
            if self.limit:
                number = int(chance.integers(self.limit))
                place = np.random.default_rng((self.seed, number))
            patch = self._cut(place)
            if chance.random() < self.subsampled:
                patch = subsample_chroma(patch)
            # Flips and transposes also change which colour is where.
            flip = chance.integers(2, size=3)
            patch = patch.flip(1) if flip[0] else patch
            patch = patch.flip(2) if flip[1] else patch
            chosen.append(patch.mT if flip[2] else patch)
        return self.task.hide(torch.stack(chosen), chance)

    def _cut(self, chance: np.random.Generator) -> Tensor:
        """One patch `[3, side, side]`, that of most detail of some."""
        candidates = []
        for _ in range(self.hard if chance.integers(2) else 1):
            image = self.images[chance.integers(len(self.images))]
            row = chance.integers(image.size(1) - self.side + 1)
            col = chance.integers(image.size(2) - self.side + 1)
            patch = image[:, row : row + self.side, col : col + self.side]
            candidates.append(patch.float() / largest(image))
        return max(candidates, key=_detail)


def subsample_chroma(image: Tensor) -> Tensor:
    """Halves the resolution of an image without its luma."""
    luma = image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (luma * image).sum(0, keepdim=True)
    small = F.avg_pool2d((image - grey)[None], 2)
    chroma = F.interpolate(small, image.shape[1:], mode='bilinear')[0]
    return (grey + chroma).clamp(0, 1)


def _detail(patch: Tensor) -> float:
    """Mean absolute second difference."""
    rows, cols = patch.diff(n=2, dim=1), patch.diff(n=2, dim=2)
    return float(rows.abs().mean() + cols.abs().mean())


def largest(image: Tensor) -> float:
    """The largest value of a type."""
    return 255.0 if image.dtype == torch.uint8 else 65535.0


def read_images(folder: Path, limit: int) -> list[Tensor]:
    """Reads photographs `[3, H, W]` and keeps them as small integers."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    # Evenly over the folder, whose names may be sorted by kind.
    count = min(limit, len(paths))
    images = []
    for k in tqdm(range(count), desc=f'reading {folder}', disable=None):
        image = load_image(paths[k * len(paths) // count]).expand(3, -1, -1)
        eight = (image * 255).round()
        if torch.allclose(eight / 255, image, atol=1e-6):
            images.append(eight.to(torch.uint8))
        else:
            images.append((image * 65535).round().to(torch.uint16))
    return images
