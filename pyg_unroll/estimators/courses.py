"""Courses that sensors share."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pyg_unroll.estimators.readings import Readings

# Shares of the largest singular value that others must be larger than.
STRENGTHS = (0.3, 0.17, 0.1, 0.055, 0.03, 0.017, 0.01)
_ITERATIONS = 30


def common_courses(readings: Readings) -> Iterator[tuple[float, Tensor]]:
    """Estimates of all readings `[N, T]` by ever more courses that sensors
    share, each with a gain of its own, and their strengths.

    The matrix of readings, but for means and scales of sensors, has few
    singular values of more than a share of the largest, the strength (after
    SoftImpute, Mazumder, Hastie, Tibshirani, 2010).
    """
    mask, level = readings.mask, readings.level
    known = torch.where(mask, readings.x - level, 0)
    square = known.square().sum(1, keepdim=True)
    scale = (square / mask.sum(1, keepdim=True).clamp(min=1)).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    known = known / scale
    turned = len(known) > known.size(1)
    known, mask = (known.T, mask.T) if turned else (known, mask)
    out, largest = known, None
    for strength in STRENGTHS:
        for _ in range(_ITERATIONS):
            square, side = torch.linalg.eigh(out @ out.T)
            largest = (
                square[-1].clamp(min=0).sqrt() if largest is None else largest
            )
            ratio = strength * largest / square.clamp(min=1e-300).sqrt()
            # Large values are shrunk less than by a soft threshold (power 1).
            gain = (1 - ratio**1.5).clamp(min=0)
            low = side * gain @ (side.T @ out)
            new = torch.where(mask, known, low)
            change = (new - out).abs().max()
            out = new
            if bool(change < 1e-3):
                break
        center = level + scale * (low.T if turned else low)
        yield strength, _between(readings, center)


def _between(readings: Readings, x: Tensor) -> Tensor:
    """Linear in time at times without a reading, of which courses know
    nothing.
    """
    some = readings.mask.any(0)
    here, wanted = readings.time[some], readings.time[~some]
    if not len(wanted):
        return x
    after = torch.searchsorted(here, wanted).clamp(max=len(here) - 1)
    before = (after - 1).clamp(min=0)
    step = (here[after] - here[before]).clamp(min=1e-300)
    share = ((wanted - here[before]) / step).clamp(0, 1)
    known = x[:, some]
    out = x.clone()
    out[:, ~some] = torch.lerp(known[:, before], known[:, after], share)
    return out
