"""Kernels in plain PyTorch: the oracle and the fallback.

They know nothing of autograd. Half precision is accumulated in float32. Rows
are reduced in CSR order, hence results are deterministic.
"""
