r"""The graph operators in plain PyTorch: the oracle and the fallback.

Functions here know nothing of autograd: :mod:`.dispatch` holds the rules.
Half precision is accumulated in float32. Rows are reduced in CSR order, hence
results are deterministic.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor


def _accumulate_type(dtype: torch.dtype) -> torch.dtype:
    half = (torch.float16, torch.bfloat16)
    return torch.float32 if dtype in half else dtype


@cache
def _silence_beta_warning() -> None:
    """Uses up PyTorch's one warning that sparse CSR tensors are beta."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        empty = torch.zeros(1, dtype=torch.int32)
        torch.sparse_csr_tensor(
            empty, empty[:0], empty[:0], size=(0, 0), check_invariants=False
        )


def to_edges(src: Tensor, dst: Tensor, x: Tensor, signed: bool) -> Tensor:
    r""":math:`x_i - x_j` (:obj:`signed`) or :math:`x_i + x_j` per edge."""
    x = x.contiguous()  # PyTorch selects rows of strided tensors slowly
    out = x.index_select(0, src)
    other = x.index_select(0, dst)
    return out.sub_(other) if signed else out.add_(other)


def to_nodes(
    rowptr: Tensor, edge_id: Tensor, sign: Tensor, z: Tensor, signed: bool
) -> Tensor:
    r""":math:`\sum_j \pm z_{ij}` (:obj:`signed`) or :math:`\sum_j z_{ij}`."""
    num_nodes, num_edges = rowptr.size(0) - 1, z.size(0)
    dtype = _accumulate_type(z.dtype)
    if z.numel() == 0:
        return z.new_zeros((num_nodes, *z.shape[1:]))
    _silence_beta_warning()
    value = sign.to(dtype) if signed else torch.ones_like(sign, dtype=dtype)
    incidence = torch.sparse_csr_tensor(
        rowptr,
        edge_id,
        value,
        size=(num_nodes, num_edges),
        check_invariants=False,
    )
    out = incidence @ z.reshape(num_edges, -1).to(dtype)
    return out.to(z.dtype).view(num_nodes, *z.shape[1:])


def laplacian(
    src: Tensor,
    dst: Tensor,
    rowptr: Tensor,
    edge_id: Tensor,
    sign: Tensor,
    weight: Tensor,
    x: Tensor,
) -> Tensor:
    r""":math:`\sum_j w_{ij} (x_i - x_j)` per node."""
    dtype = _accumulate_type(x.dtype)
    flow = to_edges(src, dst, x.to(dtype), signed=True)
    flow.mul_(weight.to(dtype).unsqueeze(1))
    return to_nodes(rowptr, edge_id, sign, flow, signed=True).to(x.dtype)


def edge_dot(src: Tensor, dst: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r""":math:`\sum_f (a_i - a_j)_f (b_i - b_j)_f` per edge."""
    dtype = _accumulate_type(a.dtype)
    da = to_edges(src, dst, a.to(dtype), signed=True)
    db = da if b is a else to_edges(src, dst, b.to(dtype), signed=True)
    return (da * db).sum(1).to(a.dtype)
