"""Fitted estimators as files of tensors and JSON, read without pickle."""

import json
from dataclasses import fields, is_dataclass
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from pyg_unroll.files import read_tensors, write_tensors

_KEY = 'pyg_unroll.estimators'


def write(path: str | PathLike[str], state: Any) -> None:
    """Writes lists, dictionaries, dataclasses, tensors and numbers."""
    tensors: dict[str, Tensor] = {}
    objects: list[Any] = []
    numbers: dict[int, int] = {}  # of objects, which may be shared

    def pack(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().clone()
            return {'tensor': str(len(tensors) - 1)}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [pack(v) for v in value]}
        if isinstance(value, dict):
            return {'dict': [[pack(k), pack(v)] for k, v in value.items()]}
        if isinstance(value, np.ndarray):
            return {'array': value.tolist()}
        if isinstance(value, slice):
            return {'slice': [value.start, value.stop]}
        if is_dataclass(value):
            if id(value) not in numbers:
                numbers[id(value)] = len(objects)
                objects.append(None)
                # Others are made when they are needed.
                kept = [f.name for f in fields(value) if f.name[0] != '_']
                inner = [[name, pack(getattr(value, name))] for name in kept]
                objects[numbers[id(value)]] = [type(value).__name__, inner]
            return {'object': numbers[id(value)]}
        return value.item() if isinstance(value, np.generic) else value

    packed = pack(state)
    text = json.dumps({'state': packed, 'objects': objects})
    write_tensors(path, tensors, {_KEY: text})


def read(path: str | PathLike[str], classes: list[type]) -> Any:
    """The inverse of `write`, for some dataclasses."""
    tensors, texts = read_tensors(path)
    if _KEY not in texts:
        raise ValueError(
            f"'path' must be a file that 'save' of an estimator wrote (got "
            f'{path}, of tensors of something else)'
        )
    by_name = {cls.__name__: cls for cls in classes}
    made: dict[int, Any] = {}

    def unpack(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, inner),) = value.items()
        if kind == 'tensor':
            return tensors[inner]
        if kind == 'dict':
            return {unpack(k): unpack(v) for k, v in inner}
        if kind == 'array':
            return np.array(inner, dtype=object)
        if kind == 'slice':
            return slice(*inner)
        if kind in ('list', 'tuple'):
            items = [unpack(v) for v in inner]
            return items if kind == 'list' else tuple(items)
        if inner not in made:
            name, parts = content['objects'][inner]
            values = {key: unpack(v) for key, v in parts}
            made[inner] = by_name[name](**values)
        return made[inner]

    try:
        content = json.loads(texts[_KEY])
        return unpack(content['state'])
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"'path' holds an estimator that is damaged (got {path}: {error})"
        ) from error
