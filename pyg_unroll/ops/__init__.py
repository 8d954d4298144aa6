"""Graph calculus: differentiable operators on an undirected graph."""

from pyg_unroll.ops.operators import (
    degree,
    divergence,
    edge_dot,
    endpoint_sum,
    gradient,
    laplacian,
    log_degree,
)

__all__ = [
    'degree',
    'divergence',
    'edge_dot',
    'endpoint_sum',
    'gradient',
    'laplacian',
    'log_degree',
]
