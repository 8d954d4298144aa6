"""The stack that uGLR and uGTV share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import check_choice, check_data, check_positive
from pyg_unroll.graph import Topology
from pyg_unroll.layouts import edges_of, resolve_graph
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv
from pyg_unroll.nn.models.difference_block import DifferenceBlock
from pyg_unroll.nn.models.features import (
    CellFeatures,
    CNNFeatures,
    MLPFeatures,
)
from pyg_unroll.nn.models.image_restoration import ImageRestoration
from pyg_unroll.nn.models.inpainting_reader import InpaintingReader
from pyg_unroll.nn.models.mosaic_reader import MosaicReader
from pyg_unroll.nn.models.scene import SceneReader
from pyg_unroll.nn.models.unrolled_block import UnrolledBlock
from pyg_unroll.nn.models.views import check_num_views
from pyg_unroll.ops.signal import Fidelity, MaskedSignal
from pyg_unroll.transforms import GridGraph, KNNGraph, MahalanobisGraph
from pyg_unroll.transforms.grid_graph import WINDOWS

Domain: TypeAlias = Literal['image', 'points', 'mosaic', 'inpainting']

_READERS: dict[str, type[SceneReader]] = {
    'mosaic': MosaicReader,
    'inpainting': InpaintingReader,
}


class UnrolledNet(ImageRestoration):
    r"""Feature net, graph learning and solver layer, :obj:`num_blocks` times.

    Each block looks at the current estimate, learns a graph from it and takes
    some solver steps on that graph; the next block starts where it stopped.
    Subclasses choose the layer.

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        domain (str): :obj:`'image'` (3 x 3 convolutions, pixel grid),
            :obj:`'points'` (perceptron, nearest neighbours),
            :obj:`'mosaic'` (Bayer mosaics: residual convolutions on 2 x 2
            cells, pixel grid, started by directional filters) or
            :obj:`'inpainting'` (likewise, on images of which some pixels are
            known, started by a pyramid).
        pos_channels (int): Number of coordinates of a point.
        num_blocks (int): Number of blocks.
        hidden_channels (int): Width of the feature nets.
        feature_channels (int): Number of features the graph is learned from.
        heads (int): Number of graphs learned in parallel.
        neighbors (int): Window of :class:`~pyg_unroll.transforms.GridGraph`
            or :math:`k` of :class:`~pyg_unroll.transforms.KNNGraph`, used if
            the data has no :obj:`edge_index`.
        guide (bool): Let the feature net predict a guide, too, and interpolate
            what is left of the signal.
        fidelity (str): :obj:`'hard'` holds known entries, :obj:`'soft'` takes
            them as noisy.
        num_layers (int or None): Layers of each feature net.
        color_differences (bool): Blocks for :obj:`domain='mosaic'` that
            alternate between green and its differences to other colours.
        max_pixels (int): Larger images of the last two domains are worked on
            in tiles of three quarters of this size.
        num_views (int): Mirrored and transposed copies of images of these
            domains to average over, 1, 2, 4 or 8.
        **conv_options (int): Sizes of the subclass's layer.
    """

    def __init__(
        self,
        in_channels: int,
        domain: Domain,
        pos_channels: int,
        num_blocks: int,
        hidden_channels: int,
        feature_channels: int,
        heads: int,
        neighbors: int,
        guide: bool,
        fidelity: Fidelity,
        num_layers: int | None,
        color_differences: bool,
        max_pixels: int,
        num_views: int,
        **conv_options: int,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            'in_channels': in_channels,
            'domain': domain,
            'pos_channels': pos_channels,
            'num_blocks': num_blocks,
            'hidden_channels': hidden_channels,
            'feature_channels': feature_channels,
            'heads': heads,
            'neighbors': neighbors,
            'guide': guide,
            'fidelity': fidelity,
            'num_layers': num_layers,
            'color_differences': color_differences,
            'max_pixels': max_pixels,
            'num_views': num_views,
            **conv_options,
        }
        check_choice('domain', domain, get_args(Domain))
        for name, value in (
            ('in_channels', in_channels),
            ('pos_channels', pos_channels),
            ('num_blocks', num_blocks),
            ('hidden_channels', hidden_channels),
            ('feature_channels', feature_channels),
            ('max_pixels', max_pixels),
        ):
            check_positive(name, value)
        is_scene = domain in _READERS
        if num_layers is None:
            num_layers = 6 if is_scene else 3
        check_positive('num_layers', num_layers)
        check_num_views(num_views)
        if domain == 'mosaic' and in_channels != 3:
            raise ValueError(
                f"domain='mosaic' reconstructs three colours: 'in_channels' "
                f'must be 3 (got {in_channels})'
            )
        if color_differences and (domain, fidelity) != ('mosaic', 'hard'):
            raise ValueError(
                f"'color_differences' needs domain='mosaic' and "
                f"fidelity='hard' (got {domain!r} and {fidelity!r})"
            )
        self.in_channels = in_channels
        self.domain = domain
        self.num_blocks = num_blocks
        self.heads = heads
        self.guide = guide
        self.fidelity: Fidelity = fidelity
        self.feature_channels = feature_channels
        self.max_pixels = max_pixels
        self.num_views = num_views
        # The net sees the estimate and the mask.
        seen = 2 * in_channels
        sizes = [in_channels if guide else 0, feature_channels, 0]
        self.reader = None
        net: type[CNNFeatures | MLPFeatures | CellFeatures]
        if domain == 'points':
            check_positive('neighbors', neighbors)
            self.graph = KNNGraph(neighbors)
            net = MLPFeatures
            seen += pos_channels
        else:
            check_choice('neighbors', neighbors, tuple(WINDOWS))
            self.graph = GridGraph(neighbors)
            net = CNNFeatures
        if domain == 'mosaic' or domain == 'inpainting':
            self.reader = _READERS[domain]()
            net = CellFeatures
            seen = in_channels + self.reader.num_context
            if fidelity == 'soft':  # sees the level of the noise
                seen += 1
                sizes[-1] = 1

        def make_block() -> UnrolledBlock | DifferenceBlock:
            if color_differences:
                return DifferenceBlock(
                    *(seen, hidden_channels, feature_channels, heads),
                    *(num_layers, *self._make_difference_convs()),
                )
            return UnrolledBlock(
                net(seen, hidden_channels, sum(sizes), num_layers),
                MahalanobisGraph(feature_channels, heads),
                self._make_conv(),
                sizes,
            )

        self.blocks = torch.nn.ModuleList(
            make_block() for _ in range(num_blocks)
        )
        self.reset_parameters()

    @abstractmethod
    def _make_conv(self) -> SmoothnessConv:
        """Makes the solver layer of one block."""

    @abstractmethod
    def _make_difference_convs(self) -> tuple[SmoothnessConv, SmoothnessConv]:
        """Makes the layers that smooth and that fill in colour differences."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for block in self._blocks():
            block.reset_parameters()
            if self.guide and self.reader is None:
                # No guide at first: the untrained net is the plain solver.
                head = block.features.head
                for parameter in head.parameters():
                    torch.nn.init.zeros_(parameter[-self.in_channels :])

    def forward(self, data: Data) -> Tensor:
        r"""Interpolates (with :obj:`data.mask`) or denoises a signal.

        Args:
            data (Data or Batch): With :obj:`x` :math:`(N, C)`, boolean
                :obj:`mask` :math:`(N)` or :math:`(N, C)`, True where known
                *(optional)*, and :obj:`height` and :obj:`width` of images or
                :obj:`pos` of points. Its :obj:`edge_index` or :obj:`adj_t`, if
                any, is used on images and points; its :obj:`noise_std`, if
                any, is the standard deviation of the noise, in the unit of
                :obj:`x`, for :obj:`domain='mosaic'` and :obj:`'inpainting'`
                under soft fidelity.

        Returns:
            The signal :math:`(N, C)`.

        Under :meth:`torch.compile`, :obj:`data.edge_index` must be there:
        edges, or what :obj:`model.graph.topology(data)` gives. The domains
        :obj:`'mosaic'` and :obj:`'inpainting'` cannot be compiled as a whole.
        """
        check_data(data)
        self._check_type('data.x', data.x)
        if self.reader is not None:
            return self._forward_scene(data)
        x, mask = data.x, data.get('mask')
        if data.get('noise_std') is not None:
            raise ValueError(
                f"'data.noise_std' was given, but models of domain="
                f'{self.domain!r} do not look at it; remove it, or use domain='
                f"'mosaic' or 'inpainting'"
            )
        MaskedSignal.read(x, mask, None, self.fidelity, name='data.x')
        if x.size(1) != self.in_channels:
            raise ValueError(
                f"'data.x' has {x.size(1)} channels, but the model was built "
                f"with 'in_channels={self.in_channels}'"
            )
        topology = self._topology(data)
        known = torch.ones_like(x)
        if mask is not None:
            known = mask.view(x.size(0), -1).to(x.dtype).expand_as(x)
        estimate, state = x, None
        for block in cast('list[UnrolledBlock]', list(self.blocks)):
            seen = torch.cat([estimate, known], dim=-1)
            features = block.features(seen, data)
            guide: Tensor | float = 0.0
            if self.guide:
                features, guide = features.tensor_split(
                    [-self.in_channels], dim=-1
                )
            weight = block.metric.edge_weights(features, topology)
            rest, state = self._run_conv(
                block.conv,
                state,
                x - guide,
                topology,
                weight,
                mask=mask,
                warm_start=estimate - guide,
            )
            estimate = rest + guide
            if mask is not None and self.fidelity == 'hard':
                estimate = torch.where(known > 0, x, estimate)
        return estimate

    def _topology(self, data: Data) -> Topology:
        edges = edges_of(data)
        if edges is None:
            return self.graph.topology(data)
        num_nodes, dtype = data.x.size(0), data.x.dtype
        return resolve_graph(edges, None, num_nodes, dtype)[0]

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'domain={self.domain!r}, num_blocks={self.num_blocks}, '
            f'heads={self.heads})'
        )
