"""Patches of photographs to train on, each a function of its number, and the
order that they come in: some are the hardest so far, again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import augmentations
import numpy as np
import torch
from patterns import Chance, pattern
from photos import photos_in
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from training_tasks import Sample, Task

from pyg_unroll.imaging.files import read_photo

# Number and place of a patch: the number says what it shows, the place how it
# lies and what is hidden.
Index = tuple[int, int]

# The number that patches bear that are not to be revisited.
FORGOTTEN = -1


@dataclass(frozen=True)
class Variety:
    """How patches differ from cuts of photographs.

    Args:
        hard (int): Every second patch is the one of so many with most detail.
        shrink (float): Largest factor by which large photographs are shrunk.
        large (int): Longer side from which a photograph is large.
        subsampled (float): Share with chroma at half resolution.
        generated (float): Share of generated patterns.
        balanced (float): Share with random gains of the colours, down to 0.4.
        linear (float): Share in linear light, scored as it is displayed.
    """

    hard: int = 2
    shrink: float = 3.0
    large: int = 1024
    subsampled: float = 0.3
    generated: float = 0.05
    balanced: float = 0.2
    linear: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ('hard', 'shrink'):
                fits = value >= 1
            else:
                fits = value >= 0 and (name == 'large' or value <= 1)
            if not fits:
                raise ValueError(f"'{name}' is out of range (got {value})")


class Patches(Dataset[Sample]):
    """Random patches, which depend on seed, number and place only.

    Args:
        images (list[torch.Tensor]): Photographs `[3, H, W]`, 8 or 16 bits.
        task (Task): Hides their values.
        side (int): Side of a patch, even.
        variety (Variety): Their augmentations.
        seed (int): Seed.
    """

    def __init__(
        self,
        images: list[Tensor],
        task: Task,
        side: int,
        variety: Variety | None = None,
        seed: int = 0,
    ) -> None:
        cell = 6 if task.mask == 'xtrans' else 2
        if side < 32 or side % cell:
            whole = 'even' if cell == 2 else f'a multiple of {cell}'
            raise ValueError(
                f"'side' must be {whole} and at least 32 (got {side})"
            )
        self.images = [im for im in images if min(im.shape[1:]) >= side]
        if not self.images:
            raise ValueError(f"no photograph is as large as 'side' ({side})")
        self.task = task
        self.side = side
        self.variety = variety or Variety()
        self.seed = seed

    def __getitem__(self, index: Index) -> Sample:
        """A patch, and what a net sees of it."""
        number, place = index
        chance = np.random.default_rng((self.seed, 0, number))
        if chance.random() < self.variety.generated:
            truth = pattern(self.side, chance)
            # These are as hard as can be; they shall not crowd out others.
            number = FORGOTTEN
        else:
            truth = self._show(chance)
        is_light = chance.random() < self.variety.linear
        chance = np.random.default_rng((self.seed, 1, place))
        # This also changes which colour is where.
        truth = augmentations.orient(truth, *chance.integers(2, size=3) > 0)
        return self.task.hide(truth, chance, is_light, number)

    def _show(self, chance: Chance) -> Tensor:
        """What a patch of a photograph shows, `[3, side, side]`."""
        count = self.variety.hard if chance.integers(2) else 1
        cuts = [self._cut(chance) for _ in range(count)]
        patch = max(cuts, key=augmentations.detail)
        if chance.random() < self.variety.subsampled:
            patch = augmentations.subsample_chroma(patch)
        if chance.random() < self.variety.balanced:
            gains = torch.from_numpy(chance.uniform(0.4, 1, size=3)).float()
            patch = augmentations.white_balance(patch, gains)
        return patch

    def _cut(self, chance: Chance) -> Tensor:
        """A square of a photograph, shrunk if that is large."""
        image = self.images[chance.integers(len(self.images))]
        height, width = image.shape[1:]
        side = self.side
        if max(height, width) >= self.variety.large:
            most = min(self.variety.shrink, min(height, width) / side)
            side = int(side * chance.uniform(1, most))
        row = chance.integers(height - side + 1)
        col = chance.integers(width - side + 1)
        square = image[:, row : row + side, col : col + side]
        return augmentations.shrink(square.float() / largest(image), self.side)


class Rounds(Sampler[list[Index]]):
    """Batches of new patches and of the hardest so far, in rounds: losses
    count from the next round on, so that batches can be made ahead.

    Args:
        count (int): Patches of a batch, of all processes together.
        steps (int): Batches of a round.
        revisited (float): Share of a batch that was seen before.
        pool (int): Number of patches to remember.
        seed (int): Seed.
        rank (int): This process among :obj:`world`.
        world (int): Number of processes.
    """

    def __init__(
        self,
        count: int,
        steps: int,
        revisited: float = 0.25,
        pool: int = 500,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if count % world:
            raise ValueError(
                f"'batch' must be a multiple of {world} processes (got {count})"
            )
        self.count = count
        self.steps = steps
        self.revisited = round(revisited * count)
        self.pool = pool
        self.seed = seed
        self.rank = rank
        self.world = world
        self.step = 0
        self.hardest: dict[int, float] = {}
        self.losses: dict[int, float] = {}

    def __len__(self) -> int:
        """The length of a whole round, as Lightning expects it."""
        return self.steps

    def __iter__(self) -> Iterator[list[Index]]:
        """The rest of this round."""
        end = (self.step // self.steps + 1) * self.steps
        return map(self.batch, range(self.step, end))

    def batch(self, step: int) -> list[Index]:
        """This process's part of a batch."""
        places = range(step * self.count, (step + 1) * self.count)
        numbers = list(places)
        if self.hardest:
            chance = np.random.default_rng((self.seed, 2, step))
            chosen = chance.choice(list(self.hardest), self.revisited)
            numbers[: self.revisited] = map(int, chosen)
        pairs = list(zip(numbers, places, strict=True))
        return pairs[self.rank :: self.world]

    def record(
        self, steps: int, numbers: Iterable[int], losses: Iterable[float]
    ) -> None:
        """Takes note of steps done, and of their losses."""
        self.step += steps
        self.losses.update(zip(numbers, losses, strict=True))
        self.losses.pop(FORGOTTEN, None)
        if steps and self.step % self.steps == 0:
            known = sorted(
                (self.hardest | self.losses).items(),
                key=lambda item: (-item[1], item[0]),
            )
            self.hardest, self.losses = dict(known[: self.pool]), {}

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        names = 'step', 'hardest', 'losses'
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for name, value in state.items():
            setattr(self, name, value)


def largest(image: Tensor) -> float:
    """The largest value of a type."""
    return 255.0 if image.dtype == torch.uint8 else 65535.0


def read_images(folder: Path, limit: int | None = None) -> list[Tensor]:
    """Reads photographs `[3, H, W]` and keeps them as small integers."""
    paths = photos_in(folder)
    # Evenly over the folder, whose names may be sorted by kind.
    count = len(paths) if limit is None else min(limit, len(paths))
    images = []
    for k in tqdm(range(count), desc=f'reading {folder}', disable=None):
        image = read_photo(paths[k * len(paths) // count]).expand(3, -1, -1)
        eight = (image * 255).round()
        if torch.allclose(eight / 255, image, atol=1e-6):
            images.append(eight.to(torch.uint8))
        else:
            images.append((image * 65535).round().to(torch.uint16))
    return images
