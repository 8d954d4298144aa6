"""Kernels of CUDA devices, compiled by Triton.

They also run on CPU tensors in Triton's interpreter, for tests, if
:obj:`TRITON_INTERPRET=1` is in the environment before Triton is imported.
Half precision is accumulated in float32. Results are deterministic.
"""
