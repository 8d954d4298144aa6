"""The graphs that a model learned, on the nodes of the data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import check_data
from pyg_unroll.data import data_to_image
from pyg_unroll.explain.calls import LayerCall, record_calls
from pyg_unroll.nn.models.image_restoration import MARGIN, ImageRestoration
from pyg_unroll.nn.models.tiling import mirrored_frame
from pyg_unroll.transforms.utils import remove_edges


def node_places(
    model: torch.nn.Module, data: Data, calls: list[LayerCall]
) -> Tensor:
    r"""Where the nodes of data are in the graphs of layers, :math:`(N)`.

    Raises:
        ValueError: If a layer works on other nodes.
    """
    num_nodes = data.x.size(0)
    nodes = torch.arange(num_nodes, device=data.x.device)
    if isinstance(model, ImageRestoration) and model.reader is not None:
        # Blocks see the image with a mirrored margin.
        mask = data_to_image(data, model.reader.mask(data)).unsqueeze(0)
        size, phase = mask.shape[-2:], model.reader.offset(mask)
        (row, col), (_, width) = mirrored_frame(size, MARGIN, phase)
        return (nodes // size[1] - row) * width + nodes % size[1] - col
    for call in calls:
        total = call.topology.num_nodes
        if total != num_nodes:
            raise ValueError(
                f"'{call.name}' works on a graph of {total} nodes, but "
                f"'data' has {num_nodes}"
            )
    return nodes


def check_one_graph(data: Data) -> None:
    """Raises a `ValueError` for a batch."""
    check_data(data)
    if isinstance(data, Batch):
        raise ValueError(
            "'data' must be one graph (got a batch); take them one by one, by "
            "'data.to_data_list()'"
        )


@torch.no_grad()
def learned_graphs(model: torch.nn.Module, data: Data) -> list[Data]:
    r"""Runs a model and returns the graph of each solver layer.

    Args:
        model (torch.nn.Module): See :func:`~pyg_unroll.explain.trace`.
        data (Data): What to run it on.

    Returns:
        For each call of a layer, a shallow copy of the data, whose own edges
        and attributes of edges are replaced by :obj:`edge_index`
        :math:`(2, 2E)` and :obj:`edge_weight` :math:`(2E, H)`; without the
        margin that is mirrored around images.

    Raises:
        ValueError: If the data is a batch; see also
            :func:`~pyg_unroll.explain.trace`.
    """
    check_one_graph(data)
    calls = record_calls(model, data)
    place = node_places(model, data, calls)
    graphs = []
    for call in calls:
        topology = call.topology
        # The node of the data at each place, -1 outside.
        node = place.new_full((topology.num_nodes,), -1)
        node[place] = torch.arange(len(place), device=place.device)
        edge_index = node[topology.edge_index]
        inside = (edge_index >= 0).all(0)
        graph = copy.copy(data)
        remove_edges(graph)
        graph.edge_index = edge_index[:, inside]
        graph.edge_weight = topology.directed_weight(call.weight)[inside]
        graphs.append(graph)
    return graphs
