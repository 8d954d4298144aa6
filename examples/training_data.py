"""Photographs as Lightning's training and validation data."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from training_patches import Patches, Rounds, Variety, largest, read_images
from training_tasks import Sample, Task


class Photographs(LightningDataModule):
    """Patches of photographs to train on, and photographs to score.

    Args:
        folders (list[Path]): Folders of photographs to train on.
        val (Path, optional): Photographs to score, never trained on.
        mask (str): Known values, see `Task`.
        noise (float): Largest standard deviation of noise, in 1/255.
        side (int): Side of a patch, even.
        batch (int): Patches of a step, of all processes together.
        steps (int): Steps of a round; checkpoints are written after each.
        revisited (float): Share of a batch that are the hardest patches of
            the rounds before.
        pool (int): Number of these to choose from.
        variety (Variety): Augmentations.
        workers (int): Processes that make patches while the net learns.
        max_val (int): Photographs to score, at most.
        seed (int): Seed of the patches.
    """

    def __init__(
        self,
        folders: list[Path],
        val: Path | None = None,
        mask: Literal['bayer', 'xtrans', 'random', 'grid'] = 'bayer',
        noise: float = 0.0,
        side: int = 96,
        batch: int = 4,
        steps: int = 100,
        revisited: float = 0.25,
        pool: int = 500,
        variety: Variety = Variety(),  # noqa: B008, it is frozen
        workers: int = 0,
        max_val: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {'batch': batch, 'steps': steps}.items():
            if value < 1:
                raise ValueError(f"'{name}' must be positive (got {value})")
        if not 0 <= revisited < 1:
            raise ValueError(
                f"'revisited' must be at least 0 and below 1 (got {revisited})"
            )
        self.workers = workers
        self.batch, self.steps = batch, steps
        self.revisited, self.pool, self.seed = revisited, pool, seed
        images = [image for path in folders for image in read_images(path)]
        self.task = Task(mask, noise / 255)
        self.patches = Patches(images, self.task, side, variety, seed)
        self.tests = [] if val is None else read_images(val, max_val)
        self.rounds: Any = None

    def setup(self, stage: str) -> None:
        """Begins with the first round."""
        trainer = self.trainer
        assert trainer is not None
        if self.rounds is None:
            self.rounds = Rounds(
                *(self.batch, self.steps, self.revisited, self.pool),
                *(self.seed, trainer.global_rank, trainer.world_size),
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of patches."""
        return DataLoader(
            self.patches,
            batch_sampler=self.rounds,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """Whole photographs, one at a time."""
        return DataLoader(Whole(self.tests, self.task))

    @cached_property
    def photographs(self) -> int:
        """A number that changes with the photographs or their order."""
        sizes = [(*image.shape, image.sum().item()) for image in self.images]
        return zlib.crc32(repr(sizes).encode())

    @property
    def images(self) -> list[Tensor]:
        """The photographs that are trained on."""
        return self.patches.images

    def state_dict(self) -> dict[str, Any]:
        """See `Rounds`."""
        return {'photographs': self.photographs, **self.rounds.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `Rounds`; refuses other photographs."""
        state = dict(state_dict)
        if state.pop('photographs') != self.photographs:
            raise ValueError(
                'the photographs are not those of the checkpoint; give the '
                'same folders in the same order'
            )
        self.rounds.load_state_dict(state)


class Whole(Dataset[Sample]):
    """Whole photographs."""

    def __init__(self, images: list[Tensor], task: Task) -> None:
        self.images = images
        self.task = task

    def __len__(self) -> int:
        """Their number."""
        return len(self.images)

    def __getitem__(self, k: int) -> Sample:
        """The same pixels are hidden each time."""
        image = self.images[k]
        truth = image.float() / largest(image)
        return self.task.hide_to_score(truth, np.random.default_rng(k))
