"""What an estimator is told of a signal."""

from __future__ import annotations

from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll import inputs
from pyg_unroll.checks import check_signal, check_tensor


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
    mask = ~x.isnan() if mask is None else mask
    mask = mask.cpu() if isinstance(mask, Tensor) else mask
    signal = inputs.read_signal(
        x, mask, name='data.x', allow_unknown=allow_empty
    )
    return signal.fill(0), signal.observed
