"""Runs tests on each of the kernels that a CPU can run."""

from importlib.util import find_spec

import pytest

from pyg_unroll.ops import backend

needs_numba = pytest.mark.skipif(
    find_spec('numba') is None, reason='numba is not installed'
)


@pytest.fixture(params=['reference', pytest.param('cpu', marks=needs_numba)])
def each_backend(request, monkeypatch):
    """The name of the kernels that operators on the CPU use."""
    monkeypatch.setitem(backend.chosen, 'cpu', request.param)
    return request.param
