"""What the parts of uGLR are good for: the same short training for each row.

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
from tqdm import tqdm
from transformer import WindowTransformer
from utils import Row, parse_args, report

from pyg_unroll import GLRConv, UnrolledGLR, UnrolledGTV

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from photos import psnr
from train import Loss
from training_data import Patches, Task, largest, read_images

BASE: dict[str, Any] = {
    'domain': 'mosaic',
    'color_differences': True,
    'hidden_channels': 16,
    'num_blocks': 2,
    'num_steps': 5,
    'feature_channels': 4,
}
GTV = {'num_iters': 3, 'num_steps': 2}
PATCH, BATCH, RATE = 48, 4, 2e-3


class WithoutGraph(UnrolledGLR):
    """The same net whose layers pass their input on: a CNN."""

    def _run_conv(
        self,
        conv: Any,
        state: Any,
        x: Tensor,
        *_: Any,
        warm_start: Tensor | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        return x if warm_start is None else warm_start, None


class FixedSteps(UnrolledGLR):
    """Coefficients stay those of Chebyshev's iteration."""

    def reset_parameters(self) -> None:
        """Resets and freezes."""
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, GLRConv):
                module.alpha.requires_grad_(False)
                module.beta.requires_grad_(False)


def glr(**options: Any) -> UnrolledGLR:
    """A variation of uGLR."""
    return UnrolledGLR(3, **BASE | options)


def without_graph(hidden_channels: int = 16) -> WithoutGraph:
    """The net without graph layers."""
    return WithoutGraph(3, **BASE | {'hidden_channels': hidden_channels})


def small_transformer() -> WindowTransformer:
    """A transformer with about as many parameters as uGLR."""
    return WindowTransformer(channels=24, depth=4)


# Name, net, number of different patches (0: no limit).
ROWS: list[tuple[str, Any, int]] = [
    ('uGLR', glr, 0),
    ('graph layers off (CNN)', without_graph, 0),
    ('transformer', WindowTransformer, 0),
    ('transformer, 24 channels', small_transformer, 0),
    ('uGTV', lambda: UnrolledGTV(3, **BASE | GTV), 0),
    ('uGLR, 8 channels', lambda: glr(hidden_channels=8), 0),
    ('graph layers off, 8 channels', lambda: without_graph(8), 0),
    ('uGLR, 32 channels', lambda: glr(hidden_channels=32), 0),
    ('graph layers off, 32 channels', lambda: without_graph(32), 0),
    ('1 block', lambda: glr(num_blocks=1), 0),
    ('3 blocks', lambda: glr(num_blocks=3), 0),
    ('4 blocks', lambda: glr(num_blocks=4), 0),
    ('1 head', lambda: glr(heads=1), 0),
    ('4 heads', lambda: glr(heads=4), 0),
    ('4 neighbours', lambda: glr(neighbors=4), 0),
    ('24 neighbours', lambda: glr(neighbors=24), 0),
    ('fixed step sizes', lambda: FixedSteps(3, **BASE), 0),
    ('1000 patches', glr, 1000),
    ('10 000 patches', glr, 10_000),
    (
        'colours, not differences',
        lambda: glr(color_differences=False, guide=True),
        0,
    ),
    ('no guide', lambda: glr(color_differences=False), 0),
]


def train(net: torch.nn.Module, patches: Patches, steps: int) -> float:
    """Trains a net; returns the seconds it took."""
    loss_of = Loss(net, early=0.3, knee=1e-3)
    chosen = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=RATE, weight_decay=1e-4)
    begin = time.perf_counter()
    for step in range(steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        rate *= min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]['lr'] = RATE * rate
        loss = loss_of(*patches[step].tensors)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(chosen, 0.2)
        if torch.isfinite(norm):
            optimizer.step()
    return time.perf_counter() - begin


@torch.no_grad()
def score(net: Any, images: list[Tensor], noise: float) -> float:
    """Mean PSNR (dB)."""
    total = 0.0
    for k, image in enumerate(images):
        truth = (image.float() / largest(image))[None]
        sample = Task('demosaic').hide(truth, np.random.default_rng(k))
        grain = np.random.default_rng(k).standard_normal(truth.shape)
        grain = noise * torch.from_numpy(grain).float()
        noisy = torch.where(sample.mask, sample.image + grain, 0)
        out = net.restore(noisy, sample.mask)
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
        net = make()
        patches = Patches(
            *(images, Task('demosaic'), PATCH, BATCH),
            *(2, 0.3, limit, 0),
        )
        seconds = train(net, patches, args.steps)
        row = {
            'net': name,
            'parameters': sum(p.numel() for p in net.parameters()),
            'seconds per step': seconds / args.steps,
        }
        for sigma in (0, 10, 20):
            label = f'{folders[1].name}, noise {sigma}'
            row[label] = f'{score(net, tests, sigma / 255):.2f}'
            if sigma == 0:
                row[folders[2].name] = f'{score(net, others, 0):.2f}'
        rows.append(row)
        tqdm.write(str(row))
    report('ablations', rows, args.device, args.write)


if __name__ == '__main__':
    main()
