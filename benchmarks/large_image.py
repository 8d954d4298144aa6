"""Demosaics large images, in bounded memory.

    python benchmarks/large_image.py [--max-megapixels 24] [--write]

Each size in a fresh process: seconds per megapixel, and the peak of the
process, of which the libraries are half a GiB. "With its data": PyG data in,
PyG data out, positions and mask included; "image only":
`Demosaic.restore`, image in, image out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from memory import child_main, free_memory, in_child, memory_used, reset_peak
from torch import Tensor
from utils import Row, parse_args, report, synchronize

from pyg_unroll import Demosaic, cfa_mask, mosaic
from pyg_unroll.imaging import Tiled

MEGAPIXELS = (1, 6, 24)


@dataclass(frozen=True)
class Config:
    """One image."""

    megapixels: float
    max_pixels: int
    bare: bool
    device: str = 'cpu'


def picture(height: int, width: int, device: str) -> Tensor:
    """Waves of all frequencies, `[1, H, W]`."""
    row = torch.linspace(0, 40, height, device=device).square().sin()
    col = torch.linspace(0, 50, width, device=device).square().sin()
    return (0.5 + 0.25 * row.unsqueeze(1) + 0.25 * col).unsqueeze(0)


def child(config: Config) -> Iterator[Row]:
    """Runs one size."""
    device = config.device
    model = Demosaic.from_pretrained('bayer').to(device)
    model = Tiled(model, config.max_pixels)
    height = round(math.sqrt(config.megapixels * 2e6 / 3) / 2) * 2
    width = round(config.megapixels * 1e6 / height / 2) * 2
    with torch.no_grad():
        model(mosaic(picture(64, 64, device)))  # loads the kernels
        image = picture(height, width, device)
        reset_peak(device)
        if config.bare:
            mask = cfa_mask('RGGB', height, width, device).unsqueeze(0)
            image = torch.where(mask, image, 0)
            begin = time.perf_counter()
            model.restore(image, mask)
        else:
            data = mosaic(image)
            del image
            begin = time.perf_counter()
            model(data)
        synchronize(device)
    seconds = time.perf_counter() - begin
    pixels = height * width / 1e6
    yield {
        'seconds per megapixel': seconds / pixels,
        'peak (GiB)': memory_used(device, peak=True) / 2**30,
    }


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        max_megapixels=(24.0, 'largest image'),
        max_memory=(free_memory(), 'GiB at which a child is ended'),
    )
    if args.child:
        child_main(child(Config(**args.child)))
        return
    usual = Demosaic.from_pretrained('bayer').max_pixels
    rows: list[Row] = []
    for megapixels in MEGAPIXELS:
        if megapixels > args.max_megapixels:
            continue
        for bare, tile in ((False, usual), (True, usual), (True, usual // 2)):
            config = Config(megapixels, tile, bare, args.device)
            steps, done = in_child(__file__, asdict(config), args.max_memory)
            row: Row = {
                'megapixels': megapixels,
                'what': 'image only' if bare else 'with its data',
                'max_pixels': f'{tile:,}',
            }
            row |= steps[0] if done else {'ended': 'out of memory'}
            print(row, flush=True)
            rows.append(row)
    report('large-image', rows, args.device, args.write)


if __name__ == '__main__':
    main()
