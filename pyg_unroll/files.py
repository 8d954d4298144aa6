"""Tensors and texts in safetensors files, which run no code when read."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shutil import copymode
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, str],
) -> None:
    """Writes a file, which is there whole or as it was before; a `ValueError`
    if it cannot be written.
    """
    part: Path | None = None
    try:
        path = Path(path).resolve()  # links stay
        state = {name: value.contiguous() for name, value in tensors.items()}
        data = save(state, dict(texts))
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a pipe, for example
            return
        part = path.with_name(f'.{uuid4().hex}')
        part.write_bytes(data)
        if path.exists():
            copymode(path, part)
        part.replace(path)
    except (
        *(TypeError, ValueError, OSError, RuntimeError),
        SafetensorError,
    ) as error:
        raise ValueError(
            f"'path' cannot be written, or 'notes' are not texts (got {path}: "
            f'{error})'
        ) from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def read_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a file; a `ValueError` if it is none."""
    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            return state, file.metadata() or {}
    except (TypeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"'path' is not a readable safetensors file (got {path}: {error})"
        ) from error
