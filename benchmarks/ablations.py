"""Ablations of a demosaicing net: the same short training for each row.

    python benchmarks/ablations.py --folder PHOTOS --test KODAK --other OTHERS

Every net is trained to demosaic, without noise, for the same number of steps on
the same patches with the same schedule; then scored (PSNR, dB, output rounded
to 8 bits) on whole images it has not seen, without noise and with noise that
appears only now.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm
from transformer import WindowTransformer
from utils import Row, parse_args, report

from pyg_unroll import Demosaic, GLRConv, cfa_mask
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from photos import psnr
from training_patches import Patches, Variety, largest, read_images
from training_tasks import Sample, Task, charbonnier

PATCH, BATCH, RATE = 48, 4, 2e-3
# Cuts of photographs, some with chroma at half resolution.
PLAIN = Variety(shrink=1, generated=0, balanced=0, linear=0, exposed=0)


class NoSteps(GLRConv):
    """A layer that returns its start."""

    def solve(
        self, x: Tensor, *_: Any, warm_start: Tensor | None = None, **__: Any
    ) -> tuple[Tensor, None]:
        """Takes no step."""
        return x if warm_start is None else warm_start, None


def net(
    num_blocks: int = 2,
    neighbors: int = 8,
    block: Any = DifferenceBlock,
    hidden_channels: int = 16,
    **options: Any,
) -> Demosaic:
    """A variation of the net."""
    blocks = [
        block(hidden_channels=hidden_channels, **options)
        for _ in range(num_blocks)
    ]
    return Demosaic(blocks, neighbors)


def without_graph(hidden_channels: int = 16) -> Demosaic:
    """The net without graph layers: a CNN."""
    model = net(hidden_channels=hidden_channels)
    for block in model.blocks:
        step: Any = block.step
        step.smooth_conv = NoSteps(step.smooth_conv.num_steps, heads=2)
        step.fill_conv = NoSteps(step.fill_conv.num_steps, heads=2)
    return model


def fixed_steps() -> Demosaic:
    """The net whose coefficients stay those of Chebyshev's iteration."""
    model = net()
    for module in model.modules():
        if isinstance(module, GLRConv):
            module.alpha.requires_grad_(False)
            module.beta.requires_grad_(False)
    return model


def small_transformer() -> WindowTransformer:
    """A transformer with about as many parameters as the net."""
    return WindowTransformer(channels=24, depth=4)


# Name, net, number of different patches (0: no limit).
ROWS: list[tuple[str, Any, int]] = [
    ('GLR', net, 0),
    ('graph layers off (CNN)', without_graph, 0),
    ('transformer', WindowTransformer, 0),
    ('transformer, 24 channels', small_transformer, 0),
    ('GTV', lambda: net(prior='gtv'), 0),
    ('GLR, 8 channels', lambda: net(hidden_channels=8), 0),
    ('graph layers off, 8 channels', lambda: without_graph(8), 0),
    ('GLR, 32 channels', lambda: net(hidden_channels=32), 0),
    ('graph layers off, 32 channels', lambda: without_graph(32), 0),
    ('1 block', lambda: net(num_blocks=1), 0),
    ('3 blocks', lambda: net(num_blocks=3), 0),
    ('4 blocks', lambda: net(num_blocks=4), 0),
    ('1 head', lambda: net(heads=1), 0),
    ('4 heads', lambda: net(heads=4), 0),
    ('4 neighbours', lambda: net(neighbors=4), 0),
    ('24 neighbours', lambda: net(neighbors=24), 0),
    ('fixed step sizes', fixed_steps, 0),
    ('1000 patches', net, 1000),
    ('10 000 patches', net, 10_000),
    ('colours, not differences', lambda: net(block=GuidedBlock), 0),
]


def loss_of(model: Any, sample: Sample) -> Tensor:
    """The loss of a batch, of all blocks' estimates."""
    *early, last = (
        charbonnier(sample.to_truth(out), sample.truth, 1e-3).mean()
        for out in model.estimates(sample.image, sample.mask)
    )
    return last + 0.3 * sum(early)


def train(
    model: torch.nn.Module, patches: Patches, limit: int, steps: int
) -> float:
    """Trains a model on so many different patches (0: no limit); returns the
    seconds it took.
    """
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=RATE, weight_decay=1e-4)
    begin = time.perf_counter()
    for step in range(steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        rate *= min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]['lr'] = RATE * rate
        places = range(step * BATCH, (step + 1) * BATCH)
        batch = [
            patches[place % limit if limit else place, place]
            for place in places
        ]
        loss = loss_of(model, default_collate(batch))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(chosen, 0.2)
        if torch.isfinite(norm):
            optimizer.step()
    return time.perf_counter() - begin


@torch.no_grad()
def score(model: Any, images: list[Tensor], noise: float) -> float:
    """Mean PSNR (dB)."""
    total = 0.0
    for k, image in enumerate(images):
        truth = (image.float() / largest(image))[None]
        mask = cfa_mask('RGGB', *truth.shape[2:])[None]
        grain = np.random.default_rng(k).standard_normal(truth.shape)
        grain = noise * torch.from_numpy(grain).float()
        out = model.restore(torch.where(mask, truth + grain, 0), mask)
        total += psnr(out, truth)
    return total / len(images)


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        folder=('', 'images to train on'),
        test=('', 'images to score'),
        other=('', 'more images to score'),
        limit=(6, 'images of each folder to score'),
        steps=(800, 'training steps'),
        only=('', 'rows whose name contains this, or one of several (A|B)'),
    )
    folders = [Path(args.folder), Path(args.test), Path(args.other)]
    for folder in folders:
        if not folder.is_dir() or folder == Path():
            raise SystemExit(f"error: '{folder}' is not a folder")
    images = read_images(folders[0], 10_000)
    tests, others = (read_images(folder, args.limit) for folder in folders[1:])
    rows: list[Row] = []
    chosen = [
        row for row in ROWS if any(p in row[0] for p in args.only.split('|'))
    ]
    for name, make, limit in tqdm(chosen, disable=None):
        torch.manual_seed(0)
        model = make()
        patches = Patches(images, Task('bayer'), PATCH, PLAIN)
        seconds = train(model, patches, limit, args.steps)
        row = {
            'net': name,
            'parameters': sum(p.numel() for p in model.parameters()),
            'seconds per step': seconds / args.steps,
        }
        for sigma in (0, 10, 20):
            label = f'{folders[1].name}, noise {sigma}'
            row[label] = f'{score(model, tests, sigma / 255):.2f}'
            if sigma == 0:
                row[folders[2].name] = f'{score(model, others, 0):.2f}'
        rows.append(row)
        tqdm.write(str(row))
    report('ablations', rows, args.device, args.write)


if __name__ == '__main__':
    main()
