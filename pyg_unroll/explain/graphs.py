"""Learned graphs, and the learned weights around a node."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_one_graph, check_positive, is_integer
from pyg_unroll.explain.calls import LayerCall, node_places, record_calls
from pyg_unroll.explain.figure import make_axes
from pyg_unroll.imaging import data_to_image
from pyg_unroll.ops import degree, laplacian
from pyg_unroll.transforms.utils import remove_edges


@torch.no_grad()
def learned_graphs(model: torch.nn.Module, data: Data) -> list[Data]:
    r"""Runs a model and returns the graph of each solver layer.

    Args:
        model (torch.nn.Module): See :func:`~pyg_unroll.explain.trace`.
        data (Data): The data that it is run on.

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
    calls, _, node_at = _record(model, data)
    graphs = []
    for call in calls:
        topology = call.topology
        edge_index = node_at[topology.edge_index]
        inside = (edge_index >= 0).all(0)
        graph = copy.copy(data)
        remove_edges(graph)
        graph.edge_index = edge_index[:, inside]
        graph.edge_weight = topology.directed_weight(call.weight)[inside]
        graphs.append(graph)
    return graphs


def _record(
    model: torch.nn.Module, data: Data
) -> tuple[list[LayerCall], Tensor, Tensor]:
    """The calls, the places of the nodes of data in their graphs, and the
    node of data at each place, -1 outside.
    """
    calls = record_calls(model, data)
    place, num_nodes = node_places(model, data)
    node_at = place.new_full((num_nodes,), -1)
    node_at[place] = torch.arange(len(place), device=place.device)
    for call in calls:
        if call.topology.num_nodes != num_nodes:
            raise ValueError(
                f"'{call.name}' works on a graph of {call.topology.num_nodes} "
                f"nodes, but 'data' has {num_nodes}"
            )
    return calls, place, node_at


@dataclass(frozen=True, eq=False)
class LayerNeighbourhood:
    r"""The weights of one layer around a node.

    Attributes:
        name (str): Name of the layer in the model.
        neighbours (torch.Tensor): The adjacent nodes :math:`(K)`.
        weight (torch.Tensor): Weights :math:`w_{ij}` of the edges to them
            :math:`(K, H)`.
        reach (torch.Tensor): Share of the hops of a random walk over the
            weights, from the node, that end at each node :math:`(N, H)`;
            :math:`w_{ij} / d_i` for one hop.
    """

    name: str
    neighbours: Tensor
    weight: Tensor
    reach: Tensor


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    r"""The learned weights around a node, layer by layer.

    Attributes:
        node (int): The node :math:`i`.
        hops (int): Length of the walks.
        layers (list[LayerNeighbourhood]): One for each call of a layer.
        data (Data): The data that the model was run on.
    """

    node: int
    hops: int
    layers: list[LayerNeighbourhood]
    data: Data

    def window(self, layer: int, radius: int) -> Tensor:
        r"""The reach of a layer around a pixel.

        Args:
            layer (int): Index of the layer.
            radius (int): Pixels to each side; zero outside of the image.

        Returns:
            Images :math:`(H, 2 R + 1, 2 R + 1)`.
        """
        image = data_to_image(self.data, self.layers[layer].reach)
        padded = torch.nn.functional.pad(image, (radius,) * 4)
        row, col = divmod(self.node, image.size(-1))
        size = 2 * radius + 1
        return padded[:, row : row + size, col : col + size]

    def plot(
        self, axes: Any = None, image: Tensor | None = None, radius: int = 8
    ) -> Any:
        r"""Draws the reach on the image, or on the map of the points.

        Args:
            axes (sequence of matplotlib axes, optional): One per layer
                (rows) and head (columns), see :meth:`Trace.plot`.
                (default: :obj:`None`)
            image (torch.Tensor, optional): Image :math:`(C, H, W)` to draw
                on; :obj:`data.x` if :obj:`None`. (default: :obj:`None`)
            radius (int, optional): Pixels to show to each side, of images.
                (default: :obj:`8`)

        Raises:
            ValueError: If the data is no image and has no positions of two
                coordinates.
        """
        heads = self.layers[0].reach.size(1)
        axes = make_axes(axes, len(self.layers), heads)
        is_image = self.data.get('height') is not None
        if is_image and image is None:
            image = data_to_image(self.data)
        for (k, head), ax in np.ndenumerate(axes):
            if is_image:
                self._draw_window(ax, image, self.window(k, radius)[head])
            else:
                self._draw_map(ax, self.layers[k], head)
            title = f'{self.layers[k].name or "layer"}, head {head}'
            ax.set(title=title, xticks=[], yticks=[])
        return axes

    def _draw_window(self, ax: Any, image: Any, reach: Tensor) -> None:
        grey = image.detach().float().mean(0).cpu().numpy()
        row, col = divmod(self.node, grey.shape[1])
        ax.imshow(grey, cmap='gray', interpolation='nearest')
        reach = reach.float().cpu()
        overlay = torch.zeros((*reach.shape, 4))
        overlay[..., :3] = torch.tensor([1.0, 0.25, 0.0])
        # Square roots, so that the eye sees the tail.
        overlay[..., 3] = 0.85 * (reach / reach.max().clamp(min=1e-30)).sqrt()
        half = len(reach) / 2
        extent = (col - half, col + half, row + half, row - half)
        ax.imshow(overlay.numpy(), extent=extent, interpolation='nearest')
        if not bool(reach.any()):
            ax.text(col, row + 1.5, 'no neighbours', ha='center', va='top')
        ax.plot(col, row, 'x', color='deepskyblue', markersize=8)
        ax.set(xlim=extent[:2], ylim=extent[2:])

    def _draw_map(self, ax: Any, layer: LayerNeighbourhood, head: int) -> None:
        pos = self.data.get('pos')
        if pos is None or pos.size(-1) != 2:
            raise ValueError(
                "'data' must have a 'height' and 'width' of an image or 'pos' "
                'of shape [num_nodes, 2] to be drawn on'
            )
        pos = pos.detach().cpu()
        ax.scatter(*pos.T.numpy(), s=4, color='lightgrey')
        weight = layer.weight[:, head].cpu()
        widths = 4 * weight / weight.max().clamp(min=1e-30)
        for other, width in zip(layer.neighbours, widths, strict=True):
            line = pos[[self.node, int(other)]].T.numpy()
            ax.plot(*line, color='black', linewidth=float(width), zorder=1)
        reach = layer.reach[:, head].cpu()
        seen = reach > 1e-3 * reach.max()
        shown = pos[seen].T.numpy()
        ax.scatter(
            *shown, s=25, c=reach[seen].numpy(), cmap='Oranges', zorder=2
        )
        x, y = pos[self.node].tolist()
        ax.plot(x, y, 'x', color='deepskyblue', zorder=3)
        far = (pos[seen] - pos[self.node]).abs().flatten()
        size = 1.2 * max(far.tolist(), default=0.0) or 1.0
        ax.axis([x - size, x + size, y - size, y + size])
        ax.set_aspect('equal')


@torch.no_grad()
def neighbourhood(
    model: torch.nn.Module,
    data: Data,
    node: int | tuple[int, int],
    hops: int = 1,
) -> Neighbourhood:
    r"""Runs a model and collects the weights that it learned around a node.

    Args:
        model (torch.nn.Module): See :func:`~pyg_unroll.explain.trace`.
        data (Data): The data that it is run on.
        node (int or tuple[int, int]): The node, or (row, column) of a pixel.
        hops (int, optional): Length of the random walks that measure
            nearness; a layer's :obj:`receptive_field` is the number of hops
            that it sees. (default: :obj:`1`)

    Returns:
        Weights and reach per layer and head. Neighbours in the margin that is
        mirrored around an image are left out.

    Raises:
        ValueError: If there is no such node, the data is a batch, or see
            :func:`~pyg_unroll.explain.trace`.
    """
    check_one_graph(data)
    parts = node if isinstance(node, tuple) else (node,)
    if len(parts) > 2 or not all(is_integer(part) for part in parts):
        raise ValueError(
            f"'node' must be an integer or a pixel (row, column) (got {node!r})"
        )
    if isinstance(node, tuple):
        height, width = (int(data.get(k) or 0) for k in ('height', 'width'))
        if not (0 <= node[0] < height and 0 <= node[1] < width):
            raise ValueError(
                f"'node' must be a pixel (row, column) of an image of "
                f'{height} x {width} pixels (got {node})'
            )
        node = node[0] * width + node[1]
    num_nodes = data.x.size(0)
    if not 0 <= node < num_nodes:
        raise ValueError(
            f"'node' must lie in [0, {num_nodes}), the nodes of 'data' (got "
            f'{node})'
        )
    check_positive('hops', hops)
    calls, place, node_at = _record(model, data)
    center = int(place[node])
    layers = []
    for call in calls:
        topology = call.topology
        entries = slice(*topology.rowptr[center : center + 2].tolist())
        neighbours = node_at[topology.col[entries].long()]
        weight = call.weight[topology.edge_id[entries].long()]
        inside = neighbours >= 0
        reach = _reach(call, center, hops)[place]
        layers.append(
            LayerNeighbourhood(
                call.name, neighbours[inside], weight[inside], reach
            )
        )
    return Neighbourhood(node, hops, layers, data)


def _reach(call: LayerCall, center: int, hops: int) -> Tensor:
    """Share of the hops of random walks that end at each place."""
    topology, weight = call.topology, call.weight.double()
    degrees = degree(topology, weight).unsqueeze(1)
    degrees = degrees.where(degrees > 0, float('inf'))
    at = weight.new_zeros((topology.num_nodes, 1, weight.size(1)))
    at[center] = 1
    visits = torch.zeros_like(at)
    for _ in range(hops):
        # The adjacency matrix is the degrees minus the Laplacian.
        stays = at.where(degrees < float('inf'), 0)
        at = (stays - laplacian(topology, weight, at / degrees)).clamp(min=0)
        visits += at / hops
    return visits.squeeze(1)
