"""Kernels of the CPU, compiled by numba, on all of PyTorch's threads.

Half precision is computed in float32. Work is cut by the size of the problem
alone, so that results do not depend on the number of threads.
"""
