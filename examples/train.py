"""Trains a restorer to demosaic or inpaint images, on a folder of them.

    python examples/train.py PHOTOS --val OTHERS --budget-minutes 60
    python examples/train.py PHOTOS --task inpaint --prior gtv
    torchrun --nproc-per-node 2 examples/train.py PHOTOS
    python examples/train.py PHOTOS --resume     # after a kill

Patches of the photographs lose two of their three colours, or most of their
pixels; the net puts them back. Every --save-minutes a checkpoint is written
beside --out, whole or not at all, from which --resume goes on with the same
patches as if nothing had happened. The averaged weights and all options go to
one safetensors file.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import itertools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from photos import psnr
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm
from training_data import Patches, Sample, Task, largest, read_images

from pyg_unroll import Demosaic, Inpaint
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock

Models = Demosaic | Inpaint

# Pixels of a patch that are not scored: nothing is known beyond.
_BORDER = 8


class Loss(torch.nn.Module):
    """The Charbonnier loss of all blocks' estimates, as one module for DDP.

    Args:
        model (Demosaic or Inpaint): The net.
        early (float): Weight of the estimates before the last.
        knee (float): Error from which on the loss is linear.
        amp (bool): Mixed precision, where it is fast.
    """

    def __init__(
        self, model: Models, early: float, knee: float, amp: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.early = early
        self.knee = knee
        self.amp = amp

    def forward(
        self,
        truth: Tensor,
        image: Tensor,
        mask: Tensor,
        noise_std: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss of patches, see `Sample`."""
        with mixed_precision(image.device.type, self.amp):
            outs = self.model.estimates(image, mask, noise_std)
        inner = slice(_BORDER, -_BORDER)
        losses = []
        for out in outs:
            error = (out - truth)[..., inner, inner]
            losses.append((error.square() + self.knee**2).sqrt().mean())
        return losses[-1] + self.early * sum(losses[:-1])


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses values that make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('folder', type=Path, help='photographs to train on')
    add('--val', type=Path, help='photographs to score, never trained on')
    add(
        '--task',
        choices=Task.NAMES,
        default='demosaic',
        help='what the net learns: mosaics, noisy ones, or missing pixels',
    )
    add('--prior', choices=('glr', 'gtv'), default='glr', help='of the layers')
    add('--budget-minutes', type=float, default=60.0, help='training time')
    add('--batch', type=int, default=8, help='patches per step and process')
    add('--patch', type=int, default=64, help='side of a patch, even')
    add(
        '--hard',
        type=int,
        default=2,
        help='every second patch is the one of so many with most detail',
    )
    add(
        '--subsampled',
        type=float,
        default=0.3,
        help='share of patches whose chroma is halved first, as most JPEG '
        'files have it: the net must tell such photographs from others',
    )
    add('--num-patches', type=int, default=0, help='0 for no limit')
    add('--knee', type=float, default=1e-3, help='linear loss from here on')
    add('--lr', type=float, default=1e-3, help='largest learning rate')
    add('--warm-up', type=int, default=100, help='steps of rising rate')
    add('--weight-decay', type=float, default=1e-4, help='of AdamW')
    add('--clip', type=float, default=0.2, help='largest gradient norm')
    add('--ema', type=float, default=0.998, help='decay of averaged weights')
    add('--early', type=float, default=0.3, help='loss weight of early blocks')
    add('--blocks', type=int, default=2, help='feature net, graph and layer')
    add('--layers', type=int, default=6, help='convolutions of a feature net')
    add('--hidden', type=int, default=32, help='width of the feature nets')
    add('--features', type=int, default=4, help='features of a pixel')
    add('--heads', type=int, default=2, help='graphs learned in parallel')
    add('--neighbors', type=int, default=8, help='neighbours of a pixel')
    add('--steps', type=int, default=5, help='solver steps of a GLR layer')
    add('--iters', type=int, default=3, help='iterations of a GTV layer')
    add('--inner', type=int, default=2, help='solver steps of an iteration')
    add(
        '--init',
        type=Path,
        help='weights to start from, of a net that may be smaller',
    )
    add('--max-images', type=int, default=10000, help='images in memory')
    add('--max-val', type=int, default=8, help='images to score')
    add('--val-minutes', type=float, default=15.0, help='between scores')
    add('--save-minutes', type=float, default=2.0, help='between checkpoints')
    add('--seed', type=int, default=0, help='of weights and patches')
    add('--threads', type=int, default=0, help="0 keeps PyTorch's choice")
    has_cuda = torch.cuda.is_available()
    add(
        '--workers',
        type=int,
        default=4 if has_cuda else 0,
        help='processes that cut patches while the net learns',
    )
    add('--device', default='cuda' if has_cuda else 'cpu', help='cpu or cuda')
    add(
        '--no-amp',
        action='store_true',
        help='no bfloat16 in feature nets; never used on a CPU without AVX-512',
    )
    add(
        '--no-graph',
        action='store_true',
        help='start kernels one by one on CUDA, not as one graph',
    )
    add('--resume', action='store_true', help='go on from the checkpoint')
    add(
        '--out',
        type=Path,
        default=Path('demosaic.safetensors'),
        help='weights to write; checkpoint and log (CSV) lie beside it',
    )
    args = parser.parse_args()
    for name, value in vars(args).items():
        flag = f'--{name.replace("_", "-")}'
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not value >= 0:
            parser.error(f'{flag} must not be negative (got {value})')
        if value == 0 and name not in _MAY_BE_ZERO:
            parser.error(f'{flag} must be positive (got {value})')
    if args.patch < 32 or args.patch % 2:
        parser.error(f'--patch must be even and at least 32 ({args.patch})')
    for folder in (args.folder, args.val, args.out.parent):
        if folder is not None and not folder.is_dir():
            parser.error(f"'{folder}' is not a folder")
    if args.init is not None and not args.init.is_file():
        parser.error(f"--init: there is no file '{args.init}'")
    return args


_MAY_BE_ZERO = (
    *('seed', 'threads', 'workers', 'early', 'weight_decay', 'subsampled'),
    'num_patches',
)


def make_model(args: argparse.Namespace) -> Models:
    """Builds the model that the arguments describe."""
    is_glr = args.prior == 'glr'
    options: dict[str, Any] = {
        'hidden_channels': args.hidden,
        'feature_channels': args.features,
        'heads': args.heads,
        'num_layers': args.layers,
        'prior': args.prior,
        'steps': (args.steps,) if is_glr else (args.iters, args.inner),
    }
    numbers = range(args.blocks)
    if args.task == 'demosaic':
        differences = [DifferenceBlock(**options) for _ in numbers]
        return Demosaic(differences, args.neighbors)
    fidelity = 'soft' if args.task == 'demosaic-noisy' else 'hard'
    blocks = [GuidedBlock(fidelity=fidelity, **options) for _ in numbers]
    restorer = Inpaint if args.task == 'inpaint' else Demosaic
    return restorer(blocks, args.neighbors)


def transfer(state: dict[str, Tensor], model: torch.nn.Module) -> None:
    """Copies weights into a model that may have more channels or another
    solver layer: what there is no weight for stays.

    New channels start as they were made, but nothing that was there before
    looks at them yet: a wider net starts as the same function.
    """
    known = []
    with torch.no_grad():
        for name, value in model.named_parameters():
            given = state.get(name)
            if given is None or given.dim() != value.dim():
                continue
            if any(
                g > v for g, v in zip(given.shape, value.shape, strict=True)
            ):
                continue
            known.append(name)
            value[tuple(slice(size) for size in given.shape[:1])] = 0
            value[tuple(slice(size) for size in given.shape)] = given
    if not known:
        raise SystemExit('error: --init has no weights for this model')


def mixed_precision(device: str, wanted: bool = True) -> torch.autocast:
    """bfloat16 in feature nets where it is fast: convolutions take seven times
    as long with it on a CPU that must emulate it.
    """
    kind = torch.device(device).type
    if kind == 'cpu':
        capability = torch.backends.cpu.get_cpu_capability()
        wanted = wanted and capability.startswith('AVX512')
    return torch.autocast(kind, torch.bfloat16, enabled=wanted)


class Training:
    """Everything that a checkpoint holds, and the steps.

    Args:
        args (argparse.Namespace): The command line.
        images (list[torch.Tensor]): Photographs.
        rank (int): This process among :obj:`world`.
        world (int): Number of processes.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        images: list[Tensor],
        rank: int,
        world: int,
    ) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.model = make_model(args).to(args.device)
        if args.init is not None:
            transfer(load_file(args.init), self.model)
        self.model.to(memory_format=torch.channels_last)
        self.average = AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema)
        )
        self.task = Task(args.task)
        self.loss: torch.nn.Module = Loss(
            self.model, args.early, args.knee, not args.no_amp
        )
        # Thousands of small kernels take longer to start than to run.
        is_cuda = torch.device(args.device).type == 'cuda'
        self.capture = is_cuda and world == 1 and not args.no_graph
        if world > 1:
            # Not all parameters are used with all options.
            self.loss = DistributedDataParallel(
                self.loss, find_unused_parameters=True
            )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=args.lr,
            betas=(0.9, 0.99),
            weight_decay=args.weight_decay,
        )
        self.patches = Patches(
            images,
            self.task,
            args.patch,
            args.batch,
            args.hard,
            args.subsampled,
            args.num_patches,
            args.seed,
            rank,
        )
        self.step = 0
        self.skipped = 0
        self.seconds = 0.0
        self.checkpoint = args.out.with_suffix('.checkpoint')

    def samples(self) -> Iterator[Sample]:
        """The patches of this step and of all that follow."""
        loader = DataLoader(
            self.patches,
            batch_size=None,
            sampler=itertools.count(self.step),
            num_workers=self.args.workers,
        )
        return iter(loader)

    def advance(self, sample: Sample) -> float:
        """Takes one step; returns its loss."""
        args = self.args
        progress = min(self.seconds / (60 * args.budget_minutes), 1.0)
        rate = 0.5 * (1 + math.cos(math.pi * progress))
        rate *= min(1.0, (self.step + 1) / args.warm_up)
        self.optimizer.param_groups[0]['lr'] = args.lr * max(rate, 1e-3)
        tensors = sample.to(args.device).tensors
        if self.capture:
            self.capture = False
            # The graph has a stream of its own, as it should.
            warnings.filterwarnings('ignore', 'The AccumulateGrad node')
            self.loss = torch.cuda.make_graphed_callables(
                self.loss,
                tuple(v.contiguous() for v in tensors),
                allow_unused_input=True,
            )
        loss = self.loss(*tensors)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), args.clip
        )
        self.step += 1
        if not torch.isfinite(norm):
            # One bad batch must not spoil the net.
            self.skipped += 1
            if self.skipped > 20 + self.step // 100:
                raise SystemExit('error: training diverged; try a smaller --lr')
            return math.nan
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            'options': _options(self.args),
            'model': self.model.state_dict(),
            'average': self.average.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'step': self.step,
            'skipped': self.skipped,
            'seconds': self.seconds,
        }
        part = self.checkpoint.with_suffix('.part')
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def load(self) -> None:
        """Goes on from the checkpoint."""
        if not self.checkpoint.is_file():
            raise SystemExit(f"error: no checkpoint '{self.checkpoint}'")
        state = torch.load(
            self.checkpoint, map_location=self.args.device, weights_only=True
        )
        now, then = _options(self.args), state['options']
        changed = [key for key in now if now[key] != then.get(key)]
        if changed:
            raise SystemExit(
                f"error: '{self.checkpoint}' was made with other options: "
                + ', '.join(_spelled(k, then.get(k)) for k in changed)
            )
        for name in ('model', 'average', 'optimizer'):
            getattr(self, name).load_state_dict(state[name])
        for name in ('step', 'skipped', 'seconds'):
            setattr(self, name, state[name])

    def result(self) -> Models:
        """The model with averaged weights."""
        return copy.deepcopy(self.average.module).eval()

    def write(self) -> None:
        """Writes the result and how it was made."""
        notes = {
            'training': json.dumps(
                _options(self.args)
                | {'steps_taken': self.step, 'minutes': self.seconds / 60}
            )
        }
        self.result().save(self.args.out, notes)


def _spelled(name: str, value: Any) -> str:
    """An option as it is written on the command line."""
    flag = name if name == 'folder' else f'--{name.replace("_", "-")}'
    if isinstance(value, bool):
        return flag if value else f'without {flag}'
    return f'{flag} {value}'


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Options that must not change on the way; folders by name only."""
    skipped = (
        *('resume', 'device', 'threads', 'workers', 'no_graph', 'out', 'val'),
        *('max_val', 'val_minutes', 'save_minutes'),
    )
    return {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in skipped
    }


@torch.no_grad()
def score(model: Models, task: Task, images: list[Tensor]) -> float:
    """Mean PSNR (dB) of whole images rounded to 8 bits; of a task that varies,
    at noise of 20/255 or 30 % known pixels.
    """
    device = next(model.parameters()).device
    total = 0.0
    for k, image in enumerate(images):
        truth = (image.float() / largest(image))[None]
        chance = np.random.default_rng(k)
        sample = task.hide(truth, chance, 20 / 255, 0.3).to(str(device))
        out = model.restore(sample.image, sample.mask, sample.noise_std)
        total += psnr(out, sample.truth)
    return total / len(images)


@contextlib.contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Rank and number of processes; joins those of `torchrun`, if any."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world == 1:
        yield 0, 1
        return
    dist.init_process_group('nccl' if torch.cuda.is_available() else 'gloo')
    try:
        yield dist.get_rank(), world
        dist.barrier()  # gloo can hang where one leaves while another writes
    finally:
        dist.destroy_process_group()


def same_clock(seconds: float, world: int) -> float:
    """The first process's clock, so that all stop at the same step."""
    if world == 1:
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64)
    if torch.cuda.is_available():
        clock = clock.cuda()
    dist.broadcast(clock, 0)
    return float(clock)


def run(args: argparse.Namespace, rank: int, world: int) -> None:
    """Trains until the budget is spent."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if torch.device(args.device).type == 'cuda' and world > 1:
        args.device = f'cuda:{os.environ["LOCAL_RANK"]}'
        torch.cuda.set_device(args.device)
    try:
        images = read_images(args.folder, args.max_images)
        tests = read_images(args.val, args.max_val) if args.val else []
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    images = [image for image in images if min(image.shape[1:]) >= args.patch]
    if not images:
        raise SystemExit(
            f"error: no image of '{args.folder}' is as large as --patch"
        )
    training = Training(args, images, rank, world)
    if args.resume:
        training.load()
    chief = rank == 0
    if chief:
        count = sum(p.numel() for p in training.model.parameters())
        print(f'{training.model}: {count} parameters, {len(images)} images')
        print(json.dumps(_options(args)))
    log_path = args.out.with_suffix('.csv')
    fresh = not (args.resume and log_path.is_file())
    log = log_path.open('w' if fresh else 'a', newline='') if chief else None
    rows = csv.writer(log) if log else None
    if rows and fresh:
        rows.writerow(('minutes', 'step', 'loss', 'psnr_val_db'))
    budget = 60 * args.budget_minutes
    bar = tqdm(
        total=round(budget),
        initial=round(training.seconds),
        unit='s',
        disable=None if chief else True,
        bar_format='training |{bar:30}| {n_fmt}/{total_fmt} s, {postfix}',
    )
    samples = training.samples()
    begun = time.perf_counter() - training.seconds
    saved = scored = training.seconds
    losses: list[float] = []
    latest = ''
    while training.seconds < budget:
        losses.append(training.advance(next(samples)))
        training.seconds = same_clock(time.perf_counter() - begun, world)
        over = training.seconds >= budget
        if not chief:
            continue
        recent = [loss for loss in losses[-100:] if loss == loss]
        mean = sum(recent) / max(len(recent), 1)
        bar.set_postfix_str(
            f'step {training.step}, loss {mean:.5f}', refresh=False
        )
        bar.update(min(round(training.seconds), bar.total) - bar.n)
        if over or training.seconds - saved > 60 * args.save_minutes:
            saved = training.seconds
            training.save()
            training.write()
            latest = ''
            if tests and (
                over or training.seconds - scored > 60 * args.val_minutes
            ):
                scored = training.seconds
                latest = f'{score(training.result(), training.task, tests):.3f}'
                if not over:  # scoring is not training time
                    begun = time.perf_counter() - training.seconds
            minutes = f'{training.seconds / 60:.2f}'
            assert rows is not None and log is not None
            rows.writerow((minutes, training.step, f'{mean:.6f}', latest))
            log.flush()
    bar.close()
    if chief:
        assert log is not None
        log.close()
        print(f"{training.step} steps; wrote '{args.out}' and '{log_path}'")
        if latest:
            print(f'{len(tests)} images of --val: {latest} dB')
        if training.skipped:
            print(f'skipped {training.skipped} steps: gradient not finite')


def main() -> None:
    """Runs the example."""
    args = parse_args()
    with process_group() as (rank, world):
        run(args, rank, world)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
