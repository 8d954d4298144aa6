"""Trained restorers as files for programs without this library."""

import copy
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, ExportedProgram

from pyg_unroll.graph import Topology
from pyg_unroll.imaging.block_restorer import BlockRestorer
from pyg_unroll.imaging.cfa import cell_phase, cfa_mask
from pyg_unroll.imaging.tiles import mirrored_frame
from pyg_unroll.ops.lattice import PlainOperations, lattice
from pyg_unroll.transforms import GridGraph

# Longest side of a mosaic.
_LONGEST = 2**16


class _Lattices(GridGraph):
    """As the graph of a model, without an index."""

    def pixels(
        self, height: int, width: int, device: torch.device, num_images: int = 1
    ) -> Topology:
        """Pixels of one image."""
        window = [k for offset in self.offsets for k in offset]
        return lattice(height, width, window, device)


class Program(torch.nn.Module):
    """What a model of mosaics of one pattern does with one of even size, in
    operations of PyTorch alone.
    """

    def __init__(self, model: BlockRestorer, pattern: str) -> None:
        super().__init__()
        self.model = copy.copy(model)
        self.model.graph = _Lattices(model.graph.offsets)
        self.phase = cell_phase(cfa_mask(pattern, 2, 2)[None], 'Bayer')

    def forward(
        self,
        mosaic: Tensor,
        white_level: Tensor,
        noise_std: Tensor | None = None,
    ) -> Tensor:
        """Restores a mosaic `[1, 1, H, W]`."""
        size, margin = mosaic.shape[2:], self.model.margin
        (top, left), (height, width) = mirrored_frame(
            size, margin, self.phase, self.model.cell
        )
        ends = width - size[1] + left, height - size[0] + top
        frame = (-left, ends[0], -top, ends[1])
        sensor = F.pad(mosaic, frame, mode='reflect')
        # Compilers do not know the bounds of an index into a pattern.
        odd = torch.arange(height, device=mosaic.device).view(-1, 1) % 2 > 0
        right = torch.arange(width, device=mosaic.device) % 2 > 0
        mask = torch.stack([~(odd | right), odd ^ right, odd & right])[None]
        levels = [white_level, *([] if noise_std is None else [noise_std])]
        levels = [level.view(1, 1, 1, 1) for level in levels]
        with PlainOperations():
            out = self.model.run(torch.where(mask, sensor, 0), mask, *levels)
        return out[..., -top : size[0] - top, -left : size[1] - left]


def trace(model: BlockRestorer, pattern: str) -> ExportedProgram:
    """The program of a model, for mosaics of any even size."""
    one = next(model.parameters()).new_ones(1)
    height, width = (
        2 * Dim(name, min=model.margin // 2 + 1, max=_LONGEST // 2)
        for name in ('half_height', 'half_width')
    )
    # The values, and the size of the mosaic, are examples.
    inputs = [one.expand(1, 1, 64, 96).clone(), one.clone()]
    if model.fidelity == 'soft':
        inputs.append(one / 10)
    shapes = {2: height, 3: width}, *[None] * (len(inputs) - 1)
    with torch.no_grad():
        return torch.export.export(
            Program(model, pattern), tuple(inputs), dynamic_shapes=shapes
        )


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "'path' ends in '.onnx', which needs onnx and onnxscript; install "
            "them with 'pip install onnx onnxscript'"
        ) from error
    # What runs the program optimises it itself.
    options: dict[str, Any] = {'optimize': False, 'verbose': False}
    found: Any = torch.onnx.export(
        program, (), dynamo=True, output_names=['restored'], **options
    )
    for node in found.model.graph.all_nodes():
        node.metadata_props.clear()  # with lines of source files
    found.save(path, external_data=False)


def _write_package(program: ExportedProgram, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))


_WRITERS = {'.onnx': _write_onnx, '.pt2': _write_package}


def write(model: BlockRestorer, path: str | Path, pattern: str) -> None:
    """See :meth:`Demosaic.export`."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"'path' must end in one of {list(_WRITERS)} (got {str(path)!r})"
        )
    try:
        # A file is there whole, or not at all.
        with TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            _WRITERS[path.suffix](trace(model, pattern), part)
            os.replace(part, path)
    except OSError as error:
        raise ValueError(
            f"'path' cannot be written (got {str(path)!r}: {error})"
        ) from error
