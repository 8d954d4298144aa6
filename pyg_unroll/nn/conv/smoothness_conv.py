"""What the unrolled solver layers share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, get_args

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing

from pyg_unroll.checks import (
    can_read_values,
    check_between,
    check_choice,
    check_finite,
    check_positive,
    check_tensor,
)
from pyg_unroll.graph import Topology
from pyg_unroll.layouts import resolve_graph
from pyg_unroll.ops.samples import Samples
from pyg_unroll.ops.signal import Fidelity, MaskedSignal


class SmoothnessConv(MessagePassing):
    r"""Base class of layers that unroll the minimiser of a smoothness prior.

    It reads the graph and the signal, and combines the heads. It is a
    :class:`~torch_geometric.nn.conv.MessagePassing` so that PyG's tools
    recognise it, and edge masks of its explainers act on the weights;
    messages are never materialised, hence :meth:`propagate` is not used.

    Args:
        heads (int): Number of graphs :math:`H` used in parallel.
        fidelity (str): :obj:`'hard'` holds known entries, :obj:`'soft'`
            weighs them against the prior.
        mu (float): Initial weight of the prior where observations are noisy.
        validate_args (bool): Check the values of the inputs, too.
    """

    def __init__(
        self, heads: int, fidelity: Fidelity, mu: float, validate_args: bool
    ) -> None:
        super().__init__(aggr='add')
        check_positive('heads', heads)
        check_choice('fidelity', fidelity, get_args(Fidelity))
        check_between('mu', mu)
        self.heads = heads
        self.fidelity: Fidelity = fidelity
        self.mu = mu
        self.validate_args = validate_args
        self.log_mu = torch.nn.Parameter(torch.empty(heads))
        self.head_logits = torch.nn.Parameter(torch.empty(heads))

    @property
    @abstractmethod
    def num_hops(self) -> int:
        """How many edges away the layer looks."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        super().reset_parameters()
        with torch.no_grad():
            self.log_mu.fill_(math.log(self.mu))
            self.head_logits.zero_()

    def _read(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None,
        mask: Tensor | None,
        confidence: Tensor | None,
    ) -> tuple[MaskedSignal, Topology, Tensor]:
        """Returns the signal, the graph and weights `[E, H]`.

        Of samples with weights of their own, `[E, B * H]`.
        """
        samples = _read_samples(x, edge_weight, self.heads)
        signal = MaskedSignal.read(
            x,
            mask,
            confidence,
            self.fidelity,
            self.validate_args,
            samples=samples,
        )
        heads = None
        if samples.own_weights and edge_weight is not None:
            heads = edge_weight.size(2)
            edge_weight = edge_weight.transpose(0, 1).flatten(1)
        topology, weight = resolve_graph(
            edge_index, edge_weight, x.size(-2), x.dtype, self.validate_args
        )
        if self.explain and self._edge_mask is not None:
            weight = weight * self._explainer_mask(topology)
        heads = weight.size(1) if heads is None else heads
        weight = weight.unflatten(1, (samples.num_groups, heads))
        if weight.size(2) not in (1, self.heads):
            raise ValueError(
                f"'edge_weight' has {weight.size(2)} heads, but the layer has "
                f"{self.heads}; build it with 'heads={weight.size(2)}' or "
                f'give weights of shape [num_edges]'
            )
        return signal, topology, weight.expand(-1, -1, self.heads).flatten(1)

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

    def _start(self, signal: MaskedSignal, warm_start: Tensor | None) -> Tensor:
        """Returns the initial estimate `[N, F, H]`."""
        x, samples = signal.x, signal.samples
        if warm_start is not None:
            shape = samples.unfold(samples.first_heads(x)).shape
            check_tensor('warm_start', warm_start, str(list(shape)))
            if warm_start.shape != shape:
                raise ValueError(
                    f"'warm_start' must have the shape of 'x', "
                    f'{list(shape)} (got {list(warm_start.shape)})'
                )
            if self.validate_args and can_read_values():
                check_finite('warm_start', warm_start)
            start = samples.fold(warm_start.to(x.dtype))
            free = signal.free
            x = start if free is None else torch.where(free, start, x)
        return x.expand(-1, -1, samples.num_groups * self.heads)

    def _combine(self, out: Tensor, signal: MaskedSignal) -> Tensor:
        """Averages the heads and restores held entries bit for bit."""
        samples = signal.samples
        out = out.unflatten(2, (samples.num_groups, self.heads))
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
            free, x = map(samples.first_heads, (signal.free, signal.x))
            out = torch.where(free, out, x)
        return samples.unfold(out)


def _read_samples(x: Tensor, edge_weight: Tensor | None, heads: int) -> Samples:
    is_batch = isinstance(x, Tensor) and x.dim() == 3
    count = x.size(0) if is_batch else None
    features = x.size(2) if is_batch else 0
    if not isinstance(edge_weight, Tensor) or edge_weight.dim() != 3:
        return Samples(count, heads, num_features=features)
    if edge_weight.size(0) != count:
        raise ValueError(
            f"'edge_weight' holds weights of {edge_weight.size(0)} samples, "
            f"[samples, num_edges, heads]; 'x' must then have shape "
            f'[{edge_weight.size(0)}, num_nodes, features] (got '
            f'{list(x.shape)})'
        )
    return Samples(count, heads, True, features)


def check_spectrum(
    spectrum: tuple[float, float] | None, num_steps: int, order: int = 1
) -> tuple[float, float]:
    """Validates the interval of the initial coefficients, or chooses it."""
    if spectrum is None:
        # Low frequencies take many steps: aim only as low as K can reach.
        return 1 / max(num_steps, 2), 2.0**order
    try:
        lower, upper = spectrum
        is_interval = 0 < lower < upper < float('inf')
    except (TypeError, ValueError):
        is_interval = False
    if not is_interval:
        raise ValueError(
            f"'spectrum' must be an interval (lower, upper) of positive "
            f'eigenvalues (got {spectrum!r})'
        )
    return lower, upper
