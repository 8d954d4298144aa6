"""Checks of arguments: what is wrong, what was received, how to mend it."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data


def check_tensor(name: str, value: Any, shape: str) -> None:
    """Raises a `ValueError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"'{name}' must be a tensor of shape {shape} (got "
            f"'{type(value).__name__}'); convert it with 'torch.as_tensor'"
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raises a `ValueError` if a tensor holds NaN or infinity."""
    finite = value.isfinite()
    if not bool(finite.all()):
        place = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"'{name}' must be finite (got {float(value[tuple(place)])} at "
            f"index {place}); replace it, for example with 'nan_to_num'"
        )


def check_data(data: Any) -> None:
    """Raises a `ValueError` unless `data` is homogeneous data."""
    if not isinstance(data, Data):
        raise ValueError(
            f"'data' must be a homogeneous 'Data' or 'Batch' (got "
            f"'{type(data).__name__}'); make it with 'image_to_data', "
            f"'mosaic', 'points_to_data' or 'Data(x=..., edge_index=...)'"
        )


def check_positive(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a positive integer."""
    is_integer = isinstance(value, (int, torch.SymInt))
    if isinstance(value, bool) or not is_integer or value < 1:
        raise ValueError(f"'{name}' must be a positive integer (got {value!r})")


def check_between(
    name: str, value: Any, low: float = 0.0, high: float = math.inf
) -> None:
    """Raises a `ValueError` unless `value` is a number between two others."""
    if isinstance(value, Real) and low < float(value) < high:
        return
    between = f'lie in ({low:g}, {high:g})'
    if low == 0 and high == math.inf:
        between = 'be positive and finite'
    raise ValueError(f"'{name}' must {between} (got {value!r})")
