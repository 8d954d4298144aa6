"""Signals on points, as PyG data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_tensor
from pyg_unroll.inputs import read_signal


def points_to_data(
    pos: Tensor, signal: Tensor, mask: Tensor | None = None
) -> Data:
    r"""Turns a signal on points, some of its entries known, into data.

    Args:
        pos (torch.Tensor): Positions :math:`(N, D)`.
        signal (torch.Tensor): Values :math:`(N)` or :math:`(N, F)`; unknown
            entries are ignored.
        mask (torch.Tensor, optional): True where known, boolean :math:`(N)`
            or :math:`(N, F)`; where :obj:`signal` is not NaN if :obj:`None`.
            (default: :obj:`None`)

    Returns:
        :class:`~torch_geometric.data.Data` with :obj:`pos`, :obj:`mask`
        :math:`(N, F)`, and :obj:`x` :math:`(N, F)`, in which unknown entries
        are the mean of the known ones of that feature, a start for the
        layers.

    Raises:
        ValueError: If shapes do not fit, a known entry is not finite or a
            feature has no known entry.
    """
    check_tensor('pos', pos, '[num_points, dimensions]')
    if pos.dim() != 2:
        raise ValueError(
            f"'pos' must have shape [num_points, dimensions] (got "
            f'{list(pos.shape)})'
        )
    check_tensor('signal', signal, '[num_points] or [num_points, features]')
    if signal.dim() == 1:
        signal = signal.unsqueeze(-1)
    if signal.size(0) != pos.size(0):
        raise ValueError(
            f"'signal' must have shape [{pos.size(0)}, features], one row per "
            f'point (got {list(signal.shape)})'
        )
    if not signal.is_floating_point():
        signal = signal.float()
    mask = ~signal.isnan() if mask is None else mask
    mask = read_signal(signal, mask, name='signal').observed
    total = torch.where(mask, signal, 0).sum(0, dtype=torch.float64)
    mean = (total / mask.sum(0)).to(signal.dtype)
    return Data(
        x=torch.where(mask, signal, mean), pos=pos, mask=mask.contiguous()
    )
