"""What is known of a node signal, and the checks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Fidelity: TypeAlias = Literal['hard', 'soft']


@dataclass(frozen=True, eq=False)
class MaskedSignal:
    r"""A node signal with its known entries.

    Attributes:
        x (torch.Tensor): Observations where known, elsewhere the current
            estimate, :math:`(N, F, 1)`.
        free (torch.Tensor or None): Boolean, the entries to be found;
            :math:`(N, F, 1)` or :math:`(N, 1, 1)`. :obj:`None` if all are.
        confidence (torch.Tensor or None): Weight of each observation in the
            squared error; zero where there is none. :math:`(N, F, 1)` or
            :math:`(N, 1, 1)`. :obj:`None` if known entries are held.
    """

    x: Tensor
    free: Tensor | None
    confidence: Tensor | None

    @classmethod
    def read(
        cls,
        x: Tensor,
        mask: Tensor | None,
        confidence: Tensor | None,
        fidelity: Fidelity,
        validate_args: bool = True,
        name: str = 'x',
    ) -> MaskedSignal:
        r"""Checks the arguments of a layer or solver and brings them in shape.

        Without a mask, every entry is a noisy observation.

        Args:
            x (torch.Tensor): Node signals :math:`(N, F)`.
            mask (torch.Tensor or None): True where known, boolean
                :math:`(N)` or :math:`(N, F)`.
            confidence (torch.Tensor or None): Non-negative weights of the
                observations, :math:`(N)` or :math:`(N, F)`.
            fidelity (str): :obj:`'hard'` or :obj:`'soft'`.
            validate_args (bool, optional): Check values, not only shapes.
                (default: :obj:`True`)
            name (str, optional): Name of :obj:`x` in messages.

        Raises:
            ValueError: If a shape or type does not fit, known entries are not
                finite, or all or none of the entries are known.
        """
        validate_args = validate_args and not torch.compiler.is_compiling()
        if not isinstance(x, Tensor):
            raise ValueError(
                f"'{name}' must be a tensor of shape [num_nodes, features] "
                f"(got '{type(x).__name__}'); the layers smooth a signal on "
                f'one set of nodes, they have no bipartite form'
            )
        if x.dim() != 2:
            raise ValueError(
                f"'{name}' must have shape [num_nodes, features] (got "
                f"{list(x.shape)}); a single signal needs '.unsqueeze(-1)'"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"'{name}' must be floating point (got {x.dtype}); convert "
                f"it, for 8-bit images with 'x.float() / 255'"
            )
        known = None if mask is None else _read_mask(mask, x)
        if confidence is not None:
            if known is not None and fidelity == 'hard':
                raise ValueError(
                    "'confidence' was given with a 'mask' under "
                    "fidelity='hard', which holds known entries exactly; "
                    "use fidelity='soft'"
                )
            confidence = _read_confidence(confidence, x)
        if validate_args:
            _check_values(x, known, name)
            if confidence is not None:
                _check_confidence(confidence)

        x = x.unsqueeze(-1)
        if known is None:
            if confidence is None:
                confidence = x.new_ones((x.size(0), 1, 1))
            return cls(x, None, confidence)
        if fidelity == 'hard':
            return cls(x, ~known, None)
        weight = known.to(x.dtype)
        if confidence is not None:
            weight = weight * confidence
        return cls(x, None, weight)


def _read_mask(mask: Tensor, x: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(
            f"'mask' must be boolean, True where known (got {mask.dtype}); "
            f"convert it with 'mask.bool()' or compare, 'mask > 0'"
        )
    if mask.shape not in (x.shape, x.shape[:1]):
        raise ValueError(
            f"'mask' must have shape {list(x.shape[:1])} or {list(x.shape)} "
            f'(got {list(mask.shape)})'
        )
    return _as_signal(mask)


def _as_signal(value: Tensor) -> Tensor:
    """One value per node or entry to `[N, 1, 1]` or `[N, F, 1]`."""
    return value.reshape(*value.shape, *(1,) * (3 - value.dim()))


def _read_confidence(confidence: Tensor, x: Tensor) -> Tensor:
    if confidence.shape not in (x.shape, x.shape[:1]):
        raise ValueError(
            f"'confidence' must have shape {list(x.shape[:1])} or "
            f'{list(x.shape)} (got {list(confidence.shape)})'
        )
    return _as_signal(confidence.to(x.dtype))


def _check_values(x: Tensor, known: Tensor | None, name: str) -> None:
    if not bool(torch.isfinite(x).all()):
        node, feature = (int(k) for k in (~torch.isfinite(x)).nonzero()[0])
        here = f'{float(x[node, feature])} at node {node}, feature {feature}'
        if known is None or bool(known.expand(*x.shape, 1)[node, feature]):
            raise ValueError(
                f"'{name}' must be finite where it is known (got {here}); "
                f"mark missing entries as False in 'mask'"
            )
        raise ValueError(
            f"'{name}' must be finite (got {here}): its unknown entries are "
            f'the start of the iteration; fill them, for example with '
            f"'torch.where(mask, x, 0)'"
        )
    if known is None or x.numel() == 0:
        return
    per_column = known.any(0).view(-1)
    if not bool(per_column.all()):
        column = int((~per_column).nonzero()[0])
        where = '' if known.size(1) == 1 else f' in feature {column}'
        raise ValueError(
            f"'mask' has no known entry{where}: there is nothing to "
            f'interpolate from; mark the observed entries as True'
        )
    if bool(known.all()):
        raise ValueError(
            "'mask' is True everywhere: there is nothing to interpolate; "
            'pass no mask to denoise the signal'
        )


def _check_confidence(confidence: Tensor) -> None:
    if not bool((confidence >= 0).all() & torch.isfinite(confidence).all()):
        raise ValueError(
            f"'confidence' must be finite and non-negative (its range is "
            f'{float(confidence.min())} to {float(confidence.max())})'
        )
    if not bool((confidence > 0).any(0).all()):
        raise ValueError(
            "'confidence' is zero everywhere in a feature: there is nothing "
            'to interpolate from'
        )
