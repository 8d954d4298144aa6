"""Shared by the benchmarks: options, timing, environment, tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / 'RESULTS.md'
COPIED = 2**25  # float32 entries, beyond most caches

Run = Callable[[], object]
Row = dict[str, Any]


def parse_args(
    doc: str | None, **options: tuple[Any, str]
) -> argparse.Namespace:
    """Reads the options of all benchmarks and those of one.

    Args:
        doc: Description.
        **options: Default and help of each option; its type is the default's.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (default, text) in options.items():
        parser.add_argument(
            '--' + name.replace('_', '-'),
            type=type(default),
            default=default,
            help=f'{text} (default: {default})',
        )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, help="default: PyTorch's")
    parser.add_argument(
        '--write', action='store_true', help='write RESULTS.md and JSON'
    )
    parser.add_argument('--child', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ['OMP_NUM_THREADS'] = str(args.threads)  # of children
    return args


def synchronize(device: str) -> None:
    """Waits for the work on the device."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def seconds_of(run: Run, device: str) -> float:
    """Seconds that one call takes.

    On CUDA, after a write that empties the caches and hides the launch.
    """
    if torch.device(device).type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in '12')
        torch.empty(2 * COPIED, device=device).zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleaved(
    runs: dict[str, Run], repeats: int, device: str, budget: float = 20.0
) -> dict[str, float]:
    """Median seconds of each run, taken in turn after one round to warm up.

    Args:
        runs: The calls to time, by name.
        repeats: Rounds; up to ten times as many if they are short.
        device: Their device.
        budget: Seconds after which a run is not repeated any more; each is
            timed at least once.
    """
    begin = time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    synchronize(device)
    for k in range(10 * max(1, repeats)):
        if k >= repeats and time.perf_counter() - begin > budget / 10:
            break
        for name, run in runs.items():
            if sum(seconds[name]) < budget:
                seconds[name].append(seconds_of(run, device))
    return {name: statistics.median(s) for name, s in seconds.items()}


def copy_run(device: str) -> tuple[Run, int]:
    """A large copy, to be timed beside other runs, and the bytes it moves."""
    source = torch.rand(COPIED, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def environment(device: str) -> str:
    """One line on software and machine."""
    parts = [f'Python {platform.python_version()}']
    for package in ('torch', 'torch_geometric', 'numba', 'triton'):
        try:
            name = package.replace('torch_geometric', 'PyG')
            parts.append(f'{name} {version(package)}')
        except PackageNotFoundError:
            continue
    if torch.device(device).type == 'cuda':
        parts.append(torch.cuda.get_device_name())
    else:
        parts.append(f'{torch.get_num_threads()} threads, {_processor()}')
    run, moved = copy_run(device)
    rate = moved / interleaved({'copy': run}, 9, device)['copy']
    parts.append(f'copy rate {rate / 1e9:.1f} GB/s')
    parts.append(f'other processes took {others():.0%} of the CPUs')
    return ', '.join(parts)


def _ticks() -> tuple[float, float]:
    # Seconds that all CPUs were busy, or taken away from this machine, by
    # others than this process, and seconds in all.
    stat = Path('/proc/stat')
    if not stat.exists():
        return 0.0, 1.0
    ticks = [int(t) for t in stat.read_text().split('\n')[0].split()[1:9]]
    seconds = [t / os.sysconf('SC_CLK_TCK') for t in ticks]
    busy = sum(seconds) - seconds[3] - seconds[4]
    return busy - sum(os.times()[:4]), sum(seconds)


_START = _ticks()


def others() -> float:
    """Share of the CPUs that others had since this benchmark began.

    Beyond some percent, threads of OpenMP (PyTorch's and its sparse
    matrices') wait for each other, and their times are not to be trusted.
    """
    busy, total = (b - a for a, b in zip(_START, _ticks(), strict=True))
    share = max(0.0, busy / max(total, 1e-9))
    if share > 0.05:
        print('Others use this machine: ratios mislead.', file=sys.stderr)
    return share


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.machine()


def number(value: Any) -> str:
    """Three digits of a number; anything else as it is."""
    if not isinstance(value, float):
        return '' if value is None else str(value)
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _short(value: Any) -> Any:
    return float(f'{value:.4g}') if isinstance(value, float) else value


def table(rows: list[Row]) -> str:
    """Formats rows as Markdown, columns in the order of first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ['---'] * len(names)]
    lines += [[number(row.get(name)) for name in names] for row in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def report(name: str, rows: list[Row], device: str, write: bool) -> None:
    """Prints the figures, and writes them beside this file if asked to.

    Figures of CUDA go below those of the CPU, which go between the markers
    `<!-- name -->` and `<!-- end -->` of RESULTS.md.
    """
    command = shlex.join(['python', *sys.argv])
    where = environment(device)
    text = f'`{command}`: {where}\n\n{table(rows)}'
    print(text)
    if not write:
        return
    results, after = RESULTS.read_text(), ''
    if torch.device(device).type == 'cuda':
        base, name = name, f'{name}_cuda'
        if f'<!-- {name} -->\n' not in results:
            head, mark, tail = results.partition(f'<!-- {base} -->\n')
            body, end, tail = tail.partition('<!-- end -->\n')
            new = f'\n<!-- {name} -->\n<!-- end -->\n'
            results = head + mark + body + end + new + tail
    before, mark, after = results.partition(f'<!-- {name} -->\n')
    if not mark:
        raise ValueError(f"'{RESULTS}' has no marker '<!-- {name} -->'")
    rest = after.partition('<!-- end -->\n')[2]
    RESULTS.write_text(f'{before}{mark}{text}<!-- end -->\n{rest}')
    rows = [{k: _short(v) for k, v in row.items()} for row in rows]
    figures = {'environment': where, 'command': command, 'rows': rows}
    path = HERE / f'{name}.json'
    path.write_text(json.dumps(figures, indent=1) + '\n')
