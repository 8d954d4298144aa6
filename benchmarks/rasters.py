"""Fills in gaps of a grid of elevations, by many methods.

    python benchmarks/rasters.py [--write]

Elliptic gaps of about so many pixels' radius hide a share of the terrain that
Matplotlib ships, 344 x 403 pixels. SciPy's `griddata` is what rioxarray's
`interpolate_na` calls.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from scipy.interpolate import griddata
from skimage.restoration import inpaint_biharmonic
from tqdm import tqdm
from utils import Row, parse_args, report

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples'))

from graph_data import elevation_grid

from pyg_unroll import fill_raster

GAPS = {1: 0.5, 3: 0.02, 6: 0.1, 15: 0.2}
OURS = 'fill_raster'


def gaps(shape: tuple[int, ...], radius: int, share: float) -> np.ndarray:
    """True in random ellipses."""
    chance = np.random.default_rng(radius)
    missing = np.zeros(shape, dtype=bool)
    row, col = np.indices(shape)
    while missing.mean() < share:
        y, x = chance.random(2) * shape
        a, b = radius * chance.uniform(0.5, 1.5, size=2)
        missing |= ((row - y) / a) ** 2 + ((col - x) / b) ** 2 < 1
    return missing


def by_triangles(raster: np.ndarray, method: str) -> np.ndarray:
    """On triangles of known pixels, the nearest outside."""
    known, out = ~np.isnan(raster), raster.copy()
    for kind in (method, 'nearest'):
        wanted = np.isnan(out)
        if wanted.any():
            places = np.argwhere(known), np.argwhere(wanted)
            out[wanted] = griddata(
                places[0], raster[known], places[1], method=kind
            )
    return out


def biharmonic(raster: np.ndarray) -> np.ndarray:
    """As scikit-image has it."""
    missing = np.isnan(raster)
    return inpaint_biharmonic(
        np.nan_to_num(raster), missing, split_into_regions=True
    )


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(__doc__)
    truth, _ = elevation_grid()
    methods = {
        OURS: fill_raster,
        'griddata, linear (SciPy)': partial(by_triangles, method='linear'),
        'griddata, cubic (SciPy)': partial(by_triangles, method='cubic'),
        'biharmonic (scikit-image)': biharmonic,
    }
    rows: list[Row] = []
    for radius, share in tqdm(GAPS.items()):
        missing = gaps(truth.shape, radius, share)
        row: Row = {'radius': radius, 'hidden': f'{share:.0%}'}
        errors = {}
        for name, method in methods.items():
            begin = time.process_time()
            out = method(np.where(missing, np.nan, truth))
            taken = time.process_time() - begin
            error = np.sqrt(np.square(out - truth)[missing].mean())
            errors[name] = float(error)
            row[f'{name}, RMSE [m]'] = float(error)
            row[f'{name}, CPU s'] = taken
        peers = [e for name, e in errors.items() if name != OURS]
        row['ours / best peer'] = errors[OURS] / min(peers)
        rows.append(row)
    report('rasters', rows, args.device, args.write)


if __name__ == '__main__':
    main()
