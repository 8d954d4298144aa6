"""Graphs of pixels.

Edges come from a table of all neighbours, which lists them in order: a sort
takes twice as long for 512 x 512 pixels and 8 neighbours, 0.25 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pyg_unroll.checks import check_data, is_integer
from pyg_unroll.graph import Topology, index_type
from pyg_unroll.transforms.utils import join_topologies, set_graph

Offsets: TypeAlias = tuple[tuple[int, int], ...]

# Edges of a graph too large to be remembered, 0.4 GiB; up to four are.
_LARGE = 2**23

# Half of each window: the other half are the reverse directions.
WINDOWS: dict[int, Offsets] = {
    4: ((0, 1), (1, 0)),
    8: ((0, 1), (1, -1), (1, 0), (1, 1)),
    12: ((0, 1), (0, 2), (1, -1), (1, 0), (1, 1), (2, 0)),
    24: (
        *((0, 1), (0, 2)),
        *((row, col) for row in (1, 2) for col in range(-2, 3)),
    ),
}


@functional_transform('grid_graph')
class GridGraph(BaseTransform):
    r"""Connects each pixel of an image to its neighbours in a window
    (functional name: :obj:`grid_graph`).

    Nodes are pixels in row-major order of an image of :obj:`data.height` rows
    and :obj:`data.width` columns, as
    :func:`~pyg_unroll.imaging.image_to_data` makes them; unlike in
    :func:`torch_geometric.utils.grid`, there are no self-loops and the y axis
    is not flipped. Edges are computed by arithmetic on the device of the data;
    those of the last four image shapes are remembered (of 8 neighbours, up to
    two megapixels).

    Args:
        window (int or list[tuple[int, int]], optional): :obj:`4` or :obj:`8`
            nearest neighbours, :obj:`12` (city-block distance 2), :obj:`24`
            (5 x 5 window), or offsets :obj:`(rows, columns)`, whose opposites
            are added. (default: :obj:`8`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with :obj:`height` and
          :obj:`width`
        - **output:** the same with :obj:`edge_index`
          :math:`(2, |\mathcal{E}|)`, both directions, sorted by row

    Raises:
        ValueError: If the window is unknown, or :obj:`height` and
            :obj:`width` are missing or do not fit the number of nodes.
    """

    def __init__(self, window: int | Iterable[Sequence[int]] = 8) -> None:
        self.window = window
        self.offsets = _half_offsets(window)

    def forward(self, data: Data) -> Data:
        """Returns the data with :obj:`edge_index`."""
        topology, counts = self._topology(data)
        return set_graph(data, topology, counts)

    def topology(self, data: Data) -> Topology:
        """Returns the edges without putting them into the data."""
        return self._topology(data)[0]

    def pixels(
        self,
        height: int,
        width: int,
        device: torch.device | str | None = None,
    ) -> Topology:
        """Returns the edges between the pixels of one image."""
        device = torch.device('cpu' if device is None else device)
        return _grid_topology((1, height, width), self.offsets, device)

    def _topology(self, data: Data) -> tuple[Topology, list[int]]:
        check_data(data)
        shapes = image_shapes(data)
        num_pixels = sum(height * width for height, width in shapes)
        if num_pixels != data.num_nodes:
            raise ValueError(
                f"'data' has {data.num_nodes} nodes, but its 'height' and "
                f"'width' make {num_pixels} pixels"
            )
        device = _device(data)
        if len(set(shapes)) == 1:
            shape = (len(shapes), *shapes[0])
            topology = _grid_topology(shape, self.offsets, device)
            return topology, [topology.num_edges // len(shapes)] * len(shapes)
        parts = [
            _grid_topology((1, *shape), self.offsets, device)
            for shape in shapes
        ]
        return join_topologies(parts), [part.num_edges for part in parts]

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(window={self.window})'


def _half_offsets(
    window: int | Iterable[Sequence[int]],
) -> Offsets:
    if is_integer(window) and window in WINDOWS:
        return WINDOWS[int(window)]
    if not isinstance(window, Iterable):
        raise ValueError(
            f"'window' must be one of {sorted(WINDOWS)} neighbours or a list "
            f'of (row, column) offsets (got {window!r})'
        )
    half = set()
    for offset in window:
        is_pair = isinstance(offset, Sequence) and len(offset) == 2
        if not is_pair or not all(is_integer(k) for k in offset):
            raise ValueError(
                f"'window' must list integer (row, column) offsets (got "
                f'{offset!r})'
            )
        row, col = map(int, offset)
        if (row, col) == (0, 0):
            raise ValueError("'window' must not hold (0, 0), a self-loop")
        half.add((row, col) if (row, col) > (0, 0) else (-row, -col))
    if not half:
        raise ValueError("'window' must hold at least one offset (got none)")
    return tuple(sorted(half))


def image_shapes(data: Data) -> list[tuple[int, int]]:
    """Height and width of each image; a `ValueError` where there are none."""
    if data.get('height') is None or data.get('width') is None:
        raise ValueError(
            "'data' has no 'height' and 'width' of an image; make it with "
            "'pyg_unroll.image_to_data', or use 'KNNGraph' for points"
        )
    heights, widths = _per_image(data.height), _per_image(data.width)
    return list(zip(heights, widths, strict=True))


def _per_image(size: Any) -> list[int]:
    # PyTorch 2.6 does not trace a number's way through a tensor.
    if isinstance(size, int):
        return [size]
    return torch.as_tensor(size).view(-1).tolist()


def _device(data: Data) -> torch.device:
    for name in ('x', 'pos', 'mask', 'batch'):
        value = data.get(name)
        if isinstance(value, Tensor):
            return value.device
    return torch.device('cpu')


def _grid_topology(
    shape: tuple[int, int, int], offsets: Offsets, device: torch.device
) -> Topology:
    small = math.prod(shape) * len(offsets) <= _LARGE
    return (_remembered if small else _build)(shape, offsets, device)


# Tensors made in inference mode could not be used for training later.
@torch.inference_mode(False)
def _build(
    shape: tuple[int, int, int], offsets: Offsets, device: torch.device
) -> Topology:
    """Connects the pixels of images that follow each other."""
    num_images, height, width = shape
    size = len(offsets)
    # All neighbours in ascending order: backwards first.
    window = torch.tensor(
        [*((-row, -col) for row, col in reversed(offsets)), *offsets],
        device=device,
    )
    down, right = window.T
    line = torch.arange(height, device=device).view(-1, 1, 1) + down
    column = torch.arange(width, device=device).view(-1, 1) + right
    exists = (line >= 0) & (line < height) & (column >= 0) & (column < width)
    exists = exists.expand(num_images, -1, -1, -1).reshape(-1, 2 * size)
    index = index_type(exists.size(0), exists.size(0) * size)
    # Row and place in the window of each entry, in the order of the CSR.
    row, slot = (part.to(index) for part in exists.nonzero().unbind(1))
    col = row + (down * width + right).to(index)[slot]
    number = exists.flatten().cumsum(0, dtype=index) - 1
    # The reverse direction stands at the opposite place of the other pixel.
    reverse = number[(col.long() + 1) * (2 * size) - 1 - slot]
    forward = slot >= size
    edge = forward.cumsum(0, dtype=index) - 1
    first = forward.nonzero().view(-1)
    count = exists.sum(1).cumsum(0, dtype=index)
    return Topology(
        num_nodes=exists.size(0),
        src=row[first],
        dst=col[first],
        rowptr=torch.cat([count.new_zeros(1), count]),
        col=col,
        edge_id=torch.where(forward, edge, edge[reverse]),
        sign=2.0 * forward - 1.0,
        entry=torch.stack([first, reverse[first].long()], dim=1),
        grid=(height, width, *(k for offset in offsets for k in offset)),
    )


_remembered = lru_cache(maxsize=4)(_build)
