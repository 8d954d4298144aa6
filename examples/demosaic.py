"""Demosaics a photograph with trained graph layers, and shows how well.

    python examples/demosaic.py                      # a bundled photograph
    python examples/demosaic.py PHOTO --pattern GBRG --out OUT.png
    python examples/demosaic.py PHOTO --untrained --prior gtv
    python examples/demosaic.py PHOTO --noise 20     # adds noise first
    python examples/demosaic.py FOLDER --menon       # scores of all images
    python examples/demosaic.py CAMERA.dng --out OUT.tif

It keeps of each pixel the one colour that a camera's sensor would measure,
reconstructs the other two, and compares with the original. A camera file has no
original: black level, white balance, pattern, colours and orientation are taken
from it, and the result is written as TIFF of 16 bits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
import torch
from outputs import check_out
from photos import SUFFIXES, load_image, worst_region
from raw import SUFFIXES as RAW
from raw import read_raw, write_tiff
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from pyg_unroll import Demosaic, GraphDemosaic, data_to_image, mosaic
from pyg_unroll.imaging import CFA_PATTERNS, SelfEnsemble, local_interpolation

ZOOM = 96

Method = Callable[[Data], Tensor]


def bilinear(data: Data) -> Tensor:
    """Interpolates each colour on its own, `[3, H, W]`."""
    mask = data_to_image(data, data.mask)
    return local_interpolation(data_to_image(data)[None], mask[None])[0]


def menon(data: Data) -> Tensor:
    """Menon's method as the package colour-demosaicing has it."""
    from colour_demosaicing import demosaicing_CFA_Bayer_Menon2007

    sensor = data_to_image(data).sum(0).double().numpy()
    out = demosaicing_CFA_Bayer_Menon2007(sensor, data.pattern)
    return torch.from_numpy(np.moveaxis(out, -1, 0)).float()


def make_model(
    args: argparse.Namespace, is_bayer: bool, noisy: bool
) -> tuple[str, torch.nn.Module]:
    """A restorer, trained if there are weights, and its name."""
    prior = args.prior.upper()
    model: torch.nn.Module
    if not args.untrained and is_bayer:
        name = 'bayer-noisy' if noisy else 'bayer'
        if name not in Demosaic.pretrained_names(args.prior):
            print(
                f'note: no weights of {prior} for noise; using those without',
                file=sys.stderr,
            )
            name = 'bayer'
        model = Demosaic.from_pretrained(name, args.prior)
        title = f'Demosaic, {prior}'
    else:
        if not args.untrained:
            print(
                'note: no weights for this sensor; using untrained layers',
                file=sys.stderr,
            )
        model = GraphDemosaic(args.prior)
        title = f'GraphDemosaic, {prior}'
    if args.num_views > 1:
        model = SelfEnsemble(model, args.num_views)
    return title, model


def graph_method(model: torch.nn.Module, noise: float | None) -> Method:
    """Wraps the model as a function of a mosaic; tells it the noise."""
    restorer = getattr(model, 'restorer', model)
    is_soft = getattr(restorer, 'fidelity', 'hard') == 'soft'

    def run(data: Data) -> Tensor:
        if is_soft and noise is not None:
            data.noise_std = noise
        with torch.no_grad():
            return data_to_image(data, model(data))

    return run


def read_colour(path: Path) -> Tensor:
    """Reads an image with three channels; grey is repeated, with a note."""
    image = load_image(path)
    if image.size(0) == 1:
        print(f"note: '{path}' is grey; red = green = blue", file=sys.stderr)
        image = image.expand(3, -1, -1).contiguous()
    return image


def quantize(out: Tensor, image: Tensor) -> Tensor:
    """Clips, and rounds to 8 bits if the original has 8 bits."""
    out = out.clamp(0, 1)
    is_8_bit = torch.allclose((image * 255).round() / 255, image, atol=1e-6)
    return (out * 255).round() / 255 if is_8_bit else out


def score(out: Tensor, image: Tensor) -> tuple[float, float]:
    """Returns PSNR (dB) and SSIM."""
    truth = image.permute(1, 2, 0).double().numpy()
    test = out.permute(1, 2, 0).double().numpy()
    if np.array_equal(truth, test):
        return float('inf'), 1.0
    psnr = peak_signal_noise_ratio(truth, test, data_range=1)
    size = min(7, *truth.shape[:2])
    size -= 1 - size % 2
    if size < 3:
        return psnr, float('nan')
    ssim = structural_similarity(
        truth, test, win_size=size, channel_axis=2, data_range=1
    )
    return psnr, ssim


def evaluate(
    image: Tensor, data: Data, methods: dict[str, Method]
) -> dict[str, tuple[Tensor, float, float, float]]:
    """Returns output, PSNR, SSIM and seconds of each method."""
    results = {}
    for name, method in methods.items():
        start = time.perf_counter()
        out = method(data)
        seconds = time.perf_counter() - start
        out = quantize(out, image)
        results[name] = (out, *score(out, image), seconds)
    return results


def plot(
    image: Tensor,
    data: Data,
    results: dict[str, tuple[Tensor, float, float, float]],
    ours: str,
    path: Path,
) -> None:
    """Writes original, mosaic, bilinear, ours and errors, at a crop."""
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows, cols = worst_region(results['bilinear'][0], image, ZOOM)
    crops = {
        'original': image,
        f'mosaic ({data.pattern})': data_to_image(data),
        'bilinear': results['bilinear'][0],
        ours: results[ours][0],
    }
    figure, axes = plt.subplots(2, 4, figsize=(13, 7.2), layout='constrained')
    for axis, (name, picture) in zip(axes[0], crops.items(), strict=True):
        crop = picture[:, rows, cols].clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(crop, interpolation='nearest', vmin=0, vmax=1)
        title = name
        if name in results:
            title += '\nPSNR {1:.2f} dB, SSIM {2:.4f}'.format(*results[name])
        axis.set_title(title)
    whole = axes[1, 0]
    whole.imshow(image.permute(1, 2, 0).numpy())
    whole.set_title('whole original, with the crop')
    corner = (cols.start - 0.5, rows.start - 0.5)
    size = rows.stop - rows.start
    whole.add_patch(
        plt.Rectangle(corner, size, size, fill=False, color='red', lw=1.5)
    )
    sampled = data_to_image(data, data.mask).any(0)
    share = float(data.mask.float().mean())
    axes[1, 1].axis('off')
    axes[1, 1].text(
        0,
        0.5,
        f'{sampled.numel():,} pixels, one colour each:\n'
        f'{share:.0%} of the values are known.\n\n'
        f'Error maps: mean absolute error\nof the three colours.',
        va='center',
        transform=axes[1, 1].transAxes,
    )
    for axis, name in zip(axes[1, 2:], ('bilinear', ours), strict=True):
        error = (results[name][0] - image).abs().mean(0)[rows, cols]
        shown = axis.imshow(error.numpy(), cmap='magma', vmin=0, vmax=0.15)
        axis.set_title(f'error of {name}')
    figure.colorbar(shown, ax=axes[1, 2:], shrink=0.8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'image',
        nargs='?',
        type=Path,
        help='colour photograph, or a folder of them (default: one that '
        'scikit-image ships)',
    )
    parser.add_argument(
        '--pattern',
        choices=CFA_PATTERNS,
        default='RGGB',
        help='colour filter array (default: %(default)s)',
    )
    parser.add_argument(
        '--prior',
        choices=('glr', 'gtv'),
        default='glr',
        help='smoothness prior (default: %(default)s)',
    )
    parser.add_argument(
        '--untrained',
        action='store_true',
        help='layers with fixed parameters instead of the trained net',
    )
    parser.add_argument(
        '--num-views',
        type=int,
        choices=(1, 2, 4, 8),
        default=1,
        help='average over mirrored and transposed copies: better, and as '
        'many times slower (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=None,
        help='figure, or TIFF of a camera file (default: demosaic.png or .tif)',
    )
    parser.add_argument(
        '--noise',
        type=float,
        help='standard deviation of noise to add, of 255; of a camera file, '
        'of the noise that is there, 0 to estimate it',
    )
    parser.add_argument(
        '--menon',
        action='store_true',
        help='score the package colour-demosaicing, too (Bayer patterns)',
    )
    return parser.parse_args()


def read_images(path: Path | None) -> list[tuple[str, Callable[[], Tensor]]]:
    """Names of the images, and functions that read them."""
    if path is None:
        photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
        return [('astronaut (scikit-image)', lambda: photo / 255)]
    if not path.is_dir():
        return [(path.name, lambda: read_colour(path))]
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(
            f"no images in folder '{path}' ({', '.join(SUFFIXES)})"
        )
    return [(file.name, lambda file=file: read_colour(file)) for file in files]


def develop(args: argparse.Namespace, out: Path) -> None:
    """Demosaics a camera file."""
    photo = read_raw(args.image)
    noisy = args.noise is not None
    name, model = make_model(args, photo.is_bayer, noisy)
    start = time.perf_counter()
    image = graph_method(model, args.noise / 255 if args.noise else None)(
        photo.data
    )
    seconds = time.perf_counter() - start
    write_tiff(photo.finish(image), out)
    megapixels = image[0].numel() / 1e6
    print(f'{name}: {megapixels:.1f} megapixels in {seconds:.1f} s')
    print(f'Wrote {out}')


def add_noise(data: Data, std: float, seed: int) -> Data:
    """Adds Gaussian noise to what is known."""
    generator = torch.Generator().manual_seed(seed)
    grain = torch.randn((len(data.x), 1), generator=generator)
    data.x = torch.where(data.mask, data.x + std * grain, 0)
    return data


def main() -> None:
    """Runs the example."""
    args = parse()
    is_raw = args.image is not None and args.image.suffix.lower() in RAW
    out = args.out or Path('demosaic.tif' if is_raw else 'demosaic.png')
    if args.menon and (is_raw or args.pattern == 'X-Trans'):
        sys.exit('error: --menon needs a photograph and a Bayer pattern')
    if args.noise is not None and not 0 <= args.noise <= 255:
        sys.exit(f'error: --noise must lie in [0, 255] (got {args.noise})')
    try:
        if is_raw:
            check_out(out, ('.tif', '.tiff'))
            develop(args, out)
            return
        images = read_images(args.image)
        if len(images) == 1:
            check_out(out)
        elif args.out:
            raise ValueError('--out is for one image; a folder gives scores')
    except ValueError as error:
        sys.exit(f'error: {error}')
    noise = (args.noise or 0) / 255
    ours, model = make_model(args, args.pattern != 'X-Trans', noise > 0)
    methods = {'bilinear': bilinear, ours: graph_method(model, noise)}
    if args.menon:
        methods['Menon 2007'] = menon
    scores: dict[str, list[tuple[float, ...]]] = {m: [] for m in methods}
    progress = tqdm(images, disable=len(images) == 1, unit='image')
    for k, (name, read) in enumerate(progress):
        try:
            image = read()
            data = add_noise(mosaic(image, args.pattern), noise, k)
            if not bool(data.mask.any(0).all()):
                size = ' x '.join(map(str, image.shape[1:]))
                raise ValueError(f"'{name}' is too small ({size} pixels)")
            results = evaluate(image, data, methods)
        except ValueError as error:
            progress.write(f'error: {error}', file=sys.stderr)
            continue
        except ImportError as error:
            sys.exit(f'error: {error}')
        for method, (_, *numbers) in results.items():
            scores[method].append(tuple(numbers))
        line = ', '.join(f'{m} {r[1]:.2f} dB' for m, r in results.items())
        progress.write(f'{name}: {line}') if len(images) > 1 else None
    count = len(scores[ours])
    if not count:
        sys.exit(1)

    title = images[0][0] if len(images) == 1 else f'{count} images'
    print(f'{title}, {args.pattern}, mean over images')
    print(f'{"":22}{"PSNR dB":>9}{"SSIM":>9}{"seconds":>9}{"parameters":>12}')
    for method, rows in scores.items():
        psnr, ssim, seconds = np.mean(rows, axis=0)
        number = 0
        if method == ours:
            number = sum(p.numel() for p in model.parameters())
        print(f'{method:22}{psnr:9.2f}{ssim:9.4f}{seconds:9.2f}{number:12d}')
    if len(images) == 1:
        plot(image, data, results, ours, out)
        print(f'Wrote {out}')
    if count < len(images):
        sys.exit(f'error: {len(images) - count} images are not in the scores')


if __name__ == '__main__':
    main()
