"""Stacks of feature nets, learned graphs and solver layers: uGLR and uGTV."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn.inits import reset
from torch_geometric.transforms import BaseTransform

from pyg_unroll import checks
from pyg_unroll.graph import Topology, edges_of, required_edges, resolve_graph
from pyg_unroll.inputs import check_start, read_signal
from pyg_unroll.nn.features import MLPFeatures
from pyg_unroll.nn.glr_conv import GLRConv
from pyg_unroll.nn.gtv_conv import GTVConv
from pyg_unroll.nn.smoothness_conv import SmoothnessConv
from pyg_unroll.transforms import MahalanobisGraph

Features: TypeAlias = torch.nn.Module | Sequence[torch.nn.Module] | None


class UnrolledBlock(torch.nn.Module):
    """A feature net, the graph learned from its features, and a solver layer.

    The last channels of the features can be a guide, relative to which the
    layer interpolates.
    """

    def __init__(
        self,
        features: torch.nn.Module,
        metric: MahalanobisGraph,
        conv: SmoothnessConv,
        guide_channels: int,
    ) -> None:
        super().__init__()
        self.features = features
        self.metric = metric
        self.conv = conv
        self.guide_channels = guide_channels
        self._reset_guide()

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for module in (self.features, self.metric, self.conv):
            reset(module)
        self._reset_guide()

    def _reset_guide(self) -> None:
        head = getattr(self.features, 'head', None)
        if self.guide_channels and isinstance(head, torch.nn.Module):
            # No guide at first: the untrained block is the plain solver.
            for parameter in head.parameters():
                torch.nn.init.zeros_(parameter[-self.guide_channels :])

    def forward(
        self,
        data: Data,
        topology: Topology,
        x: Tensor,
        mask: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        r"""Improves an estimate :math:`(N, C)` of the observations
        :obj:`data.x` with a mask :math:`(N, 1)` or :math:`(N, C)`; the next
        estimate, and the state of the layer.
        """
        known = torch.ones_like(x, dtype=torch.bool)
        if mask is not None:
            known = mask.expand_as(x)
        features = self.features(x, known, data)
        guide: Tensor | float = 0.0
        if self.guide_channels:
            features, guide = features.tensor_split(
                [-self.guide_channels], dim=-1
            )
        weight = self.metric.edge_weights(features, topology)
        rest, state = self.conv.solve(
            data.x - guide,
            topology,
            weight,
            mask=mask,
            warm_start=x - guide,
            state=state,
        )
        out = rest + guide
        if mask is not None and self.conv.fidelity == 'hard':
            out = torch.where(known, data.x, out)
        return out, state


class UnrolledStack(torch.nn.Module):
    """Base class of stacks of blocks, each of which starts from the estimate
    of the one before; its arguments are those of :class:`UnrolledGLR`.
    """

    _weight_floor: ClassVar[float] = 0.0

    def __init__(
        self,
        in_channels: int,
        features: Features = None,
        graph: BaseTransform | None = None,
        num_blocks: int = 2,
        *,
        heads: int = 2,
        guide: bool = False,
        weight_floor: float | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check_positive('in_channels', in_channels)
        checks.check_positive('num_blocks', num_blocks)
        floor = self._weight_floor if weight_floor is None else weight_floor
        checks.check_non_negative('weight_floor', floor)
        super().__init__()
        self.in_channels = in_channels
        self.heads = heads
        self.graph = graph
        guide_channels = in_channels if guide else 0
        self.blocks = torch.nn.ModuleList()
        for net in _nets(features, in_channels, guide_channels, num_blocks):
            metric = MahalanobisGraph(
                net.out_channels - guide_channels, heads, floor=floor
            )
            # The stack checks its input once.
            conv = self.init_conv(heads=heads, validate_args=False, **kwargs)
            block = UnrolledBlock(net, metric, conv, guide_channels)
            self.blocks.append(block)

    @abstractmethod
    def init_conv(self, **kwargs: Any) -> SmoothnessConv:
        """Makes the layer of a block."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for block in self.blocks:
            reset(block)

    def forward(self, data: Data) -> Tensor:
        r"""Interpolates (with :obj:`data.mask`) or denoises a signal.

        Args:
            data (Data or Batch): With :obj:`x` :math:`(N, C)`, boolean
                :obj:`mask` :math:`(N)` or :math:`(N, C)`, True where known
                *(optional)*, edges (:obj:`edge_index` or :obj:`adj_t`) or
                what :obj:`graph` makes them of, and what the feature net
                looks at.

        Returns:
            The signal :math:`(N, C)`.

        Under :meth:`torch.compile`, the edges must be there: as tensors, or as
        a :class:`~pyg_unroll.graph.Topology`, for example of
        :obj:`model.graph.topology(data)`.

        Raises:
            ValueError: If the data has a wrong shape, type or value; the
                message says how to mend it.
        """
        checks.check_data(data)
        checks.check_model_type(self, 'data.x', data.get('x'))
        signal = read_signal(data.get('x'), data.get('mask'), name='data.x')
        x, mask, state = signal.x, signal.known, None
        check_start(x)
        if x.size(1) != self.in_channels:
            raise ValueError(
                f"'data.x' has {x.size(1)} channels, but the model was built "
                f"with 'in_channels={self.in_channels}'"
            )
        topology = self._topology(data)
        for block in self.blocks:
            x, state = block(data, topology, x, mask, state)
        return x

    def _topology(self, data: Data) -> Topology:
        edges, graph = edges_of(data), self.graph
        if edges is None and graph is not None:
            if hasattr(graph, 'topology'):  # needs no tensor of indices
                topology: Topology = graph.topology(data)
                return topology
            data = graph(data)
        cure = (
            "give the model a 'graph', such as 'KNNGraph()' or 'GridGraph()', "
            'or the data its edges'
        )
        edges = required_edges(data, cure)
        return resolve_graph(edges, None, data.x.size(0), data.x.dtype)[0]

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'num_blocks={len(self.blocks)}, heads={self.heads})'
        )


def _nets(
    features: Features, in_channels: int, guide_channels: int, num_blocks: int
) -> list[Any]:
    """The feature net of each block."""
    if features is None:
        features = MLPFeatures(in_channels, 8 + guide_channels)
    if isinstance(features, torch.nn.ModuleList | Sequence):
        nets = list(features)
    else:
        nets = [
            features,
            *(copy.deepcopy(features) for _ in range(1, num_blocks)),
        ]
        for net in nets[1:]:
            reset(net)
    if len(nets) != num_blocks:
        raise ValueError(
            f"'features' must be one module or one for each of {num_blocks} "
            f'blocks (got {len(nets)})'
        )
    for net in nets:
        size = getattr(net, 'out_channels', None)
        if not isinstance(size, int) or size <= guide_channels:
            raise ValueError(
                f"'features' must be modules with 'out_channels' of more than "
                f'{guide_channels}, the number of channels of the guide (got '
                f"'{type(net).__name__}' with {size})"
            )
    return nets


class UnrolledGLR(UnrolledStack):
    r"""A stack of unrolled graph Laplacian regularisers (uGLR), from the
    `"Interpretable Lightweight Transformer via Unrolling of Learned Graph
    Smoothness Priors" <https://arxiv.org/abs/2406.04090>`_ paper.

    Under :meth:`torch.compile` no values are checked, see
    :class:`~pyg_unroll.nn.GLRConv`.

    Each of :obj:`num_blocks` blocks computes node features from the current
    estimate by a shallow net, learns a graph from them
    (:class:`~pyg_unroll.transforms.MahalanobisGraph`) and runs
    :class:`~pyg_unroll.nn.GLRConv` on it, from where the block before
    stopped. Known entries come out unchanged under hard fidelity. Options
    after :obj:`num_blocks` are given by keyword.

    .. code-block:: python

        model = UnrolledGLR(1)  # data with edges
        model = UnrolledGLR(
            1, features=MLPFeatures(1, pos_channels=2), graph=KNNGraph(8)
        )
        x = model(data)

    Args:
        in_channels (int): Number of signal channels :math:`C`.
        features (torch.nn.Module or sequence, optional): The feature net, of
            which further blocks get copies that are reset, or one per block:
            called with the current estimate :math:`(N, C)`, the mask
            :math:`(N, C)` and the data, it returns node features
            :math:`(N, D)`, with :math:`D` as its :obj:`out_channels`;
            :class:`~pyg_unroll.nn.MLPFeatures` with 8 features if
            :obj:`None`. (default: :obj:`None`)
        graph (BaseTransform, optional): Makes the edges of data that has
            none, such as :class:`~pyg_unroll.transforms.KNNGraph` or
            :class:`~pyg_unroll.transforms.GridGraph`. (default: :obj:`None`)
        num_blocks (int, optional): Number of blocks. (default: :obj:`2`)
        num_steps (int, optional): Steps of each layer.
            (default: :obj:`8`)
        heads (int, optional): Number of graphs learned in parallel.
            (default: :obj:`2`)
        guide (bool, optional): Take the last :math:`C` features for a guide
            :math:`\mathbf{u}`, zero at first, and interpolate
            :math:`\mathbf{x} - \mathbf{u}`. (default: :obj:`False`)
        weight_floor (float, optional): Added to each learned weight.
            (default: :obj:`0.0`)
        **kwargs (optional): Additional arguments of
            :class:`~pyg_unroll.nn.GLRConv`, such as :obj:`fidelity`.

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with :obj:`x`
          :math:`(|\mathcal{V}|, C)`, :obj:`mask` of that shape or
          :math:`(|\mathcal{V}|)` *(optional)*, and edges or what
          :obj:`graph` makes them of
        - **output:** node signals :math:`(|\mathcal{V}|, C)`

    Raises:
        ValueError: If an argument or the data has a wrong shape, type or
            value; the message says how to mend it.
    """

    def init_conv(self, num_steps: int = 8, **kwargs: Any) -> GLRConv:
        """Makes the layer of a block."""
        return GLRConv(num_steps, **kwargs)


class UnrolledGTV(UnrolledStack):
    r"""A stack of unrolled graph total variation minimisers (uGTV), from the
    `"Interpretable Lightweight Transformer via Unrolling of Learned Graph
    Smoothness Priors" <https://arxiv.org/abs/2406.04090>`_ paper.

    As :class:`UnrolledGLR`, with :class:`~pyg_unroll.nn.GTVConv`, whose dual
    variable each block passes on to the next; under :meth:`torch.compile` no
    values are checked.

    Args:
        in_channels (int): See :class:`UnrolledGLR`.
        features (torch.nn.Module or sequence, optional): The same.
            (default: :obj:`None`)
        graph (BaseTransform, optional): The same. (default: :obj:`None`)
        num_blocks (int, optional): Number of blocks. (default: :obj:`2`)
        num_iters (int, optional): Iterations of each layer.
            (default: :obj:`4`)
        num_steps (int, optional): Steps of each iteration.
            (default: :obj:`4`)
        heads (int, optional): Number of graphs learned in parallel.
            (default: :obj:`2`)
        guide (bool, optional): The same. (default: :obj:`False`)
        weight_floor (float, optional): The same: where all weights of a node
            vanish, the dual variable of another block's graph would be
            divided by almost nothing. (default: :obj:`0.03`)
        **kwargs (optional): Additional arguments of
            :class:`~pyg_unroll.nn.GTVConv`. Its :obj:`rho` is 16 by default:
            learned weights are about one over the number of neighbours, and
            the penalty follows the weighted differences.

    Shapes:
        - **input:** See :class:`UnrolledGLR`.
        - **output:** node signals :math:`(|\mathcal{V}|, C)`

    Raises:
        ValueError: If an argument or the data has a wrong shape, type or
            value; the message says how to mend it.
    """

    _weight_floor = 0.03

    def init_conv(
        self,
        num_iters: int = 4,
        num_steps: int = 4,
        rho: float = 16.0,
        **kwargs: Any,
    ) -> GTVConv:
        """Makes the layer of a block."""
        return GTVConv(num_iters, num_steps, rho=rho, **kwargs)
