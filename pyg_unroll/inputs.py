"""The reader of node signals, masks and confidence, for all of the package."""

from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

from pyg_unroll import checks

Fidelity: TypeAlias = Literal['hard', 'soft']


class FillWarning(UserWarning):
    """Values were filled in that no observation determines."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A node signal and its observed entries.

    Masks and weights have as many axes as the signal, or two for all samples;
    their last is 1 if features share them.
    """

    x: Tensor  # [N, F], or several samples [B, N, F]
    known: Tensor | None  # True where observed; None without a mask
    confidence: Tensor | None  # weights of the observations

    @property
    def observed(self) -> Tensor:
        """True where observed, of the shape of :attr:`x`."""
        if self.known is None:
            return torch.ones_like(self.x, dtype=torch.bool)
        return self.known.expand_as(self.x)

    def fill(self, value: Tensor | float) -> Tensor:
        """The signal with another value at the entries not observed."""
        if self.known is None:
            return self.x
        return torch.where(self.known, self.x, value)


def read_signal(
    x: Any,
    mask: Any = None,
    confidence: Any = None,
    *,
    name: str = 'x',
    samples: bool = False,
    allow_unknown: bool = False,
    validate_args: bool = True,
) -> Signal:
    """Checks a node signal `[N, F]`, or samples of it `[B, N, F]`, its mask and
    its confidence: `[N]`, `[N, 1]`, `[N, F]` or `[B, N, F]`.

    Entries that are not observed may hold anything, NaN included. The mask
    shares the prefix of the signal's name in messages: `'data.x'` goes with
    `'data.mask'`. A feature may lack observed entries if `allow_unknown`.
    Values are looked at if `validate_args`, where they can be read.
    """
    shape = ['samples', 'num_nodes', 'features'][not samples :]
    note = (
        ', several samples, where they are taken, [samples, num_nodes, '
        "features]; a single signal needs '.unsqueeze(-1)'"
    )
    checks.check_shape(name, x, shape, note=note)
    checks.check_signal(name, x)
    mask_name = name[: name.rfind('.') + 1] + 'mask'
    known = None if mask is None else read_mask(mask_name, mask, x)
    if confidence is not None:
        confidence = _per_entry('confidence', confidence, x).to(x.dtype)
    if validate_args and checks.can_read_values(x, known, confidence):
        check_known(name, x, known, f"mark it as False in '{mask_name}'")
        if known is not None and not allow_unknown:
            _check_some_known(name, known, x)
        if confidence is not None:
            _check_confidence(confidence, known)
    return Signal(x, known, confidence)


def read_mask(name: str, mask: Any, x: Tensor) -> Tensor:
    """Checks the mask of a signal; that of nodes becomes `[N, 1]`."""
    mask = _per_entry(name, mask, x)
    checks.check_boolean(name, mask)
    return mask


def _per_entry(name: str, value: Any, x: Tensor) -> Tensor:
    """Checks a shape; one value per node becomes `[N, 1]`."""
    if getattr(value, 'shape', None) != (x.size(-2), 1):
        shapes = [x.shape[-2:-1], x.shape[-2:], x.shape]
        checks.check_shape(name, value, *shapes[: x.dim()])
    out: Tensor = value
    return out.unsqueeze(-1) if out.dim() == 1 else out


def check_known(name: str, x: Tensor, known: Tensor | None, cure: str) -> None:
    """Raises a `ValueError`, which names the cure, unless a signal is finite
    where it is observed.
    """
    if checks.is_finite(x):
        return
    bad = ~x.isfinite() if known is None else known & ~x.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"'{name}' must be finite where it is known (got "
            f'{_first_entry(x, bad)}); {cure}'
        )


def check_start(x: Tensor) -> None:
    """Raises a `ValueError` unless the entries not observed, from which an
    iteration starts, are finite.
    """
    if checks.can_read_values(x) and not checks.is_finite(x):
        raise ValueError(
            f"'x' must be finite (got {_first_entry(x, ~x.isfinite())}): its "
            f'unknown entries are the start of the iteration; fill them, for '
            f"example with 'torch.where(mask, x, 0)'"
        )


def _first_entry(x: Tensor, bad: Tensor) -> str:
    """Value and place of the first bad entry."""
    index = bad.nonzero()[0].tolist()
    axes = ('sample', 'node', 'feature')[-x.dim() :]
    places = (f'{a} {k}' for a, k in zip(axes, index, strict=True))
    return f'{float(x.detach()[tuple(index)])} at {", ".join(places)}'


def _check_some_known(name: str, known: Tensor, x: Tensor) -> None:
    found = known.any(-2)
    if x.numel() > 0 and not bool(found.all()):
        column = (~found).nonzero()[0].tolist()
        where = '' if known.size(-1) == 1 else f' in feature {column[-1]}'
        where += f' of sample {column[0]}' if known.dim() == 3 else ''
        raise ValueError(
            f"'{name}' has no known entry{where}: there is nothing to "
            f'interpolate from; mark the observed entries as True in the mask'
        )


def _check_confidence(confidence: Tensor, known: Tensor | None) -> None:
    if not bool((confidence >= 0).all() & torch.isfinite(confidence).all()):
        raise ValueError(
            f"'confidence' must be finite and non-negative (its range is "
            f'{float(confidence.min())} to {float(confidence.max())})'
        )
    weight = confidence if known is None else known * confidence
    if not bool((weight > 0).any(-2).all()):
        raise ValueError(
            "'confidence' is zero everywhere in a feature, or wherever it is "
            'known: there is nothing to interpolate from'
        )


@dataclass(frozen=True)
class BatchLayout:
    """The axes that samples `[B, N, F]` take in operators.

    Samples that share their edge weights become further features,
    `[N, B * F, 1]`; samples with weights of their own become further heads,
    `[N, F, B * H]`. Either way the graph is read once for all.
    """

    count: int | None = None  # B; None for one signal [N, F]
    heads: int = 1  # H, of a sample
    own_weights: bool = False  # of each sample
    num_features: int = 0  # F, of each of several samples

    @property
    def num_groups(self) -> int:
        """Number of groups of heads."""
        return 1 if self.count is None or not self.own_weights else self.count

    def fold(self, value: Tensor) -> Tensor:
        """Values per entry `[N, F]`, or per sample `[B, N, F]`, in a shape that
        broadcasts to the folded signal's.
        """
        if value.dim() == 2:
            value = value.unsqueeze(-1)
            is_shared = self.own_weights or value.size(1) == 1
            if self.count in (None, 1) or is_shared:
                return value
            return value.repeat(1, self.count, 1)
        if self.own_weights:
            return value.permute(1, 2, 0).repeat_interleave(self.heads, -1)
        return value.transpose(0, 1).flatten(1).unsqueeze(-1)

    def first_heads(self, value: Tensor) -> Tensor:
        """One of the equal values that `fold` gives the heads of a sample."""
        if self.own_weights and value.size(-1) > 1:
            return value[..., :: self.heads]
        return value

    def unfold(self, value: Tensor) -> Tensor:
        """Node values `[N, F', G]`, one per group of heads, to `[N, F]` or
        `[B, N, F]`.
        """
        if self.own_weights:
            return value.permute(2, 0, 1)
        value = value.squeeze(-1)
        if self.count is None:
            return value
        shape = self.count, self.num_features
        return value.unflatten(1, shape).transpose(0, 1)

    def fold_heads(self, value: Tensor) -> Tensor:
        """Values per head `[E, F, H]` or `[B, E, F, H]` of edges or nodes,
        likewise.
        """
        if self.own_weights:
            return value.permute(1, 2, 0, 3).flatten(2)
        if self.count is None:
            return value
        return value.movedim(0, 1).flatten(1, 2)

    def unfold_heads(self, value: Tensor) -> Tensor:
        """The inverse of :meth:`fold_heads`."""
        if self.own_weights:
            return value.unflatten(2, (-1, self.heads)).permute(2, 0, 1, 3)
        if self.count is None:
            return value
        shape = self.count, self.num_features
        return value.unflatten(1, shape).movedim(1, 0)

    def tile(self, parameter: Tensor) -> Tensor:
        """Repeats values per head, `[*, H]`, for each group."""
        if self.num_groups == 1:
            return parameter
        return parameter.repeat(*(1,) * (parameter.dim() - 1), self.num_groups)


@dataclass(frozen=True, eq=False)
class Observations:
    """A signal in the shape of the operators, see :class:`BatchLayout`, split
    into entries to find and observations.
    """

    x: Tensor  # observations where known, else the estimate, [N, F, 1]
    free: Tensor | None  # True at entries to be found, all of them if None
    # Weights of the squared errors, zero where nothing is observed; None if
    # known entries are held.
    confidence: Tensor | None
    layout: BatchLayout

    @classmethod
    def of(
        cls,
        signal: Signal,
        fidelity: Fidelity,
        layout: BatchLayout | None = None,
    ) -> Self:
        """Folds a signal; without a mask all entries are noisy observations."""
        layout = BatchLayout() if layout is None else layout
        x, known, confidence = signal.x, signal.known, signal.confidence
        if known is not None and fidelity == 'hard':
            if confidence is not None:
                raise ValueError(
                    "'confidence' was given with a 'mask' under "
                    "fidelity='hard', which holds known entries exactly; "
                    "use fidelity='soft'"
                )
            return cls(layout.fold(x), layout.fold(~known), None, layout)
        if confidence is None:
            confidence = x.new_ones((x.size(-2), 1))
        if known is not None:
            confidence = known * confidence
        return cls(layout.fold(x), None, layout.fold(confidence), layout)

    def tile(self, parameter: Tensor) -> Tensor:
        """A layer's parameter per head, in the type of the signal."""
        return self.layout.tile(parameter.to(self.x.dtype))
