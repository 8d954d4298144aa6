"""The stack that uGLR and uGTV share."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.graph import Topology
from pyg_unroll.layouts import resolve_graph
from pyg_unroll.nn.conv.smoothness_conv import SmoothnessConv, check_positive
from pyg_unroll.nn.models.features import CNNFeatures, MLPFeatures
from pyg_unroll.ops.signal import Fidelity, MaskedSignal
from pyg_unroll.transforms import GridGraph, KNNGraph, MahalanobisGraph

Domain: TypeAlias = Literal['image', 'points']


class UnrolledBlock(torch.nn.Module):
    """A feature net, the graph learned from it, and a solver layer."""

    def __init__(
        self,
        features: CNNFeatures | MLPFeatures,
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


class UnrolledNet(torch.nn.Module):
    r"""Feature net, graph learning and solver layer, :obj:`num_blocks` times.

    Each block looks at the current estimate, learns a graph from it and takes
    some solver steps on that graph; the next block starts where it stopped.
    Subclasses choose the layer.

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        domain (str): :obj:`'image'` (3 x 3 convolutions, pixel grid) or
            :obj:`'points'` (perceptron, nearest neighbours).
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
        ):
            check_positive(name, value)
        self.in_channels = in_channels
        self.domain = domain
        self.num_blocks = num_blocks
        self.heads = heads
        self.guide = guide
        self.fidelity: Fidelity = fidelity
        self.graph: GridGraph | KNNGraph
        out_channels = feature_channels + (in_channels if guide else 0)
        net: type[CNNFeatures | MLPFeatures]
        if domain == 'image':
            self.graph = GridGraph(neighbors)
            net, extra = CNNFeatures, 0
        else:
            self.graph = KNNGraph(neighbors)
            net, extra = MLPFeatures, pos_channels
        # The net sees the estimate and the mask.
        self.blocks = torch.nn.ModuleList(
            UnrolledBlock(
                net(2 * in_channels + extra, hidden_channels, out_channels),
                MahalanobisGraph(feature_channels, heads),
                self._make_conv(),
            )
            for _ in range(num_blocks)
        )
        self.reset_parameters()

    @abstractmethod
    def _make_conv(self) -> SmoothnessConv:
        """Makes the solver layer of one block."""

    @abstractmethod
    def _run_conv(
        self, conv: SmoothnessConv, state: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Runs the layer; returns the estimate and what to pass on."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for block in self._blocks():
            block.reset_parameters()
            if self.guide:
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

    def save(self, path: str | Path) -> None:
        """Writes weights and configuration to one safetensors file."""
        metadata = {
            'class': self.__class__.__name__,
            'config': json.dumps(self.config),
        }
        save_file(self.state_dict(), path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a model that :meth:`save` wrote.

        Raises:
            ValueError: If the file cannot be read or holds another model.
        """
        try:
            with safe_open(path, framework='pt') as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"'path' is not a readable safetensors file (got {path}: "
                f'{error})'
            ) from error
        if metadata.get('class') != cls.__name__:
            raise ValueError(
                f"'path' holds a {metadata.get('class', 'foreign file')}, not "
                f"a {cls.__name__} (got {path}); load it with that class's "
                f"'load'"
            )
        try:
            model = cls(**json.loads(metadata['config']))
            model.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"'path' holds a {cls.__name__} whose weights or configuration "
                f'are damaged (got {path}: {error})'
            ) from error
        return model

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'domain={self.domain!r}, num_blocks={self.num_blocks}, '
            f'heads={self.heads})'
        )
