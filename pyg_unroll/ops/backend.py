"""Which kernels do the work."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, List, TypeAlias  # noqa: UP035

from torch import Tensor

from pyg_unroll.graph import Arrays

# Lists among the operands of registered operators: PyTorch 2.6 knows them by
# these names only, and no annotations that are strings.
Tensors: TypeAlias = List[Tensor]  # noqa: UP006
Ints: TypeAlias = List[int]  # noqa: UP006

# By type of device: our module, and the package that it needs.
_BACKENDS = {'cpu': ('cpu', 'numba'), 'cuda': ('cuda', 'triton')}


def backend(operand: Tensor) -> Any:
    """Returns the module of kernels for the device of an operand.

    That is :mod:`.cpu` (numba), :mod:`.cuda` (Triton) or, where there is
    neither, :mod:`.reference`; all have the same functions.
    """
    return _load(operand.device.type)


@cache
def _load(device: str) -> Any:
    reference = import_module('pyg_unroll.ops.reference')
    if device not in _BACKENDS:
        return reference
    module, package = _BACKENDS[device]
    try:
        import_module(package)
    except ImportError as error:
        warnings.warn(
            f"graph operators on '{device}' run in plain PyTorch, several "
            f'times slower than with {package!r} ({error}): install it with '
            f"'pip install {package}'",
            stacklevel=2,
        )
        return reference
    return import_module(f'pyg_unroll.ops.{module}')


def arrays(graph: Sequence[Tensor], grid: Sequence[int]) -> Arrays:
    """A graph from the operands of a registered operator."""
    return Arrays._make([*graph, tuple(grid) if len(grid) > 1 else ()])
