"""Algebraic multigrid, by pyamg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.system import LaplacianSystem
from pyg_unroll.solvers.conjugate_gradient import Preconditioner


def multigrid(system: LaplacianSystem) -> Preconditioner:
    r"""Builds a cycle of smoothed aggregation (Vanek, Mandel and Brezina,
    1996) for a system of first order.

    Features that are known at the same nodes share a hierarchy.

    Args:
        system (LaplacianSystem): The operator :math:`A`, nonsingular on the
            free entries.

    Returns:
        What takes a residual :math:`(N, F, 1)` to :math:`A^{-1}` of it,
        roughly; symmetric positive definite on the free entries.

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
    try:
        from pyamg import smoothed_aggregation_solver
    except ImportError as error:
        raise ImportError(
            "'preconditioner' is 'amg', which needs pyamg; install it with "
            "'pip install pyamg'"
        ) from error

    matrix = _matrix(system)
    cycles: dict[bytes, Callable[[Any], Any]] = {}

    def cycle(free: Any, confidence: Any) -> Callable[[Any], Any]:
        """That of one feature, on its free entries."""
        key = free.tobytes() + confidence.tobytes()
        if key not in cycles:
            part = matrix[free][:, free] + _diagonal(confidence[free])
            # Row sums in place of a spectral radius, which takes a random
            # start.
            smooth = ('jacobi', {'omega': 4 / 3, 'weighting': 'local'})
            hierarchy = smoothed_aggregation_solver(
                part, symmetry='symmetric', smooth=smooth
            )
            cycles[key] = hierarchy.aspreconditioner().matvec
        return cycles[key]

    def precondition(residual: Tensor) -> Tensor:
        shape = residual.shape[:2]
        free = np.ones(shape, bool)
        if system.free is not None:
            free[:] = system.free[..., 0].numpy()
        confidence = np.zeros(shape)
        if system.confidence is not None:
            confidence[:] = system.confidence.detach()[..., 0].numpy()
        out = torch.zeros_like(residual)
        for column in range(shape[1]):
            rows = free[:, column]
            if rows.any():
                apply = cycle(rows, confidence[:, column])
                out[rows, column, 0] = torch.from_numpy(
                    apply(residual[rows, column, 0].numpy())
                )
        return out

    return precondition


def _matrix(system: LaplacianSystem) -> Any:
    """The Laplacian."""
    from scipy.sparse import csr_matrix

    topology = system.topology
    size = topology.num_nodes
    weight = system.weight.detach()[:, 0]
    value = weight[topology.edge_id].numpy()
    arrays = value, topology.col.numpy(), topology.rowptr.numpy()
    adjacency = csr_matrix(arrays, shape=(size, size))
    degree = np.asarray(adjacency.sum(1)).ravel()
    return _diagonal(degree) - adjacency


def _diagonal(value: Any) -> Any:
    from scipy.sparse import csr_matrix

    row = np.arange(len(value))
    return csr_matrix((value, (row, row)))
