"""Walks through a graph, by SciPy on the CPU."""

from pyg_unroll.ops.reference.order import components, renumber, take, walk

__all__ = ['components', 'renumber', 'take', 'walk']
