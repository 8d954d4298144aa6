"""Demosaicing by graph interpolation of colour differences, untrained."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.checks import (
    check_choice,
    check_data,
    check_finite,
    check_not_half,
    check_positive,
    check_signal,
)
from pyg_unroll.data import data_to_image, image_to_data
from pyg_unroll.data.cfa import check_mosaic
from pyg_unroll.nn.conv import GLRConv, GTVConv
from pyg_unroll.nn.models.directional_green import (
    CHROMA_SCALE,
    DETAIL_RATIO,
    FILL_SCALE,
    LUMA_SCALE,
    detail_ratio,
    directional_green,
)
from pyg_unroll.nn.models.filters import local_interpolation
from pyg_unroll.nn.models.tiling import run_in_tiles
from pyg_unroll.transforms import GridGraph, MahalanobisGraph
from pyg_unroll.transforms.utils import examples_of

Prior: TypeAlias = Literal['glr', 'gtv']

# Pixels of context that are mirrored around the image; even, wider than the
# filters, and enough for the layers to forget the border.
_MARGIN = 12

# Pixels of context between tiles, more than the receptive field.
_HALO = 64


class GraphDemosaic(torch.nn.Module):
    r"""Reconstructs a colour image from a mosaic by interpolating colour
    differences on graphs, without training.

    Colours of natural images differ from green by a signal that is smooth
    within objects, so that graph layers can interpolate :math:`R - G` and
    :math:`B - G` where they could not interpolate :math:`R` and :math:`B`:

    1. A green guide :math:`g` by directional filters
       (:obj:`pyg_unroll.nn.models.directional_green`);
       for X-Trans, by a graph layer on the pixel grid.
    2. A layer smooths the colour differences :math:`d` to :math:`z` on the
       graph of :math:`(g, d_R, d_B)`. Green is corrected by it at red and blue
       sites, by :math:`d + a (z - d)` with

       .. math::
           a = \frac{a_{\max}}{1 + (\rho / \rho_0)^4}, \qquad \rho =
           \frac{\textrm{local energy of high-pass } d}
           {\textrm{local energy of high-pass } g},

       hence not where chroma is as rich in detail as luma.
    3. A layer interpolates the differences to the corrected green on its
       graph, known entries held.

    Args:
        prior (str, optional): :obj:`'glr'`
            (:class:`~pyg_unroll.nn.GLRConv`) or :obj:`'gtv'`
            (:class:`~pyg_unroll.nn.GTVConv`). (default: :obj:`'glr'`)
        max_pixels (int, optional): Larger images are worked on in tiles of
            three quarters of this size, which overlap by the receptive
            field, so that the result is the same.
            (default: :obj:`2_000_000`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` of
          :func:`~pyg_unroll.data.mosaic`: :obj:`x` and boolean :obj:`mask`
          :math:`(|\mathcal{V}|, 3)`, :obj:`height`, :obj:`width`
        - **output:** colours :math:`(|\mathcal{V}|, 3)` in the units of
          :obj:`x`, best in :math:`[0, 1]`; measured samples are unchanged

    Raises:
        ValueError: If the data is not a mosaic of three colours.
    """

    def __init__(
        self, prior: Prior = 'glr', max_pixels: int = 2_000_000
    ) -> None:
        super().__init__()
        check_positive('max_pixels', max_pixels)
        check_choice('prior', prior, get_args(Prior))
        self.prior = prior
        self.max_pixels = max_pixels
        self.grid = GridGraph(8)
        self.smooth_metric = MahalanobisGraph(3, normalization=None)
        self.fill_metric = MahalanobisGraph(1, normalization=None)
        self.smooth_conv: GLRConv | GTVConv
        self.fill_conv: GLRConv | GTVConv
        if prior == 'glr':
            self.smooth_conv = GLRConv(5, mu=0.5, validate_args=False)
            self.fill_conv = GLRConv(6, order=2, validate_args=False)
        else:
            # Colour differences vary by some hundredths.
            self.smooth_conv = GTVConv(
                6, 4, mu=0.01, rho=20.0, validate_args=False
            )
            self.fill_conv = GTVConv(2, 4, rho=200.0, validate_args=False)
        self.gain_limit = torch.nn.Parameter(torch.tensor(0.0))
        self.chroma_ratio = torch.nn.Parameter(torch.tensor(0.0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.smooth_conv.reset_parameters()
        self.fill_conv.reset_parameters()
        with torch.no_grad():
            scale = torch.tensor([LUMA_SCALE, CHROMA_SCALE, CHROMA_SCALE])
            self.smooth_metric.weight.copy_((1 / scale).diag().unsqueeze(0))
            self.fill_metric.weight.fill_(1 / FILL_SCALE)
            self.gain_limit.fill_(1.5)
            self.chroma_ratio.fill_(DETAIL_RATIO)

    def forward(self, data: Data) -> Tensor:
        """Reconstructs the missing colours."""
        check_data(data)
        mask = check_mosaic(data)
        check_signal('data.x', data.x)
        check_not_half('data.x', data.x.dtype)
        # What stands at unknown entries has no meaning here.
        check_finite('data.x', torch.where(mask, data.x, 0))
        if isinstance(data, Batch):
            parts = [self(part) for part in examples_of(data)]
            return torch.cat(parts)
        image, known = (
            data_to_image(data, x).unsqueeze(0) for x in (data.x, mask)
        )
        out = run_in_tiles(
            self._reconstruct,
            (image, known),
            self.max_pixels,
            _HALO,
            _MARGIN,
        )
        return torch.where(mask, data.x, _nodes(out))

    def _reconstruct(self, image: Tensor, known: Tensor) -> Tensor:
        """Works on `[1, 3, H, W]`, margin included."""
        image = torch.where(known, image, 0)
        sensor = image.sum(1, keepdim=True)
        is_green, is_chroma = known[:, 1:2], known[:, ::2]
        grid = image_to_data(image[0])
        topology = self.grid.topology(grid)

        if _is_checkerboard(is_green):
            green = directional_green(sensor, is_green)
        else:
            start = local_interpolation(image, known)[:, 1:2]
            green = _image(
                self.fill_conv(_nodes(start), topology, mask=_nodes(is_green)),
                start,
            )

        # Smooth the differences and correct green by them.
        chroma = local_interpolation(sensor - green, is_chroma)
        weight = self.smooth_metric.edge_weights(
            _nodes(torch.cat([green, chroma], dim=1)), topology
        )
        smoothed = _image(
            self.smooth_conv(_nodes(chroma), topology, weight), chroma
        )
        gain = self._gain(chroma, green)
        smoothed = chroma + gain * (smoothed - chroma)
        at_sites = torch.where(is_chroma, smoothed, 0).sum(1, keepdim=True)
        green = torch.where(is_green, sensor, sensor - at_sites)

        # Interpolate the differences to the corrected green.
        chroma = local_interpolation(sensor - green, is_chroma)
        weight = self.fill_metric.edge_weights(_nodes(green), topology)
        chroma = _image(
            self.fill_conv(
                _nodes(chroma), topology, weight, mask=_nodes(is_chroma)
            ),
            chroma,
        )
        red, blue = (green + chroma).split(1, dim=1)
        return torch.cat([red, green, blue], dim=1)

    def _gain(self, chroma: Tensor, green: Tensor) -> Tensor:
        """How far to follow the smoothed differences, per pixel."""
        ratio = detail_ratio(chroma, green)
        return self.gain_limit / (1 + (ratio / self.chroma_ratio) ** 4)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(prior={self.prior!r})'


def _is_checkerboard(green: Tensor) -> bool:
    """Whether green alternates with other colours along rows and columns."""
    along_row = green[..., 1:] != green[..., :-1]
    along_column = green[..., 1:, :] != green[..., :-1, :]
    return bool(along_row.all() & along_column.all())


def _nodes(image: Tensor) -> Tensor:
    """One image `[1, C, H, W]` to node signals `[H * W, C]`."""
    return image_to_data(image[0]).x


def _image(x: Tensor, like: Tensor) -> Tensor:
    """Node signals `[H * W, C]` to one image `[1, C, H, W]`."""
    return x.T.reshape(1, -1, *like.shape[-2:])
