"""The base class of the unrolled solver layers."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj

from pyg_unroll import checks, inputs
from pyg_unroll.graph import Topology, resolve_graph
from pyg_unroll.inputs import BatchLayout, Fidelity, Observations
from pyg_unroll.ops.cg import chebyshev_coefficients


class Iterate(NamedTuple):
    r"""The state of a solver layer after some of its steps.

    Attributes:
        x (torch.Tensor): The average of the heads, which the layer would
            return here, of the shape of its input.
        heads (torch.Tensor): The estimate of each head :math:`(N, F, H)` or
            :math:`(B, N, F, H)`.
        state (torch.Tensor or None): The dual variable of
            :class:`~pyg_unroll.nn.GTVConv`, :math:`(E, F, H)` or
            :math:`(B, E, F, H)`.
    """

    x: Tensor
    heads: Tensor
    state: Tensor | None


class Problem(NamedTuple):
    """The problem that a layer solves, of arguments that are checked."""

    signal: Observations
    topology: Topology
    weight: Tensor  # [E, H]; of samples with weights of their own [E, B H]
    start: Tensor  # [N, F, H]
    state: Tensor | None  # as it was given


class Run(Protocol):
    """The iteration of a layer on a problem."""

    def finish(self) -> Tensor:
        """Takes all steps at once; returns the estimate `[N, F, H]`."""

    def steps(self) -> Iterator[Tensor]:
        """Yields the start and the estimates after each step."""

    def state(self) -> Tensor | None:
        """The state after the steps taken so far."""


class SmoothnessConv(MessagePassing):
    r"""Base class of layers that unroll the minimiser of a smoothness prior.

    It reads the graph and the signal, and combines the heads. It is a
    :class:`~torch_geometric.nn.conv.MessagePassing` so that PyG's tools
    recognise it, and edge masks of its explainers act on the weights;
    messages are never materialised, hence :meth:`propagate` is not used.

    Its arguments are those of :class:`~pyg_unroll.nn.GLRConv`, and the largest
    eigenvalue that the initial coefficients are made for.
    """

    head_logits: Tensor
    _checks: ClassVar[checks.Checks] = {
        'num_steps': checks.check_positive,
        'heads': checks.check_positive,
        'fidelity': checks.one_of('hard', 'soft'),
        'mu': checks.check_between,
    }

    def __init__(
        self,
        num_steps: int,
        largest: float,
        heads: int = 1,
        fidelity: Fidelity = 'hard',
        mu: float = 1.0,
        spectrum: tuple[float, float] | None = None,
        checkpoint: bool = False,
        validate_args: bool = True,
    ) -> None:
        checks.check_parameters(self._checks, locals())
        super().__init__(aggr='add')
        self.num_steps = num_steps
        self.heads = heads
        self.fidelity: Fidelity = fidelity
        self.mu = mu
        if spectrum is None:
            # Low frequencies take many steps: aim only as low as K can reach.
            spectrum = 1 / max(num_steps, 2), largest
        self.spectrum = _read_interval(spectrum)
        self.checkpoint = checkpoint
        self.validate_args = validate_args
        self.log_mu = torch.nn.Parameter(torch.empty(heads))
        logits = torch.empty(heads)
        if heads > 1:
            self.head_logits = torch.nn.Parameter(logits)
        else:  # the share of an only head is one
            self.register_buffer('head_logits', logits)

    def _add_coefficients(self, *iterations: int) -> None:
        """Adds step sizes and momenta, also one more set per iteration."""
        shape = *iterations, self.num_steps, self.heads
        self.alpha = torch.nn.Parameter(torch.empty(shape))
        shape = *iterations, self.num_steps - 1, self.heads
        self.beta = torch.nn.Parameter(torch.empty(shape))

    def _read_coefficients(self, signal: Observations) -> tuple[Tensor, Tensor]:
        """Step sizes and momenta, for all samples."""
        alpha: Tensor = self.alpha
        if signal.confidence is None:
            # Held entries leave `log_mu` unused. Its gradient is zero then: a
            # missing one is an error where several processes train a model.
            alpha = alpha + 0 * self.log_mu
        return signal.tile(alpha), signal.tile(self.beta)

    @property
    @abstractmethod
    def receptive_field(self) -> int:
        """Number of hops from which an entry can matter."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        super().reset_parameters()
        alpha, beta = chebyshev_coefficients(self.num_steps, *self.spectrum)
        with torch.no_grad():
            self.log_mu.fill_(math.log(self.mu))
            self.head_logits.zero_()
            self.alpha.copy_(alpha.unsqueeze(-1))
            self.beta.copy_(beta.unsqueeze(-1))

    def forward(
        self,
        x: Tensor,
        edge_index: Adj | Topology,
        edge_weight: Tensor | None = None,
        mask: Tensor | None = None,
        confidence: Tensor | None = None,
        warm_start: Tensor | None = None,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
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
            state (torch.Tensor, optional): Dual variable that a
                :class:`~pyg_unroll.nn.GTVConv` before returned for the same
                edges. (default: :obj:`None`)
            return_state (bool, optional): Return the state, too, as
                :meth:`solve` does. (default: :obj:`False`)
        """
        problem = self.read(
            x, edge_index, edge_weight, mask, confidence, warm_start, state
        )
        run = self._run(problem)
        out = self._combine(run.finish(), problem.signal)
        return (out, run.state()) if return_state else out

    def solve(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Runs the layer with the arguments of :meth:`forward`.

        Returns:
            The estimate, and the state to pass on to the next layer, which is
            :obj:`None` for a layer without one.
        """
        out: tuple[Tensor, Tensor | None] = self(
            *args, **kwargs, return_state=True
        )
        return out

    def iterates(self, *args: Any, **kwargs: Any) -> Iterator[Iterate]:
        """Yields the start and the :class:`Iterate` after each step, with the
        arguments of :meth:`forward`; the last one is the result, to the bit.
        Derivatives of the steps are not recorded.
        """
        problem = self.read(*args, **kwargs)
        signal, run = problem.signal, self._run(problem)
        for out in run.steps():
            heads = out
            if signal.free is not None:  # as held entries come out
                heads = torch.where(signal.free, out, signal.x)
            yield Iterate(
                self._combine(out, signal),
                signal.layout.unfold_heads(heads),
                run.state(),
            )

    @abstractmethod
    def _run(self, problem: Problem) -> Run:
        """The iteration on a problem."""

    def read(
        self,
        x: Any,
        edge_index: Any,
        edge_weight: Any = None,
        mask: Any = None,
        confidence: Any = None,
        warm_start: Any = None,
        state: Any = None,
    ) -> Problem:
        """Checks the arguments of :meth:`forward`."""
        if isinstance(x, tuple):
            raise ValueError(
                "'x' must be one tensor (got 'tuple'): the layer smooths a "
                'signal on one set of nodes and has no bipartite form; give '
                "relations between node types another layer in 'HeteroConv', "
                "or join the types by 'data.to_homogeneous()'"
            )
        layout = _batch_layout(x, edge_weight, self.heads)
        has_samples, validate = layout.count is not None, self.validate_args
        signal = inputs.read_signal(
            x, mask, confidence, samples=has_samples, validate_args=validate
        )
        if validate:
            inputs.check_start(x)
        observations = Observations.of(signal, self.fidelity, layout)
        weight = edge_weight
        has_own = isinstance(weight, Tensor) and weight.dim() == 3
        if has_own:
            weight = edge_weight.transpose(0, 1).flatten(1)
        topology, weight = resolve_graph(
            edge_index, weight, x.size(-2), x.dtype, validate
        )
        if self.explain and self._edge_mask is not None:
            weight = weight * self._explainer_mask(topology)
        heads = edge_weight.size(2) if has_own else weight.size(1)
        weight = weight.unflatten(1, (layout.num_groups, heads))
        if heads not in (1, self.heads):
            raise ValueError(
                f"'edge_weight' has {heads} heads, but the layer has "
                f"{self.heads}; build it with 'heads={heads}' or "
                f'give weights of shape [num_edges]'
            )
        weight = weight.expand(-1, -1, self.heads).flatten(1)
        start = self._start(observations, warm_start)
        return Problem(observations, topology, weight, start, state)

    def _explainer_mask(self, topology: Topology) -> Tensor:
        """The mask that an explainer of PyG set, per edge `[E, 1]`.

        It has a value for each direction; their mean keeps the Laplacian
        symmetric.
        """
        mask = self._edge_mask
        if mask.size(0) != 2 * topology.num_edges:
            raise ValueError(
                f"the explainer's edge mask has {mask.size(0)} entries, but "
                f'the graph of the layer {2 * topology.num_edges} columns; '
                f"explain a model that gives its layers the 'edge_index' it "
                f'is called with'
            )
        if self._apply_sigmoid:
            mask = mask.sigmoid()
        return topology.undirected_weight(mask, validate_args=False)

    def _start(self, signal: Observations, warm_start: Tensor | None) -> Tensor:
        """Returns the initial estimate `[N, F, H]`."""
        x, layout = signal.x, signal.layout
        if warm_start is not None:
            shape = layout.unfold(layout.first_heads(x)).shape
            checks.check_shape('warm_start', warm_start, shape, note=", as 'x'")
            if self.validate_args and checks.can_read_values(warm_start):
                checks.check_finite('warm_start', warm_start)
            start = layout.fold(warm_start.to(x.dtype))
            free = signal.free
            x = start if free is None else torch.where(free, start, x)
        return x.expand(-1, -1, layout.num_groups * self.heads)

    def _combine(self, out: Tensor, signal: Observations) -> Tensor:
        """Averages the heads and restores held entries bit for bit."""
        layout = signal.layout
        out = out.unflatten(2, (layout.num_groups, self.heads))
        if self.heads > 1:
            logits = self.head_logits.to(
                torch.promote_types(out.dtype, self.head_logits.dtype)
            )
            # Autocast would take the product in half precision.
            with torch.autocast(out.device.type, enabled=False):
                out = out @ logits.softmax(0).to(out.dtype)
        else:
            out = out.squeeze(-1)
        if signal.free is not None:
            free, x = map(layout.first_heads, (signal.free, signal.x))
            out = torch.where(free, out, x)
        return layout.unfold(out)


def _batch_layout(
    x: Tensor, edge_weight: Tensor | None, heads: int
) -> BatchLayout:
    is_batch = isinstance(x, Tensor) and x.dim() == 3
    count, features = (x.size(0), x.size(2)) if is_batch else (None, 0)
    if not isinstance(edge_weight, Tensor) or edge_weight.dim() != 3:
        return BatchLayout(count, heads, num_features=features)
    if edge_weight.size(0) != count:
        raise ValueError(
            f"'edge_weight' holds weights of {edge_weight.size(0)} samples, "
            f"[samples, num_edges, heads]; 'x' must then have shape "
            f'[{edge_weight.size(0)}, num_nodes, features] (got '
            f'{list(x.shape)})'
        )
    # A single sample needs no copy of its signal for each head.
    return BatchLayout(count, heads, count != 1, features)


def _read_interval(spectrum: Any) -> tuple[float, float]:
    try:
        lower, upper = spectrum
        if 0 < lower < upper < float('inf'):
            return lower, upper
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"'spectrum' must be an interval (lower, upper) of positive "
        f'eigenvalues (got {spectrum!r})'
    )
