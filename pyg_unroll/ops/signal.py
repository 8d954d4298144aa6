"""What is known of a node signal, and the checks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyg_unroll.checks import (
    can_read_values,
    check_boolean,
    check_signal,
    check_tensor,
)
from pyg_unroll.ops.samples import Samples

Fidelity: TypeAlias = Literal['hard', 'soft']


@dataclass(frozen=True, eq=False)
class MaskedSignal:
    r"""A node signal with its known entries.

    Attributes:
        x (torch.Tensor): Observations where known, elsewhere the current
            estimate, :math:`(N, F, 1)`; or, of several samples, what
            :meth:`Samples.fold` gives.
        free (torch.Tensor or None): Boolean, the entries to be found,
            broadcastable to :obj:`x`. :obj:`None` if all are.
        confidence (torch.Tensor or None): Weight of each observation in the
            squared error, broadcastable to :obj:`x`; zero where there is
            none. :obj:`None` if known entries are held.
        samples (Samples): How several samples are laid out.
    """

    x: Tensor
    free: Tensor | None
    confidence: Tensor | None
    samples: Samples

    def tile(self, parameter: Tensor) -> Tensor:
        """A layer's parameter per head, in the type of the signal."""
        return self.samples.tile(parameter.to(self.x.dtype))

    @classmethod
    def read(
        cls,
        x: Tensor,
        mask: Tensor | None,
        confidence: Tensor | None,
        fidelity: Fidelity,
        validate_args: bool = True,
        name: str = 'x',
        samples: Samples | None = None,
    ) -> MaskedSignal:
        r"""Checks the arguments of a layer or solver and brings them in shape.

        Without a mask, every entry is a noisy observation.

        Args:
            x (torch.Tensor): Node signals :math:`(N, F)`, or of several
                samples :math:`(B, N, F)`.
            mask (torch.Tensor or None): True where known, boolean
                :math:`(N)`, :math:`(N, F)` or :math:`(B, N, F)`.
            confidence (torch.Tensor or None): Non-negative weights of the
                observations, of the shape of a mask.
            fidelity (str): :obj:`'hard'` or :obj:`'soft'`.
            validate_args (bool, optional): Check values, not only shapes.
                (default: :obj:`True`)
            name (str, optional): Name of :obj:`x` in messages.
            samples (Samples, optional): How to lay out several samples; one
                signal if :obj:`None`. (default: :obj:`None`)

        Raises:
            ValueError: If a shape or type does not fit, known entries are not
                finite, or none of the entries is known.
        """
        validate_args = validate_args and can_read_values()
        samples = Samples() if samples is None else samples
        if not isinstance(x, Tensor):
            raise ValueError(
                f"'{name}' must be a tensor of shape [num_nodes, features] "
                f"(got '{type(x).__name__}'); the layers smooth a signal on "
                f'one set of nodes, they have no bipartite form: give '
                f'relations between node types another layer in '
                f"'HeteroConv', or join the types by 'data.to_homogeneous()'"
            )
        if x.dim() != (2 if samples.count is None else 3):
            raise ValueError(
                f"'{name}' must have shape [num_nodes, features], or of "
                f'several samples [samples, num_nodes, features] (got '
                f"{list(x.shape)}); a single signal needs '.unsqueeze(-1)'"
            )
        check_signal(name, x)
        known = None
        if mask is not None:
            known = _read_mask(name.removesuffix('x') + 'mask', mask, x)
        if confidence is not None:
            if known is not None and fidelity == 'hard':
                raise ValueError(
                    "'confidence' was given with a 'mask' under "
                    "fidelity='hard', which holds known entries exactly; "
                    "use fidelity='soft'"
                )
            confidence = _read_confidence(confidence, x)
        given = confidence
        if validate_args:
            _check_values(x, known, name)

        if known is None:
            if confidence is None:
                confidence = x.new_ones((x.size(-2), 1))
            free = None
        elif fidelity == 'hard':
            free, confidence = samples.fold(~known), None
        else:
            free, weight = None, known.to(x.dtype)
            confidence = weight if confidence is None else weight * confidence
        if validate_args and given is not None and confidence is not None:
            _check_confidence(given, confidence)
        if confidence is not None:
            confidence = samples.fold(confidence)
        return cls(samples.fold(x), free, confidence, samples)


def _read_mask(name: str, mask: Tensor, x: Tensor) -> Tensor:
    check_tensor(name, mask, '[num_nodes] or [num_nodes, features]')
    check_boolean(name, mask)
    return _per_entry(name, mask, x)


def _per_entry(name: str, value: Tensor, x: Tensor) -> Tensor:
    """Checks a shape; one value per node becomes `[N, 1]`."""
    shapes = [x.shape[-2:-1], x.shape[-2:], x.shape][: x.dim()]
    if value.shape not in shapes:
        *others, last = (str(list(shape)) for shape in shapes)
        raise ValueError(
            f"'{name}' must have shape {', '.join(others)} or {last} (got "
            f'{list(value.shape)})'
        )
    return value.unsqueeze(-1) if value.dim() == 1 else value


def _read_confidence(confidence: Tensor, x: Tensor) -> Tensor:
    shapes = '[num_nodes] or [num_nodes, features]'
    check_tensor('confidence', confidence, shapes)
    return _per_entry('confidence', confidence.to(x.dtype), x)


def _check_values(x: Tensor, known: Tensor | None, name: str) -> None:
    if not bool(torch.isfinite(x).all()):
        index = (~torch.isfinite(x)).nonzero()[0].tolist()
        axes = ('sample', 'node', 'feature')[-x.dim() :]
        where = ', '.join(
            f'{axis} {k}' for axis, k in zip(axes, index, strict=True)
        )
        here = f'{float(x[tuple(index)])} at {where}'
        if known is None or bool(known.expand_as(x)[tuple(index)]):
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
    per_column = known.any(-2)
    if not bool(per_column.all()):
        column = (~per_column).nonzero()[0].tolist()
        where = '' if known.size(-1) == 1 else f' in feature {column[-1]}'
        where += f' of sample {column[0]}' if known.dim() == 3 else ''
        raise ValueError(
            f"'mask' has no known entry{where}: there is nothing to "
            f'interpolate from; mark the observed entries as True'
        )


def _check_confidence(confidence: Tensor, where_known: Tensor) -> None:
    if not bool((confidence >= 0).all() & torch.isfinite(confidence).all()):
        raise ValueError(
            f"'confidence' must be finite and non-negative (its range is "
            f'{float(confidence.min())} to {float(confidence.max())})'
        )
    if not bool((where_known > 0).any(-2).all()):
        raise ValueError(
            "'confidence' is zero everywhere in a feature, or wherever it is "
            'known: there is nothing to interpolate from'
        )
