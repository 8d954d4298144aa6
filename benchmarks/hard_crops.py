"""Cuts the crops of photographs out that are hardest to demosaic.

    python benchmarks/hard_crops.py --folder PHOTOGRAPHS --out CROPS
    python benchmarks/image_quality.py --folder CROPS

A net to ship is decided on by these rather than by whole photographs, most
pixels of which are easy for all. Each photograph is cut into squares; those
with the largest squared errors of Menon's method, which was not trained, are
written as PNG, at most an eighth of all from one photograph.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch.nn.functional as F
from image_quality import colour_demosaicing, make_problem
from skimage.io import imsave
from torch import Tensor
from tqdm import tqdm
from utils import parse_args

from pyg_unroll.imaging.files import read_photo

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from photos import photos_in


def squares(
    image: Tensor, side: int
) -> list[tuple[float, tuple[slice, slice]]]:
    """The squares of an image `[3, H, W]`, with their errors."""
    out = colour_demosaicing('Menon2007')(make_problem(image, 0, 0.0, 0.0, 0))
    error = (out.clamp(0, 1) - image).square().mean(0)
    local = F.avg_pool2d(error[None, None], side)[0, 0]
    return [
        (
            float(local[row, col]),
            (
                slice(row * side, (row + 1) * side),
                slice(col * side, (col + 1) * side),
            ),
        )
        for row, col in product(*map(range, local.shape))
    ]


def main() -> None:
    """Runs the script."""
    args = parse_args(
        __doc__,
        folder=('', 'photographs'),
        out=('', 'folder to make, for the crops'),
        count=(200, 'crops'),
        side=(128, 'side of a crop, even'),
    )
    folder, out = Path(args.folder), Path(args.out)
    if not args.folder or not folder.is_dir():
        raise SystemExit(f"error: --folder '{args.folder}' is not a folder")
    if not args.out or out.exists():
        raise SystemExit(f"error: --out '{args.out}' must be a new folder")
    if args.side < 16 or args.side % 2 or args.count < 1:
        raise SystemExit('error: --side or --count is out of range')
    files = photos_in(folder)
    found = []
    most = -(-args.count // 8)
    for path in tqdm(files, disable=None):
        image = read_photo(path).expand(3, -1, -1)
        if min(image.shape[1:]) < args.side:
            continue
        best = sorted(squares(image, args.side), key=lambda item: -item[0])
        found += [(error, path, window) for error, window in best[:most]]
    found.sort(key=lambda item: -item[0])
    out.mkdir(parents=True)
    for k, (_, path, (rows, cols)) in enumerate(found[: args.count]):
        crop = read_photo(path).expand(3, -1, -1)[:, rows, cols]
        pixels = (crop * 255).round().byte().permute(1, 2, 0).numpy()
        imsave(out / f'{k:03d}-{path.stem}.png', pixels, check_contrast=False)
    print(f'Wrote {min(len(found), args.count)} crops to {out}')


if __name__ == '__main__':
    main()
