"""How good what was filled in is."""

from __future__ import annotations

from torch import Tensor


def mean_r_squared(out: Tensor, truth: Tensor, scored: Tensor) -> float:
    r"""Coefficient of determination :math:`R^2`, the mean over features.

    Args:
        out (torch.Tensor): What was filled in, :math:`(N, F)`.
        truth (torch.Tensor): True signals :math:`(N, F)`.
        scored (torch.Tensor): Entries to score, boolean :math:`(N, F)`.

    Raises:
        ValueError: If no feature has entries that differ.
    """
    scores = []
    for guess, value, rows in zip(out.T, truth.T, scored.T, strict=True):
        guess, value = guess[rows], value[rows]
        total = (value - value.mean()).square().sum()
        if len(value) > 1 and total > 0:
            error = (guess - value).square().sum()
            scores.append(float(1 - error / total))
    if not scores:
        raise ValueError(
            "'truth' has no feature with missing entries that differ: there is "
            'nothing to score'
        )
    return sum(scores) / len(scores)
