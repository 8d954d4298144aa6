"""Peak memory, and runs in processes of their own (Linux)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from utils import Row, Run

OUT_OF_MEMORY = 77  # exit status


def memory_used(device: str, peak: bool = False) -> int:
    """Bytes that this process holds now, or its peak since `reset_peak`."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        cuda = torch.cuda
        return cuda.max_memory_allocated() if peak else cuda.memory_allocated()
    return _status('VmHWM' if peak else 'VmRSS')


def reset_peak(device: str) -> None:
    """Forgets the peak so far, such as that of building the inputs."""
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')


def peak_of(run: Run, device: str) -> int:
    """Bytes that one call needs beyond what is held before it."""
    reset_peak(device)
    before = memory_used(device)
    run()
    return memory_used(device, peak=True) - before


def _status(name: str) -> int:
    # Not `ru_maxrss`, which begins with the peak of the parent process.
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError("'/proc/self/status' is not that of Linux")


def _resident(process: int) -> int:
    try:
        pages = Path(f'/proc/{process}/statm').read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf('SC_PAGE_SIZE')


def free_memory() -> float:
    """GiB of main memory that a run may take: most of what is free."""
    for line in Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable'):
            return round(0.85 * int(line.split()[1]) / 2**20, 1)
    raise RuntimeError("'/proc/meminfo' is not that of Linux")


def in_child(
    script: str, spec: Row, max_memory: float, lean: bool = False
) -> tuple[list[Row], bool]:
    """Runs a benchmark's `--child` in a fresh process.

    Args:
        script: The benchmark.
        spec: The task of the child.
        max_memory: GiB at which it is ended.
        lean: Give freed blocks back to the system at once, for measuring
            memory; slows small operators down.

    Returns:
        Its reports (one JSON object a line), and whether it finished;
        if not, it ran out of memory.
    """
    command = [sys.executable, script, '--child', json.dumps(spec)]
    env = dict(os.environ)
    if lean:
        env['MALLOC_MMAP_THRESHOLD_'] = '65536'
    with tempfile.TemporaryFile('w+') as out:
        child = subprocess.Popen(command, stdout=out, env=env)
        while child.poll() is None:
            if _resident(child.pid) > max_memory * 2**30:
                child.kill()
            time.sleep(0.02)
        out.seek(0)
        rows = [json.loads(line) for line in out if line.startswith('{')]
    if child.returncode not in (0, -9, OUT_OF_MEMORY):
        raise RuntimeError(f"'{' '.join(command)}' failed")
    return rows, child.returncode == 0


def child_main(steps: Iterable[Row]) -> None:
    """Reports each step as it is done; exits if memory runs out."""
    try:
        for row in steps:
            print(json.dumps(row), flush=True)
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        if isinstance(error, MemoryError) or 'memory' in message:
            sys.exit(OUT_OF_MEMORY)
        raise
