"""Operators on the pixels of an image as pad and slice, for programs without
this library.

On a lattice an edge signal has a row for each offset of the window and each
pixel. Those of edges that would leave the image are never read.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyg_unroll.graph import Topology
from pyg_unroll.ops.admm import composed_iterations
from pyg_unroll.ops.cg import composed_steps


def lattice(
    height: int, width: int, window: Sequence[int], device: torch.device
) -> Topology:
    """The pixels of an image, for :class:`PlainOperations` alone: indices,
    which no program is to hold, mean nothing.
    """
    nodes = height * width
    edges = nodes * (len(window) // 2)
    index = [
        torch.zeros(size, dtype=torch.int32, device=device)
        for size in (edges, edges, nodes + 1, 2 * edges, 2 * edges)
    ]
    return Topology.unpack(index, [height, width, *window])


class PlainOperations(TorchFunctionMode):
    """Operators on lattices run as operations of PyTorch alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls a function, or what stands for an operator."""
        plain = _PLAIN.get(func)
        if plain is None:
            return func(*args, **(kwargs or {}))
        graph, grid, *operands = args
        with self:  # it may call others
            return plain(Topology.unpack(graph, grid), *operands)


def _offsets(topology: Topology) -> list[tuple[int, int]]:
    _, _, *window = topology.grid
    return list(zip(window[::2], window[1::2], strict=True))


def _images(topology: Topology, x: Tensor) -> Tensor:
    """Node signals `[N, *]` as images `[*, H, W]`."""
    return x.unflatten(0, topology.grid[:2]).movedim((0, 1), (-2, -1))


def _signals(x: Tensor) -> Tensor:
    """The inverse."""
    return x.flatten(-2).movedim(-1, 0)


def _edge_signals(z: Tensor) -> Tensor:
    """Images by offset, `[K, *, H, W]`, as edge signals."""
    return z.flatten(-2).movedim(-1, 1).flatten(0, 1)


def _directed(topology: Topology, z: Tensor, fill: float = 0.0) -> Tensor:
    """What pixels see of edge signals, in both directions of each offset and
    filled where there is no edge, `[2 K, *, H, W]`.
    """
    offsets = _offsets(topology)
    height, width = topology.grid[:2]
    z = z.unflatten(0, (len(offsets), height, width)).movedim((1, 2), (-2, -1))
    found = []
    for part, (down, right) in zip(z, offsets, strict=True):
        left, right = max(-right, 0), max(right, 0)
        part = part[..., : height - down, left : width - right]
        found.append(F.pad(part, (left, right, 0, down), value=fill))
        found.append(F.pad(part, (right, left, down, 0), value=fill))
    return torch.stack(found)


def _edges(
    x: Tensor, offsets: Sequence[tuple[int, int]], sign: float = -1.0
) -> Tensor:
    """Images plus or minus what their pixels see at some offsets, zero beyond
    the border, by offset, `[*, K, H, W]`.
    """
    reach = max(abs(k) for offset in offsets for k in offset)
    taps = []
    for offset in offsets:
        places = {(0, 0): 1.0, offset: sign}
        window = range(-reach, reach + 1)
        taps.append([[places.get((r, c), 0.0) for c in window] for r in window])
    # Fixed filters: a program of as many slices takes longer to convert.
    filters = x.new_tensor(taps).unsqueeze(1)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    out = F.conv2d(flat, filters, padding=reach)
    return out.unflatten(0, x.shape[:-2])


def to_edges(topology: Topology, x: Tensor, signed: bool) -> Tensor:
    """See :func:`.reference.operators.to_edges`, and so on."""
    x, sign = _images(topology, x), (-1.0) ** signed
    return _edge_signals(_edges(x, _offsets(topology), sign).movedim(-3, 0))


def to_nodes(topology: Topology, z: Tensor, signed: bool) -> Tensor:
    """The adjoint."""
    seen = _directed(topology, z)
    return _signals(seen[::2].sum(0) + (-1) ** signed * seen[1::2].sum(0))


def laplacian(topology: Topology, weight: Tensor, x: Tensor) -> Tensor:
    """The graph Laplacian."""
    operands = _directed(topology, weight).movedim(0, -3), _images(topology, x)
    return _signals(_laplacian(topology, *operands))


def _laplacian(topology: Topology, weight: Tensor, x: Tensor) -> Tensor:
    """The same of images, with directed weights `[H, 2 K, H, W]`."""
    both = [
        (sign * down, sign * right)
        for down, right in _offsets(topology)
        for sign in (1, -1)
    ]
    return (weight * _edges(x, both)).sum(-3)


def edge_dot(topology: Topology, a: Tensor, b: Tensor) -> Tensor:
    """Products of differences."""
    offsets = _offsets(topology)
    da, db = (_edges(_images(topology, v), offsets) for v in (a, b))
    return _edge_signals((da * db).sum(0).movedim(-3, 0))


def log_degree(topology: Topology, distance: Tensor) -> Tensor:
    """Logarithms of sums of exponentials."""
    return _signals(_directed(topology, -distance, -torch.inf).logsumexp(0))


def cg_steps(
    topology: Topology, weight: Tensor, *operands: Any
) -> tuple[Tensor, list[Tensor]]:
    """See :mod:`.cg`; nothing is kept."""
    *nodes, alpha, beta, _ = operands
    (out,) = composed_steps(
        topology,
        _directed(topology, weight).movedim(0, -3),
        *(None if v is None else _images(topology, v) for v in nodes),
        *(v[..., None, None] for v in (alpha, beta)),
        apply=_laplacian,
    )
    return _signals(out), []


def admm_steps(
    topology: Topology, *operands: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """See :mod:`.admm`; nothing is kept."""
    return *composed_iterations(topology, *operands[:-1]), []


_PLAIN = {
    getattr(torch.ops.pyg_unroll, function.__name__).default: function
    for function in (
        *(to_edges, to_nodes, laplacian, edge_dot, log_degree),
        *(cg_steps, admm_steps),
    )
}
