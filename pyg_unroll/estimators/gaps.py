"""Gaps to hide readings in, like those that are there."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Held-out readings of a range of distances, at least.
LEAST_HELD = 12
# Largest share of the readings that are held out in gaps.
_SHARE = 0.25
_DRAWS = 10_000


def hold_out(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """True at a share of the known entries `[N, T]`: half of them single ones,
    half in gaps as long as those between known entries, elsewhere, of as many
    sensors at once where these are an outage.
    """
    known = mask.flatten().nonzero().squeeze(1)
    order = torch.randperm(known.numel(), generator=generator)
    target = max(share * known.numel(), min(2 * LEAST_HELD, len(known) / 5))
    seen = mask.any(1)  # sensors without readings are another matter
    here = mask[seen]
    held = torch.zeros_like(here)
    gaps, count = _gaps(here), 0
    rate = 1 - float(here.double().mean())
    for _ in range(_DRAWS if len(gaps) else 0):
        if count >= target / 2:
            break
        k, i, at = torch.rand(3, generator=generator).tolist()
        start, size = gaps[int(k * len(gaps))].tolist()
        # Sensors without a reading in the gap: an outage if they are many.
        silent = int((~here[:, start : start + size]).all(1).sum())
        if silent <= 2 * len(here) * rate**size + 2:
            silent = 1
        rows = (int(i * len(here)) + torch.arange(silent)) % len(here)
        time = int(at * (here.size(1) - size + 1))
        hidden = torch.zeros_like(held)
        hidden[rows, time : time + size] = True
        new = hidden & here & ~held
        # A gap that would hide too much is left out.
        if count + int(new.sum()) <= _SHARE * known.numel():
            held |= new
            count += int(new.sum())
    rest = known[order[: max(round(target - count), 0)]]
    out = torch.zeros_like(mask).flatten()
    out[rest] = True
    out = out.view_as(mask)
    out[seen] |= held
    return out


def _gaps(mask: Tensor) -> Tensor:
    """Start and length of all gaps, `[G, 2]`."""
    edge = torch.ones((len(mask), 1), dtype=torch.long)
    change = torch.cat([edge, mask.long(), edge], 1).diff(dim=1)
    start = (change == -1).nonzero()[:, 1]
    return torch.stack([start, (change == 1).nonzero()[:, 1] - start], 1)


@dataclass
class Horizons:
    """Ranges of the distance in time to the nearest reading, each with held-out
    entries of its own.
    """

    bounds: Tensor  # logarithms where the second and later ranges begin

    @classmethod
    def of(cls, distance: Tensor, least: int) -> Self:
        """Ranges of at least so many of these distances."""
        level, count = _level(distance).unique(return_counts=True)
        bounds, inside = level[:0].tolist(), 0
        for start, number in zip(level.tolist(), count.tolist(), strict=True):
            if inside >= least:
                bounds.append(start)
                inside = 0
            inside += number
        if inside < least:
            bounds = bounds[:-1]
        return cls(level.new_tensor(bounds))

    def __call__(self, distance: Tensor) -> Tensor:
        """The range of each distance."""
        return torch.bucketize(_level(distance), self.bounds, right=True)

    def __len__(self) -> int:
        return len(self.bounds) + 1


def _level(distance: Tensor) -> Tensor:
    """Logarithm of a distance in whole numbers, 99 without a reading."""
    return distance.clamp(1, 2.0**99).log2().floor()
