"""What an estimator is told of a signal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import (
    check_boolean,
    check_known,
    check_signal,
    check_tensor,
)


def read_signal(data: Data, allow_empty: bool = False) -> tuple[Tensor, Tensor]:
    r"""Reads observations: :math:`(N, F)`, zero where unknown, and the mask.

    Raises:
        ValueError: If shapes or types do not fit, values are not finite, or,
            unless :obj:`allow_empty`, nothing is known of a feature.
    """
    if isinstance(data, Batch):
        raise ValueError(
            "'data' must be one graph (got a batch); fit one estimator each, "
            "or call 'predict' on each of 'data.to_data_list()'"
        )
    x, mask = data.get('x'), data.get('mask')
    if x is not None:
        check_tensor('data.x', x, '[num_nodes] or [num_nodes, features]')
    if x is None or x.dim() not in (1, 2) or x.numel() == 0:
        raise ValueError(
            "'data.x' must be a signal of shape [num_nodes] or [num_nodes, "
            'features], with at least one entry'
        )
    check_signal('data.x', x)
    x = x.detach().cpu().double().view(x.size(0), -1)
    if mask is None:
        mask = ~x.isnan()
    check_tensor('data.mask', mask, '[num_nodes] or [num_nodes, features]')
    check_boolean('data.mask', mask)
    if mask.shape not in (x.shape, x.shape[:1], (x.size(0), 1)):
        raise ValueError(
            f"'data.mask' must have shape {list(x.shape[:1])} or "
            f'{list(x.shape)} (got {list(mask.shape)})'
        )
    mask = mask.cpu().view(x.size(0), -1).expand_as(x)
    check_known('data.x', x, mask, "mark it as False in 'data.mask'")
    empty = ~mask.any(0)
    if bool(empty.any()) and not allow_empty:
        column = int(empty.nonzero()[0])
        raise ValueError(
            f"'data.x' has no known entry in feature {column}: there is "
            f'nothing to interpolate from; drop the feature'
        )
    return torch.where(mask, x, 0), mask
