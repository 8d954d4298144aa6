"""Demosaicing by trained graph layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyg_unroll.checks import check_choice
from pyg_unroll.imaging.block_restorer import BlockRestorer, FirstEstimate
from pyg_unroll.imaging.blocks import Block
from pyg_unroll.imaging.cfa import BAYER_PATTERNS
from pyg_unroll.imaging.export import write
from pyg_unroll.imaging.mosaic_estimates import BayerEstimate, XTransEstimate

_ESTIMATES: dict[str, type[FirstEstimate]] = {
    'Bayer': BayerEstimate,
    'X-Trans': XTransEstimate,
}


class Demosaic(BlockRestorer):
    r"""Reconstructs colour images from mosaics of Bayer or X-Trans sensors, by
    graph layers on learned graphs that start from local filters.

    .. code-block:: python

        model = Demosaic.from_pretrained('bayer')
        colours = model(mosaic(image, 'RGGB'))  # node signals
        image = model.restore(image, mask)  # images

    Images have any size and any unit: they are divided by the value that one
    in a thousand of their pixels exceeds, and multiplied by it again. Samples
    come out as they were measured, bit for bit, unless they are noisy.

    Pixels that measure nothing, False in the mask of all colours, are filled
    in before, see :func:`~pyg_unroll.imaging.find_defects`.

    Blocks that were trained without noise hold the samples. Where the noise is
    given, they are smoothed before, and images after, on graphs of patches
    whose distances are corrected for it.

    Args:
        blocks (sequence of torch.nn.Module, optional): The blocks, all
            :class:`~pyg_unroll.imaging.DifferenceBlock` or all
            :class:`~pyg_unroll.imaging.GuidedBlock`; two of the former if
            :obj:`None`. (default: :obj:`None`)
        neighbors (int, optional): Neighbours of a pixel, see
            :class:`~pyg_unroll.transforms.GridGraph`. (default: :obj:`8`)
        cfa (str, optional): The colour filter array, :obj:`'Bayer'` or
            :obj:`'X-Trans'`, in any phase. (default: :obj:`'Bayer'`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` of
          :func:`~pyg_unroll.imaging.mosaic`: :obj:`x` and boolean :obj:`mask`
          :math:`(|\mathcal{V}|, 3)`, :obj:`height`, :obj:`width`, and for
          noisy samples :obj:`noise_std`, the standard deviation of the noise
          in the unit of :obj:`x`, which blocks with :obj:`fidelity='soft'`
          estimate if it is absent
        - **output:** colours :math:`(|\mathcal{V}|, 3)`

    Raises:
        ValueError: If the data is no mosaic of that array, or a block does not
            work on three channels, or on cells of another size.
    """

    def __init__(
        self,
        blocks: Sequence[Block] | None = None,
        neighbors: int = 8,
        cfa: str = 'Bayer',
    ) -> None:
        check_choice('cfa', cfa, tuple(_ESTIMATES))
        super().__init__(_ESTIMATES[cfa](), blocks, neighbors)
        self.cfa = cfa

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the model again."""
        return {**super().config, 'cfa': self.cfa}

    def export(self, path: str | Path, pattern: str = 'RGGB') -> None:
        r"""Writes the model to a file for programs without this library: as
        ONNX, or as a package that PyTorch compiled ahead of time
        (AOTInductor). It takes a minute or some.

        The program takes one mosaic of any even size, 20 x 20 or more,
        measured as ``pattern`` says, and gives what :meth:`restore` does, to
        rounding. Its inputs and output, of the type of the model, are in this
        order:

        - ``mosaic`` :math:`(1, 1, H, W)`: the values of the sensor, in any
          unit
        - ``white_level`` :math:`(1)`: the positive value that :meth:`restore`
          divides images by, :func:`~pyg_unroll.imaging.white_level`. It is an
          input because a program that cuts a photograph into tiles has to
          give the same for all
        - ``noise_std`` :math:`(1)`, of models of noisy samples only: the
          standard deviation of the noise, in the unit of the mosaic
        - ``restored`` :math:`(1, 3, H, W)`: red, green, blue

        Borders are mirrored. Tiles begin at even rows and columns, and the
        outer :attr:`receptive_field` pixels of each, where they are not the
        border of the photograph, are to be cut off.

        Args:
            path (str or Path): The file, which is replaced once all is
                written: ``.onnx`` (extra ``export``), or ``.pt2`` for
                :func:`torch._inductor.aoti_load_package` on the kind of device
                that the model is on (needs a C++ compiler).
            pattern (str, optional): The Bayer pattern, see
                :func:`~pyg_unroll.imaging.cfa_mask`. (default: :obj:`'RGGB'`)

        Raises:
            ValueError: If the path has another ending or cannot be written,
                or the pattern is none of Bayer, or the model not for it.
            ImportError: If onnx or onnxscript is missing.
        """
        check_choice('cfa', self.cfa, ('Bayer',))
        check_choice('pattern', pattern, BAYER_PATTERNS)
        write(self, path, pattern)
