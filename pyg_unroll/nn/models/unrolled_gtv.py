"""uGTV: unrolled graph total variation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.nn.conv import GTVConv
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv
from pyg_unroll.nn.models.unrolled import Domain, UnrolledNet
from pyg_unroll.ops.signal import Fidelity

_WEIGHT_FLOOR = 0.03


class UnrolledGTV(UnrolledNet):
    r"""A stack of unrolled graph total variation minimisers (uGTV), from the
    `"Interpretable Lightweight Transformer via Unrolling of Learned Graph
    Smoothness Priors" <https://arxiv.org/abs/2406.04090>`_ paper.

    Each of :obj:`num_blocks` blocks computes node features from the current
    estimate by a shallow net, learns a graph from them
    (:class:`~pyg_unroll.transforms.MahalanobisGraph`) and runs
    :class:`~pyg_unroll.nn.GTVConv` on it, from where the block before
    stopped. Known entries come out unchanged under hard fidelity.

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        domain (str, optional): :obj:`'image'` (3 x 3 convolutions on a pixel
            grid), :obj:`'points'` (perceptron on signal and position,
            nearest neighbours), :obj:`'mosaic'` (Bayer mosaics of
            :func:`~pyg_unroll.data.mosaic`: residual convolutions on 2 x 2
            cells of the pixel grid, started by directional filters) or
            :obj:`'inpainting'` (likewise, on images of which some pixels are
            known, started by a pyramid).
            (default: :obj:`'image'`)
        pos_channels (int, optional): Number of coordinates of a point, best
            scaled to unit size by
            :class:`~torch_geometric.transforms.NormalizeScale`.
            (default: :obj:`2`)
        num_blocks (int, optional): Number of blocks. (default: :obj:`2`)
        num_iters (int, optional): Iterations of each layer.
            (default: :obj:`4`)
        num_steps (int, optional): Steps of each iteration.
            (default: :obj:`4`)
        hidden_channels (int, optional): Width of the feature nets.
            (default: :obj:`32`)
        feature_channels (int, optional): Number of features that the graph is
            learned from. (default: :obj:`8`)
        heads (int, optional): Number of graphs learned in parallel.
            (default: :obj:`2`)
        neighbors (int, optional): Window of
            :class:`~pyg_unroll.transforms.GridGraph` or number of nearest
            neighbours, where the data has no :obj:`edge_index`.
            (default: :obj:`8`)
        guide (bool, optional): Let the feature net predict a guide
            :math:`\mathbf{u}`, too, and interpolate :math:`\mathbf{x} -
            \mathbf{u}`; without it, colours of a mosaic are interpolated as
            differences to green, and green stays as it was started.
            (default: :obj:`False`)
        fidelity (str, optional): :obj:`'hard'` or :obj:`'soft'`; the nets of
            the last two domains then see the standard deviation of the noise,
            :obj:`data.noise_std`, in the unit of :obj:`x` (20 of 255 is
            :obj:`20 / 255`), and predict how far to trust each pixel.
            (default: :obj:`'hard'`)
        num_layers (int, optional): Layers of each feature net;
            :obj:`None` is 6 for the last two domains, else 3.
            (default: :obj:`None`)
        color_differences (bool, optional): For :obj:`domain='mosaic'` and
            hard fidelity, blocks of two layers: one smooths the differences of
            red and blue to green, which green is corrected by; the other
            interpolates the differences to that green
            (:class:`~pyg_unroll.nn.GraphDemosaic` does so without a net).
            There is a guide whatever :obj:`guide` says.
            (default: :obj:`False`)
        max_pixels (int, optional): Larger images of the last two domains are
            worked on in tiles of three quarters of this size; the result is
            the same.
            (default: :obj:`450_000`)
        num_views (int, optional): Mirrored and transposed copies of an image
            of the last two domains, 1, 2, 4 or 8, whose results are averaged:
            four gain about 0.1 to 0.2 dB for four times the work; can be set
            later, too. (default: :obj:`1`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with :obj:`x`
          :math:`(|\mathcal{V}|, C)`, :obj:`mask` of that shape or
          :math:`(|\mathcal{V}|)` *(optional)*, and :obj:`height` and
          :obj:`width` of images with values in :math:`[0, 1]`, or
          :obj:`pos` :math:`(|\mathcal{V}|, P)`
        - **output:** node signals :math:`(|\mathcal{V}|, C)`

    Raises:
        ValueError: If an argument or the data has a wrong shape, type or
            value; the message says how to mend it.
    """

    short_name = 'ugtv'

    def __init__(
        self,
        in_channels: int,
        domain: Domain = 'image',
        pos_channels: int = 2,
        num_blocks: int = 2,
        num_iters: int = 4,
        num_steps: int = 4,
        hidden_channels: int = 32,
        feature_channels: int = 8,
        heads: int = 2,
        neighbors: int = 8,
        guide: bool = False,
        fidelity: Fidelity = 'hard',
        num_layers: int | None = None,
        color_differences: bool = False,
        max_pixels: int = 450_000,
        num_views: int = 1,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            domain=domain,
            pos_channels=pos_channels,
            num_blocks=num_blocks,
            hidden_channels=hidden_channels,
            feature_channels=feature_channels,
            heads=heads,
            neighbors=neighbors,
            guide=guide,
            fidelity=fidelity,
            num_layers=num_layers,
            color_differences=color_differences,
            max_pixels=max_pixels,
            num_views=num_views,
            num_iters=num_iters,
            num_steps=num_steps,
        )

    def _make_conv(
        self, rho: float | None = None, **options: Any
    ) -> SmoothnessConv:
        if rho is None:
            # Symmetric normalisation makes weights as small as one over the
            # number of neighbours; the penalty follows the weighted
            # differences. What a guide leaves of an image varies by some
            # hundredths.
            scale = 2.0 if self.reader is None else 400.0
            rho = scale * self.config['neighbors']
        return GTVConv(
            self.config['num_iters'],
            self.config['num_steps'],
            heads=self.heads,
            fidelity=self.fidelity,
            rho=rho,
            validate_args=False,  # the model checks its input once
            **options,
        )

    def _make_difference_convs(self) -> tuple[SmoothnessConv, SmoothnessConv]:
        return self._make_conv(20.0, mu=0.01), self._make_conv(200.0)

    def _run_conv(
        self,
        conv: SmoothnessConv,
        state: Any,
        x: Tensor,
        topology: Topology,
        weight: Tensor,
        **kwargs: Tensor | None,
    ) -> tuple[Tensor, Any]:
        # Where all weights of a node vanish, what the dual variable kept of
        # another graph would be divided by almost nothing.
        weight = weight + _WEIGHT_FLOOR
        return conv(
            x, topology, weight, state=state, return_state=True, **kwargs
        )
