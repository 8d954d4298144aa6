"""Algebraic multigrid, by pyamg."""

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.ops.reference.order import adjacency
from pyg_unroll.ops.reference.solve import Preconditioner
from pyg_unroll.ops.registry import is_transformed


def multigrid(system: LaplacianSystem) -> Preconditioner:
    """Builds a cycle of smoothed aggregation (Vanek, Mandel and Brezina, 1996)
    for residuals `[N, F, H]` of a system of one head, nonsingular on the free
    entries.
    """
    if system.degree is not None:
        raise ValueError("'preconditioner' must be 'jacobi' with 'order=2'")
    if system.weight.device.type != 'cpu':
        raise ValueError(
            f"'preconditioner' must be 'jacobi' on '{system.weight.device}'; "
            f"move the arguments to the CPU for 'amg'"
        )
    from scipy.sparse import diags

    if is_transformed():
        raise ValueError(
            "'preconditioner' must be 'jacobi' in a function that 'torch.func' "
            'transforms'
        )
    try:
        from pyamg import smoothed_aggregation_solver
    except ImportError as error:
        raise ImportError(
            "'preconditioner' is 'amg', which needs pyamg; install it with "
            "'pip install pyamg'"
        ) from error

    topology = system.topology
    weight = system.weight.detach()[:, 0]
    matrix = adjacency(topology, weight[topology.edge_id].numpy())
    degree = np.asarray(matrix.sum(1)).ravel()
    matrix = diags(degree, format='csr') - matrix
    confidence = torch.zeros(topology.num_nodes, 1, 1, dtype=torch.float64)
    if system.confidence is not None:
        confidence = confidence + system.confidence.detach()
    free = system.restrict(torch.ones_like(confidence)) > 0
    cycles: dict[bytes, Any] = {}  # features with the same mask share one
    columns: list[tuple[Any, Any]] = []
    free, confidence = torch.broadcast_tensors(free, confidence)
    for column in range(free.size(1)):
        is_free = free[:, column, 0].numpy()
        diagonal = confidence[:, column, 0].numpy()
        key = is_free.tobytes() + diagonal.tobytes()
        if key not in cycles and is_free.any():
            part = matrix[is_free][:, is_free] + diags(diagonal[is_free])
            # Row sums in place of a spectral radius, which takes a random
            # start.
            smooth = ('jacobi', {'omega': 4 / 3, 'weighting': 'local'})
            hierarchy = smoothed_aggregation_solver(
                part.tocsr(), symmetry='symmetric', smooth=smooth
            )
            cycles[key] = hierarchy.aspreconditioner().matvec
        columns.append((is_free, cycles.get(key, np.copy)))

    def precondition(residual: Tensor) -> Tensor:
        out = torch.zeros_like(residual)
        for column, head in product(*map(range, residual.shape[1:])):
            # One column stands for all features.
            is_free, cycle = columns[column % len(columns)]
            part = residual[is_free, column, head].numpy()
            out[is_free, column, head] = torch.from_numpy(cycle(part))
        return out

    return precondition
