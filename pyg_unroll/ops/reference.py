r"""The graph operators in plain PyTorch: the oracle and the fallback.

Functions here know nothing of autograd: :mod:`.dispatch` holds the rules.
Half precision is accumulated in float32. Rows are reduced in CSR order, hence
results are deterministic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pyg_unroll.graph import Arrays


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


def to_edges(graph: Arrays, x: Tensor, signed: bool) -> Tensor:
    r""":math:`x_i - x_j` (:obj:`signed`) or :math:`x_i + x_j` per edge."""
    x = x.contiguous()  # PyTorch selects rows of strided tensors slowly
    out = x.index_select(0, graph.src)
    other = x.index_select(0, graph.dst)
    return out.sub_(other) if signed else out.add_(other)


def to_nodes(graph: Arrays, z: Tensor, signed: bool) -> Tensor:
    r""":math:`\sum_j \pm z_{ij}` (:obj:`signed`) or :math:`\sum_j z_{ij}`."""
    num_nodes, num_edges = graph.rowptr.size(0) - 1, z.size(0)
    dtype = accumulate_type(z.dtype)
    if z.numel() == 0:
        return z.new_zeros((num_nodes, *z.shape[1:]))
    _silence_beta_warning()
    value = graph.sign.to(dtype)
    incidence = torch.sparse_csr_tensor(
        graph.rowptr,
        graph.edge_id,
        value if signed else torch.ones_like(value),
        size=(num_nodes, num_edges),
        check_invariants=False,
    )
    out = incidence @ z.reshape(num_edges, -1).to(dtype)
    return out.to(z.dtype).view(num_nodes, *z.shape[1:])


def laplacian(graph: Arrays, weight: Tensor, x: Tensor) -> Tensor:
    r""":math:`\sum_j w_{ij} (x_i - x_j)` per node."""
    dtype = accumulate_type(x.dtype)
    flow = to_edges(graph, x.to(dtype), signed=True)
    flow.mul_(weight.to(dtype).unsqueeze(1))
    return to_nodes(graph, flow, signed=True).to(x.dtype)


def edge_dot(graph: Arrays, a: Tensor, b: Tensor) -> Tensor:
    r""":math:`\sum_f (a_i - a_j)_f (b_i - b_j)_f` per edge."""
    dtype = accumulate_type(a.dtype)
    da = to_edges(graph, a.to(dtype), signed=True)
    db = da if b is a else to_edges(graph, b.to(dtype), signed=True)
    return (da * db).sum(1).to(a.dtype)


# Sums of exponentials with a logarithm below this are computed again, shifted.
LEAST_LOG = math.log(1e-30)


def log_degree(
    graph: Arrays,
    distance: Tensor,
    add: Callable[[Arrays, Tensor, bool], Tensor] = to_nodes,
) -> Tensor:
    r""":math:`\log \sum_j \exp(-d_{ij})` per node, zero at isolated ones.

    Args:
        graph (Arrays): The graph.
        distance (torch.Tensor): :math:`d \ge 0`, :math:`(E, H)`.
        add (callable, optional): A backend's :func:`to_nodes`.

    Returns:
        One value per node and head, :math:`(N, H)`.
    """
    d = distance.to(accumulate_type(distance.dtype))
    out = add(graph, d.neg().exp_(), False).log_()
    low = (out < LEAST_LOG).any(1).nonzero().squeeze(1)
    if low.numel() > 0:
        out[low] = _shifted_log_degree(graph, d, low)
    return out.to(distance.dtype)


def _shifted_log_degree(graph: Arrays, d: Tensor, nodes: Tensor) -> Tensor:
    """The same at some nodes, without underflow: shifted by the smallest
    distance.
    """
    first, last = graph.rowptr[nodes].long(), graph.rowptr[nodes + 1].long()
    count = last - first
    row = torch.arange(len(nodes), device=d.device).repeat_interleave(count)
    entry = torch.arange(row.size(0), device=d.device)
    entry += (first - count.cumsum(0) + count)[row]
    distance = d[graph.edge_id[entry].long()]
    row = row.unsqueeze(1).expand_as(distance)
    shift = d.new_full((len(nodes), d.size(1)), float('inf'))
    shift.scatter_reduce_(0, row, distance, 'amin')
    terms = torch.exp(shift.gather(0, row) - distance)
    total = torch.zeros_like(shift).scatter_add_(0, row, terms)
    isolated = (count == 0).unsqueeze(1)
    return (total.log() - shift).masked_fill_(isolated, 0)


def log_degree_backward(
    graph: Arrays,
    distance: Tensor,
    log_degree: Tensor,
    grad: Tensor,
    spread: Callable[[Arrays, Tensor, bool], Tensor] = to_edges,
) -> Tensor:
    r"""The adjoint of :func:`log_degree`, :math:`-e^{-d_{ij}} (e^{-l_i} g_i +
    e^{-l_j} g_j)`.

    Args:
        graph (Arrays): The graph.
        distance (torch.Tensor): :math:`d`, :math:`(E, H)`.
        log_degree (torch.Tensor): :math:`l`, :math:`(N, H)`.
        grad (torch.Tensor): :math:`g`, :math:`(N, H)`.
        spread (callable, optional): A backend's :func:`to_edges`.

    Returns:
        One value per edge and head, :math:`(E, H)`.
    """
    dtype = accumulate_type(distance.dtype)
    d, degree, g = (v.to(dtype) for v in (distance, log_degree, grad))
    if not bool((degree < LEAST_LOG).any()):
        out = spread(graph, -g * torch.exp(-degree), False)
        return out.mul_(d.neg().exp_()).to(distance.dtype)
    out = torch.zeros_like(d)
    for end in (graph.src, graph.dst):
        share = torch.exp(-d - degree.index_select(0, end))
        out -= share.mul_(g.index_select(0, end))
    return out.to(distance.dtype)


def cg_step(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    x: Tensor,
    residual: Tensor,
    direction: Tensor,
    alpha: Tensor,
    beta: Tensor,
    alpha_next: Tensor,
) -> Tensor:
    r"""One step of conjugate gradients, :obj:`x` and :obj:`residual` in place.

    .. math::
        r &\leftarrow r - \alpha (L + \mathrm{diag}(c)) v

        v' &= D^{-1} r + \beta v

        x &\leftarrow x + \alpha' v'

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        diagonal (torch.Tensor): :math:`D`, infinite at held entries,
            :math:`(N, 1, H)` or :math:`(N, F, H)`.
        confidence (torch.Tensor or None): :math:`c`, of such a shape.
        x (torch.Tensor): Estimate :math:`(N, F, H)`.
        residual (torch.Tensor): :math:`r`, :math:`(N, F, H)`.
        direction (torch.Tensor): :math:`v`, :math:`(N, F, H)`.
        alpha (torch.Tensor): :math:`(H)`, of the step that is completed.
        beta (torch.Tensor): :math:`(H)`.
        alpha_next (torch.Tensor): :math:`\alpha'`, :math:`(H)`.

    Returns:
        The next direction :math:`v'`.
    """
    image = laplacian(graph, weight, direction)
    if confidence is not None:
        image += confidence * direction
    residual -= alpha * image
    new = residual / diagonal + beta * direction
    x += alpha_next * new
    return new


def cg_step_backward(
    graph: Arrays,
    weight: Tensor,
    diagonal: Tensor,
    confidence: Tensor | None,
    q: Tensor,
    direction: Tensor,
    previous: Tensor | None,
    grad_direction: Tensor,
    grad_x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    beta_previous: Tensor,
    grad_weight: Tensor,
    sum_diagonal: Tensor,
    sum_confidence: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The adjoint of :func:`cg_step`, from one step to the one before it.

    With :math:`q` the derivative by the residual after the step and :math:`g`
    that by the direction :math:`v'`:

    .. math::
        g &\leftarrow \beta g + \alpha (\partial x - A q)

        q' &= q + D^{-1} g

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        diagonal (torch.Tensor): As in :func:`cg_step`.
        confidence (torch.Tensor or None): As in :func:`cg_step`.
        q (torch.Tensor): :math:`(N, F, H)`.
        direction (torch.Tensor): :math:`v`, :math:`(N, F, H)`.
        previous (torch.Tensor or None): The direction before :math:`v`.
        grad_direction (torch.Tensor): :math:`g`, changed in place.
        grad_x (torch.Tensor): :math:`\partial x`, :math:`(N, F, H)`.
        alpha (torch.Tensor): :math:`(H)`.
        beta (torch.Tensor): :math:`(H)`.
        beta_previous (torch.Tensor): Of the step before, :math:`(H)`.
        grad_weight (torch.Tensor): Accumulates :math:`\partial w`.
        sum_diagonal (torch.Tensor): Accumulates :math:`-D \, \partial D`.
        sum_confidence (torch.Tensor or None): Accumulates
            :math:`\partial c`.

    Returns:
        :math:`q'`, and the derivatives by :obj:`alpha` and
        :obj:`beta_previous`, :math:`(H)`.
    """
    image = laplacian(graph, weight, q)
    if confidence is not None:
        image += confidence * q
    grad_weight -= alpha * edge_dot(graph, q, direction)
    if sum_confidence is not None:
        sum_confidence -= alpha * q * direction
    slope = grad_x - image
    grad_direction.mul_(beta).add_(alpha * slope)
    change, dot_beta = direction, torch.zeros_like(beta)
    if previous is not None:
        change = direction - beta_previous * previous
        dot_beta = (grad_direction * previous).sum((0, 1))
    sum_diagonal += grad_direction * change
    dot_alpha = (slope * direction).sum((0, 1))
    return q + grad_direction / diagonal, dot_alpha, dot_beta


def admm_step(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""The part of an iteration of ADMM along the edges.

    With the weighted gradient :math:`g = W B x`:

    .. math::
        p &= q + \rho_{-} g

        t &= g + a (\mathrm{shrink}(g + p / \rho, 1 / \rho) - g)

        b &= B^{\top} W (t - p / \rho), \qquad q' = p - \rho t

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        x (torch.Tensor): Estimate :math:`(N, F, H)`.
        dual (torch.Tensor): :math:`q`, :math:`(E, F, H)`.
        rho_previous (torch.Tensor): :math:`\rho_{-}`, the penalty of the
            iteration before (zero if :math:`q` is :math:`p`), :math:`(H)`.
        rho (torch.Tensor): Penalty, :math:`(H)`.
        relaxation (torch.Tensor): Over-relaxation :math:`a`, :math:`(H)`.

    Returns:
        The right-hand side :math:`b` and :math:`q'`.
    """
    *_, p, _, target = _edge_state(
        graph, weight, x, dual, rho_previous, rho, relaxation
    )
    flow = weight.unsqueeze(1) * (target - p / rho)
    return to_nodes(graph, flow, signed=True), p - rho * target


def admm_step_backward(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
    grad_b: Tensor,
    grad_dual: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""The adjoint of :func:`admm_step`.

    Args:
        graph (Arrays): The graph.
        weight (torch.Tensor): As in :func:`admm_step`, and so on.
        x (torch.Tensor): The same.
        dual (torch.Tensor): The same.
        rho_previous (torch.Tensor): The same.
        rho (torch.Tensor): The same.
        relaxation (torch.Tensor): The same.
        grad_b (torch.Tensor): Derivative by :math:`b`.
        grad_dual (torch.Tensor): Derivative by :math:`q'`.

    Returns:
        Derivatives by :obj:`x`, :obj:`weight`, :obj:`dual`,
        :obj:`rho_previous`, :obj:`rho` and :obj:`relaxation`.
    """
    w = weight.unsqueeze(1)
    d, flow, s, clamped, p, excess, target = _edge_state(
        graph, weight, x, dual, rho_previous, rho, relaxation
    )
    slope = to_edges(graph, grad_b, signed=True)
    grad_u = w * slope
    grad_target = grad_u - rho * grad_dual
    grad_s = torch.where(s == clamped, 0, relaxation * grad_target)
    grad_p = grad_dual + (grad_s - grad_u) / rho
    grad_flow = (1 - relaxation) * grad_target + grad_s + rho_previous * grad_p
    grad_weight = ((target - p / rho) * slope + grad_flow * d).sum(1)
    grad_rho = (
        grad_s * clamped / rho
        + (grad_u - grad_s) * p / rho**2
        - target * grad_dual
    )
    grad_x = to_nodes(graph, w * grad_flow, signed=True)
    sums = (grad_p * flow, grad_rho, grad_target * excess)
    grads = [value.sum((0, 1)) for value in sums]
    return grad_x, grad_weight, grad_p, grads[0], grads[1], grads[2]


def _edge_state(
    graph: Arrays,
    weight: Tensor,
    x: Tensor,
    dual: Tensor,
    rho_previous: Tensor,
    rho: Tensor,
    relaxation: Tensor,
) -> tuple[Tensor, ...]:
    d = to_edges(graph, x, signed=True)
    flow = weight.unsqueeze(1) * d
    p = dual + rho_previous * flow
    s = flow + p / rho
    clamped = s.clamp(-1 / rho, 1 / rho)
    excess = s - clamped - flow
    return d, flow, s, clamped, p, excess, flow + relaxation * excess
