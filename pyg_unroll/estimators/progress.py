"""Progress of long fits."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar('T')


def progress(items: Sequence[T], unit: str) -> Iterable[T]:
    """The items, with a progress bar once they take ten seconds."""
    options: Any = {'unit': f' {unit}', 'delay': 10, 'leave': False}
    bar: Iterable[T] = tqdm(items, 'fit', disable=len(items) < 2, **options)
    return bar
