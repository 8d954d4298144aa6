"""The CUDA backend: Triton kernels.

The kernels also run on CPU tensors in Triton's interpreter, for tests, if
:obj:`TRITON_INTERPRET=1` is in the environment before Triton is imported.
Half precision is accumulated in float32. Results are deterministic.
"""

from pyg_unroll.ops.cuda.operators import (
    edge_dot,
    laplacian,
    log_degree,
    log_degree_backward,
    to_edges,
    to_nodes,
)
from pyg_unroll.ops.cuda.steps import (
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
