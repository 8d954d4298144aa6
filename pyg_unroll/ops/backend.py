"""Choice of kernels, and numbers as they take them."""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from pyg_unroll.ops.reference.operators import accumulate_type

# By type of device: our package of kernels, and the package that it needs.
_BACKENDS = {'cpu': ('cpu', 'numba'), 'cuda': ('cuda', 'triton')}
# The package of kernels in use by type of device, chosen at first use.
chosen: dict[str, str] = {}


def kernels(family: str, operand: Tensor) -> Any:
    """Returns the kernels for the device of an operand.

    Those of :mod:`.cpu` (numba) or :mod:`.cuda` (Triton), and of
    :mod:`.reference` where they are missing: packages of the same modules, one
    for each family of operators, with the same functions.
    """
    device = operand.device.type
    if device not in chosen:
        chosen[device] = _choose(device)
    return _module(chosen[device], family)


@cache
def _module(name: str, family: str) -> Any:
    path = f'pyg_unroll.ops.{name}.{family}'
    if find_spec(path) is None:
        return _module('reference', family)
    return import_module(path)


def _choose(device: str) -> str:
    if device not in _BACKENDS:
        return 'reference'
    name, package = _BACKENDS[device]
    try:
        import_module(f'pyg_unroll.ops.{name}.operators')
    except ImportError as error:
        warnings.warn(
            f"graph operators on '{device}' run in plain PyTorch, several "
            f'times slower than with {package!r} ({error}): install it with '
            f"'pip install {package}'",
            stacklevel=3,
        )
        return 'reference'
    return name


def numbers(*tensors: Tensor | None) -> Any:
    """Contiguous, and at least of single precision."""
    return tuple(
        None if v is None else v.to(accumulate_type(v.dtype)).contiguous()
        for v in tensors
    )
