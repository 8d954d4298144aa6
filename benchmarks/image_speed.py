"""Demosaicing: seconds per megapixel, memory, and where the time goes.

    python benchmarks/image_speed.py [--height 512] [--width 768]
    python benchmarks/image_speed.py --compiled       # beside `torch.compile`

All methods in turn in one process, with one thread and with two: medians of the
wall time and of the CPU time of the process, and the ratio of the wall time to
demosaicnet's, if it is installed. Peaks of memory are those of processes that
run one method only, with libraries. Shares of time, of one thread:
convolutions, graph operators, and the rest, which moves memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial

import torch
from image_quality import (
    Method,
    colour_demosaicing,
    demosaicnet,
    make_problem,
    ours,
)
from memory import child_main, free_memory, in_child, memory_used
from torch.profiler import ProfilerActivity, profile
from utils import Row, parse_args, report

from pyg_unroll import Demosaic, GraphDemosaic
from pyg_unroll.imaging import DifferenceBlock

METHODS = (
    'Menon 2007',
    'demosaicnet',
    'GraphDemosaic',
    'bayer GLR',
    'bayer GTV',
    '16 channels GLR',
)


def make(name: str) -> Method:
    """A method by its name."""
    if name == 'Menon 2007':
        return colour_demosaicing('Menon2007')
    if name == 'demosaicnet':
        return demosaicnet()[0]
    if name == 'GraphDemosaic':
        return ours(GraphDemosaic())
    if name == '16 channels GLR':  # untrained
        return ours(Demosaic([DifferenceBlock(16) for _ in range(2)]))
    weights, prior = name.split()[:2]
    model = Demosaic.from_pretrained(weights, prior.lower())
    if name.endswith('compiled'):
        model.compile()
    return ours(model)


def shares(run: Method) -> Row:
    """Shares of the time of convolutions and of graph operators."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        run()
    events = trace.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    found = {'convolution': 0.0, 'graph': 0.0}
    for event in events:
        if 'convolution' in event.key:
            found['convolution'] += event.self_cpu_time_total
        if event.key.startswith('pyg_unroll::'):
            found['graph'] += event.self_cpu_time_total
    return {name: f'{t / total:.0%}' for name, t in found.items()}


def child(config: Row) -> Iterator[Row]:
    """Times methods in turn, or reports the peak of one."""
    torch.set_num_threads(config['threads'])
    size = config['height'], config['width']
    image = torch.rand(1, 3, *(s // 8 for s in size))
    image = torch.nn.functional.interpolate(image, size, mode='bicubic')[0]
    problem = make_problem(image.clamp(0, 1), 0, 0.0, 0.0, 0)
    runs = {name: partial(make(name), problem) for name in config['methods']}
    for run in runs.values():
        run()
    if config['repeats'] == 0:
        yield {'peak (GiB)': memory_used('cpu', peak=True) / 2**30}
        return
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(config['repeats']):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            end = time.perf_counter(), time.process_time()
            times[name].append((end[0] - start[0], end[1] - start[1]))
    megapixels = config['height'] * config['width'] / 1e6
    for name, run in runs.items():
        wall, cpu = (
            statistics.median(t) for t in zip(*times[name], strict=True)
        )
        row = {'wall': wall / megapixels, 'CPU': cpu / megapixels}
        # Tiles on threads of their own are out of the profiler's sight.
        parts = shares(run) if config['threads'] == 1 else {}
        yield {'method': name} | row | parts


def main() -> None:
    """Runs the benchmark."""
    args = parse_args(
        __doc__,
        height=(512, 'rows of the image'),
        width=(768, 'columns of the image'),
        compiled=(0, '1: the trained nets compiled by inductor, too'),
    )
    if args.child:
        child_main(child(args.child))
        return
    methods = list(METHODS)
    if args.compiled:
        methods += ['bayer GLR compiled', 'bayer GTV compiled']
    config: Row = {'height': args.height, 'width': args.width}
    rows: list[Row] = []
    peaks: dict[str, float] = {}
    for threads in (1, 2):
        task = {**config, 'threads': threads, 'repeats': args.repeats}
        found, _ = in_child(
            __file__, {**task, 'methods': methods}, free_memory()
        )
        peer = next(r['wall'] for r in found if r['method'] == 'demosaicnet')
        for row in found:
            name = row['method']
            if name not in peaks:
                alone = {**task, 'repeats': 0, 'methods': [name]}
                (peak,), _ = in_child(__file__, alone, free_memory(), lean=True)
                peaks[name] = peak['peak (GiB)']
            rows.append(
                {
                    'method': name,
                    'threads': threads,
                    'seconds per megapixel': row['wall'],
                    'CPU seconds per megapixel': row['CPU'],
                    'ratio to demosaicnet': row['wall'] / peer,
                    'peak (GiB)': peaks[name],
                    'convolution': row.get('convolution'),
                    'graph': row.get('graph'),
                }
            )
            print(rows[-1], flush=True)
    report('image-speed', rows, args.device, args.write)


if __name__ == '__main__':
    main()
