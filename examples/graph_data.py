"""Signals on graphs and points for the examples and benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from outputs import check_out
from scipy.spatial import Delaunay, KDTree
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops, to_undirected

KM_PER_DEGREE = 111.32  # of latitude
MIN_KNOWN = 10  # for a fit, with intervals
_GAPS = (
    '; parts of it are hidden and scored. Real gaps are filled by '
    "'GraphInterpolator' or 'TemporalInterpolator'"
)


def make_parser(
    doc: str, out: str, hidden: float = 0.5, file: bool = False
) -> argparse.ArgumentParser:
    """The options that the examples of interpolation share.

    Args:
        doc (str): The purpose of an example, in its first line.
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
    add('--out', type=Path, default=Path(out), help='figure to write')
    return parser


def run(main: Callable[[], None]) -> None:
    """Runs an example; tells what is wrong with its input in one line."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # many small operators
    try:
        main()
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and refuses values that make no sense."""
    args = parser.parse_args()
    file = getattr(args, 'file', None)
    if not 0 < args.hidden < 1:
        parser.error(f'--hidden must lie between 0 and 1 (got {args.hidden})')
    if file is not None and not file.exists():
        parser.error(f"there is no file or folder '{file}'")
    if args.seed < 0:
        parser.error(f'--seed must not be negative (got {args.seed})')
    check_out(args.out)
    return args


@dataclass
class HiddenSignal:
    """A signal of which some nodes are hidden.

    Args:
        data (Data): The input of methods: `x` `[N, F]` with NaN where hidden,
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

    def mae(self, out: Tensor) -> float:
        """Mean absolute error of the hidden entries."""
        return float((out - self.truth)[~self.mask].double().abs().mean())

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
        known = count - round(share * count)
        if not MIN_KNOWN <= known < count:
            raise ValueError(
                f'--hidden {share:g} leaves {known} of {count} nodes known; at '
                f'least {MIN_KNOWN} must be, and one hidden'
            )
        chance = np.random.default_rng(1000 + seed)
        hidden = chance.permutation(count)[: count - known]
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

    def hide_readings(self, missing: np.ndarray) -> HiddenSignal:
        """Hides the entries that are missing `[N, F]`."""
        data, truth = self.data.clone(), self.data.x
        data.mask = torch.from_numpy(~missing)
        data.x = torch.where(data.mask, truth, torch.nan)
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
    try:
        data = _to_data(_read(path))
    except ValueError as error:
        raise SystemExit(f"error: cannot read '{path}': {error}") from error
    count = len(data.x)
    if data.get('edge_index') is None and 0 < limit < count:
        chance = np.random.default_rng(seed)
        chosen = chance.choice(count, limit, replace=False)
        data = Data(
            **{name: value[chosen] for name, value in data.to_dict().items()}
        )
    return Signal(data, samples=data.x.size(1) > 100)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of numbers in an NPZ file, or in the one in a folder."""
    if path.is_dir():
        files = sorted(path.glob('*.npz'))
        if len(files) != 1:
            raise ValueError(f'it must hold one .npz file (has {len(files)})')
        path = files[0]
    try:
        with path.open('rb') as stream:
            if not is_zipfile(stream):
                raise ValueError('it is no NPZ file; numpy.savez writes one')
        with np.load(path) as file:
            if 'y' not in file:
                raise ValueError(f"it has no signal 'y' (but {file.files})")
            names = ('y', 'pos', 'x', 'edge_index', 'edge_weight')
            return {n: _numbers(file, n) for n in names if n in file}
    except (OSError, BadZipFile) as error:
        raise ValueError(error) from error


def _numbers(file: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        value = np.asarray(file[name])
        if value.dtype.kind not in 'biuf':
            raise TypeError(f'its type is {value.dtype}')
    except Exception as error:  # NumPy raises errors of any kind
        raise ValueError(
            f"'{name}' is no readable array of numbers: {error}"
        ) from error
    return value


def _to_data(arrays: dict[str, np.ndarray]) -> Data:
    """Checks arrays that fit each other."""
    count = len(np.atleast_1d(arrays['y']))
    data = Data(x=_matrix(arrays, 'y', count, _GAPS))
    if not data.x.numel():
        raise ValueError(f"'y' is empty (shape {list(data.x.shape)})")
    if 'pos' in arrays:
        pos = _matrix(arrays, 'pos', count)
        if pos.size(1):  # none are sometimes stored so
            data.pos = kilometres(pos)
    if 'x' in arrays:
        data.covariates = _matrix(arrays, 'x', count)
    if 'edge_index' in arrays:
        data.edge_index, data.edge_weight = _edges(arrays, count)
    elif 'edge_weight' in arrays:
        raise ValueError("it has 'edge_weight', but no 'edge_index'")
    elif data.get('pos') is None:
        raise ValueError("it has neither 'pos' nor 'edge_index'")
    return data


def _matrix(
    arrays: dict[str, np.ndarray], name: str, count: int, hint: str = ''
) -> Tensor:
    """Finite numbers `[count, columns]`."""
    value = torch.from_numpy(arrays[name].astype(np.float64))
    value = value.unsqueeze(1) if value.dim() == 1 else value
    if value.dim() != 2 or len(value) != count:
        raise ValueError(
            f"'{name}' must have shape [{count}, columns] "
            f'(got {list(value.shape)})'
        )
    bad = (~value.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"'{name}' must be finite (got {float(value[row, column])} in row "
            f'{row}, column {column}){hint}'
        )
    return value


def _edges(arrays: dict[str, np.ndarray], count: int) -> tuple[Tensor, Tensor]:
    """Edges in both directions, and their weights."""
    edges = arrays['edge_index']
    shape = list(edges.shape)
    if edges.dtype.kind not in 'iu' or len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"'edge_index' must be integers of shape [2, edges] "
            f'(got {edges.dtype} {shape})'
        )
    wrong = edges[(edges < 0) | (edges >= count)]
    if wrong.size:
        raise ValueError(
            f"'edge_index' must be rows of 'y', 0 to {count - 1} "
            f'(got {wrong[0]})'
        )
    weight = torch.ones(shape[1], dtype=torch.float64)
    if 'edge_weight' in arrays:
        weight = _matrix(arrays, 'edge_weight', shape[1]).squeeze(1)
        if weight.dim() != 1 or bool((weight < 0).any()):
            raise ValueError(
                "'edge_weight' must be one number per edge, not negative; use "
                "a kernel such as 'exp(-distance)'"
            )
    edge_index = torch.from_numpy(edges.astype(np.int64))
    # Of two directions, the stronger counts.
    return to_undirected(
        *remove_self_loops(edge_index, weight), count, reduce='max'
    )


def kilometres(pos: Tensor) -> Tensor:
    """Longitude and latitude to kilometres east and north."""
    if pos.size(1) != 2:
        raise ValueError(
            f"'pos' must have two columns, longitude and latitude "
            f'(got {pos.size(1)})'
        )
    wrong = (pos[:, 1].abs() > 90) | (pos[:, 0] < -180) | (pos[:, 0] > 360)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"'pos' must be longitude and latitude in degrees (got "
            f'{pos[row].tolist()} in row {row}); convert it, or swap its '
            f'columns'
        )
    shrink = torch.cos(torch.deg2rad(pos[:, 1].mean()))  # meridians converge
    return KM_PER_DEGREE * pos * torch.stack([shrink, torch.ones_like(shrink)])


def elevation_grid() -> tuple[np.ndarray, tuple[float, ...]]:
    """Elevations (m), row 0 in the north; west, south, and size of a cell."""
    from matplotlib import cbook

    with cbook.get_sample_data('jacksboro_fault_dem.npz') as file:
        place = tuple(float(file[k]) for k in ('xmin', 'ymin', 'dx', 'dy'))
        return file['elevation'].astype(np.float64), place


def terrain(points: int, seed: int = 0) -> Signal:
    """Elevations (m) at random cells of the digital elevation model of the
    Jacksboro fault that ships with Matplotlib.
    """
    elevation, (west, south, dx, dy) = elevation_grid()
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
    elevation, _ = elevation_grid()
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
