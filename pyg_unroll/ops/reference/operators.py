"""The graph operators in plain PyTorch."""

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pyg_unroll.graph import Topology


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of a type are summed."""
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


def to_edges(topology: Topology, x: Tensor, signed: bool) -> Tensor:
    r""":math:`x_i - x_j` (:obj:`signed`) or :math:`x_i + x_j` per edge."""
    x = x.contiguous()  # PyTorch selects rows of strided tensors slowly
    out = x.index_select(0, topology.src)
    other = x.index_select(0, topology.dst)
    return out.sub_(other) if signed else out.add_(other)


def to_nodes(topology: Topology, z: Tensor, signed: bool) -> Tensor:
    r""":math:`\sum_j \pm z_{ij}` (:obj:`signed`) or :math:`\sum_j z_{ij}`."""
    num_nodes, num_edges = topology.num_nodes, z.size(0)
    dtype = accumulate_type(z.dtype)
    if z.numel() == 0:
        return z.new_zeros((num_nodes, *z.shape[1:]))
    _silence_beta_warning()
    one = torch.ones_like(topology.col, dtype=dtype)
    incidence = torch.sparse_csr_tensor(
        topology.rowptr,
        topology.edge_id,
        topology.sign.to(dtype) if signed else one,
        size=(num_nodes, num_edges),
        check_invariants=False,
    )
    out = incidence @ z.reshape(num_edges, -1).to(dtype)
    return out.to(z.dtype).view(num_nodes, *z.shape[1:])


def laplacian(topology: Topology, weight: Tensor, x: Tensor) -> Tensor:
    r""":math:`\sum_j w_{ij} (x_i - x_j)` per node."""
    dtype = accumulate_type(x.dtype)
    flow = to_edges(topology, x.to(dtype), signed=True)
    flow.mul_(weight.to(dtype).unsqueeze(1))
    return to_nodes(topology, flow, signed=True).to(x.dtype)


def edge_dot(topology: Topology, a: Tensor, b: Tensor) -> Tensor:
    r""":math:`\sum_f (a_i - a_j)_f (b_i - b_j)_f` per edge."""
    dtype = accumulate_type(a.dtype)
    da = to_edges(topology, a.to(dtype), signed=True)
    db = da if b is a else to_edges(topology, b.to(dtype), signed=True)
    return (da * db).sum(1).to(a.dtype)


# Sums of exponentials with a logarithm below this are computed again, shifted.
LEAST_LOG = math.log(1e-30)


def log_degree(topology: Topology, distance: Tensor) -> Tensor:
    r""":math:`\log \sum_j \exp(-d_{ij})` per node, zero at isolated ones."""
    d = distance.to(accumulate_type(distance.dtype))
    out = to_nodes(topology, d.neg().exp_(), False).log_()
    low = (out < LEAST_LOG).any(1).nonzero().squeeze(1)
    if low.numel() > 0:
        out[low] = _shifted_log_degree(topology, d, low)
    return out.to(distance.dtype)


def _shifted_log_degree(topology: Topology, d: Tensor, nodes: Tensor) -> Tensor:
    """The same at some nodes, without underflow: shifted by the smallest
    distance.
    """
    first = topology.rowptr[nodes].long()
    count = topology.rowptr[nodes + 1].long() - first
    row = torch.arange(len(nodes), device=d.device).repeat_interleave(count)
    entry = torch.arange(row.size(0), device=d.device)
    entry += (first - count.cumsum(0) + count)[row]
    distance = d[topology.edge_id[entry].long()]
    row = row.unsqueeze(1).expand_as(distance)
    shift = d.new_full((len(nodes), d.size(1)), float('inf'))
    shift.scatter_reduce_(0, row, distance, 'amin')
    terms = torch.exp(shift.gather(0, row) - distance)
    total = torch.zeros_like(shift).scatter_add_(0, row, terms)
    isolated = (count == 0).unsqueeze(1)
    return (total.log() - shift).masked_fill_(isolated, 0)


def log_degree_backward(
    topology: Topology,
    distance: Tensor,
    log_degree: Tensor,
    grad: Tensor,
    spread: Callable[[Topology, Tensor, bool], Tensor] = to_edges,
) -> Tensor:
    r"""The adjoint of :func:`log_degree`, :math:`-e^{-d_{ij}} (e^{-l_i} g_i +
    e^{-l_j} g_j)`, by a backend's :func:`to_edges`.
    """
    dtype = accumulate_type(distance.dtype)
    d, degree, g = (v.to(dtype) for v in (distance, log_degree, grad))
    if bool((degree < LEAST_LOG).any()):
        out = log_degree_shares(topology, d, degree, g)
    else:
        out = spread(topology, -g * torch.exp(-degree), False)
        out = out.mul_(d.neg().exp_())
    return out.to(distance.dtype)


def log_degree_shares(
    topology: Topology, distance: Tensor, log_degree: Tensor, grad: Tensor
) -> Tensor:
    """The adjoint of :func:`log_degree` without underflow, differentiable."""
    out = torch.zeros_like(distance)
    for end in (topology.src, topology.dst):
        share = torch.exp(-distance - log_degree.index_select(0, end))
        out = out - share * grad.index_select(0, end)
    return out
