"""What the unrolled solver layers share."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing

from pyg_unroll.graph import Topology
from pyg_unroll.layouts import resolve_graph
from pyg_unroll.ops.signal import Fidelity, MaskedSignal


class SmoothnessConv(MessagePassing):
    r"""Base class of layers that unroll the minimiser of a smoothness prior.

    It reads the graph and the signal, and combines the heads. It is a
    :class:`~torch_geometric.nn.conv.MessagePassing` so that PyG's tools
    recognise it; messages are never materialised, hence
    :meth:`propagate` is not used.

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
        if fidelity not in get_args(Fidelity):
            raise ValueError(
                f"'fidelity' must be one of {get_args(Fidelity)} (got "
                f'{fidelity!r})'
            )
        if not 0 < mu < float('inf'):
            raise ValueError(f"'mu' must be positive and finite (got {mu})")
        self.heads = heads
        self.fidelity: Fidelity = fidelity
        self.mu = mu
        self.validate_args = validate_args
        self.log_mu = torch.nn.Parameter(torch.empty(heads))
        self.head_logits = torch.nn.Parameter(torch.empty(heads))

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
        """Returns the signal, the graph and weights `[E, H]`."""
        signal = MaskedSignal.read(
            x, mask, confidence, self.fidelity, self.validate_args
        )
        topology, weight = resolve_graph(
            edge_index, edge_weight, x.size(0), x.dtype, self.validate_args
        )
        if weight.size(1) not in (1, self.heads):
            raise ValueError(
                f"'edge_weight' has {weight.size(1)} heads, but the layer has "
                f"{self.heads}; build it with 'heads={weight.size(1)}' or "
                f'give weights of shape [num_edges]'
            )
        return signal, topology, weight.expand(-1, self.heads)

    def _start(self, signal: MaskedSignal, warm_start: Tensor | None) -> Tensor:
        """Returns the initial estimate `[N, F, H]`."""
        x = signal.x
        if warm_start is not None:
            if warm_start.shape != x.shape[:2]:
                raise ValueError(
                    f"'warm_start' must have the shape of 'x', "
                    f'{list(x.shape[:2])} (got {list(warm_start.shape)})'
                )
            start = warm_start.to(x.dtype).unsqueeze(-1)
            free = signal.free
            x = start if free is None else torch.where(free, start, x)
        return x.expand(-1, -1, self.heads)

    def _combine(self, out: Tensor, signal: MaskedSignal) -> Tensor:
        """Averages the heads and restores held entries bit for bit."""
        if self.heads > 1:
            logits = self.head_logits.to(
                torch.promote_types(out.dtype, self.head_logits.dtype)
            )
            out = out @ logits.softmax(0).to(out.dtype)
        else:
            out = out.squeeze(-1)
        if signal.free is None:
            return out
        return torch.where(signal.free.squeeze(-1), out, signal.x.squeeze(-1))


def check_positive(name: str, value: int) -> None:
    """Raises a `ValueError` unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{name}' must be a positive integer (got {value!r})")


def check_spectrum(
    spectrum: tuple[float, float] | None, num_steps: int, order: int = 1
) -> tuple[float, float]:
    """Validates the interval of the initial coefficients, or chooses it."""
    if spectrum is None:
        # Low frequencies take many steps: aim only as low as K can reach.
        return 1 / max(num_steps, 2), 2.0**order
    lower, upper = spectrum
    if not 0 < lower < upper < float('inf'):
        raise ValueError(
            f"'spectrum' must be an interval (lower, upper) of positive "
            f'eigenvalues (got {spectrum})'
        )
    return lower, upper
