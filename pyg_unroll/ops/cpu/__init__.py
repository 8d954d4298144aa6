"""The CPU backend: numba's kernels on all of PyTorch's threads.

Half precision is computed in float32. Work is cut by the size of the problem
alone, so that results do not depend on the number of threads.
"""

from pyg_unroll.ops.cpu.operators import (
    edge_dot,
    laplacian,
    log_degree,
    log_degree_backward,
    to_edges,
    to_nodes,
)
from pyg_unroll.ops.cpu.steps import (
    admm_step,
    admm_step_backward,
    cg_step,
    cg_step_backward,
)

__all__ = [
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
