"""Calls of solver layers, recorded while a model runs, and their steps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.graph import Topology, edges_of
from pyg_unroll.nn import GLRConv, GTVConv
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv
from pyg_unroll.nn.models.image_restoration import ImageRestoration
from pyg_unroll.ops.signal import MaskedSignal


@dataclass(frozen=True, eq=False)
class Step:
    r"""The state of a layer after some of its steps.

    Attributes:
        heads (torch.Tensor): Signal of each head :math:`(N, F, H)`.
        combined (torch.Tensor): Their average :math:`(N, F)`, which the layer
            would return here.
        dual (torch.Tensor or None): Dual variable of
            :class:`~pyg_unroll.nn.GTVConv`, :math:`(E, F, H)`.
    """

    heads: Tensor
    combined: Tensor
    dual: Tensor | None


@dataclass(frozen=True, eq=False)
class LayerCall:
    r"""One call of a solver layer.

    Attributes:
        name (str): Name of the layer in the model.
        layer (GLRConv or GTVConv): The layer.
        arguments (dict): Its arguments, by name.
        output (torch.Tensor): Its result.
        signal (MaskedSignal): What it read of the arguments.
        topology (Topology): Its graph.
        weight (torch.Tensor): Its edge weights :math:`(E, H)`.
    """

    name: str
    layer: GLRConv | GTVConv
    arguments: dict[str, Any]
    output: Tensor
    signal: MaskedSignal
    topology: Topology
    weight: Tensor

    @property
    def shares(self) -> Tensor:
        """Share of each head in the result :math:`(H)`, float64."""
        return self.layer.head_logits.detach().double().softmax(0)

    @torch.no_grad()
    def steps(self) -> Iterator[Step]:
        """The start and what the layer has after each step.

        The layer itself is run again, with its first coefficients only, hence
        the last step is its result to the bit.
        """
        layer, signal = self.layer, self.signal
        start = layer._start(signal, self.arguments.get('warm_start'))
        dual = self.arguments.get('state')
        if isinstance(layer, GTVConv):
            shape = self.topology.num_edges, start.size(1), layer.heads
            dual = start.new_zeros(shape) if dual is None else dual.view(shape)
        combined = layer._combine(start, signal).view(start.shape[:2])
        yield Step(start, combined, dual)
        total = layer.alpha.size(0)
        for number in range(1, total + 1):
            yield self._run(number)

    def _run(self, number: int) -> Step:
        part = _first_steps(self.layer, number)
        kept: list[Tensor] = []
        combine = part._combine

        def keep(out: Tensor, signal: MaskedSignal) -> Tensor:
            kept.append(out)
            return combine(out, signal)

        part._combine = keep  # type: ignore[method-assign]
        arguments, dual = self.arguments, None
        if isinstance(part, GTVConv):
            out, dual = part(**{**arguments, 'return_state': True})
            dual = dual.view(self.topology.num_edges, -1, part.heads)
        else:
            out = part(**arguments)
        heads = kept[0]
        if self.signal.free is not None:  # as held entries come out
            heads = torch.where(self.signal.free, heads, self.signal.x)
        return Step(heads, out.view(heads.shape[:2]), dual)


def _first_steps(layer: GLRConv | GTVConv, number: int) -> GLRConv | GTVConv:
    """A copy of the layer that stops after some steps or iterations."""
    part = copy.deepcopy(layer)
    part.validate_args = False
    if isinstance(part, GTVConv):
        part.num_iters = number
        names = ('log_rho', 'relaxation_logit', 'alpha', 'beta')
        lengths = dict.fromkeys(names, number)
    else:
        part.num_steps = number
        lengths = {'alpha': number, 'beta': number - 1}
    for name, length in lengths.items():
        value = getattr(part, name)[:length]
        setattr(part, name, torch.nn.Parameter(value))
    return part


@torch.no_grad()
def record_calls(model: torch.nn.Module, data: Data) -> list[LayerCall]:
    r"""Runs a model and records the calls of its solver layers.

    Args:
        model (torch.nn.Module): A model that is called as
            :obj:`model(data)`, with layers :class:`~pyg_unroll.nn.GLRConv`
            or :class:`~pyg_unroll.nn.GTVConv`, or one of these; it is then
            given :obj:`x`, :obj:`edge_index`, and the data's
            :obj:`edge_weight`, :obj:`mask` and :obj:`confidence`, if any.
        data (Data): What to run it on.

    Returns:
        The calls, in their order.

    Raises:
        ValueError: If the model has no such layer, works on several samples
            at once, or in tiles.
    """
    layers = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, GLRConv | GTVConv)
    }
    if not layers:
        raise ValueError(
            f"'model' has no layer 'GLRConv' or 'GTVConv' (got "
            f"'{type(model).__name__}')"
        )
    calls: list[LayerCall] = []

    def hook(
        layer: GLRConv | GTVConv,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
        calls.append(_read_call(layers[layer], layer, bound.arguments, output))
        if isinstance(model, ImageRestoration) and len(calls) > len(layers):
            raise ValueError(
                "'data' must be one view of one image of one tile: give the "
                'images of a batch one by one, crop large ones, or raise '
                f"'model.max_pixels' (got {model.max_pixels}), and set "
                f"'model.num_views = 1' (got {model.num_views})"
            )

    handles = [
        layer.register_forward_hook(hook, with_kwargs=True) for layer in layers
    ]
    try:
        _run_model(model, data)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise ValueError("'model' did not call any of its solver layers")
    return calls


def _run_model(model: torch.nn.Module, data: Data) -> None:
    if not isinstance(model, SmoothnessConv):
        model(data)
        return
    edges = edges_of(data)
    if data.get('x') is None or edges is None:
        raise ValueError(
            "'data' must have 'x' and 'edge_index' for a single layer; apply "
            "'GridGraph' or 'KNNGraph' first"
        )
    names = ('edge_weight', 'mask', 'confidence')
    model(data.x, edges, **{name: data.get(name) for name in names})


def _read_call(
    name: str,
    layer: GLRConv | GTVConv,
    arguments: dict[str, Any],
    output: Any,
) -> LayerCall:
    output = output[0] if isinstance(output, tuple) else output
    if output.dim() == 3 and output.size(0) != 1:
        raise ValueError(
            f'layers are explained on one sample at a time (got '
            f'{output.size(0)} samples); give the model one'
        )
    names = ('x', 'edge_index', 'edge_weight', 'mask', 'confidence')
    signal, topology, weight = layer._read(
        *(arguments.get(name) for name in names)  # type: ignore[arg-type]
    )
    arguments = {k: v for k, v in arguments.items() if k != 'return_state'}
    return LayerCall(name, layer, arguments, output, signal, topology, weight)
