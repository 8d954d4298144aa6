"""Calls of solver layers, recorded while a model runs."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_one_graph
from pyg_unroll.graph import Topology, edges_of
from pyg_unroll.imaging import Restorer, SelfEnsemble, data_to_image
from pyg_unroll.imaging.tiles import mirrored_frame
from pyg_unroll.imaging.wrappers import Wrapper
from pyg_unroll.inputs import Observations, read_signal
from pyg_unroll.nn import GLRConv, GTVConv
from pyg_unroll.nn.smoothness_conv import Iterate
from pyg_unroll.threads import one_thread


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a solver layer: its arguments by name, and its observations,
    graph and edge weights :math:`(E, H)`.
    """

    name: str
    layer: GLRConv | GTVConv
    arguments: dict[str, Any]
    signal: Observations
    topology: Topology
    weight: Tensor

    @property
    def shares(self) -> Tensor:
        """Share of each head in the result :math:`(H)`, float64."""
        return self.layer.head_logits.detach().double().softmax(0)

    @torch.no_grad()
    def iterates(self) -> Iterator[Iterate]:
        """Runs the layer again; yields its start and the iterate after each
        step, without an axis of samples.
        """
        for iterate in self.layer.iterates(**self.arguments):
            if self.signal.layout.count is not None:
                x, heads, state = iterate
                state = None if state is None else state[0]
                iterate = Iterate(x[0], heads[0], state)
            yield iterate


@torch.no_grad()
def record_calls(model: torch.nn.Module, data: Data) -> list[LayerCall]:
    """Runs a model, or a single layer on what data holds of its arguments,
    and records the calls of its solver layers, in their order.
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
    is_restorer = _restorer_of(model) is not None
    if is_restorer:
        check_one_graph(data)
    calls: list[LayerCall] = []

    def hook(
        layer: GLRConv | GTVConv,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        signature = inspect.signature(layer.forward)
        arguments = signature.bind(*args, **kwargs).arguments
        arguments.pop('return_state', None)
        signal, topology, weight, *_ = layer.read(**arguments)
        count = signal.layout.count
        if count not in (None, 1):
            raise ValueError(
                f'layers are explained on one sample at a time (got {count} '
                f'samples); give the model one'
            )
        total = topology.num_nodes
        if is_restorer and total != node_places(model, data)[1]:
            raise ValueError(
                "'data' must be one image of one tile; crop it, or wrap the "
                "restorer in 'Tiled' with more 'max_pixels'"
            )
        read = arguments, signal, topology, weight
        calls.append(LayerCall(layers[layer], layer, *read))

    with ExitStack() as hooks:
        for layer in layers:
            handle = layer.register_forward_hook(hook, with_kwargs=True)
            hooks.enter_context(handle)
        _run_model(model, data)
    if not calls:
        raise ValueError("'model' did not call any of its solver layers")
    return calls


def node_places(model: torch.nn.Module, data: Data) -> tuple[Tensor, int]:
    """The places of the nodes of data in the graphs of a model's layers, and
    the number of nodes of these graphs, if they are of all data.
    """
    place = torch.arange(data.x.size(0), device=data.x.device)
    restorer = _restorer_of(model)
    if restorer is None:
        return place, len(place)
    # Restorers see the image with a mirrored margin.
    known = read_signal(data.x, data.mask, name='data.x').observed
    mask = data_to_image(data, known).unsqueeze(0)
    size, phase = mask.shape[-2:], restorer.phase(mask)
    frame = mirrored_frame(size, restorer.margin, phase, restorer.cell)
    (row, col), (height, width) = frame
    place = (place // size[1] - row) * width + place % size[1] - col
    return place, height * width


def _restorer_of(model: torch.nn.Module) -> Restorer | None:
    while isinstance(model, Wrapper):
        if isinstance(model, SelfEnsemble):
            raise ValueError(
                "'model' must look at one view of an image (got "
                "'SelfEnsemble'); explain its 'restorer'"
            )
        model = model.restorer
    return model if isinstance(model, Restorer) else None


def _run_model(model: torch.nn.Module, data: Data) -> None:
    if not isinstance(model, GLRConv | GTVConv):
        with one_thread():  # that of the hooks, and an image in one tile
            model(data)
        return
    edges = edges_of(data)
    if data.get('x') is None or edges is None:
        raise ValueError(
            "'data' must have 'x' and 'edge_index' for a single layer; apply "
            "'GridGraph' or 'KNNGraph' first"
        )
    optional = 'edge_weight', 'mask', 'confidence'
    model(data.x, edges, **{name: data.get(name) for name in optional})
