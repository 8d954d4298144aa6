"""The stack that uGLR and uGTV share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pyg_unroll.data import data_to_image, image_to_data
from pyg_unroll.graph import Topology
from pyg_unroll.layouts import resolve_graph
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv, check_positive
from pyg_unroll.nn.models.directional_green import reflect
from pyg_unroll.nn.models.features import (
    CellFeatures,
    CNNFeatures,
    MLPFeatures,
)
from pyg_unroll.nn.models.scene import MosaicReader
from pyg_unroll.nn.models.storage import Storage
from pyg_unroll.nn.models.tiling import run_in_tiles
from pyg_unroll.ops.signal import Fidelity, MaskedSignal
from pyg_unroll.transforms import GridGraph, KNNGraph, MahalanobisGraph

Domain: TypeAlias = Literal['image', 'points', 'mosaic']

# Pixels mirrored around a mosaic, even: room for the layers to forget that
# convolutions see zeros outside.
_MARGIN = 18

# Units of a mosaic's guide and features: a net's first outputs are small
# corrections, and features far enough apart to tell pixels from each other.
_GUIDE_SCALE = 0.1
_FEATURE_SCALE = 3.0


class UnrolledBlock(torch.nn.Module):
    """A feature net, the graph learned from it, and a solver layer."""

    def __init__(
        self,
        features: CNNFeatures | MLPFeatures | CellFeatures,
        metric: MahalanobisGraph,
        conv: SmoothnessConv,
    ) -> None:
        super().__init__()
        self.features = features
        self.metric = metric
        self.conv = conv

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        self.features.reset_parameters()
        self.metric.reset_parameters()
        self.conv.reset_parameters()


class UnrolledNet(Storage, torch.nn.Module):
    r"""Feature net, graph learning and solver layer, :obj:`num_blocks` times.

    Each block looks at the current estimate, learns a graph from it and takes
    some solver steps on that graph; the next block starts where it stopped.
    Subclasses choose the layer.

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        domain (str): :obj:`'image'` (3 x 3 convolutions, pixel grid),
            :obj:`'points'` (perceptron, nearest neighbours) or
            :obj:`'mosaic'` (Bayer mosaics: residual convolutions on 2 x 2
            cells, pixel grid, started by directional filters).
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
        max_pixels (int): Larger mosaics are worked on in tiles of this size.
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
        max_pixels: int,
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
            'max_pixels': max_pixels,
            **conv_options,
        }
        if domain not in get_args(Domain):
            raise ValueError(
                f"'domain' must be one of {get_args(Domain)} (got {domain!r})"
            )
        for name, value in (
            ('in_channels', in_channels),
            ('pos_channels', pos_channels),
            ('num_blocks', num_blocks),
            ('hidden_channels', hidden_channels),
            ('feature_channels', feature_channels),
            ('max_pixels', max_pixels),
        ):
            check_positive(name, value)
        if num_layers is None:
            num_layers = 6 if domain == 'mosaic' else 3
        check_positive('num_layers', num_layers)
        if domain == 'mosaic' and (in_channels != 3 or fidelity != 'hard'):
            raise ValueError(
                f"domain='mosaic' reconstructs three colours and holds what "
                f"was measured: 'in_channels' must be 3 and 'fidelity' "
                f"'hard' (got {in_channels} and {fidelity!r})"
            )
        self.in_channels = in_channels
        self.domain = domain
        self.num_blocks = num_blocks
        self.heads = heads
        self.guide = guide
        self.fidelity: Fidelity = fidelity
        self.graph: GridGraph | KNNGraph
        self.feature_channels = feature_channels
        self.max_pixels = max_pixels
        out_channels = feature_channels + (in_channels if guide else 0)
        net: type[CNNFeatures | MLPFeatures | CellFeatures]
        # The net sees the estimate and the mask.
        seen = 2 * in_channels
        self.reader: MosaicReader | None = None
        if domain == 'points':
            self.graph = KNNGraph(neighbors)
            net = MLPFeatures
            seen += pos_channels
        else:
            self.graph = GridGraph(neighbors)
            net = CNNFeatures
        if domain == 'mosaic':
            self.reader = MosaicReader()
            net = CellFeatures
            seen = in_channels + self.reader.num_context
        self.blocks = torch.nn.ModuleList(
            UnrolledBlock(
                net(seen, hidden_channels, out_channels, num_layers),
                MahalanobisGraph(feature_channels, heads),
                self._make_conv(),
            )
            for _ in range(num_blocks)
        )
        self.reset_parameters()

    @abstractmethod
    def _make_conv(self) -> SmoothnessConv:
        """Makes the solver layer of one block."""

    @property
    @abstractmethod
    def _hops(self) -> int:
        """How many edges away a layer looks."""

    @abstractmethod
    def _run_conv(
        self, conv: SmoothnessConv, state: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Runs the layer; returns the estimate and what to pass on."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for block in self._blocks():
            block.reset_parameters()
            if self.guide and self.reader is None:
                # No guide at first: the untrained net is the plain solver.
                head = block.features.head
                for parameter in head.parameters():
                    torch.nn.init.zeros_(parameter[-self.in_channels :])

    def _blocks(self) -> list[UnrolledBlock]:
        return cast(list[UnrolledBlock], list(self.blocks))

    def forward(self, data: Data) -> Tensor:
        r"""Interpolates (with :obj:`data.mask`) or denoises a signal.

        Args:
            data (Data or Batch): With :obj:`x` :math:`(N, C)`, boolean
                :obj:`mask` :math:`(N)` or :math:`(N, C)`, True where known
                *(optional)*, and :obj:`height` and :obj:`width` of images or
                :obj:`pos` of points. Its :obj:`edge_index`, if any, is used.

        Returns:
            The signal :math:`(N, C)`.

        Under :meth:`torch.compile`, :obj:`data.edge_index` must be there:
        edges, or what :obj:`model.graph.topology(data)` gives.
        """
        if self.reader is not None:
            return self._forward_mosaic(data)
        x, mask = data.x, data.get('mask')
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
        for block in self._blocks():
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
                mask,
                warm_start=estimate - guide,
            )
            estimate = rest + guide
            if mask is not None and self.fidelity == 'hard':
                estimate = torch.where(known > 0, x, estimate)
        return estimate

    def _topology(self, data: Data) -> Topology:
        if data.get('edge_index') is None:
            return self.graph.topology(data)
        num_nodes, dtype = data.x.size(0), data.x.dtype
        return resolve_graph(data.edge_index, None, num_nodes, dtype)[0]

    def _forward_mosaic(self, data: Data) -> Tensor:
        x, mask = data.x, data.get('mask')
        if x.size(1) != 3 or mask is None or mask.shape != x.shape:
            raise ValueError(
                "'data' must be a mosaic with 'x' and 'mask' of shape "
                "[num_pixels, 3]; make it with 'pyg_unroll.mosaic'"
            )
        MaskedSignal.read(x, mask, None, 'hard', name='data.x')
        if isinstance(data, Batch):
            return torch.cat([self(part) for part in data.to_data_list()])
        image = data_to_image(data)[None]
        out = self.restore(image, data_to_image(data, mask)[None])
        return image_to_data(out[0]).x

    def restore(self, image: Tensor, mask: Tensor) -> Tensor:
        r"""Reconstructs images from mosaics, for :obj:`domain='mosaic'`.

        Images are mirrored at the border. Images of more than
        :obj:`max_pixels` are worked on in tiles that overlap by the receptive
        field, so that the result is the same to rounding.

        Args:
            image (torch.Tensor): Images :math:`(B, 3, H, W)`, measured
                samples where known.
            mask (torch.Tensor): True where known, boolean, a Bayer pattern,
                :math:`(B, 3, H, W)` or :math:`(1, 3, H, W)`.

        Returns:
            Images :math:`(B, 3, H, W)`, known samples unchanged.

        Raises:
            ValueError: If the mask is no Bayer pattern, or the model has
                another domain.
        """
        reader = self._mosaic_reader()
        top, left = reader.offset(mask)
        padded, known = (
            reflect(part, _MARGIN)[..., top:, left:] for part in (image, mask)
        )
        height, width = (size // 2 * 2 for size in padded.shape[-2:])
        out = run_in_tiles(
            lambda part, seen: self.estimates(part, seen)[-1],
            (padded[..., :height, :width], known[..., :height, :width]),
            self.max_pixels,
            self.receptive_field,
        )
        out = out[..., _MARGIN - top :, _MARGIN - left :]
        out = out[..., : image.size(-2), : image.size(-1)]
        return torch.where(mask, image, out)

    @property
    def receptive_field(self) -> int:
        """How many pixels away a sample can matter, for
        :obj:`domain='mosaic'`; even.
        """
        # The weight of an edge depends on the degrees at its ends.
        block = cast(CellFeatures, self._blocks()[0].features).radius
        radius = self._mosaic_reader().radius
        radius += self.num_blocks * (block + self._hops + 2)
        return radius + radius % 2

    def estimates(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        r"""Runs the blocks on mosaics as they are, to train on them.

        Args:
            image (torch.Tensor): Images :math:`(B, 3, H, W)` of even size,
                red at the top left.
            mask (torch.Tensor): The mask, :math:`(B, 3, H, W)` or
                :math:`(1, 3, H, W)`.

        Returns:
            The estimate of each block, :math:`(B, 3, H, W)`; about
            :attr:`receptive_field` pixels along the border are worse.
        """
        with torch.autocast(image.device.type, enabled=False):
            # Nothing to learn here, and half precision would spoil it.
            scene = self._mosaic_reader().read(image, mask)
        estimate, state = scene.estimate, None
        grid = Data(x=image[0, 0].reshape(-1, 1))
        grid.height, grid.width = image.shape[-2:]
        topology = self.graph.topology(grid)
        known = _to_nodes(mask)
        known = known[0] if known.size(0) == 1 else known
        results = []
        for block in self._blocks():
            seen = torch.cat([scene.context, estimate - scene.reference], 1)
            out = block.features(seen).to(image.dtype)
            guide, features = out.tensor_split([-self.feature_channels], 1)
            if self.guide:
                base = estimate + _GUIDE_SCALE * guide
                start = torch.zeros_like(base)
            else:
                # Differences to green are what is smooth in colours.
                base = estimate[:, 1:2].expand_as(estimate)
                start = estimate - base
            weight = block.metric.edge_weights(
                _to_nodes(_FEATURE_SCALE * features), topology
            )
            rest, state = self._run_conv(
                block.conv,
                state,
                _to_nodes(image - base),
                topology,
                weight,
                known,
                warm_start=_to_nodes(start),
            )
            estimate = base + rest.mT.reshape(base.shape)
            estimate = torch.where(mask, image, estimate)
            results.append(estimate)
        return results

    def _mosaic_reader(self) -> MosaicReader:
        if self.reader is None:
            raise ValueError(
                f'the model was built with domain={self.domain!r}; images of '
                f"a sensor need domain='mosaic'"
            )
        return self.reader

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'domain={self.domain!r}, num_blocks={self.num_blocks}, '
            f'heads={self.heads})'
        )


def _to_nodes(images: Tensor) -> Tensor:
    """Images `[B, C, H, W]` to node signals `[B, H * W, C]`."""
    return images.flatten(2).mT
