"""Trains a small unrolled network to fill in the missing pixels of images.

The net sees photographs of which a random part of the pixels is known. It
learns a graph from what it sees and solves for the rest on that graph. Weights
go to a safetensors file, which is read back and evaluated on images that were
held out, beside the untrained net and two classical methods.

Usage::

    python examples/train_interpolation.py                # bundled photographs
    python examples/train_interpolation.py FOLDER --minutes 10 --plot loss.png
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import griddata
from skimage.restoration import inpaint_biharmonic
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm
from utils import load_image

from pyg_unroll import (
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    image_to_data,
)

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff')
BUNDLED = ('astronaut.png', 'coffee.png', 'rocket.jpg', 'chelsea.png')
Method = Callable[[Tensor, Tensor], Tensor]
Models = UnrolledGLR | UnrolledGTV


def main() -> None:
    """Trains, saves, reloads and evaluates."""
    args = parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    train_paths, test_paths = split(find_images(args.folder), args.seed)
    rng = np.random.default_rng(args.seed)
    chosen = rng.permutation(len(train_paths))[: args.max_images]
    images = [read_colour(train_paths[k]) for k in sorted(chosen)]
    tests = [read_colour(path) for path in test_paths[: args.max_tests]]
    print(f'{len(images)} images to train on, {len(tests)} held out')

    model = make_model(args)
    untrained = make_model(args)
    untrained.load_state_dict(model.state_dict())
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f'{model}: {count} parameters')
    history = train(model, images, args)
    print(
        f'{len(history)} steps, loss {mean(history[:50]):.4f} at first, '
        f'{mean(history[-50:]):.4f} at last'
    )

    model.save(args.out)
    reloaded = type(model).load(args.out).to(args.device)
    check_reloaded(model, reloaded, tests[0], args)
    print(f"wrote '{args.out}': the reloaded model gives the same bits\n")
    evaluate(reloaded, untrained, tests, args)
    if args.plot:
        plot_loss(history, args.plot)
        print(f"\nwrote '{args.plot}'")


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses values that make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('folder', nargs='?', type=Path, help='images; bundled ones if absent')
    add('--minutes', type=float, default=3.0, help='training time')
    add('--known', type=float, default=0.3, help='fraction of known pixels')
    add('--patch', type=int, default=32, help='side of a training patch')
    add('--batch', type=int, default=4, help='patches per step')
    add('--prior', choices=('glr', 'gtv'), default='glr')
    add('--blocks', type=int, default=2, help='feature net, graph and layer')
    add('--steps', type=int, default=6, help='solver steps of a layer')
    add('--heads', type=int, default=2, help='graphs learned in parallel')
    add('--hidden', type=int, default=32, help='width of the feature nets')
    add('--guide', action='store_true', help='predict a guide, too')
    add('--lr', type=float, default=2e-3, help='largest learning rate')
    add('--crop', type=int, default=128, help='largest side in evaluation')
    add('--max-images', type=int, default=64, help='images kept in memory')
    add('--max-tests', type=int, default=8, help='images to evaluate')
    add('--seed', type=int, default=0)
    add('--threads', type=int, default=0, help="0 keeps PyTorch's choice")
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--out', type=Path, default=Path('model.safetensors'))
    add('--plot', type=Path, help='PNG for the loss curve')
    args = parser.parse_args()
    if not 0 < args.known < 1:
        parser.error(f'--known must lie between 0 and 1 (got {args.known})')
    if args.minutes <= 0:
        parser.error(f'--minutes must be positive (got {args.minutes})')
    for name in ('patch', 'crop'):
        if getattr(args, name) < 8:
            parser.error(f'--{name} must be at least 8')
    for name in ('batch', 'blocks', 'steps', 'heads', 'hidden'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1')
    for name in ('max_images', 'max_tests'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device '{args.device}' cannot be used: {error}")
    for path in (args.out, args.plot):
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"no such folder: '{path.resolve().parent}'")
    return args


def find_images(folder: Path | None) -> list[Path]:
    """The image files of a folder, or the photographs of scikit-image."""
    if folder is None:
        import skimage

        data = Path(skimage.__file__).parent / 'data'
        return [data / name for name in BUNDLED]
    if not folder.is_dir():
        raise SystemExit(f"error: '{folder}' is not a folder")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES
    )
    if len(paths) < 2:
        raise SystemExit(
            f"error: '{folder}' holds {len(paths)} image(s) "
            f'({", ".join(SUFFIXES)}), but at least 2 are needed: one to '
            f'train on and one to hold out'
        )
    return paths


def split(paths: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """Holds out a tenth of the files, at least one: (train, test)."""
    if paths[0].name == BUNDLED[0]:
        return paths[:-1], paths[-1:]
    order = np.random.default_rng(seed).permutation(len(paths))
    shuffled = [paths[k] for k in order]
    count = max(1, len(paths) // 10)
    return shuffled[count:], shuffled[:count]


def read_colour(path: Path) -> Tensor:
    """Reads an image as `[3, H, W]`; grey becomes three equal channels."""
    try:
        image = load_image(path)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    return image.expand(3, -1, -1)


def make_model(args: argparse.Namespace) -> Models:
    """Builds the model that the arguments describe."""
    options = {
        'num_blocks': args.blocks,
        'heads': args.heads,
        'hidden_channels': args.hidden,
        'guide': args.guide,
    }
    if args.prior == 'glr':
        model: Models = UnrolledGLR(3, num_steps=args.steps, **options)
    else:
        model = UnrolledGTV(3, num_iters=args.steps, **options)
    return model.to(args.device)


def random_patches(
    images: list[Tensor], side: int, count: int, generator: torch.Generator
) -> Tensor:
    """Cuts random, randomly flipped squares `[B, 3, side, side]`."""
    side = min(side, *(min(image.shape[1:]) for image in images))

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    patches = []
    for _ in range(count):
        image = images[draw(len(images))]
        row = draw(image.size(1) - side + 1)
        col = draw(image.size(2) - side + 1)
        patch = image[:, row : row + side, col : col + side]
        if draw(2):
            patch = patch.mT
        patches.append(patch.flip(-1) if draw(2) else patch)
    return torch.stack(patches)


def random_mask(
    count: int,
    height: int,
    width: int,
    known: float,
    generator: torch.Generator,
) -> Tensor:
    """Marks a fraction of the pixels of each image as known `[B, H, W]`."""
    total = height * width
    chosen = min(max(round(known * total), 1), total - 1)
    order = torch.rand(count, total, generator=generator).argsort(1)
    return (order < chosen).view(count, height, width)


def hide(images: Tensor, mask: Tensor) -> Data:
    """Makes the net's input: unknown pixels start from the image's mean.

    A start from the plain grid's solution was measured to be no better.

    Args:
        images (torch.Tensor): Images `[B, 3, H, W]`.
        mask (torch.Tensor): True where known, `[B, H, W]`.
    """
    mask = mask.unsqueeze(1)
    known = torch.where(mask, images, 0).sum((2, 3), keepdim=True)
    average = known / mask.sum((2, 3), keepdim=True)
    data = image_to_data(torch.where(mask, images, average))
    data.mask = mask.flatten()
    return data


def train(
    model: Models, images: list[Tensor], args: argparse.Namespace
) -> list[float]:
    """Trains for `args.minutes`; returns the loss of each step."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    history: list[float] = []
    budget, start, elapsed = args.minutes * 60, time.perf_counter(), 0.0
    bar = tqdm(
        total=round(budget), unit='s', disable=None, bar_format=_BAR_FORMAT
    )
    skipped = 0
    while elapsed < budget:
        elapsed = time.perf_counter() - start
        # A short warm-up, then a cosine to zero by the clock.
        rate = 0.5 * (1 + math.cos(math.pi * min(elapsed / budget, 1)))
        rate *= min(1.0, (len(history) + 1) / 20)
        optimizer.param_groups[0]['lr'] = args.lr * rate
        target = random_patches(images, args.patch, args.batch, generator)
        mask = random_mask(
            len(target), *target.shape[2:], args.known, generator
        )
        target, mask = target.to(args.device), mask.to(args.device)
        data = hide(target, mask)
        error = data_to_image(data, model(data)) - target
        # The Charbonnier loss: L1, but smooth at zero.
        loss = (error.square() + 1e-6).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        if not torch.isfinite(norm):
            # Learned weights that underflow: one bad batch must not spoil
            # the net.
            skipped += 1
            if skipped > 20:
                raise SystemExit('error: training diverged; try a smaller --lr')
            continue
        optimizer.step()
        history.append(loss.item())
        bar.set_postfix_str(f'loss {mean(history[-50:]):.4f}', refresh=False)
        bar.update(min(round(elapsed), bar.total) - bar.n)
    bar.close()
    if skipped:
        print(f'skipped {skipped} steps whose gradient was not finite')
    if not history:
        raise SystemExit('error: no step was finished; try more --minutes')
    return history


_BAR_FORMAT = 'training |{bar:30}| {n_fmt}/{total_fmt} s, {postfix}'


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def centre_crop(image: Tensor, side: int) -> Tensor:
    """The middle of an image, at most `side` pixels high and wide."""
    row = max(0, (image.size(1) - side) // 2)
    col = max(0, (image.size(2) - side) // 2)
    return image[:, row : row + side, col : col + side].contiguous()


@torch.no_grad()
def restore(model: Models, image: Tensor, mask: Tensor) -> Tensor:
    """Interpolates one image `[3, H, W]` by a model."""
    device = next(model.parameters()).device
    data = hide(image.unsqueeze(0).to(device), mask.unsqueeze(0).to(device))
    return data_to_image(data, model(data))[0].cpu()


def check_reloaded(
    model: Models, reloaded: Models, image: Tensor, args: argparse.Namespace
) -> None:
    """Stops unless both models give identical output."""
    image = centre_crop(image, args.crop)
    generator = torch.Generator().manual_seed(args.seed)
    mask = random_mask(1, *image.shape[1:], args.known, generator)[0]
    if not torch.equal(
        restore(model, image, mask), restore(reloaded, image, mask)
    ):
        raise SystemExit(
            f"error: the model read from '{args.out}' gives other values"
        )


def biharmonic(image: Tensor, mask: Tensor) -> Tensor:
    """Biharmonic inpainting of scikit-image."""
    known = torch.where(mask, image, 0).numpy()
    out = inpaint_biharmonic(known, (~mask).numpy(), channel_axis=0)
    return torch.from_numpy(out)


def linear(image: Tensor, mask: Tensor) -> Tensor:
    """Linear interpolation of SciPy on triangles, nearest outside."""
    known, unknown = mask.nonzero().numpy(), (~mask).nonzero().numpy()
    values = image[:, mask].T.numpy()
    filled = griddata(known, values, unknown, method='linear')
    nearest = griddata(known, values, unknown, method='nearest')
    filled = np.where(np.isnan(filled), nearest, filled)
    out = image.clone()
    out[:, ~mask] = torch.from_numpy(filled.T).to(out.dtype)
    return out


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, in dB."""
    error = (image.clamp(0, 1) - truth).square().mean()
    return float(-10 * error.clamp(min=1e-12).log10())


def evaluate(
    trained: Models,
    untrained: Models,
    tests: list[Tensor],
    args: argparse.Namespace,
) -> None:
    """Prints the mean PSNR and time of all methods on held-out images."""
    methods: dict[str, Method] = {
        'linear (SciPy griddata)': linear,
        'biharmonic (scikit-image)': biharmonic,
        'ours, untrained': lambda image, mask: restore(untrained, image, mask),
        'ours, trained': lambda image, mask: restore(trained, image, mask),
    }
    scores: dict[str, list[float]] = {name: [] for name in methods}
    times: dict[str, list[float]] = {name: [] for name in methods}
    generator = torch.Generator().manual_seed(args.seed)
    for test in tqdm(tests, desc='evaluating', disable=None, leave=False):
        image = centre_crop(test, args.crop)
        mask = random_mask(1, *image.shape[1:], args.known, generator)[0]
        for name, method in methods.items():
            start = time.perf_counter()
            result = method(image, mask)
            times[name].append(time.perf_counter() - start)
            scores[name].append(psnr(result, image))
    print(
        f'{len(tests)} held-out image(s), centre of at most {args.crop} x '
        f'{args.crop}, {args.known:.0%} of pixels known\n'
    )
    print(f'{"method":<28}{"PSNR [dB]":>10}{"time [s]":>10}')
    for name in methods:
        print(
            f'{name:<28}{mean(scores[name]):>10.2f}{mean(times[name]):>10.2f}'
        )


def plot_loss(history: list[float], path: Path) -> None:
    """Draws the loss of each step and its running mean."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    window = max(1, len(history) // 10)
    kernel = np.ones(window) / window
    smooth = np.convolve(history, kernel, mode='valid')
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    axes.plot(history, color='0.8', linewidth=0.8, label='one step')
    axes.plot(
        np.arange(len(smooth)) + window - 1,
        smooth,
        color='C0',
        label=f'mean of {window} steps',
    )
    axes.set_xlabel('step')
    axes.set_ylabel('Charbonnier loss')
    axes.set_yscale('log')
    axes.grid(alpha=0.3, which='both')
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
