"""Conjugate gradients to a tolerance: the products are Triton kernels."""

from functools import partial

from pyg_unroll.ops.cuda.operators import laplacian
from pyg_unroll.ops.reference import solve as reference

conjugate_gradient = partial(
    reference.conjugate_gradient, steps=reference.steps_by(laplacian)
)
