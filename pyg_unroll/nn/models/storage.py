"""Models in files, and those that come with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyg_unroll.checks import check_finite

_FOLDER = Path(__file__).parent / 'pretrained'


class Storage(torch.nn.Module):
    """Writes models to safetensors files and reads them.

    Attributes:
        config: Arguments that the class is built with.
        short_name: Start of the names of shipped files.
    """

    config: dict[str, Any]
    short_name: ClassVar[str]

    def save(
        self, path: str | Path, notes: Mapping[str, str] | None = None
    ) -> None:
        r"""Writes weights and configuration to one safetensors file.

        Args:
            path (str or Path): The file.
            notes (dict[str, str], optional): More metadata, for example how
                the model was trained. (default: :obj:`None`)

        Raises:
            ValueError: If the file cannot be written.
        """
        metadata = {
            **(notes or {}),
            'class': self.__class__.__name__,
            'config': json.dumps(self.config | self._settings(), default=int),
        }
        state = {
            name: value.contiguous()
            for name, value in self.state_dict().items()
        }
        try:
            save_file(state, path, metadata)
        except (TypeError, OSError, SafetensorError) as error:
            raise ValueError(
                f"'path' cannot be written, or 'notes' are not texts (got "
                f'{path}: {error})'
            ) from error

    def _settings(self) -> dict[str, Any]:
        """Arguments that may have been changed since."""
        names = self.config.keys() & {'max_pixels', 'num_views'}
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a model that :meth:`save` wrote.

        Raises:
            ValueError: If the file cannot be read or holds another model.
        """
        try:
            with safe_open(path, framework='pt') as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}
        except (TypeError, OSError, SafetensorError) as error:
            raise ValueError(
                f"'path' is not a readable safetensors file (got {path}: "
                f'{error})'
            ) from error
        if metadata.get('class') != cls.__name__:
            raise ValueError(
                f"'path' holds a {metadata.get('class', 'foreign file')}, not "
                f"a {cls.__name__} (got {path}); load it with that class's "
                f"'load'"
            )
        try:
            model = cls(**json.loads(metadata['config']))
            model.load_state_dict(state, assign=True)  # keeps their type
            for key, value in state.items():
                check_finite(key, value)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"'path' holds a {cls.__name__} whose weights or configuration "
                f'are damaged (got {path}: {error})'
            ) from error
        return model

    @classmethod
    def pretrained_names(cls) -> list[str]:
        """Names that :meth:`from_pretrained` takes."""
        prefix = cls.short_name + '-'
        files = _FOLDER.glob(f'{prefix}*.safetensors')
        return sorted(file.stem.removeprefix(prefix) for file in files)

    @classmethod
    def from_pretrained(cls, name: str) -> Self:
        r"""Reads a trained model that comes with the package, in evaluation
        mode. A model card lies beside each file.

        Args:
            name (str): One of :meth:`pretrained_names`.

        Raises:
            ValueError: If there is no such model of this class.
        """
        names = cls.pretrained_names()
        if name not in names:
            raise ValueError(
                f"'name' must be one of {names} for {cls.__name__} (got "
                f"{name!r}); read your own files with '{cls.__name__}.load'"
            )
        path = _FOLDER / f'{cls.short_name}-{name}.safetensors'
        return cls.load(path).eval()
