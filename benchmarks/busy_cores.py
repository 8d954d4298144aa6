"""Times beside other work: as many busy loops as there are cores.

    python benchmarks/busy_cores.py

Each job runs alone and beside the loops in turn, in one process with default
settings: medians of the wall time and of the CPU time of the process. With the
cores shared evenly, wall times double.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch_geometric.data import Data
from utils import Row, Run, parse_args, report

from pyg_unroll import Demosaic, GraphInterpolator, cfa_mask


@contextmanager
def busy_loops() -> Iterator[None]:
    """Keeps every core busy meanwhile."""
    command = [sys.executable, '-c', 'while True: pass']
    loops = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)  # until they run
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def interpolation() -> Run:
    """An estimator on 1000 points, half of them known."""
    pos = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    x = (6 * pos).sin().prod(1, keepdim=True)
    data = Data(x=x, pos=pos, mask=torch.arange(1000) % 2 == 0)
    return lambda: GraphInterpolator().fit(data).predict()


def restoration() -> Run:
    """A photograph of 0.39 megapixels."""
    model = Demosaic.from_pretrained('bayer')
    mask = cfa_mask('RGGB', 512, 768).unsqueeze(0)
    image = torch.where(mask, torch.rand(1, 3, 512, 768), 0)

    def run() -> None:
        with torch.no_grad():
            model.restore(image, mask)

    return run


def training_step() -> Run:
    """Forward and backward on four patches."""
    model = Demosaic.from_pretrained('bayer')
    mask = cfa_mask('RGGB', 96, 96).unsqueeze(0)
    image = torch.where(mask, torch.rand(4, 3, 96, 96), 0)

    def run() -> None:
        for _ in range(4):
            model.zero_grad()
            estimates = model.estimates(image, mask)
            sum(out.square().mean() for out in estimates).backward()

    return run


def seconds(run: Run) -> tuple[float, float]:
    """Wall time and CPU time of a call."""
    begin = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(__doc__)
    rows: list[Row] = []
    for make in (interpolation, restoration, training_step):
        run = make()
        run()
        quiet, beside = [], []
        for _ in range(args.repeats):
            quiet.append(seconds(run))
            with busy_loops():
                beside.append(seconds(run))
        wall, cpu, busy_wall, busy_cpu = (
            statistics.median(t)
            for times in (quiet, beside)
            for t in zip(*times, strict=True)
        )
        row: Row = {
            'job': make.__name__.replace('_', ' '),
            'wall (s)': wall,
            'CPU (s)': cpu,
            'beside loops: wall (s)': busy_wall,
            'CPU beside (s)': busy_cpu,
            'wall ratio': busy_wall / wall,
            'CPU ratio': busy_cpu / cpu,
        }
        print(row, flush=True)
        rows.append(row)
    report('busy-cores', rows, args.device, args.write)


if __name__ == '__main__':
    main()
