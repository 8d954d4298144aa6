"""Trains a restorer to demosaic or inpaint images, on folders of photographs.

    python examples/train.py PHOTOS                        # a mosaic, an hour
    python examples/train.py PHOTOS MORE --val OTHERS --minutes 600
    python examples/train.py PHOTOS --config examples/recipes/grid-2x.yaml
    python examples/train.py PHOTOS --resume --minutes 900 # go on, for longer

Patches of the photographs lose two of their three colours, or most of their
pixels; the net puts them back. Recipes name the net and its options; those
that they do not name are as in `recipes/bayer.yaml`. Ctrl-C ends a training
early: like the end of the time, it writes the averaged weights to one
safetensors file. Training itself is Lightning's: `--trainer.accelerator`,
`--trainer.devices`, `--trainer.precision` and `--trainer.logger`, for example,
are its options.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import (
        Callback,
        ModelCheckpoint,
        Timer,
        WeightAveraging,
    )
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import rank_zero_only
except ImportError as error:
    raise SystemExit(
        "error: training needs Lightning: pip install 'pyg_unroll[train]'"
    ) from error
from outputs import check_out
from photos import psnr
from safetensors.torch import load_file
from torch import Tensor
from training_data import Photographs
from training_tasks import Sample, charbonnier

from pyg_unroll import Demosaic, Inpaint
from pyg_unroll.imaging import DifferenceBlock

RECIPES = Path(__file__).parent / 'recipes'

USAGE = """train.py FOLDER [FOLDER ...] [--val FOLDER] [--minutes MINUTES]
                [--config RECIPE] [--out FILE] [--resume | --overwrite]
                [--model.* | --data.* | --average.* | --trainer.* VALUE]"""


class Restoration(LightningModule):
    """A restorer that learns: its net, loss and optimiser.

    Args:
        restorer (str): `Demosaic` or `Inpaint`.
        net (dict): Its configuration: blocks and neighbours.
        weights (Path, optional): Weights to start from, of a net that may be
            smaller.
        lr (float): Largest learning rate.
        warm_up (int): Steps of rising rate.
        weight_decay (float): Of AdamW.
        knee (float): Error from which on the loss is linear.
        early (float): Weight of the estimates before the last in the loss.
    """

    def __init__(
        self,
        net: dict[str, Any],
        restorer: Literal['Demosaic', 'Inpaint'] = 'Demosaic',
        weights: Path | None = None,
        lr: float = 1e-3,
        warm_up: int = 100,
        weight_decay: float = 1e-4,
        knee: float = 3e-3,
        early: float = 0.3,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"'lr' must be positive (got {lr})")
        kinds = {'Demosaic': Demosaic, 'Inpaint': Inpaint}
        self.net: Demosaic | Inpaint = kinds[restorer].from_config(net)
        start_as_graph(self.net)
        if weights is not None:
            if not weights.is_file():
                raise ValueError(f"'weights': there is no file '{weights}'")
            transfer(load_file(weights), self.net)
        self.net.to(memory_format=torch.channels_last)
        self.lr, self.warm_up, self.weight_decay = lr, warm_up, weight_decay
        self.knee, self.early = knee, early
        self.skipped = 0
        self.recipe: dict[str, Any] = {}
        self.numbers: list[Tensor] = []
        self.losses: list[Tensor] = []

    def loss(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and that of each patch's last estimate."""
        noisy = self.net.fidelity == 'soft'
        noise_std = sample.noise_std if noisy else None
        outs = self.net.estimates(sample.image, sample.mask, noise_std)
        losses = [
            charbonnier(sample.to_truth(out), sample.truth, self.knee)
            for out in outs
        ]
        *before, last = losses
        total = last + self.early * sum(before)
        return total.mean(), last.detach()

    def training_step(self, batch: Sample) -> Tensor:
        """The loss of a batch."""
        loss, losses = self.loss(batch)
        self.numbers.append(batch.number)
        self.losses.append(losses)
        self.log('loss', loss, prog_bar=True, on_step=True, on_epoch=True)
        self.log('minutes', clock(self.trainer).time_elapsed() / 60, True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Forgets a gradient that is not finite: one bad batch must not spoil
        the net.
        """
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if torch.nn.utils.get_total_norm(grads).isfinite():
            return
        self.skipped += 1
        if self.skipped > 20 + self.global_step // 100:
            raise ValueError("training diverged; try a smaller 'model.lr'")
        for grad in grads:
            grad.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers the options."""
        checkpoint['recipe'] = self.recipe
        checkpoint['skipped'] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what `on_save_checkpoint` wrote."""
        self.skipped = checkpoint['skipped']

    def on_train_epoch_end(self) -> None:
        """Tells the data which patches are hard."""
        steps = len(self.losses)
        numbers, losses = [], []
        if steps:
            # All processes hear of all patches.
            numbers = self.all_gather(torch.cat(self.numbers)).flatten()
            losses = self.all_gather(torch.cat(self.losses)).flatten()
            numbers, losses = numbers.tolist(), losses.tolist()
        trainer: Any = self.trainer
        trainer.datamodule.rounds.record(steps, numbers, losses)
        self.numbers, self.losses = [], []

    def validation_step(self, batch: Sample) -> None:
        """Scores a whole photograph."""
        noisy = self.net.fidelity == 'soft'
        out = self.net.restore(
            batch.image, batch.mask, batch.noise_std if noisy else None
        )
        self.log('psnr', psnr(out, batch.truth), True, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW, at a rate that rises, then falls as half a cosine."""
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.lr,
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        schedule = {'scheduler': scheduler, 'interval': 'step'}
        return {'optimizer': optimizer, 'lr_scheduler': schedule}

    def _rate(self, step: int) -> float:
        """The share of the largest rate at a step."""
        return rate(step, self.warm_up, progress(self.trainer))


def rate(step: int, warm_up: int, share: float) -> float:
    """A factor that rises with the steps to one, then falls with the share of
    the training that is over.
    """
    fall = 0.5 + 0.5 * math.cos(math.pi * share)
    return min(1.0, (step + 1) / warm_up) * max(fall, 1e-3)


def clock(trainer: Trainer) -> Timer:
    """The clock of the training, which goes on where a checkpoint stopped."""
    return next(c for c in trainer.callbacks if isinstance(c, Timer))


def progress(trainer: Trainer) -> float:
    """The share of time or steps that are over, whichever ends first; the
    same in all processes.
    """
    timer = clock(trainer)
    spent, left = timer.time_elapsed(), timer.time_remaining()
    share = 0.0 if left is None else spent / max(spent + left, 1e-9)
    if trainer.max_steps > 0:
        share = max(share, trainer.global_step / trainer.max_steps)
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        share = trainer.strategy.broadcast(share)
    return min(share, 1.0)


def start_as_graph(net: Demosaic | Inpaint) -> None:
    """Lets blocks on colour differences begin as `GraphDemosaic`: the first
    takes its step, the others go on from there.
    """
    blocks = [b for b in net.blocks if isinstance(b, DifferenceBlock)]
    for k, block in enumerate(blocks):
        # Outputs of the net are zero, but for the share of chroma kept.
        torch.nn.init.zeros_(block.features.head.weight)
        with torch.no_grad():
            block.features.head.bias[-(block.features.cell**2) :] = -1.0
            block.step.gain_limit.fill_(0.0 if k else 1.3)
            for metric in (block.step.smooth_metric, block.step.fill_metric):
                for head, matrix in enumerate(metric.weight):
                    # Equal heads would stay equal.
                    torch.nn.init.eye_(matrix).mul_(1.4 * 0.85**head)


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
        raise ValueError("'weights' has no weights for this model")


class Average(WeightAveraging):
    """The mean of the weights over the last tenth of all steps, at most.

    Args:
        decay (float): Largest share of the mean that stays at a step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"'decay' must be at least 0 and below 1 (got {decay})"
            )

        def mean(before: Tensor, value: Tensor, count: Any) -> Tensor:
            return before.lerp(value, max(1 - decay, 10 / (int(count) + 10)))

        super().__init__(use_buffers=False, avg_fn=mean)


class Interrupt(Callback):
    """Ends training after the step in which Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_: Any) -> None:
        """Handles the signal; the next one has its usual effect."""
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(
            '\nCtrl-C: ending after this step. Again to end at once, without '
            'weights.'
        )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stops all processes at the same step."""
        decide = trainer.strategy.reduce_boolean_decision
        if decide(self.asked, all=False):
            trainer.should_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles Ctrl-C in its body."""
        before = signal.signal(signal.SIGINT, self.ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class TrainCLI(LightningCLI):
    """The command line: Lightning's, and files."""

    def add_default_arguments_to_parser(
        self, parser: LightningArgumentParser
    ) -> None:
        """Adds what users need most, before all that Lightning offers."""
        add = parser.add_argument
        add('folders', nargs='+', type=Path, help='photographs to train on')
        add(
            '--val',
            type=Path | None,
            help='photographs to score, never trained on',
        )
        add(
            '--minutes',
            type=float | None,
            help='training time, unless --trainer.max_time is given',
        )
        add(
            '--out',
            type=Path,
            default=Path('weights.safetensors'),
            help='weights to write; checkpoint and log lie beside it',
        )
        add('--resume', action='store_true', help='go on from the checkpoint')
        add('--overwrite', action='store_true', help='replace what --out names')
        super().add_default_arguments_to_parser(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the averaging, and tells the data of the options above."""
        parser.add_lightning_class_args(Average, 'average')
        parser.link_arguments('folders', 'data.folders')
        parser.link_arguments('val', 'data.val')
        parser.link_arguments('seed_everything', 'data.seed')

    def before_instantiate_classes(self) -> None:
        """Refuses what would destroy or could not be written."""
        config = self.config
        self.out = out = config.out
        check_out(out, ('.safetensors',))
        self.checkpoint = out.with_suffix('.ckpt')
        found = [p for p in (out, self.checkpoint) if p.exists()]
        if config.resume and not self.checkpoint.is_file():
            raise ValueError(f"there is no checkpoint '{self.checkpoint}'")
        if found and not (config.resume or config.overwrite):
            raise ValueError(
                f"'{found[0]}' exists; go on with --resume, replace it with "
                f'--overwrite, or choose another --out'
            )
        if config.minutes is not None:
            if not config.minutes > 0:
                raise ValueError(
                    f'--minutes must be positive (got {config.minutes})'
                )
            if config.trainer.max_time is None:
                config.trainer.max_time = timedelta(minutes=config.minutes)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the log, checkpoints and Ctrl-C."""
        self.interrupt = Interrupt()
        keep = ModelCheckpoint(
            self.out.parent,
            self.out.stem,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        if self.config.trainer.logger is None:
            kwargs['logger'] = CSVLogger(
                self.out.parent, f'{self.out.stem}-log'
            )
        if not self.datamodule.tests:
            kwargs['limit_val_batches'] = 0
        given = self.config_init.trainer.callbacks or []
        kwargs['callbacks'] = [*given, self.interrupt, keep]
        if self.config.trainer.max_time is None:
            kwargs['callbacks'].append(Timer())
        return super().instantiate_trainer(**kwargs)

    @property
    def recipe(self) -> dict[str, Any]:
        """All options that matter for the result."""
        options = json.loads(self.parser.dump(self.config, format='json'))
        for name in ('folders', 'val', 'workers', 'max_val'):
            options['data'].pop(name, None)
        names = ('max_steps', 'precision', 'accumulate_grad_batches')
        names += 'gradient_clip_val', 'gradient_clip_algorithm'
        trainer = {name: options['trainer'].get(name) for name in names}
        sections = 'model', 'data', 'average', 'minutes'
        kept = {name: options.get(name) for name in sections}
        return {**kept, 'seed': self.config.seed_everything, 'trainer': trainer}

    def plan(self) -> str:
        """What is going to happen."""
        net, data = self.model.net, self.datamodule
        count = sum(p.numel() for p in net.parameters())
        timer = clock(self.trainer)
        left = timer.time_remaining()
        until = [] if left is None else [f'for {left / 60:.4g} minutes']
        if self.trainer.max_steps > 0:
            until.append(f'until step {self.trainer.max_steps}')
        return (
            f'{net}, {count} parameters, learns from {len(data.images)} '
            f'photographs {" or ".join(until)} on {machine(self.trainer)}.\n'
            f"Checkpoints: '{self.checkpoint}', every {data.steps} steps. "
            f'Ctrl-C ends early and keeps what was learned.'
        )

    def check_recipe(self) -> None:
        """Refuses to go on with other options than before."""
        state = torch.load(self.checkpoint, 'cpu', weights_only=True)
        then, now = flat(state['recipe']), flat(self.model.recipe)
        # Longer budgets are what one goes on for.
        free = 'minutes', 'trainer.max_steps'
        changed = [
            f'{key} {then.get(key)}'
            for key in sorted(now.keys() | then.keys())
            if key not in free and now.get(key) != then.get(key)
        ]
        if changed:
            raise ValueError(
                f"'{self.checkpoint}' was made with other options: "
                + ', '.join(changed)
            )

    def train(self) -> None:
        """Trains, writes the weights and scores them."""
        self.model.recipe = self.recipe
        if self.config.resume:
            self.check_recipe()
        else:
            # Nothing of an earlier training is left to go on from.
            rank_zero_only(self.checkpoint.unlink)(missing_ok=True)
        rank_zero_only(print)(self.plan())
        with self.interrupt.listening():
            self.trainer.fit(
                self.model,
                self.datamodule,
                ckpt_path=self.checkpoint if self.config.resume else None,
                weights_only=True if self.config.resume else None,
            )
        self.write()
        if self.datamodule.tests and not self.interrupt.asked:
            self.trainer.validate(self.model, self.datamodule, verbose=False)
            score = float(self.trainer.callback_metrics['psnr'])
            count = len(self.datamodule.tests)
            rank_zero_only(print)(f'{count} images of --val: {score:.2f} dB')

    @rank_zero_only
    def write(self) -> None:
        """Writes the averaged weights, and how they were made."""
        hours = clock(self.trainer).time_elapsed() / 3600
        steps = self.trainer.global_step
        about = {
            'recipe': self.recipe,
            'steps': steps,
            'hours': round(hours, 4),
            'machine': machine(self.trainer),
            'photographs': len(self.datamodule.images),
            'version': version('pyg_unroll'),
        }
        notes = {'training': json.dumps(about)}
        self.model.net.cpu().save(self.out, notes)
        print(f"{steps} steps in {60 * hours:.1f} minutes; wrote '{self.out}'")
        if self.model.skipped:
            print(f'{self.model.skipped} gradients were not finite')


def flat(options: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested options, by their names on the command line."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = f'{prefix}{key}'
        if isinstance(value, dict):
            found |= flat(value, f'{name}.')
        else:
            found[name] = value
    return found


def machine(trainer: Trainer) -> str:
    """The processors that train."""
    device = trainer.strategy.root_device
    if device.type == 'cuda':
        return f'{trainer.world_size} x {torch.cuda.get_device_name(device)}'
    return (
        f'{trainer.world_size} x {torch.get_num_threads()} thread(s) of '
        f'{device.type}, {platform.machine()} '
        f'({torch.backends.cpu.get_cpu_capability()})'
    )


def main() -> None:
    """Runs the example."""
    for name in ('pytorch', 'fabric'):
        logging.getLogger(f'lightning.{name}').setLevel(logging.WARNING)
    # Hints for others, and for the authors of Lightning.
    hints = 'many workers', 'logging interval', 'treespec', 'Checkpoint dir'
    for hint in hints:
        warnings.filterwarnings('ignore', f'.*{hint}')
    try:
        cli = TrainCLI(
            Restoration,
            Photographs,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={
                'description': (__doc__ or '').split('\n\n')[0],
                'usage': USAGE,
                'default_config_files': [str(RECIPES / 'bayer.yaml')],
            },
            run=False,
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
        )
        cli.train()
    except (ValueError, ImportError) as error:
        raise SystemExit(f'error: {error}') from error
    if cli.interrupt.asked:
        sys.exit(130)


if __name__ == '__main__':
    main()
