"""Algebraic multigrid, by pyamg."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.system import LaplacianSystem
from pyg_unroll.solvers.conjugate_gradient import Preconditioner

Cycle: TypeAlias = Callable[[Any], Any]


def multigrid(system: LaplacianSystem) -> Preconditioner:
    r"""Builds a cycle of smoothed aggregation (Vanek, Mandel and Brezina,
    1996) for a system of first order.

    The system must be nonsingular on the free entries. Features that are
    known at the same nodes share a hierarchy.

    Raises:
        ValueError: If the system is of second order or not on the CPU.
        ImportError: If pyamg is missing.
    """
    if system.degree is not None:
        raise ValueError("'preconditioner' must be 'jacobi' with 'order=2'")
    if system.weight.device.type != 'cpu':
        raise ValueError(
            f"'preconditioner' must be 'jacobi' on '{system.weight.device}'; "
            f"move the arguments to the CPU for 'amg'"
        )
    from scipy.sparse import diags

    try:
        from pyamg import smoothed_aggregation_solver
    except ImportError as error:
        raise ImportError(
            "'preconditioner' is 'amg', which needs pyamg; install it with "
            "'pip install pyamg'"
        ) from error

    matrix = _laplacian(system)
    cycles: dict[bytes, Cycle] = {}
    columns: list[tuple[Any, Cycle]] = []
    for free, confidence in _columns(system):
        key = free.tobytes() + confidence.tobytes()
        if key not in cycles and free.any():
            part = matrix[free][:, free] + diags(confidence[free])
            # Row sums in place of a spectral radius, which takes a random
            # start.
            smooth = ('jacobi', {'omega': 4 / 3, 'weighting': 'local'})
            hierarchy = smoothed_aggregation_solver(
                part.tocsr(), symmetry='symmetric', smooth=smooth
            )
            cycles[key] = hierarchy.aspreconditioner().matvec
        columns.append((free, cycles.get(key, np.copy)))

    def precondition(residual: Tensor) -> Tensor:
        out = torch.zeros_like(residual)
        for column in range(residual.size(1)):
            # One column stands for all features.
            free, cycle = columns[column % len(columns)]
            part = residual[free, column, 0].numpy()
            out[free, column, 0] = torch.from_numpy(cycle(part))
        return out

    return precondition


def _columns(system: LaplacianSystem) -> Iterator[tuple[Any, Any]]:
    """Free entries and confidence of each feature that has its own."""
    free, confidence = system.free, system.confidence
    if free is None:
        free = torch.ones(1, 1, 1, dtype=torch.bool)
    if confidence is None:
        confidence = torch.zeros(1, 1, 1, dtype=torch.float64)
    nodes = torch.empty(system.topology.num_nodes, 1)
    free, confidence, _ = torch.broadcast_tensors(
        free[..., 0], confidence.detach()[..., 0], nodes
    )
    for column in range(free.size(1)):
        yield free[:, column].numpy(), confidence[:, column].numpy()


def _laplacian(system: LaplacianSystem) -> Any:
    from scipy.sparse import csr_matrix, diags

    topology = system.topology
    size = topology.num_nodes
    weight = system.weight.detach()[:, 0]
    value = weight[topology.edge_id].numpy()
    arrays = value, topology.col.numpy(), topology.rowptr.numpy()
    adjacency = csr_matrix(arrays, shape=(size, size))
    return diags(np.asarray(adjacency.sum(1)).ravel(), format='csr') - adjacency
