"""Signals on graphs and points for the examples and benchmarks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from scipy.spatial import Delaunay, KDTree
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops, to_undirected

KM_PER_DEGREE = 111.32  # of latitude


def make_parser(
    doc: str, out: str, hidden: float = 0.5, file: bool = False
) -> argparse.ArgumentParser:
    """The options that the examples of interpolation share.

    Args:
        doc (str): What an example does, in its first line.
        out (str): Name of its picture.
        hidden (float): Share of hidden nodes.
        file (bool): Whether to take a file of data.
    """
    parser = argparse.ArgumentParser(
        description=doc.split('\n\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    if file:
        add(
            'file',
            type=Path,
            nargs='?',
            help='NPZ file, or a folder with one, of complete signals y '
            '[nodes, features], and pos (longitude, latitude) or edge_index '
            'or both; edge_weight and covariates x are optional. A share of '
            'the nodes is hidden, filled in and scored',
        )
    add('--hidden', type=float, default=hidden, help='share of hidden nodes')
    add('--seed', type=int, default=0)
    add('--out', type=Path, default=Path(out), help='PNG to write')
    return parser


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and refuses values that make no sense."""
    args = parser.parse_args()
    file = getattr(args, 'file', None)
    if not 0 < args.hidden < 1:
        parser.error(f'--hidden must lie between 0 and 1 (got {args.hidden})')
    if file is not None and not file.exists():
        parser.error(f"there is no file or folder '{file}'")
    if not args.out.resolve().parent.is_dir():
        parser.error(f"no such folder: '{args.out.resolve().parent}'")
    return args


@dataclass
class HiddenSignal:
    """A signal of which some nodes are hidden.

    Args:
        data (Data): What methods see: `x` `[N, F]` with NaN where hidden,
            `mask` `[N]`, and `pos` (km), `covariates`, `edge_index` and
            `edge_weight` where there are any.
        truth (torch.Tensor): The signal `[N, F]`.
        samples (bool): Whether the features are samples of one signal.
        unit (str): Of the signal.
    """

    data: Data
    truth: Tensor
    samples: bool = False
    unit: str = ''

    @property
    def mask(self) -> Tensor:
        """True where known, `[N]`, or `[N, F]` if readings are hidden."""
        return self.data.mask

    def rmse(self, out: Tensor) -> float:
        """Root mean squared error of the hidden nodes."""
        error = (out - self.truth)[~self.mask]
        return float(error.double().square().mean().sqrt())


@dataclass
class Signal:
    """A signal on nodes, whole; see :class:`HiddenSignal`."""

    data: Data
    samples: bool = False
    unit: str = ''
    standardize: bool = False

    def hide(self, share: float, seed: int) -> HiddenSignal:
        """Hides a share of the nodes, all features of them."""
        truth = self.data.x
        count = len(truth)
        chance = np.random.default_rng(1000 + seed)
        hidden = chance.permutation(count)[: round(share * count)]
        mask = torch.ones(count, dtype=torch.bool)
        mask[torch.from_numpy(hidden)] = False
        if self.standardize:
            known = truth[mask]
            spread = known.std(0, correction=0)
            spread = torch.where(spread > 0, spread, 1)  # constant features
            truth = (truth - known.mean(0)) / spread
        data = self.data.clone()
        data.x = torch.where(mask.unsqueeze(1), truth, torch.nan)
        data.mask = mask
        return HiddenSignal(data, truth, self.samples, self.unit)

    def hide_readings(
        self, share: float, seed: int, steps: int
    ) -> HiddenSignal:
        """Hides a share of the entries, of so many time steps."""
        truth = self.data.x[:, :steps]
        chance = np.random.default_rng(1000 + seed)
        mask = torch.from_numpy(chance.random(truth.shape) >= share)
        data = self.data.clone()
        data.x, data.mask = torch.where(mask, truth, torch.nan), mask
        return HiddenSignal(data, truth, self.samples, self.unit)


def load(path: Path, limit: int = 0, seed: int = 0) -> Signal:
    """Reads a signal from an NPZ file, or from the one in a folder.

    The file holds `y` `[N, F]` and some of `pos` (longitude and latitude),
    `x` (covariates), `edge_index` and `edge_weight`.

    Args:
        path (Path): File or folder.
        limit (int): Draw so many nodes if there are more; 0 takes all.
        seed (int): Seed of that.
    """
    if path.is_dir():
        files = sorted(path.glob('*.npz'))
        if len(files) != 1:
            raise SystemExit(f"error: '{path}' must hold one .npz file")
        path = files[0]
    try:
        with np.load(path) as file:
            names = ('y', 'pos', 'x', 'edge_index', 'edge_weight')
            arrays = {name: file[name] for name in names if name in file}
    except (OSError, ValueError, BadZipFile) as error:
        raise SystemExit(f"error: cannot read '{path}': {error}") from error
    if 'y' not in arrays:
        raise SystemExit(f"error: '{path}' has no signal 'y'")
    y = torch.from_numpy(arrays['y']).double().view(len(arrays['y']), -1)
    if not bool(y.isfinite().all()):
        raise SystemExit(
            f"error: 'y' of '{path}' must be complete, as parts of it are "
            f"hidden and scored; real gaps are filled by 'GraphInterpolator' "
            f"or 'TemporalInterpolator'"
        )
    data = Data(x=y)
    if arrays.get('pos', np.empty((0, 0))).size:
        data.pos = kilometres(torch.from_numpy(arrays['pos']).double())
    if 'x' in arrays:
        data.covariates = torch.from_numpy(arrays['x']).double()
    if 'edge_index' in arrays:
        edges = torch.from_numpy(arrays['edge_index']).long()
        weight = torch.ones(edges.size(1), dtype=torch.float64)
        if 'edge_weight' in arrays:
            weight = torch.from_numpy(arrays['edge_weight']).double()
        # Of two directions, the stronger counts.
        data.edge_index, data.edge_weight = to_undirected(
            *remove_self_loops(edges, weight), len(y), reduce='max'
        )
    elif 0 < limit < len(y):
        chance = np.random.default_rng(seed)
        chosen = chance.choice(len(y), limit, replace=False)
        data = Data(
            **{name: value[chosen] for name, value in data.to_dict().items()}
        )
    return Signal(data, samples=y.size(1) > 100)


def kilometres(pos: Tensor) -> Tensor:
    """Longitude and latitude to kilometres east and north."""
    shrink = torch.cos(torch.deg2rad(pos[:, 1].mean()))  # meridians converge
    return KM_PER_DEGREE * pos * torch.stack([shrink, torch.ones_like(shrink)])


def _elevation() -> tuple[np.ndarray, tuple[float, ...]]:
    """Elevations (m), row 0 in the north; west, south, and size of a cell."""
    from matplotlib import cbook

    with cbook.get_sample_data('jacksboro_fault_dem.npz') as file:
        place = tuple(float(file[k]) for k in ('xmin', 'ymin', 'dx', 'dy'))
        return file['elevation'].astype(np.float64), place


def terrain(points: int, seed: int = 0) -> Signal:
    """Elevations (m) at random cells of the digital elevation model of the
    Jacksboro fault that ships with Matplotlib.
    """
    elevation, (west, south, dx, dy) = _elevation()
    if points > elevation.size:
        raise SystemExit(
            f'error: the terrain has {elevation.size} cells (got {points})'
        )
    chance = np.random.default_rng(seed)
    chosen = chance.choice(elevation.size, points, replace=False)
    row, col = np.divmod(chosen, elevation.shape[1])
    north = south + (elevation.shape[0] - row) * dy
    pos = torch.from_numpy(np.stack([west + col * dx, north], 1))
    height = torch.from_numpy(elevation.ravel()[chosen]).unsqueeze(1)
    return Signal(Data(x=height, pos=kilometres(pos)), unit='m')


def districts(count: int, seed: int = 0) -> Signal:
    """Mean and spread of the terrain's elevation in districts, those cells
    that are nearest to the same of some random points; neighbours have edges.
    """
    elevation, _ = _elevation()
    chance = np.random.default_rng(seed)
    centres = chance.uniform(size=(count, 2)) * elevation.shape
    cells = np.stack(np.indices(elevation.shape), -1).reshape(-1, 2)
    _, member = KDTree(centres).query(cells)
    size = np.maximum(np.bincount(member, minlength=count), 1)
    mean = np.bincount(member, elevation.ravel(), count) / size
    square = np.bincount(member, elevation.ravel() ** 2, count) / size
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    triangles = Delaunay(centres).simplices
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    pairs = np.concatenate([pairs, triangles[:, [2, 0]]])
    edges = to_undirected(torch.from_numpy(pairs.T).long(), num_nodes=count)
    data = Data(x=torch.from_numpy(np.stack([mean, spread], 1)))
    data.edge_index = edges
    return Signal(data, standardize=True)


def stations(points: int, seed: int = 0, steps: int = 1) -> Signal:
    """Air temperature (°C) at points of the terrain, generated: it falls by
    6.5 K per km of elevation and 0.3 K per km northwards, swings by 5 K over a
    day of `steps` samples, less so high up, varies smoothly by some tenths of
    a degree and is measured with an error of 0.1 K. The elevation is the
    covariate.
    """
    out = terrain(points, seed)
    height, pos = out.data.x / 1000, out.data.pos
    chance = np.random.default_rng(seed)
    waves = torch.from_numpy(chance.normal(size=(2, 12))) / 6  # per km
    phase = torch.from_numpy(chance.uniform(0, 6.28, size=12))
    smooth = (pos @ waves + phase).sin().mean(1, keepdim=True)
    noise = 0.1 * torch.from_numpy(chance.normal(size=(points, steps)))
    north = pos[:, 1:] - pos[:, 1:].mean()
    day = torch.linspace(0, 6.28, steps + 1, dtype=height.dtype)[:-1].sin()
    swing = 5 * day * (1 - 0.5 * height)
    out.data.covariates = height
    out.data.x = 15 - 6.5 * height - 0.3 * north + swing + smooth + noise
    out.unit, out.samples = '°C', steps > 1
    return out
