"""Threads of PyTorch: one for small operations, or one for each job."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

_T = TypeVar('_T')


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch use one thread.

    Two threads do little more of many small operations (estimators of 1000
    points take 1.2 s in place of 1.5 s), and wait for each other thirty times
    as long while another program needs one of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_all(
    work: Callable[[_T], None], jobs: Iterable[_T], workers: int
) -> None:
    """Does jobs on threads of their own.

    PyTorch's own threads meet after each operation, which takes several times
    as long while another program needs one of the cores.
    """
    if workers == 1:
        for job in jobs:
            work(job)
        return
    threads = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def do(job: _T) -> None:
        # Both belong to a thread.
        torch.set_num_threads(threads // workers)
        with torch.inference_mode() if inference else torch.no_grad():
            work(job)

    submit = pool(workers, 'pyg_unroll-tiles', os.getpid()).submit
    futures = [submit(do, job) for job in jobs]
    try:
        for future in futures:
            future.result()  # raises what the work raised
    finally:
        for future in futures:
            future.cancel()
        # New threads take the number that was last set.
        torch.set_num_threads(threads)


@cache
def pool(workers: int, name: str, process: int) -> ThreadPoolExecutor:
    """Threads of this name, which do not survive a fork: of each process."""
    return ThreadPoolExecutor(workers, name)
