"""Graphs of pixels."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pyg_unroll.checks import check_data, is_integer
from pyg_unroll.graph import Topology, index_type
from pyg_unroll.transforms.utils import join_graphs, set_graph

# Edges of a graph too large to be remembered, 0.4 GiB; up to four are.
_LARGE = 2**23

# Half of each window: the other half are the reverse directions.
WINDOWS: dict[int, tuple[tuple[int, int], ...]] = {
    4: ((0, 1), (1, 0)),
    8: ((0, 1), (1, -1), (1, 0), (1, 1)),
    12: ((0, 1), (0, 2), (1, -1), (1, 0), (1, 1), (2, 0)),
    24: ((0, 1), (0, 2), *((y, x) for y in (1, 2) for x in range(-2, 3))),
}


@functional_transform('grid_graph')
class GridGraph(BaseTransform):
    r"""Connects each pixel of an image to its neighbours in a window
    (functional name: :obj:`grid_graph`).

    Nodes are pixels in row-major order of an image of :obj:`data.height` rows
    and :obj:`data.width` columns, as
    :func:`~pyg_unroll.imaging.image_to_data` makes them; unlike in
    :func:`torch_geometric.utils.grid`, there are no self-loops and the y axis
    is not flipped. Edges are made on the device of the data; those of the last
    four image shapes are remembered (of 8 neighbours, up to two megapixels).

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
        return set_graph(data, self.topology(data))

    def topology(self, data: Data) -> Topology:
        """Returns the edges without putting them into the data."""
        check_data(data)
        shapes = image_shapes(data)
        sizes = [height * width for height, width in shapes]
        if sum(sizes) != data.num_nodes:
            raise ValueError(
                f"'data' has {data.num_nodes} nodes, but its 'height' and "
                f"'width' make {sum(sizes)} pixels"
            )
        values = (data.get(name) for name in ('x', 'pos', 'mask', 'batch'))
        devices = (v.device for v in values if isinstance(v, Tensor))
        device = next(devices, torch.device('cpu'))
        if len(set(shapes)) == 1:
            return self.pixels(*shapes[0], device, len(shapes))
        parts = [self.pixels(*shape, device) for shape in shapes]
        return join_graphs([torch.stack([p.src, p.dst]) for p in parts], sizes)

    def pixels(
        self, height: int, width: int, device: torch.device, num_images: int = 1
    ) -> Topology:
        """Returns the edges between the pixels of images of one shape."""
        shape = num_images, height, width
        if torch.compiler.is_compiling():
            window = [k for offset in self.offsets for k in offset]
            found = torch.ops.pyg_unroll.pixels(shape, window, device)
            return Topology.unpack(found, [height, width, *window])
        return _pixel_graph(shape, self.offsets, device)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(window={self.window})'


def _half_offsets(
    window: int | Iterable[Sequence[int]],
) -> tuple[tuple[int, int], ...]:
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
        if not is_pair or not all(map(is_integer, offset)):
            raise ValueError(
                f"'window' must list integer (row, column) offsets (got "
                f'{offset!r})'
            )
        row, col = map(int, offset)
        half.add(max((row, col), (-row, -col)))
    if not half:
        raise ValueError("'window' must hold at least one offset (got none)")
    if (0, 0) in half:
        raise ValueError("'window' must not hold (0, 0), a self-loop")
    return tuple(sorted(half))


def image_shapes(data: Data) -> list[tuple[int, int]]:
    """Height and width of each image; a `ValueError` where there are none."""
    if data.get('height') is None or data.get('width') is None:
        raise ValueError(
            "'data' has no 'height' and 'width' of an image; make it with "
            "'pyg_unroll.image_to_data', or use 'KNNGraph' for points"
        )
    heights, widths = (
        torch.as_tensor(size).view(-1).tolist()
        for size in (data.height, data.width)
    )
    return list(zip(heights, widths, strict=True))


# Tensors made in inference mode could not be used for training later.
@torch.inference_mode(False)
def _build(
    shape: tuple[int, int, int],
    offsets: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Topology:
    """Connects the pixels of images that follow each other."""
    num_images, height, width = shape
    # Lines beyond the reach of both borders are alike: of a lower image with
    # one of them, that is repeated.
    line = 2 * max(row for row, _ in offsets)
    lower = min(height, 2 * line + 1)
    count, line = height - lower + 1, min(line, lower - 1)
    base = _sorted_pixels(lower, width, offsets, device)
    nodes = [line * width, (line + 1) * width]
    bounds = torch.tensor(nodes, device=device, dtype=base.src.dtype)
    edges = torch.searchsorted(base.src, bounds).tolist()
    entries = base.rowptr[nodes].tolist()
    per_line = edges[1] - edges[0]
    num_edges = base.num_edges + (count - 1) * per_line
    num_nodes = height * width
    index = index_type(num_images * num_nodes, num_images * num_edges)

    def repeat(values: Tensor, span: list[int], step: int, more: int) -> Tensor:
        """Repeats what belongs to the line, each time `step` larger, then all
        of the image, each time `more` larger.
        """
        values = values.to(index)
        first, middle, last = values.tensor_split(span)
        size = values.size(0) + (count - 1) * middle.size(0)
        times = torch.arange(max(count, num_images), device=device, dtype=index)
        times = times.view(-1, 1)
        out = values.new_empty((num_images, size))
        parts = out[0].tensor_split([span[0], size - last.size(0)])
        parts[0].copy_(first)
        torch.add(middle, step * times[:count], out=parts[1].view(count, -1))
        torch.add(last, step * (count - 1), out=parts[2])
        torch.add(out[0], more * times[1:num_images], out=out[1:])
        return out.view(-1)

    ends = entries[1] - entries[0], 2 * num_edges
    rowptr = repeat(base.rowptr[:-1], nodes, *ends)
    return Topology(
        num_images * num_nodes,
        repeat(base.src, edges, width, num_nodes),
        repeat(base.dst, edges, width, num_nodes),
        torch.cat([rowptr, rowptr.new_tensor([num_images * ends[1]])]),
        repeat(base.col, entries, width, num_nodes),
        repeat(base.edge_id, entries, per_line, num_edges),
        grid=(height, width, *(k for offset in offsets for k in offset)),
    )


def _sorted_pixels(
    height: int,
    width: int,
    offsets: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Topology:
    """Connects the pixels of one image by sorting its edges."""
    down, right = torch.tensor(offsets, device=device).T
    line = torch.arange(height, device=device).view(-1, 1, 1) + down
    column = torch.arange(width, device=device).view(-1, 1) + right
    exists = (line < height) & (column >= 0) & (column < width)
    src, slot = exists.flatten(0, 1).nonzero().unbind(1)
    dst = src + (down * width + right)[slot]
    return Topology.from_sorted_pairs(src, dst, height * width)


_remembered = lru_cache(maxsize=4)(_build)
_REMEMBERING = Lock()


def _pixel_graph(
    shape: tuple[int, int, int], offsets: Any, device: torch.device
) -> Topology:
    """Builds a graph, or finds a small one again."""
    if math.prod(shape) * len(offsets) > _LARGE:
        return _build(shape, offsets, device)
    with _REMEMBERING:  # threads that ask at once build it once
        return _remembered(shape, offsets, device)


@torch.library.custom_op(
    'pyg_unroll::pixels',
    mutates_args=(),
    schema='(SymInt[] shape, int[] window, Device device) -> Tensor[]',
)
def _pixels(shape: Any, window: Any, device: torch.device) -> list[Tensor]:
    """The tensors of a topology, for compilers, which compute their sizes."""
    # While another thread compiles, PyTorch says that this one does.
    offsets = tuple(zip(window[::2], window[1::2], strict=True))
    topology = _pixel_graph(tuple(shape), offsets, device)
    return [x.clone() for x in topology.pack()[0]]


@_pixels.register_fake
def _(shape: Any, window: Any, device: torch.device) -> list[Tensor]:
    num_images, height, width = shape
    edges = num_images * sum(
        max(height - abs(row), 0) * max(width - abs(col), 0)
        for row, col in zip(window[::2], window[1::2], strict=True)
    )
    nodes = num_images * height * width
    node = torch.empty(0, dtype=index_type(nodes, edges), device=device)
    shapes = edges, edges, nodes + 1, 2 * edges, 2 * edges
    return [node.new_empty(size) for size in shapes]
