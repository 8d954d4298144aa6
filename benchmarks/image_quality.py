"""Demosaicing and inpainting: quality and time, against classical methods.

    python benchmarks/image_quality.py --folder FOLDER
    python benchmarks/image_quality.py --folder FOLDER --noise 20
    python benchmarks/image_quality.py --folder FOLDER --known 0.3
    python benchmarks/image_quality.py --folder FOLDER --grid 2
    python benchmarks/image_quality.py --folder FOLDER --pattern GBRG
    python benchmarks/image_quality.py --folder FOLDER --pattern X-Trans
    python benchmarks/image_quality.py --folder FOLDER --defects 0.001
    python benchmarks/image_quality.py --folder FOLDER --exposure 0.01
    python benchmarks/image_quality.py --folder FOLDER --linear 1

The 8-bit images of a folder become Bayer RGGB mosaics, or lose all pixels but a
random share or a regular grid; output clipped and rounded to 8 bits; PSNR over
all pixels and colours, no border cut, then the mean over the images; SSIM of
scikit-image. Noise is Gaussian with a standard deviation in units of 1/255,
added to the mosaic, not clipped, the same for all methods; the models for noise
are told its level. Of defective pixels, a third is dead (0), the others are hot
(0.6 to 1 of the largest value). Linear data are the images to the power of 2.2,
as cameras give them; outputs are encoded again before they are scored. "Won" is
the share of images that a method restores better than demosaicnet (`pip install
demosaicnet wget 'setuptools<81'`).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import griddata
from scipy.ndimage import map_coordinates
from skimage.metrics import structural_similarity
from skimage.restoration import inpaint_biharmonic
from torch import Tensor
from tqdm import tqdm
from utils import Row, parse_args, report

from pyg_unroll import (
    Demosaic,
    GraphDemosaic,
    Inpaint,
    cfa_mask,
    data_to_image,
    image_to_data,
)
from pyg_unroll.imaging import (
    CFA_PATTERNS,
    SelfEnsemble,
    find_defects,
    local_interpolation,
)
from pyg_unroll.imaging.files import read_photo

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from photos import photos_in, psnr, worst_region


@dataclass
class HiddenImage:
    """The input of a method.

    Args:
        image (torch.Tensor): Image `[3, H, W]`, zero where unknown.
        mask (torch.Tensor): True where known, `[3, H, W]`.
        noise (float): Standard deviation of the noise.
        grid (int): Distance of known pixels on a regular grid, or 0.
        pattern (str): That of a mosaic.
        defects (torch.Tensor, optional): True where pixels are, `[1, H, W]`.
    """

    image: Tensor
    mask: Tensor
    noise: float
    grid: int
    pattern: str = 'RGGB'
    defects: Tensor | None = None

    @property
    def sensor(self) -> np.ndarray:
        """The one value of each pixel of a mosaic, `[H, W]`."""
        return self.image.sum(0).numpy()


Method = Callable[[HiddenImage], Tensor]

BAYER_PATTERNS = 'RGGB', 'GRBG', 'GBRG', 'BGGR'


def ours(model: torch.nn.Module, told: bool = False) -> Method:
    """A model as a method, told the noise if it was trained with noise, or if
    that is wanted.
    """
    restorer = getattr(model, 'restorer', model)
    told = told or getattr(restorer, 'fidelity', 'hard') == 'soft'

    def run(problem: HiddenImage) -> Tensor:
        data = image_to_data(problem.image)
        data.mask = image_to_data(problem.mask).x
        if told:
            data.noise_std = problem.noise
        with torch.no_grad():
            return data_to_image(data, model(data))

    return run


def mended(method: Method, found: bool) -> Method:
    """A method that is told which pixels are defective, or finds them."""

    def run(problem: HiddenImage) -> Tensor:
        defects = problem.defects
        if found:
            images = problem.image[None], problem.mask[None]
            defects = find_defects(*images)[0]
        return method(replace(problem, mask=problem.mask & ~defects))

    return run


def bilinear(problem: HiddenImage) -> Tensor:
    """Each colour on its own."""
    return local_interpolation(problem.image[None], problem.mask[None])[0]


def colour_demosaicing(name: str) -> Method:
    """A method of the package colour-demosaicing."""
    import colour_demosaicing as package

    function = getattr(package, f'demosaicing_CFA_Bayer_{name}')

    def run(problem: HiddenImage) -> Tensor:
        out = function(problem.sensor.astype(np.float64), problem.pattern)
        return torch.from_numpy(np.moveaxis(np.asarray(out), -1, 0)).float()

    return run


def demosaicnet() -> tuple[Method, int]:
    """The network of Gharbi et al. (2016), and its number of parameters.

    Its mosaic begins with green, then red, and it cuts a border off: images
    are mirrored by numbers of rows and columns that make it so.
    """
    from demosaicnet import BayerDemosaick

    net, margin = BayerDemosaick().eval(), 32

    def run(problem: HiddenImage) -> Tensor:
        height, width = problem.mask.shape[1:]
        rows = margin + problem.pattern.startswith(('GB', 'BG'))
        cols = margin + problem.pattern.endswith(('GB', 'RG'))
        pad = cols, cols + width % 2, rows, rows + height % 2
        padded = F.pad(problem.image[None], pad, mode='reflect')
        with torch.no_grad():
            out = net(padded)[0]
        cut = (padded.size(2) - out.size(1)) // 2
        top, left = rows - cut, cols - cut
        return out[:, top : top + height, left : left + width]

    return run, sum(p.numel() for p in net.parameters())


def opencv_demosaicing(code: str) -> Method:
    """A method of OpenCV, which takes 8 bits; its names shift the pattern."""
    import cv2

    def run(problem: HiddenImage) -> Tensor:
        pixels = (problem.sensor.clip(0, 1) * 255).round().astype(np.uint8)
        out = cv2.demosaicing(pixels, getattr(cv2, code))
        return torch.from_numpy(out).permute(2, 0, 1) / 255

    return run


def opencv_inpainting(code: str) -> Method:
    """A method of OpenCV, which takes 8 bits."""
    import cv2

    def run(problem: HiddenImage) -> Tensor:
        pixels = (problem.image * 255).round().byte().permute(1, 2, 0).numpy()
        holes = (~problem.mask[0]).byte().numpy()
        out = cv2.inpaint(pixels, holes, 3, getattr(cv2, code))
        return torch.from_numpy(out).permute(2, 0, 1) / 255

    return run


def biharmonic(problem: HiddenImage) -> Tensor:
    """Biharmonic inpainting of scikit-image."""
    out = inpaint_biharmonic(
        problem.image.numpy(), ~problem.mask[0].numpy(), channel_axis=0
    )
    return torch.from_numpy(out).float()


def triangles(problem: HiddenImage) -> Tensor:
    """Linear interpolation of SciPy on triangles, nearest outside."""
    mask, out = problem.mask[0], problem.image.clone()
    known, unknown = mask.nonzero().numpy(), (~mask).nonzero().numpy()
    values = problem.image[:, mask].T.numpy()
    filled = griddata(known, values, unknown, method='linear')
    nearest = griddata(known, values, unknown, method='nearest')
    filled = np.where(np.isnan(filled), nearest, filled)
    out[:, ~mask] = torch.from_numpy(filled.T).float()
    return out


def bicubic(problem: HiddenImage) -> Tensor:
    """Cubic splines of SciPy through the pixels of a regular grid."""
    step, (height, width) = problem.grid, problem.image.shape[1:]
    small = problem.image[:, ::step, ::step].numpy()
    rows, cols = np.mgrid[:height, :width] / step
    out = [
        map_coordinates(part, (rows, cols), order=3, mode='mirror')
        for part in small
    ]
    return torch.from_numpy(np.stack(out)).float()


def demosaicing_methods(
    noise: float, num_views: int, pattern: str
) -> dict[str, tuple[Method, int]]:
    """All methods that are installed and for the pattern, with their numbers
    of parameters.
    """
    classical = GraphDemosaic()
    count = sum(p.numel() for p in classical.parameters())
    methods: dict[str, tuple[Method, int]] = {
        'bilinear': (bilinear, 0),
        'GraphDemosaic': (ours(classical), count),
    }
    if pattern not in BAYER_PATTERNS:
        return methods | trained(Demosaic, ['xtrans'], num_views, noise)
    if importlib.util.find_spec('cv2') and pattern == 'RGGB':
        for name, code in (('VNG', 'VNG'), ('edge-aware', 'EA')):
            method = opencv_demosaicing(f'COLOR_BayerBG2RGB_{code}')
            methods[f'OpenCV {name}'] = (method, 0)
    if importlib.util.find_spec('colour_demosaicing'):
        for name in ('Malvar2004', 'Menon2007'):
            label = f'{name[:-4]} {name[-4:]}'
            methods[label] = (colour_demosaicing(name), 0)
    if importlib.util.find_spec('demosaicnet'):
        methods['demosaicnet'] = demosaicnet()
    names = ['bayer', 'bayer-small', *(['bayer-noisy'] if noise else [])]
    return methods | trained(Demosaic, names, num_views, noise)


def inpainting_methods(
    grid: int, num_views: int
) -> dict[str, tuple[Method, int]]:
    """All methods that are installed, with their numbers of parameters."""
    methods: dict[str, tuple[Method, int]] = {
        'linear (SciPy)': (triangles, 0),
        'biharmonic (scikit-image)': (biharmonic, 0),
    }
    if importlib.util.find_spec('cv2'):
        for name, code in (('Telea', 'TELEA'), ('Navier-Stokes', 'NS')):
            method = opencv_inpainting(f'INPAINT_{code}')
            methods[f'OpenCV {name}'] = (method, 0)
    if grid:
        methods['bicubic (SciPy)'] = (bicubic, 0)
    return methods | trained(Inpaint, ['random'], num_views)


def trained(
    cls: type[Demosaic] | type[Inpaint],
    names: list[str],
    num_views: int,
    noise: float = 0.0,
) -> dict[str, tuple[Method, int]]:
    """Our models of these names, with their numbers of parameters; in a
    self-ensemble, too.
    """
    methods: dict[str, tuple[Method, int]] = {}
    for prior in ('glr', 'gtv'):
        for name in names:
            if name not in cls.pretrained_names(prior):
                continue
            model = cls.from_pretrained(name, prior)
            count = sum(p.numel() for p in model.parameters())
            label = f'{cls.__name__} {name} {prior.upper()}'
            methods[label] = (ours(model), count)
            if noise and model.fidelity == 'hard':
                methods[f'{label}, told the noise'] = (ours(model, True), count)
            if num_views > 1:
                ensemble = SelfEnsemble(model, num_views)
                methods[f'{label}, {num_views} views'] = (ours(ensemble), count)
    return methods


@dataclass
class Encoding:
    """The values that methods see of an image, and back.

    Args:
        exposure (float): Factor of the values.
        power (float): Their exponent, 2.2 for linear data.
    """

    exposure: float = 1.0
    power: float = 1.0

    def encode(self, image: Tensor) -> Tensor:
        """Values of an image in [0, 1]."""
        return self.exposure * image**self.power

    def decode(self, out: Tensor) -> Tensor:
        """The image in [0, 1] that values stand for."""
        return (out / self.exposure).clamp(0, 1) ** (1 / self.power)


def make_problem(
    image: Tensor,
    seed: int,
    noise: float,
    known: float,
    grid: int,
    pattern: str = 'RGGB',
    share: float = 0.0,
) -> HiddenImage:
    """Hides part of an image `[3, H, W]`, and spoils a share of its pixels."""
    generator = torch.Generator().manual_seed(seed)
    if known or grid:
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        if grid:
            mask[::grid, ::grid] = True
        else:
            mask = torch.rand(mask.shape, generator=generator) < known
        mask = mask.expand_as(image)
    else:
        mask = cfa_mask(pattern, *image.shape[1:])
        grain = torch.randn((1, *image.shape[1:]), generator=generator)
        image = image + noise * grain
    one = 1, *image.shape[1:]
    chance, value = torch.rand((2, *one), generator=generator)
    defects = chance < share
    value = torch.where(value < 1 / 3, 0, 0.4 + 0.6 * value) * image.amax()
    hidden = torch.where(mask, torch.where(defects, value, image), 0)
    return HiddenImage(hidden, mask, noise, grid, pattern, defects)


def quality(out: Tensor, image: Tensor) -> tuple[float, float]:
    """PSNR (dB) and SSIM of an output, clipped and rounded to 8 bits."""
    ratio = psnr(out, image)
    out = (out.clamp(0, 1) * 255).round() / 255
    test, truth = (x.permute(1, 2, 0).double().numpy() for x in (out, image))
    similarity = structural_similarity(
        truth, test, channel_axis=2, data_range=1
    )
    return ratio, float(similarity)


def crops(
    pictures: dict[str, Tensor], scores: dict[str, float], path: Path
) -> None:
    """Writes crops of one image side by side, where the first
    method fails most.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    truth, first, *_ = pictures.values()
    rows, cols = worst_region(first, truth, 80)
    columns = (len(pictures) + 1) // 2
    figure, axes = plt.subplots(
        2, columns, figsize=(3 * columns, 6.6), layout='constrained'
    )
    for axis in axes.flat:
        axis.axis('off')
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        crop = picture[:, rows, cols].clamp(0, 1)
        axis.imshow(crop.permute(1, 2, 0).numpy(), interpolation='nearest')
        score = f'\n{scores[name]:.2f} dB' if name in scores else ''
        axis.set_title(name + score)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        folder=('', 'images'),
        noise=(0.0, 'standard deviation of the noise, of 255'),
        known=(0.0, 'inpainting: share of known pixels'),
        grid=(0, 'inpainting: distance of known pixels'),
        limit=(10000, 'images at most, evenly over the folder'),
        pattern=('RGGB', 'of the mosaics'),
        defects=(0.0, 'share of defective pixels of the mosaics'),
        exposure=(1.0, 'factor of the values that methods see'),
        linear=(0, '1: methods see linear data'),
        num_views=(1, 'views of a self-ensemble of our models, in more rows'),
        picture=('', 'PNG of crops of the hardest image'),
        skip=('', 'leave out methods whose names contain this, or one of A|B'),
        name=('quality', 'marker in RESULTS.md and name of the JSON file'),
    )
    folder = Path(args.folder)
    if not args.folder or not folder.is_dir():
        raise SystemExit(f"error: --folder '{args.folder}' is not a folder")
    files = photos_in(folder)
    files = files[:: max(1, -(-len(files) // args.limit))]
    if not files:
        raise SystemExit(f"error: no images in '{args.folder}'")
    inpainting = bool(args.known or args.grid)
    if args.noise < 0 or not 0 <= args.known < 1 or args.grid < 0:
        raise SystemExit('error: --noise, --known or --grid is out of range')
    if not 0 <= args.defects < 1 or (args.defects and inpainting):
        raise SystemExit('error: --defects is a share, and for mosaics')
    if args.pattern not in CFA_PATTERNS or args.exposure <= 0:
        raise SystemExit('error: --pattern or --exposure is out of range')
    encoding = Encoding(args.exposure, 2.2 if args.linear else 1.0)
    if inpainting:
        methods = inpainting_methods(args.grid, args.num_views)
    else:
        methods = demosaicing_methods(args.noise, args.num_views, args.pattern)
    if args.defects:
        for name, (method, count) in list(methods.items()):
            if name.startswith(('Demosaic', 'GraphDemosaic')):
                for told, found in (('told', False), ('found', True)):
                    label = f'{name}, defects {told}'
                    methods[label] = mended(method, found), count
    if args.skip:
        skipped = args.skip.split('|')
        methods = {
            name: method
            for name, method in methods.items()
            if not any(part in name for part in skipped)
        }
    baseline = next(iter(methods))
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in methods}
    hardest = float('inf')
    for k, file in enumerate(tqdm(files, disable=None)):
        image = read_photo(file).expand(3, -1, -1)
        hide = args.noise / 255, args.known, args.grid, args.pattern
        encoded = encoding.encode(image)
        problem = make_problem(encoded, k, *hide, args.defects)
        pictures, scores = {'original': image}, {}
        for name, (method, _) in methods.items():
            if k == 0:
                method(problem)  # what is compiled or built once
            begin = time.perf_counter()
            out = method(problem)
            seconds = time.perf_counter() - begin
            out = encoding.decode(out)
            ratio, ssim = quality(out, image)
            pictures[name], scores[name] = out, ratio
            per_megapixel = seconds / (problem.mask[0].numel() / 1e6)
            results[name].append((ratio, ssim, per_megapixel))
        if args.picture and scores[baseline] < hardest:
            hardest = scores[baseline]
            crops(pictures, scores, Path(args.picture))
    rows: list[Row] = []
    peer = results.get('demosaicnet')
    for name, (_, count) in methods.items():
        ratio, ssim, _ = np.mean(results[name], axis=0)
        gains = np.subtract(results[name], peer)[:, 0] if peer else None
        seconds = float(np.median([row[2] for row in results[name]]))
        rows.append(
            {
                'method': name,
                'PSNR (dB)': f'{ratio:.2f}',
                'over demosaicnet (dB)': None
                if gains is None
                else f'{gains.mean():+.2f}',
                'won': None if gains is None else f'{(gains > 0).mean():.0%}',
                'SSIM': f'{ssim:.4f}',
                'seconds per megapixel': seconds,
                'parameters': count,
            }
        )
    what = f'mosaics, noise {args.noise:g}/255'
    if inpainting:
        what = f'every {args.grid} pixels known'
        what = what if args.grid else f'{args.known:.0%} known'
    print(f'{len(files)} images, {what}')
    report(args.name, rows, args.device, args.write)


if __name__ == '__main__':
    main()
