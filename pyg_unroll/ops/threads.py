"""Runs the chunks of a CPU kernel side by side.

On PyTorch's own OpenMP threads where they can be reached: after each of its
operators they wait for more work at full speed, and would keep threads of
ours from the cores. Otherwise on a pool of ours.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# OpenMP does not survive a fork.
_PROCESS = os.getpid()


@cache
def _openmp() -> ctypes.CDLL | None:
    """PyTorch's OpenMP library if it is GNU's, loaded with it."""
    if (
        sys.platform != 'linux'
        or 'OpenMP' not in torch.__config__.parallel_info()
    ):
        return None
    try:
        with open('/proc/self/maps') as maps:
            paths = {line.split()[-1] for line in maps if 'libgomp' in line}
        # Other packages may bring copies of their own.
        own = {
            p for p in paths if p.startswith(os.path.dirname(torch.__file__))
        }
        (path,) = own or paths
        library = ctypes.CDLL(path)
        library.GOMP_parallel.argtypes = (
            _Body,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_uint,
        )
        library.GOMP_parallel.restype = None
        library.omp_get_thread_num.restype = ctypes.c_int
        library.omp_get_num_threads.restype = ctypes.c_int
    except (OSError, ValueError, AttributeError):
        return None
    return library


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # Threads do not survive a fork, hence one pool for each process.
    return ThreadPoolExecutor(threads, 'pyg_unroll')


def run(work: Callable[[int], None], count: int) -> None:
    """Calls `work(k)` for `k` from 0 to `count - 1`, side by side.

    Raises what one of the calls raises.
    """
    library = _openmp() if os.getpid() == _PROCESS else None
    if count <= 1:
        for k in range(count):
            work(k)
    elif library is None:
        pool = _pool(torch.get_num_threads(), os.getpid())
        futures = [pool.submit(work, k) for k in range(1, count)]
        work(0)
        for future in futures:
            future.result()
    else:
        _run_openmp(library, work, count)


def _run_openmp(
    library: ctypes.CDLL, work: Callable[[int], None], count: int
) -> None:
    errors: list[BaseException] = []

    def body(_: object) -> None:
        try:
            # There may be fewer threads than asked for.
            step = library.omp_get_num_threads()
            for k in range(library.omp_get_thread_num(), count, step):
                work(k)
        except BaseException as error:
            errors.append(error)

    library.GOMP_parallel(_Body(body), None, count, 0)
    if errors:
        raise errors[0]
