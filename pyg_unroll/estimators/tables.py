"""Places in tables: columns of positions, covariates and categories."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.float64]

# Levels of a category that are told apart: the most frequent ones.
_LEVELS = 20


def to_numpy(table: Any) -> Any:
    """Tensors as arrays, NaN for what is masked, points of a GeoDataFrame as
    its first two columns, other tables as they are.
    """
    if isinstance(table, Tensor):
        return table.detach().cpu().numpy()
    if isinstance(table, np.ma.MaskedArray):
        return np.ma.filled(table.astype(np.float64), np.nan)
    name = getattr(table, 'active_geometry_name', None)
    if name is None:
        return table
    import pandas as pd

    points, table = table.geometry, pd.DataFrame(table.drop(columns=name))
    table.insert(0, f'{name}.x', points.x)
    table.insert(1, f'{name}.y', points.y)
    return table


def is_frame(table: Any) -> bool:
    """Whether it is a table or column of pandas."""
    return hasattr(table, 'iloc')


def on_sphere(pos: Tensor, name: str) -> Tensor:
    """Longitudes and latitudes in degrees to points of the unit sphere,
    between which neither the date line nor a pole lies.
    """
    wrong = pos.size(1) != 2 or bool((pos[:, -1:].abs() > 90).any())
    if wrong or bool((pos[:, :1].abs() > 360).any()):
        raise ValueError(
            f"'{name}' must be longitude and latitude in degrees (got "
            f'{pos.size(1)} columns from {pos.amin(0).tolist()} to '
            f'{pos.amax(0).tolist()}); swap the two, or leave geographic=False'
        )
    east, north = torch.deg2rad(pos).T
    level = north.cos()
    return torch.stack([level * east.cos(), level * east.sin(), north.sin()], 1)


@dataclass
class Columns:
    """The parts that the columns of a table play."""

    positions: list[int]
    # Categories by column: their levels, the most frequent first.
    levels: dict[int, list[str]]
    geographic: bool

    @classmethod
    def find(
        cls, table: Any, positions: int | Sequence[int | str], geographic: bool
    ) -> Self:
        """Finds positions, by number or name, and categories, by type."""
        levels = {}
        names: list[Any] = []
        if is_frame(table):
            names = list(table.columns)
            for k, dtype in enumerate(table.dtypes):
                if not _is_number(dtype):
                    counts = table.iloc[:, k].astype(str).value_counts()
                    levels[k] = [*map(str, counts.index[:_LEVELS])]
        shape = np.asarray(table).shape
        width = shape[1] if len(shape) == 2 else 0
        if isinstance(positions, int):
            chosen = [*range(min(positions, width))]
        else:
            chosen = [names.index(p) if p in names else p for p in positions]
        wrong = [p for p in chosen if p not in range(width) or p in levels]
        if wrong:
            raise ValueError(
                f"'positions' must be columns of numbers, their count, names "
                f'or indices (got {wrong[0]!r} of the columns '
                f'{names or width})'
            )
        return cls(chosen, levels, geographic)

    @property
    def num_coordinates(self) -> int:
        """Coordinates of a place."""
        return 3 if self.geographic else len(self.positions)

    def encode(self, table: Any) -> Any:
        """Levels of categories by number, -1 for others."""
        table = to_numpy(table)
        if self.levels and is_frame(table):
            table = table.copy()
            for k, levels in self.levels.items():
                column = table.iloc[:, k].astype(str)
                number = {level: n for n, level in enumerate(levels)}
                table.isetitem(k, [number.get(v, -1) for v in column])
        return table

    def features(self, array: Array) -> Tensor:
        """Coordinates, then covariates, one for each level of a category."""
        numbers = torch.from_numpy(array)
        pos = numbers[:, self.positions]
        parts = [on_sphere(pos, 'X') if self.geographic else pos]
        for k in range(numbers.size(1)):
            if k in self.levels:
                count = torch.arange(len(self.levels[k]))
                parts.append((numbers[:, k, None] == count).double())
            elif k not in self.positions:
                parts.append(numbers[:, k, None])
        return torch.cat(parts, 1)


def _is_number(dtype: Any) -> bool:
    from pandas.api.types import is_numeric_dtype  # there if there is a frame

    return bool(is_numeric_dtype(dtype))


@dataclass
class Target:
    """The kind of a signal, which results are of, too."""

    is_vector: bool
    names: list[Any] | None = None  # of pandas' columns
    like: Tensor | None = None  # of tensors: empty, of their type

    @classmethod
    def of(cls, y: Any, is_vector: bool) -> Self:
        """The kind of a signal."""
        if isinstance(y, Tensor):
            return cls(is_vector, like=y.detach().new_empty(0))
        if is_frame(y):
            return cls(is_vector, names=[y.name] if is_vector else [*y.columns])
        return cls(is_vector)

    def give(self, value: Tensor, table: Any) -> Any:
        """Results `[N, F]` at the rows of a table."""
        if self.like is not None:
            out = (
                value.to(self.like) if self.like.is_floating_point() else value
            )
            return out[:, 0] if self.is_vector else out
        array = value.numpy()
        if self.names is not None and is_frame(table):
            import pandas as pd

            frame = pd.DataFrame(array, table.index, self.names)
            return frame.iloc[:, 0] if self.is_vector else frame
        return array[:, 0] if self.is_vector else array
