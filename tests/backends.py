"""Runs tests on each of the kernels that a CPU can run."""

from importlib import import_module
from importlib.util import find_spec

import pytest

from pyg_unroll.ops import backend

needs_numba = pytest.mark.skipif(
    find_spec('numba') is None, reason='numba is not installed'
)


@pytest.fixture(params=['reference', pytest.param('cpu', marks=needs_numba)])
def each_backend(request, monkeypatch):
    """The name of the kernels that operators on the CPU use."""
    module = import_module(f'pyg_unroll.ops.{request.param}')
    load = backend._load
    monkeypatch.setattr(
        backend, '_load', lambda d: module if d == 'cpu' else load(d)
    )
    return request.param
