"""Demosaicing: quality, time and parameters, against classical methods.

    python benchmarks/image_quality.py --folder FOLDER
    python benchmarks/image_quality.py --folder FOLDER --noise 20

Bayer RGGB mosaics of the 8-bit images of a folder; output clipped and rounded
to 8 bits; PSNR over all pixels and colours, no border cut, then the mean over
the images; SSIM of scikit-image. Noise is Gaussian with a standard deviation
in units of 1/255, added to the mosaic, not clipped, the same for all methods.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from skimage.io import imread
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm
from utils import Row, parse_args, report

from pyg_unroll import (
    GraphDemosaic,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    mosaic,
)
from pyg_unroll.nn.models import local_interpolation

SUFFIXES = ('.png', '.webp', '.tif', '.tiff', '.bmp', '.jpg', '.jpeg')
WEIGHTS = 'demosaic-bayer'
Method = Callable[[Tensor], Tensor]


def ours(model: torch.nn.Module) -> Method:
    """A model as a function of the sensor's values `[1, H, W]`."""

    def run(sensor: Tensor) -> Tensor:
        data = mosaic(sensor)
        with torch.no_grad():
            return data_to_image(data, model(data))

    return run


def bilinear(sensor: Tensor) -> Tensor:
    """Each colour on its own."""
    data = mosaic(sensor)
    known = data_to_image(data, data.mask)[None]
    return local_interpolation(data_to_image(data)[None], known)[0]


def colour_demosaicing(name: str) -> Method:
    """A method of the package colour-demosaicing."""
    import colour_demosaicing as package

    function = getattr(package, f'demosaicing_CFA_Bayer_{name}')

    def run(sensor: Tensor) -> Tensor:
        out = function(sensor[0].double().numpy(), 'RGGB')
        return torch.from_numpy(np.moveaxis(np.asarray(out), -1, 0)).float()

    return run


def opencv(code: str) -> Method:
    """A method of OpenCV, which takes 8 bits; its names shift the pattern."""
    import cv2

    def run(sensor: Tensor) -> Tensor:
        pixels = (sensor[0].clamp(0, 1) * 255).round().byte().numpy()
        out = cv2.demosaicing(pixels, getattr(cv2, code))
        return torch.from_numpy(out).permute(2, 0, 1) / 255

    return run


def make_methods() -> dict[str, tuple[Method, int]]:
    """All methods that are installed, with their numbers of parameters."""
    methods: dict[str, tuple[Method, int]] = {'bilinear': (bilinear, 0)}
    if importlib.util.find_spec('cv2'):
        methods['OpenCV VNG'] = (opencv('COLOR_BayerBG2RGB_VNG'), 0)
        methods['OpenCV edge-aware'] = (opencv('COLOR_BayerBG2RGB_EA'), 0)
    if importlib.util.find_spec('colour_demosaicing'):
        for name in ('Malvar2004', 'Menon2007'):
            label = f'{name[:-4]} {name[-4:]}'
            methods[label] = (colour_demosaicing(name), 0)
    models: dict[str, torch.nn.Module] = {'GraphDemosaic': GraphDemosaic()}
    for cls in (UnrolledGLR, UnrolledGTV):
        if WEIGHTS in cls.pretrained_names():
            models[cls.__name__] = cls.from_pretrained(WEIGHTS)
    for name, model in models.items():
        count = sum(p.numel() for p in model.parameters())
        methods[name] = (ours(model), count)
    return methods


def quality(out: Tensor, image: Tensor) -> tuple[float, float]:
    """PSNR (dB) and SSIM of an output, clipped and rounded to 8 bits."""
    out = (out.clamp(0, 1) * 255).round() / 255
    error = float((out - image).double().square().mean())
    psnr = -10 * np.log10(max(error, 1e-12))
    test, truth = (x.permute(1, 2, 0).double().numpy() for x in (out, image))
    similarity = structural_similarity(
        truth, test, channel_axis=2, data_range=1
    )
    return float(psnr), float(similarity)


def crops(
    pictures: dict[str, Tensor], scores: dict[str, float], path: Path
) -> None:
    """Writes crops of one image side by side, where bilinear fails most."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    truth, size = pictures['original'], 80
    error = (pictures['bilinear'] - truth).square().mean(0)[None, None]
    local = torch.nn.functional.avg_pool2d(error, size, stride=4)[0, 0]
    row, col = (4 * k for k in divmod(int(local.argmax()), local.size(1)))
    columns = (len(pictures) + 1) // 2
    figure, axes = plt.subplots(
        2, columns, figsize=(3 * columns, 6.6), layout='constrained'
    )
    for axis in axes.flat:
        axis.axis('off')
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        crop = picture[:, row : row + size, col : col + size].clamp(0, 1)
        axis.imshow(crop.permute(1, 2, 0).numpy(), interpolation='nearest')
        psnr = f'\n{scores[name]:.2f} dB' if name in scores else ''
        axis.set_title(name + psnr)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        folder=('', 'images'),
        noise=(0.0, 'standard deviation of the noise, of 255'),
        limit=(10000, 'images at most, evenly over the folder'),
        picture=('', 'PNG of crops of the hardest image'),
        name=('quality', 'marker in RESULTS.md and name of the JSON file'),
    )
    folder = Path(args.folder)
    if not args.folder or not folder.is_dir():
        raise SystemExit(f"error: --folder '{args.folder}' is not a folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    files = files[:: max(1, -(-len(files) // args.limit))]
    if not files:
        raise SystemExit(f"error: no images in '{args.folder}'")
    methods = make_methods()
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in methods}
    hardest = float('inf')
    for k, file in enumerate(tqdm(files, disable=None)):
        image = torch.from_numpy(imread(file)[..., :3].copy())
        image = image.permute(2, 0, 1).float() / 255
        known = mosaic(image)
        sensor = known.x.sum(1).view(1, *image.shape[1:])
        generator = torch.Generator().manual_seed(k)
        noise = torch.randn(sensor.shape, generator=generator)
        sensor = sensor + args.noise / 255 * noise
        pictures, scores = {'original': image}, {}
        for name, (method, _) in methods.items():
            if k == 0:
                method(sensor)  # what is compiled or built once
            begin = time.perf_counter()
            out = method(sensor)
            seconds = time.perf_counter() - begin
            psnr, ssim = quality(out, image)
            pictures[name], scores[name] = out, psnr
            per_megapixel = seconds / (sensor.numel() / 1e6)
            results[name].append((psnr, ssim, per_megapixel))
        if args.picture and scores['bilinear'] < hardest:
            hardest = scores['bilinear']
            crops(pictures, scores, Path(args.picture))
    rows: list[Row] = []
    for name, (_, count) in methods.items():
        psnr, ssim, _ = np.mean(results[name], axis=0)
        seconds = float(np.median([row[2] for row in results[name]]))
        rows.append(
            {
                'method': name,
                'PSNR (dB)': f'{psnr:.2f}',
                'SSIM': f'{ssim:.4f}',
                'seconds per megapixel': seconds,
                'parameters': count,
            }
        )
    print(f'{len(files)} images, noise {args.noise:g}/255')
    report(args.name, rows, args.device, args.write)


if __name__ == '__main__':
    main()
