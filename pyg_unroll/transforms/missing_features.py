"""Features of nodes of which some are missing, read from data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_signal


def read_mask(mask: Tensor | str, data: Data, x: Tensor) -> Tensor:
    """Which entries of the features are missing, `[N]` or `[N, F]`.

    Args:
        mask (torch.Tensor or str): The mask, of the full graph if data is
            a part of one with :obj:`n_id`, or the name of an attribute
            that holds it.
        data (Data): The data.
        x (torch.Tensor): Its features.

    Raises:
        ValueError: If there is no such attribute, or it does not fit.
    """
    name = "'missing_mask'"
    if isinstance(mask, str):
        name = f"'data.{mask}'"
        if data.get(mask) is None:
            raise ValueError(
                f"'missing_mask' names {mask!r}, which the data does not "
                f'have; set {name[1:-1]}, True where missing'
            )
        found: Tensor = data[mask]
        check_mask(found, name)
    elif data.get('n_id') is None:
        found = mask
    else:
        nodes = data.n_id.to(mask.device)
        if nodes.numel() > 0 and int(nodes.max()) >= mask.size(0):
            raise ValueError(
                f"'missing_mask' has {mask.size(0)} rows, but the data "
                f'is a part of a graph with a node {int(nodes.max())} in '
                f"'n_id'; give the mask of the full graph, or the name of "
                f'an attribute that holds that of the part'
            )
        found = mask[nodes]
    if found.shape not in (x.shape, x.shape[:1]):
        raise ValueError(
            f'{name} must have shape {list(x.shape[:1])} or '
            f"{list(x.shape)}, as 'data.x' has (got {list(found.shape)})"
        )
    return found.to(x.device)


def check_mask(mask: object, name: str) -> None:
    """Raises a `ValueError` unless it is a mask, True where missing."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f'{name} must be a boolean tensor, True where missing, or the '
            f'name of an attribute that holds one (got {got})'
        )
    if mask.dim() not in (1, 2):
        raise ValueError(
            f'{name} must have shape [num_nodes] or [num_nodes, features] '
            f'(got {list(mask.shape)})'
        )


def read_features(data: Data) -> Tensor:
    """The features, `[N]` or `[N, F]`, or a `ValueError`."""
    if not isinstance(data, Data):
        raise ValueError(
            f"'data' must be a homogeneous 'Data' or 'Batch' (got "
            f"'{type(data).__name__}'); of heterogeneous data, transform "
            f'each node type that has edges within itself on its own, or use '
            f"'data.to_homogeneous()'"
        )
    x = data.get('x')
    if not isinstance(x, Tensor) or x.dim() not in (1, 2):
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"'data.x' must be a tensor of shape [num_nodes, features] (got "
            f'{got})'
        )
    check_signal('data.x', x)
    return x
