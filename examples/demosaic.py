"""Demosaics a photograph with trained graph layers, and shows how well.

    python examples/demosaic.py                      # a bundled photograph
    python examples/demosaic.py PHOTO --pattern GBRG --out OUT.png
    python examples/demosaic.py PHOTO --untrained --prior gtv
    python examples/demosaic.py PHOTO --noise 20     # adds noise first
    python examples/demosaic.py FOLDER --menon       # scores of all images
    python examples/demosaic.py CAMERA.dng --out OUT.tif
    python examples/demosaic.py MOSAIC.png --cfa RGGB --white 1023

It keeps of each pixel the one colour that a camera's sensor would measure,
reconstructs the other two, and compares with the original. A camera file has no
original: black level, white balance, pattern, colours and orientation are taken
from it, and the result is written as TIFF of 16 bits; likewise of a mosaic that
is stored as a grey image, whose values stay as they are.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
import torch
from outputs import check_out, write_tiff
from photos import SUFFIXES, photos_in, strips, worst_region
from skimage.metrics import structural_similarity
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from pyg_unroll import Demosaic, GraphDemosaic, data_to_image, mosaic
from pyg_unroll.imaging import (
    CFA_PATTERNS,
    SelfEnsemble,
    find_defects,
    local_interpolation,
    to_unit_range,
)
from pyg_unroll.imaging.files import (
    RawPhoto,
    is_raw,
    looks_like_mosaic,
    read_mosaic,
    read_photo,
    read_raw,
)

ZOOM = 96

Method = Callable[[Data], Tensor]


def note(message: Warning | str, *_: object) -> None:
    """Shows a warning as a note."""
    print(f'note: {message}', file=sys.stderr)


def bilinear(data: Data) -> Tensor:
    """Interpolates each colour on its own, `[3, H, W]`."""
    image = data_to_image(data)[None]
    mask = data_to_image(data, data.mask)[None]
    out = torch.empty_like(image)
    for rows, inner in strips(image.size(2), halo=6):
        strip = local_interpolation(image[:, :, rows], mask[:, :, rows])
        out[:, :, rows][:, :, inner] = strip[:, :, inner]
    return out[0]


def menon(data: Data) -> Tensor:
    """Menon's method as the package colour-demosaicing has it."""
    from colour_demosaicing import demosaicing_CFA_Bayer_Menon2007

    sensor = data_to_image(data).sum(0).double().numpy()
    out = demosaicing_CFA_Bayer_Menon2007(sensor, data.pattern)
    return torch.from_numpy(np.moveaxis(out, -1, 0)).float()


def make_model(
    args: argparse.Namespace, cfa: str, noisy: bool
) -> tuple[str, torch.nn.Module]:
    """A restorer, trained if there are weights, and its name."""
    kind = args.prior or 'glr'
    prior = kind.upper()
    plain = cfa.lower().replace('-', '')
    known = Demosaic.pretrained_names(kind)
    model: torch.nn.Module
    if not args.untrained and plain in known:
        name = f'{plain}-noisy' if noisy else plain
        if name not in known:
            note(
                f'no weights of {prior} for noise; those without are told of it'
            )
            name = plain
        model = Demosaic.from_pretrained(name, kind)
        title = f'Demosaic, {prior}'
    else:
        if not args.untrained:
            note('no weights for this sensor; using untrained layers')
        model = GraphDemosaic(kind)
        title = f'GraphDemosaic, {prior}'
    if (args.num_views or 1) > 1:
        model = SelfEnsemble(model, args.num_views)
    return title, model


def graph_method(model: torch.nn.Module, noise: float | None) -> Method:
    """Wraps the model as a function of a mosaic; tells it the noise."""
    restorer = getattr(model, 'restorer', model)
    is_told = isinstance(restorer, Demosaic) and noise

    def run(data: Data) -> Tensor:
        if is_told:
            data.noise_std = noise
        with torch.no_grad():
            return data_to_image(data, model(data))

    return run


def read_colour(path: Path) -> Tensor:
    """Reads an image with three channels; grey is repeated, with a note."""
    image = read_photo(path)
    if image.size(0) == 1:
        note(f"'{path}' is grey; red = green = blue")
        if looks_like_mosaic(image):
            note('it looks like the mosaic of a sensor: name it by --cfa')
        image = image.expand(3, -1, -1).contiguous()
    return image


def compact(image: Tensor) -> Tensor:
    """The image in 8 bits if it has no more."""
    rounded = torch.empty_like(image, dtype=torch.uint8)
    for rows, _ in strips(image.size(1)):
        part = image[:, rows] * 255
        if not torch.allclose(part, part.round(), atol=3e-4):
            return image
        rounded[:, rows] = part.round()
    return rounded


def quantize(out: Tensor, image: Tensor) -> Tensor:
    """Clips in place, and rounds to 8 bits if the original has 8 bits."""
    out = out.clamp_(0, 1)
    return out.mul_(255).round_().byte() if image.dtype == torch.uint8 else out


def score(out: Tensor, image: Tensor) -> tuple[float, float]:
    """Returns PSNR (dB) and SSIM."""
    height, width = image.shape[1:]
    size = min(7, height, width)
    size -= 1 - size % 2
    halo = size // 2
    squares = similar = count = 0.0
    for rows, inner in strips(height, halo):
        test, truth = (
            to_unit_range(v[:, rows]).permute(1, 2, 0).double().numpy()
            for v in (out, image)
        )
        squares += np.square(test - truth)[inner].sum()
        if size >= 3:
            options = {'win_size': size, 'channel_axis': 2, 'data_range': 1}
            _, local = structural_similarity(truth, test, **options, full=True)
            # Of whole windows, as scikit-image has it.
            local = local[halo : len(local) - halo, halo : width - halo]
            similar, count = similar + local.sum(), count + local.size
    mean = squares / image.numel()
    psnr = -10 * math.log10(mean) if mean > 0 else float('inf')
    return psnr, similar / count if count else float('nan')


def evaluate(
    image: Tensor, data: Data, methods: dict[str, Method]
) -> tuple[dict[str, tuple[Tensor, float, float, float]], tuple[slice, slice]]:
    """Returns PSNR, SSIM and seconds of each method, and its output in a
    region where the first is worst.
    """
    results = {}
    region = None
    for name, method in methods.items():
        start = time.perf_counter()
        out = method(data)
        seconds = time.perf_counter() - start
        out = quantize(out, image)
        region = region or worst_region(out, image, ZOOM)
        crop = out[:, *region].clone()
        results[name] = (crop, *score(out, image), seconds)
    return results, region


def plot(
    image: Tensor,
    data: Data,
    results: dict[str, tuple[Tensor, float, float, float]],
    region: tuple[slice, slice],
    ours: str,
    path: Path,
) -> None:
    """Writes original, mosaic, bilinear, ours and errors, at a crop."""
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows, cols = region
    original = image[:, rows, cols]
    crops = {
        'original': original,
        f'mosaic ({data.pattern})': data_to_image(data)[:, rows, cols],
        'bilinear': results['bilinear'][0],
        ours: results[ours][0],
    }
    figure, axes = plt.subplots(2, 4, figsize=(13, 7.2), layout='constrained')
    for axis, (name, picture) in zip(axes[0], crops.items(), strict=True):
        crop = to_unit_range(picture).clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(crop, interpolation='nearest', vmin=0, vmax=1)
        title = name
        if name in results:
            title += '\nPSNR {1:.2f} dB, SSIM {2:.4f}'.format(*results[name])
        axis.set_title(title)
    whole = axes[1, 0]
    height, width = image.shape[1:]
    step = max(max(height, width) // 2000, 1)
    whole.imshow(
        image[:, ::step, ::step].permute(1, 2, 0).numpy(),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    whole.set_title('whole original, with the crop')
    corner = (cols.start - 0.5, rows.start - 0.5)
    size = rows.stop - rows.start
    whole.add_patch(
        plt.Rectangle(corner, size, size, fill=False, color='red', lw=1.5)
    )
    share = int(data.mask.count_nonzero()) / data.mask.numel()
    axes[1, 1].axis('off')
    axes[1, 1].text(
        0,
        0.5,
        f'{height * width:,} pixels, one colour each:\n'
        f'{share:.0%} of the values are known.\n\n'
        f'Error maps: mean absolute error\nof the three colours.',
        va='center',
        transform=axes[1, 1].transAxes,
    )
    for axis, name in zip(axes[1, 2:], ('bilinear', ours), strict=True):
        test, truth = map(to_unit_range, (results[name][0], original))
        error = (test - truth).abs().mean(0).numpy()
        shown = axis.imshow(error, cmap='magma', vmin=0, vmax=0.15)
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
        help='colour filter array of the mosaic of a photograph (default: '
        'RGGB)',
    )
    parser.add_argument(
        '--cfa',
        choices=CFA_PATTERNS,
        help='the image is a mosaic of this colour filter array, stored grey',
    )
    parser.add_argument(
        '--white',
        type=float,
        help='value of white of such a mosaic, as 1023 of 10 bits (default: '
        'that of the file)',
    )
    parser.add_argument(
        '--prior',
        choices=('glr', 'gtv'),
        help='smoothness prior (default: glr)',
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
        help='average over mirrored and transposed copies: better, and as '
        'many times slower (default: 1)',
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
        '--fix-pixels',
        action='store_true',
        help='find hot and dead pixels of a camera file, and fill them in',
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
    files = photos_in(path)
    if not files:
        raise ValueError(
            f"no images in folder '{path}' ({', '.join(SUFFIXES)})"
        )
    return [(file.name, lambda file=file: read_colour(file)) for file in files]


def open_sensor(args: argparse.Namespace) -> RawPhoto:
    """Reads a camera file, or a mosaic, and checks the options for it."""
    print(f'Reading {args.image} ...', flush=True)
    if args.cfa:
        photo = read_mosaic(args.image, args.cfa, args.white)
    else:
        photo = read_raw(args.image)
    if photo.cfa == 'monochrome':
        filters = 'a sensor with colour filters'
        need(filters, args, 'prior', 'untrained', 'num_views')
    if photo.cfa in ('monochrome', 'other'):
        need('a Bayer or X-Trans sensor', args, 'noise', 'fix_pixels')
    if args.untrained:
        need('trained weights, not --untrained', args, 'noise')
    return photo


def need(what: str, args: argparse.Namespace, *names: str) -> None:
    """Raises a `ValueError` if an option is given that needs something."""
    for name in names:
        if getattr(args, name) not in (None, False):
            option = name.replace('_', '-')
            raise ValueError(f'--{option} needs {what}')


def fix_pixels(data: Data) -> Data:
    """Marks pixels that measure nothing as unknown."""
    image, mask = (data_to_image(data, v)[None] for v in (data.x, data.mask))
    defects = find_defects(image, mask)
    data.mask = data.mask & ~defects.view(-1, 1)
    print(f'{int(defects.sum())} defective pixels are filled in')
    return data


def remosaic(estimate: Method, net: Method) -> Method:
    """Hands a net the Bayer mosaic of an estimate; keeps what is known."""

    def run(data: Data) -> Tensor:
        out = net(mosaic(estimate(data)))
        known = data_to_image(data, data.mask)
        return torch.where(known, data_to_image(data), out)

    return run


def choose(args: argparse.Namespace, cfa: str) -> tuple[str, Method]:
    """The method for a colour filter array, and its name."""
    if cfa == 'monochrome':
        return 'No colour filters, nothing to demosaic', data_to_image
    name, model = make_model(args, cfa, args.noise is not None)
    method = graph_method(model, args.noise / 255 if args.noise else None)
    if cfa != 'other' or args.untrained:
        return name, method
    net = Demosaic.from_pretrained('bayer', args.prior or 'glr')
    return (
        f'{name}, then Demosaic on a Bayer mosaic of it',
        remosaic(method, graph_method(net, None)),
    )


def develop(args: argparse.Namespace, out: Path) -> None:
    """Demosaics a camera file, or a mosaic."""
    photo = open_sensor(args)
    data = photo.to_data()
    data = fix_pixels(data) if args.fix_pixels else data
    name, method = choose(args, photo.cfa)
    megapixels = data.num_nodes / 1e6
    print(f'{name}: {megapixels:.1f} megapixels ...', flush=True)
    start = time.perf_counter()
    image = method(data)
    seconds = time.perf_counter() - start
    write_tiff(photo.finish(image), out)
    print(f'{name}: {megapixels:.1f} megapixels in {seconds:.1f} s')
    print(f'Wrote {out}')


def add_noise(data: Data, std: float, seed: int) -> Data:
    """Adds Gaussian noise to what is known."""
    generator = torch.Generator().manual_seed(seed)
    grain = torch.randn((len(data.x), 1), generator=generator)
    data.x = torch.where(data.mask, data.x + std * grain, 0)
    return data


def check_options(args: argparse.Namespace, is_sensor: bool) -> None:
    """Raises a `ValueError` if an option does nothing."""
    if args.noise is not None and not 0 <= args.noise <= 255:
        raise ValueError(f'--noise must lie in [0, 255] (got {args.noise})')
    if is_sensor:
        need('a photograph', args, 'pattern')
        need('a photograph and a Bayer pattern', args, 'menon')
    else:
        need('a camera file', args, 'fix_pixels')
        need('an image that is a mosaic', args, 'cfa')
    if args.pattern == 'X-Trans':
        need('a photograph and a Bayer pattern', args, 'menon')
    if not args.cfa:
        need('--cfa', args, 'white')


def main() -> None:
    """Runs the example."""
    warnings.showwarning = note
    args = parse()
    is_sensor = args.image is not None and (
        args.cfa is not None or is_raw(args.image)
    )
    out = args.out or Path('demosaic.tif' if is_sensor else 'demosaic.png')
    try:
        check_options(args, is_sensor)
        if is_sensor:
            check_out(out, ('.tif', '.tiff'))
            develop(args, out)
            return
        images = read_images(args.image)
        if len(images) == 1:
            check_out(out)
        elif args.out:
            raise ValueError('--out is for one image; a folder gives scores')
    except (ValueError, ImportError) as error:
        sys.exit(f'error: {error}')
    noise = (args.noise or 0) / 255
    pattern = args.pattern or 'RGGB'
    cfa = pattern if pattern == 'X-Trans' else 'Bayer'
    ours, model = make_model(args, cfa, noise > 0)
    methods = {'bilinear': bilinear, ours: graph_method(model, noise)}
    if args.menon:
        methods['Menon 2007'] = menon
    scores: dict[str, list[tuple[float, ...]]] = {m: [] for m in methods}
    progress = tqdm(images, disable=len(images) == 1, unit='image')
    for k, (name, read) in enumerate(progress):
        try:
            image = read()
            data = mosaic(image, pattern)
            del data.pos  # two thirds of the size of the image, not needed
            image = compact(image)
            data = add_noise(data, noise, k) if noise else data
            if not bool(data.mask.any(0).all()):
                size = ' x '.join(map(str, image.shape[1:]))
                raise ValueError(f"'{name}' is too small ({size} pixels)")
            results, region = evaluate(image, data, methods)
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
    print(f'{title}, {pattern}, mean over images')
    print(f'{"":22}{"PSNR dB":>9}{"SSIM":>9}{"seconds":>9}{"parameters":>12}')
    for method, rows in scores.items():
        psnr, ssim, seconds = np.mean(rows, axis=0)
        number = 0
        if method == ours:
            number = sum(p.numel() for p in model.parameters())
        print(f'{method:22}{psnr:9.2f}{ssim:9.4f}{seconds:9.2f}{number:12d}')
    if len(images) == 1:
        plot(image, data, results, region, ours, out)
        print(f'Wrote {out}')
    if count < len(images):
        sys.exit(f'error: {len(images) - count} images are not in the scores')


if __name__ == '__main__':
    main()
