"""Weights of restorers in files: written, read, and packaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyg_unroll.checks import check_finite

_FOLDER = Path(__file__).parent / 'pretrained'


_Model = TypeVar('_Model', bound=torch.nn.Module)


def write(
    model: Any, path: str | Path, notes: Mapping[str, str] | None = None
) -> None:
    """Writes weights and configuration to one safetensors file."""
    metadata = {
        **(notes or {}),
        'class': type(model).__name__,
        'config': json.dumps(model.config, default=np.generic.item),
    }
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    try:
        save_file(state, path, metadata)
    except (TypeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"'path' cannot be written, or 'notes' are not texts (got {path}: "
            f'{error})'
        ) from error


def read(cls: type[_Model], path: str | Path) -> _Model:
    """Reads a model of a class that :func:`write` wrote."""
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}
    except (TypeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"'path' is not a readable safetensors file (got {path}: {error})"
        ) from error
    if metadata.get('class') != cls.__name__:
        raise ValueError(
            f"'path' holds a {metadata.get('class', 'foreign file')}, not a "
            f"{cls.__name__} (got {path}); load it with that class's 'load'"
        )
    try:
        config = json.loads(metadata['config'])
        model: _Model = cls.from_config(config)  # type: ignore[attr-defined]
        model.load_state_dict(state, assign=True)  # keeps their type
        for key, value in state.items():
            check_finite(key, value)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"'path' holds a {cls.__name__} whose weights or configuration "
            f'are damaged (got {path}: {error})'
        ) from error
    return model


def names(cls: type, prior: str) -> list[str]:
    """Names of the packaged models of a class."""
    prefix, suffix = f'{cls.__name__.lower()}-', f'-{prior}'
    files = _FOLDER.glob(f'{prefix}*{suffix}.safetensors')
    return sorted(
        file.stem.removeprefix(prefix).removesuffix(suffix) for file in files
    )


def packaged(cls: type, name: str, prior: str) -> Path:
    """The file of a packaged model; a `ValueError` if there is none."""
    found = names(cls, prior)
    if name not in found:
        raise ValueError(
            f"'name' must be one of {found} for {cls.__name__} with prior="
            f'{prior!r} (got {name!r}); read your own files with '
            f"'{cls.__name__}.load'"
        )
    return _FOLDER / f'{cls.__name__.lower()}-{name}-{prior}.safetensors'
