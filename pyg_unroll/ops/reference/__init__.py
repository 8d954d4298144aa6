r"""Operators and steps in plain PyTorch: the oracle and the fallback.

Functions here know nothing of autograd: :mod:`.dispatch` holds the rules.
Half precision is accumulated in float32. Rows are reduced in CSR order, hence
results are deterministic.
"""

from pyg_unroll.ops.reference.operators import (
    LEAST_LOG,
    accumulate_type,
    edge_dot,
    laplacian,
    log_degree,
    log_degree_backward,
    to_edges,
    to_nodes,
)
from pyg_unroll.ops.reference.steps import (
    admm_step,
    admm_step_backward,
    cg_step,
    cg_step_backward,
)

__all__ = [
    'LEAST_LOG',
    'accumulate_type',
    'admm_step',
    'admm_step_backward',
    'cg_step',
    'cg_step_backward',
    'edge_dot',
    'laplacian',
    'log_degree',
    'log_degree_backward',
    'to_edges',
    'to_nodes',
]
