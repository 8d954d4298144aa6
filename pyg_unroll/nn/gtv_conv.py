"""Unrolled ADMM on graph total variation."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyg_unroll import checks
from pyg_unroll.graph import Topology
from pyg_unroll.nn.smoothness_conv import Problem, Run, SmoothnessConv
from pyg_unroll.ops import admm, degree


class GTVConv(SmoothnessConv):
    r"""Interpolates or denoises a signal by unrolled ADMM on graph total
    variation (GTV), from the `"Interpretable Lightweight Transformer via
    Unrolling of Learned Graph Smoothness Priors"
    <https://arxiv.org/abs/2406.04090>`_ paper.

    Under :meth:`torch.compile` no values are checked: give a
    :class:`~pyg_unroll.graph.Topology`, which checks its edges where it is
    built, and see that weights are symmetric, finite and non-negative, and
    signals finite.

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
    variables; both have the same optimum. Options after :obj:`heads` are
    given by keyword.

    .. note::
        This is not the layer of `"Total Variation Graph Neural Networks"
        <https://arxiv.org/abs/2211.06218>`_, which is called
        :obj:`GTVConv` elsewhere.

    Args:
        num_iters (int): Number of iterations :math:`T`.
        num_steps (int, optional): Steps :math:`K` in each iteration.
            (default: :obj:`4`)
        heads (int, optional): See :class:`GLRConv`. (default: :obj:`1`)
        fidelity (str, optional): The same. (default: :obj:`'hard'`)
        mu (float, optional): The same. (default: :obj:`1.0`)
        rho (float, optional): Initial penalty. About the inverse of a typical
            weighted difference :math:`w_{ij} |x_i - x_j|`: the default suits
            signals and weights of unit scale. (default: :obj:`2.0`)
        spectrum (tuple[float, float], optional): Interval of eigenvalues that
            the initial coefficients are made for.
            (default: :math:`(1 / \max(K, 2), 2)`)
        checkpoint (bool, optional): Keep the state of every
            :math:`\sqrt{T}`-th iteration only, and run those between again
            for the derivative: less than half of the memory at
            :math:`T = 16`, for a third more time. (default: :obj:`False`)
        validate_args (bool, optional): See :class:`GLRConv`.
            (default: :obj:`True`)

    Shapes:
        - **input:** as that of :class:`GLRConv`
        - **output:** node signals of the shape of the input, and with
          :obj:`return_state=True` the dual variable
          :math:`(|\mathcal{E}| / 2, F, H)` or
          :math:`(B, |\mathcal{E}| / 2, F, H)`, near :math:`\pm 1` on edges
          across which the signal jumps

    Raises:
        ValueError: If an argument has a wrong shape, type or value; the
            message says how to mend it.
    """

    def __init__(
        self,
        num_iters: int,
        num_steps: int = 4,
        heads: int = 1,
        *,
        rho: float = 2.0,
        **kwargs: Any,
    ) -> None:
        checks.check_positive('num_iters', num_iters)
        checks.check_between('rho', rho)
        super().__init__(num_steps, 2.0, heads, **kwargs)
        self.num_iters = num_iters
        self.rho = rho
        shape = num_iters, heads
        self.log_rho = torch.nn.Parameter(torch.empty(shape))
        self.relaxation_logit = torch.nn.Parameter(torch.empty(shape))
        self._add_coefficients(num_iters)
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Number of hops from which an entry can matter."""
        # Differences are taken, shrunk and summed before each solve.
        return self.num_iters * (self.num_steps + 2)

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        super().reset_parameters()
        with torch.no_grad():
            self.log_rho.fill_(math.log(self.rho))
            self.relaxation_logit.zero_()  # an over-relaxation of one

    def _run(self, problem: Problem) -> Run:
        if self.validate_args and checks.can_read_values(problem.weight):
            _check_squares(problem.topology, problem.weight)
        return _ADMM(self, problem)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_iters={self.num_iters}, '
            f'num_steps={self.num_steps}, heads={self.heads}, '
            f'fidelity={self.fidelity!r})'
        )


class _ADMM:
    """The iterations of a layer on a problem.

    Between iterations, the dual variable lacks the penalty times the new
    gradient, which the next pass over the edges adds.
    """

    def __init__(self, layer: GTVConv, problem: Problem) -> None:
        signal, topology, weight, self.out, state = problem
        tile, self.layout = signal.tile, signal.layout
        self.problem = admm.TotalVariation(
            topology,
            weight,
            signal.x,
            signal.confidence,
            signal.free,
            tile(layer.log_mu.exp()),
        )
        self.dual = None
        if state is not None:
            samples = [] if self.layout.count is None else [self.layout.count]
            features = self.layout.num_features or self.out.size(1)
            shape = [*samples, topology.num_edges, features, layer.heads]
            note = ': undirected edges, features, heads'
            checks.check_shape('state', state, shape, note=note)
            self.dual = self.layout.fold_heads(state.to(self.out.dtype))
        self.coefficients = admm.Coefficients(
            tile(layer.log_rho.exp()),
            tile(2 * layer.relaxation_logit.sigmoid()),
            *layer._read_coefficients(signal),
        )
        self.penalty = torch.zeros_like(self.coefficients.rho[0])
        self.checkpoint = layer.checkpoint

    def finish(self) -> Tensor:
        start = self.problem, self.out, self.dual
        self.out, self.dual = admm.admm_steps(
            *start, self.coefficients, self.checkpoint
        )
        self.penalty = self.coefficients.rho[-1]
        return self.out

    def steps(self) -> Iterator[Tensor]:
        yield self.out
        start = self.problem, self.out, self.dual
        iterates = admm.admm_iterates(*start, self.coefficients)
        for state, rho in zip(iterates, self.coefficients.rho, strict=True):
            (self.out, self.dual), self.penalty = state, rho
            yield self.out

    def state(self) -> Tensor:
        dual = self.penalty * self.problem.gradient(self.out)
        if self.dual is not None:
            dual = self.dual + dual
        return self.layout.unfold_heads(dual)


def _check_squares(topology: Topology, weight: Tensor) -> None:
    """Squared weights, summed and times a signal, must not overflow."""
    limit = torch.finfo(weight.dtype).max / 16
    with torch.no_grad():
        square = weight.square()
        total = square.sum()  # a bound that is fast to have
        if not bool(total < limit):
            total = degree(topology, square)
    if not bool((total < limit).all()):
        raise ValueError(
            f"'edge_weight' is too large for {weight.dtype} (got up to "
            f'{float(weight.amax()):.1e}): the squares of a node are summed '
            f'and overflow; divide it by its maximum'
        )
