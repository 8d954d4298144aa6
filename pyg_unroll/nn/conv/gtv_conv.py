"""Unrolled ADMM on graph total variation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from pyg_unroll.checks import (
    can_read_values,
    check_between,
    check_positive,
    check_tensor,
)
from pyg_unroll.graph import Topology
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv, check_spectrum
from pyg_unroll.ops import degree
from pyg_unroll.ops.admm import TotalVariation, admm_step
from pyg_unroll.ops.replay import DualReplay
from pyg_unroll.ops.signal import Fidelity
from pyg_unroll.ops.system import chebyshev_coefficients


class GTVConv(SmoothnessConv):
    r"""Interpolates or denoises a signal by unrolled ADMM on graph total
    variation (GTV), from the `"Interpretable Lightweight Transformer via
    Unrolling of Learned Graph Smoothness Priors"
    <https://arxiv.org/abs/2406.04090>`_ paper.

    With a mask and :obj:`fidelity='hard'`, known entries :math:`y` are held
    and the layer approaches

    .. math::
        \mathbf{x}^{\prime} = \arg\min_{\mathbf{z}} \sum_{\{i,j\}} w_{ij}
        |z_i - z_j| \quad \textrm{s.t.} \quad
        \mathbf{z}_{\textrm{known}} = \mathbf{y}.

    Without a mask, or with :obj:`fidelity='soft'`, known entries are noisy
    observations of confidence :math:`c_i` and it approaches

    .. math::
        \mathbf{x}^{\prime} = \arg\min_{\mathbf{z}} \sum_i c_i (z_i - x_i)^2
        + \mu \sum_{\{i,j\}} w_{ij} |z_i - z_j|.

    Each of the :math:`T` iterations takes one soft threshold on the edges,
    :math:`K` conjugate-gradient-like steps on the Laplacian of
    :math:`w_{ij}^2`, and one dual ascent (see
    :func:`pyg_unroll.ops.reference.admm.admm_step`); penalty
    :math:`\rho`, over-relaxation and step sizes are learned per iteration and
    head. The paper writes the same minimiser as a linear programme with slack
    variables; both have the same optimum.

    .. note::
        This is not the layer of `"Total Variation Graph Neural Networks"
        <https://arxiv.org/abs/2211.06218>`_, which is called
        :obj:`GTVConv` elsewhere.

    Args:
        num_iters (int): Number of iterations :math:`T`.
        num_steps (int, optional): Steps :math:`K` in each iteration.
            (default: :obj:`4`)
        heads (int, optional): Number of graphs :math:`H` used in parallel,
            whose results are averaged with learned weights that sum to one.
            (default: :obj:`1`)
        fidelity (str, optional): :obj:`'hard'` or :obj:`'soft'`; without a
            mask there is no difference. (default: :obj:`'hard'`)
        mu (float, optional): Initial weight :math:`\mu` of the prior, learned
            per head; unused where known entries are held.
            (default: :obj:`1.0`)
        rho (float, optional): Initial penalty. About the inverse of a typical
            weighted difference :math:`w_{ij} |x_i - x_j|`: the default suits
            signals and weights of unit scale. (default: :obj:`2.0`)
        relaxation (float, optional): Initial over-relaxation, in
            :math:`(0, 2)`. (default: :obj:`1.0`)
        spectrum (tuple[float, float], optional): Interval of eigenvalues that
            the initial coefficients are made for.
            (default: :math:`(1 / \max(K, 2), 2)`)
        checkpoint (bool, optional): Keep nothing of the inner steps but
            their start, and run them again instead: less memory for more
            time. The dual variable is not kept for the derivative, but
            computed again (see :obj:`pyg_unroll.ops.replay.DualReplay`),
            except under :meth:`torch.compile`.
            (default: :obj:`False`)
        validate_args (bool, optional): Check the values of the inputs: finite
            signal, non-negative and symmetric weights. Costs a pass over the
            edges and, on CUDA, a synchronisation. (default: :obj:`True`)

    Shapes:
        - **input:**
          node signals :math:`(|\mathcal{V}|, F)` or, of several samples on
          one graph, :math:`(B, |\mathcal{V}|, F)`,
          undirected edge indices :math:`(2, |\mathcal{E}|)` or any layout
          that :func:`~pyg_unroll.layouts.resolve_graph` takes,
          symmetric edge weights :math:`(|\mathcal{E}|)` or
          :math:`(|\mathcal{E}|, H)`, or of each sample
          :math:`(B, |\mathcal{E}|, H)` *(optional)*,
          mask, True where known, :math:`(|\mathcal{V}|)`,
          :math:`(|\mathcal{V}|, F)` or :math:`(B, |\mathcal{V}|, F)`
          *(optional)*
        - **output:** node signals of the shape of the input, and with
          :obj:`return_state=True` the dual variable
          :math:`(|\mathcal{E}| / 2, F, H)` or
          :math:`(B, |\mathcal{E}| / 2, F, H)`

    Raises:
        ValueError: If an argument has a wrong shape, type or value; the
            message says how to mend it.
    """

    def __init__(
        self,
        num_iters: int,
        num_steps: int = 4,
        heads: int = 1,
        fidelity: Fidelity = 'hard',
        mu: float = 1.0,
        rho: float = 2.0,
        relaxation: float = 1.0,
        spectrum: tuple[float, float] | None = None,
        checkpoint: bool = False,
        validate_args: bool = True,
    ) -> None:
        super().__init__(heads, fidelity, mu, validate_args)
        check_positive('num_iters', num_iters)
        check_positive('num_steps', num_steps)
        check_between('rho', rho)
        check_between('relaxation', relaxation, high=2.0)
        self.num_iters = num_iters
        self.num_steps = num_steps
        self.rho = rho
        self.checkpoint = checkpoint
        self.relaxation = relaxation
        self.spectrum = check_spectrum(spectrum, num_steps)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(num_iters, *shape, heads))

        self.log_rho = parameter()
        self.relaxation_logit = parameter()
        self.alpha = parameter(num_steps)
        self.beta = parameter(num_steps - 1)
        self.reset_parameters()

    @property
    def num_hops(self) -> int:
        """How many edges away the layer looks."""
        # Differences are taken, shrunk and summed before each solve.
        return self.num_iters * (self.num_steps + 2)

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        super().reset_parameters()
        alpha, beta = chebyshev_coefficients(self.num_steps, *self.spectrum)
        share = self.relaxation / 2
        with torch.no_grad():
            self.log_rho.fill_(math.log(self.rho))
            self.relaxation_logit.fill_(math.log(share / (1 - share)))
            self.alpha.copy_(alpha.unsqueeze(-1))
            self.beta.copy_(beta.unsqueeze(-1))

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = ...,
        mask: Tensor | None = ...,
        confidence: Tensor | None = ...,
        warm_start: Tensor | None = ...,
        state: Tensor | None = ...,
        return_state: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = ...,
        mask: Tensor | None = ...,
        confidence: Tensor | None = ...,
        warm_start: Tensor | None = ...,
        state: Tensor | None = ...,
        *,
        return_state: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = None,
        mask: Tensor | None = None,
        confidence: Tensor | None = None,
        warm_start: Tensor | None = None,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""Runs the layer.

        Args:
            x (torch.Tensor): Observations; unknown entries are the start.
            edge_index (torch.Tensor, EdgeIndex, SparseTensor or Topology):
                The undirected graph.
            edge_weight (torch.Tensor, optional): Symmetric weights, all ones
                if :obj:`None`. (default: :obj:`None`)
            mask (torch.Tensor, optional): True where known.
                (default: :obj:`None`)
            confidence (torch.Tensor, optional): Weights :math:`c_i \ge 0` of
                noisy observations, of the shape of a mask.
                (default: :obj:`None`)
            warm_start (torch.Tensor, optional): Start of the iteration if it
                is not :obj:`x`, of the same shape. (default: :obj:`None`)
            state (torch.Tensor, optional): Dual variable that a layer before
                returned for the same edges. (default: :obj:`None`)
            return_state (bool, optional): Return the dual variable, too: near
                :math:`\pm 1` on edges across which the signal jumps.
                (default: :obj:`False`)
        """
        signal, topology, weight = self._read(
            x, edge_index, edge_weight, mask, confidence
        )
        if self.validate_args and can_read_values():
            _check_squares(topology, weight)
        samples, tile = signal.samples, signal.tile
        mu = tile(self.log_mu.exp())
        problem = TotalVariation(
            topology, weight, signal.x, signal.confidence, signal.free, mu
        )
        out = self._start(signal, warm_start)
        shape = (*x.shape[:-2], topology.num_edges, x.size(-1), self.heads)
        if state is not None:
            check_tensor('state', state, str(list(shape)))
        if state is None:
            dual = out.new_zeros((topology.num_edges, *out.shape[1:]))
        elif state.shape == shape:
            dual = samples.fold_edges(state.to(x.dtype))
        else:
            raise ValueError(
                f"'state' must have shape {list(shape)}: undirected "
                f'edges, features, heads (got {list(state.shape)})'
            )
        rho = tile(self.log_rho.exp())
        relaxation = tile(2 * self.relaxation_logit.sigmoid())
        alpha, beta = tile(self.alpha), tile(self.beta)
        step: Callable[..., tuple[Tensor, Tensor]] = partial(
            admm_step, topology, weight
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            step = DualReplay(topology, weight, dual).step
        # Between iterations, `dual` lacks the penalty times the new gradient.
        previous = torch.zeros_like(rho[0])
        for t in range(self.num_iters):
            b, dual = step(out, dual, previous, rho[t], relaxation[t])
            system = problem.system(rho[t])
            if system.confidence is not None:
                b = b + system.confidence * signal.x
            out = system.iterate(out, b, alpha[t], beta[t], self.checkpoint)
            previous = rho[t]
        if return_state:
            dual = dual + previous * problem.gradient(out)
        out = self._combine(out, signal)
        return (out, samples.unfold_edges(dual)) if return_state else out

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_iters={self.num_iters}, '
            f'num_steps={self.num_steps}, heads={self.heads}, '
            f'fidelity={self.fidelity!r})'
        )


def _check_squares(topology: Topology, weight: Tensor) -> None:
    """Squared weights, summed and times a signal, must not overflow."""
    with torch.no_grad():
        total = degree(topology, weight.square())
    if not bool((total < torch.finfo(weight.dtype).max / 16).all()):
        raise ValueError(
            f"'edge_weight' is too large for {weight.dtype} (got up to "
            f'{float(weight.amax()):.1e}): the squares of a node are summed '
            f'and overflow; divide it by its maximum'
        )
