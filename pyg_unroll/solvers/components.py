"""Which nodes can be interpolated at all."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.graph import Topology


def unreachable(topology: Topology, weight: Tensor, known: Tensor) -> Tensor:
    r"""Finds entries that no path of positive weight joins to a known one.

    Args:
        topology (Topology): The graph.
        weight (torch.Tensor): Weights :math:`(E)`.
        known (torch.Tensor): Boolean :math:`(N, F)`.

    Returns:
        Boolean :math:`(N, F)`.
    """
    # Late, as parts of SciPy take longer to load than all of the package.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    joined = (weight > 0)[topology.edge_id].cpu().numpy()
    col, rowptr = topology.col.cpu().numpy(), topology.rowptr.cpu().numpy()
    graph = csr_array(
        (joined, col, rowptr),
        shape=(topology.num_nodes, topology.num_nodes),
        copy=not joined.all(),  # the next line works in place
    )
    graph.eliminate_zeros()
    count, label = connected_components(graph, directed=False)
    component = torch.from_numpy(label).long().to(known.device)
    reached = known.new_zeros((count, known.size(1)), dtype=torch.long)
    reached.index_add_(0, component, known.long())
    return reached[component] == 0


def check_fill(fill: Any) -> None:
    """Raises a `ValueError` unless lost entries can be given this value."""
    is_number = isinstance(fill, Real) and math.isfinite(fill)
    if fill is not None and fill != 'mean' and not is_number:
        raise ValueError(
            f"'fill' must be a finite number, 'mean' or None (got {fill!r})"
        )


def fill_value(
    x: Tensor, known: Tensor, lost: Tensor, fill: float | str | None
) -> Tensor:
    r"""Gives entries that cannot be interpolated a value, or refuses.

    Args:
        x (torch.Tensor): Signal :math:`(N, F)`.
        known (torch.Tensor): Boolean :math:`(N, F)`.
        lost (torch.Tensor): What :func:`unreachable` found.
        fill (float or str or None): The value, :obj:`'mean'` for the mean of
            the feature's known entries, or :obj:`None` to refuse.

    Returns:
        The signal with the value at lost entries.

    Raises:
        ValueError: If entries are lost and :obj:`fill` is :obj:`None`.
    """
    check_fill(fill)
    if not bool(lost.any()):
        return x
    if fill is None:
        nodes = lost.any(1).nonzero().view(-1).tolist()
        shown = ', '.join(str(node) for node in nodes[:5])
        more = ', ...' if len(nodes) > 5 else ''
        raise ValueError(
            f"'mask' has no known entry in the connected component of "
            f'{len(nodes)} node(s) ({shown}{more}), whose values cannot be '
            f'interpolated; connect the graph (weights that underflow to zero '
            f"cut it), observe one of them, or pass 'fill' (a number or "
            f"'mean')"
        )
    value = known_mean(x, known) if fill == 'mean' else float(fill)
    return torch.where(lost, value, x)


def known_mean(x: Tensor, known: Tensor) -> Tensor:
    """Mean of each feature's known entries, `[F]`, zero if there are none."""
    return torch.where(known, x, 0).sum(0) / known.sum(0).clamp(min=1)
