"""Features to edge weights, learned."""

import copy
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import softmax

from pyg_unroll import checks
from pyg_unroll.graph import Topology, required_edges, resolve_graph
from pyg_unroll.ops import edge_dot, endpoint_sum, log_degree
from pyg_unroll.transforms.utils import set_edge_weight

Normalization: TypeAlias = Literal['sym', 'row', None]


def _check_in_channels(name: str, value: Any) -> None:
    if not checks.is_integer(value) or (value < 1 and value != -1):
        raise ValueError(
            f"'{name}' must be positive, or -1 to derive it from the first "
            f'input (got {value!r})'
        )


@functional_transform('mahalanobis_graph')
class MahalanobisGraph(torch.nn.Module, BaseTransform):
    r"""Weighs edges by a learned Mahalanobis distance of node features, from
    the `"Interpretable Lightweight Transformer via Unrolling of Learned Graph
    Smoothness Priors" <https://arxiv.org/abs/2406.04090>`_ paper
    (functional name: :obj:`mahalanobis_graph`).

    .. math::
        d_{ij} = (\mathbf{f}_i - \mathbf{f}_j)^{\top} \mathbf{M}
        (\mathbf{f}_i - \mathbf{f}_j), \qquad \mathbf{M} = \mathbf{R}^{\top}
        \mathbf{R}, \qquad \tilde{w}_{ij} = \exp(-d_{ij})

    One metric :math:`\mathbf{M}`, positive semidefinite by construction, per
    head. It plays the role of self-attention: with
    :obj:`normalization='row'` the weights are dot-product attention
    :math:`\mathrm{softmax}_j(2 \mathbf{f}_i^{\top} \mathbf{M} \mathbf{f}_j -
    \mathbf{f}_j^{\top} \mathbf{M} \mathbf{f}_j)` over the neighbours.

    It is a module *and* a transform; the input is never changed, and
    gradients reach the features and the metric.

    Args:
        in_channels (int): Number of features :math:`C`, or :obj:`-1` to
            derive it from the first input.
        heads (int, optional): Number of metrics :math:`H`.
            (default: :obj:`1`)
        rank (int, optional): Rows of :math:`\mathbf{R}`; :math:`C` if
            :obj:`None`. (default: :obj:`None`)
        normalization (str, optional): :obj:`'sym'` divides by the square
            roots of both degrees, :math:`w_{ij} = \tilde{w}_{ij} /
            \sqrt{\tilde{d}_i \tilde{d}_j}`, which keeps the graph undirected;
            :obj:`'row'` divides by the target's degree, for layers that
            attend (its weights are not symmetric, hence not for
            :class:`~pyg_unroll.nn.GLRConv`); :obj:`None` does nothing.
            (default: :obj:`'sym'`)
        attr (str, optional): Attribute of the data that holds the features.
            (default: :obj:`'x'`)
        floor (float, optional): Added to each weight, for :obj:`'sym'` or no
            normalization, so that no node is cut off. (default: :obj:`0.0`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with features
          :math:`(|\mathcal{V}|, C)` and an undirected :obj:`edge_index`
          :math:`(2, |\mathcal{E}|)` or :obj:`adj_t`
        - **output:** the same with :obj:`edge_weight`
          :math:`(|\mathcal{E}|)`, or :math:`(|\mathcal{E}|, H)` if there are
          several heads

    Raises:
        ValueError: If features or edges are missing, or do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        heads: int = 1,
        rank: int | None = None,
        normalization: Normalization = 'sym',
        attr: str = 'x',
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        table = {
            'in_channels': _check_in_channels,
            'heads': checks.check_positive,
            'rank': checks.optional(checks.check_positive),
            'normalization': checks.one_of(*get_args(Normalization)),
            'floor': checks.check_non_negative,
        }
        checks.check_parameters(table, locals())
        if floor and normalization == 'row':
            raise ValueError(
                f"'floor' must be 0 with normalization='row', whose weights "
                f'sum to one (got {floor!r})'
            )
        self.in_channels, self.heads, self.rank = in_channels, heads, rank
        self.normalization = normalization
        self.attr = attr
        self.floor = floor
        self.weight: Any = UninitializedParameter()
        if in_channels != -1:
            self._materialize(in_channels)
            self.reset_parameters()

    def _materialize(self, channels: int, device: Any = None) -> None:
        self.in_channels = channels
        shape = self.heads, self.rank or channels, channels
        with torch.no_grad():
            self.weight.materialize(shape, device)

    def reset_parameters(self) -> None:
        r"""Resets :math:`\mathbf{R}` to random orthonormal rows (or columns).

        At full rank all distances are then Euclidean; head :math:`h` starts
        with :math:`2^{-h}` times the first head's scale, so that heads differ.
        """
        if isinstance(self.weight, UninitializedParameter):
            return
        with torch.no_grad():
            for head, matrix in enumerate(self.weight):
                torch.nn.init.orthogonal_(matrix, gain=2.0**-head)

    @property
    def metric(self) -> Tensor:
        r"""The metrics :math:`\mathbf{M} = \mathbf{R}^{\top} \mathbf{R}`,
        :math:`(H, C, C)`.

        Raises:
            ValueError: If :obj:`in_channels=-1` was not resolved yet.
        """
        if isinstance(self.weight, UninitializedParameter):
            raise ValueError(
                "the metric has no size yet ('in_channels=-1'); call the "
                'transform once'
            )
        return self.weight.mT @ self.weight

    def distances(self, features: Tensor, topology: Topology) -> Tensor:
        r"""Distances :math:`d_{ij}`.

        Args:
            features (torch.Tensor): Node features :math:`(N, C)`, or of
                several samples on one graph :math:`(B, N, C)`.
            topology (Topology): The graph.

        Returns:
            One row per undirected edge, :math:`(E, H)` or
            :math:`(B, E, H)`.
        """
        return self._split(self._distances(features, topology), features)

    def edge_weights(self, features: Tensor, topology: Topology) -> Tensor:
        r"""Weights per undirected edge, for :obj:`'sym'` or no normalization.

        Args:
            features (torch.Tensor): See :meth:`distances`.
            topology (Topology): The graph.

        Returns:
            Weights :math:`(E, H)` or :math:`(B, E, H)`.

        Raises:
            ValueError: If the normalization is :obj:`'row'`.
        """
        if self.normalization == 'row':
            raise ValueError(
                "normalization='row' gives weights that differ by direction; "
                "call the transform on 'data', or use 'sym'"
            )
        exponent = self._distances(features, topology)
        if self.normalization == 'sym':
            ends = endpoint_sum(topology, log_degree(topology, exponent))
            exponent = torch.add(exponent, ends, alpha=0.5)
        weight = exponent.neg().exp_()
        weight = weight + self.floor if self.floor else weight
        return self._split(weight, features)

    def _distances(self, features: Tensor, topology: Topology) -> Tensor:
        """Distances with the samples among the heads, `[E, B * H]`."""
        if isinstance(self.weight, UninitializedParameter):
            self._materialize(features.size(-1), features.device)
            self.reset_parameters()
        channels = self.in_channels
        shapes = ['num_nodes', channels], ['samples', 'num_nodes', channels]
        note = "; set 'in_channels' accordingly"
        checks.check_shape('features', features, *shapes, note=note)
        weight = self.weight.to(features.dtype)
        projected = torch.einsum('...nc,hrc->nr...h', features, weight)
        if torch.is_autocast_enabled(features.device.type):
            # Features in half precision, but a graph in that of the metric.
            projected = projected.to(self.weight.dtype)
        projected = projected.flatten(2)
        return edge_dot(topology, projected, projected)

    def _split(self, value: Tensor, features: Tensor) -> Tensor:
        """Samples first again, if there are several."""
        if features.dim() == 2:
            return value
        return value.unflatten(1, (features.size(0), -1)).movedim(1, 0)

    def forward(self, data: Data) -> Data:
        """Returns a shallow copy of the data with :obj:`edge_weight`."""
        checks.check_data(data)
        features = data.get(self.attr)
        if not isinstance(features, Tensor):
            raise ValueError(
                f"'data' has no features {self.attr!r}; set them or name "
                f"another attribute by 'attr'"
            )
        checks.check_signal(f'data.{self.attr}', features)
        edges = required_edges(data, "apply 'GridGraph' or 'KNNGraph' first")
        features = features.view(-1, 1) if features.dim() == 1 else features
        if checks.can_read_values(features):
            checks.check_finite(f'data.{self.attr}', features)
        count, dtype = features.size(0), features.dtype
        topology, _ = resolve_graph(edges, None, count, dtype)
        if self.normalization == 'row':
            is_dense = isinstance(edges, Tensor)
            if not is_dense or edges.layout != torch.strided:
                kind = edges.layout if is_dense else type(edges).__name__
                raise ValueError(
                    f"'data.edge_index' must be a dense tensor for "
                    f"normalization='row', whose weights differ by direction "
                    f"(got a '{kind}'); set it to 'topology.edge_index', or "
                    f"convert it with 'torch_geometric.utils.to_edge_index'"
                )
            distance = self.distances(features, topology)
            logits = -topology.directed_weight(distance)
            edge_weight = softmax(logits, edges[1], num_nodes=count)
        else:
            edge_weight = self.edge_weights(features, topology)
            if not isinstance(edges, Topology):
                edge_weight = topology.directed_weight(edge_weight)
        can_read = checks.can_read_values(edge_weight)
        if can_read and not checks.is_finite(edge_weight):
            raise ValueError(
                f"'data.{self.attr}' is too large for {dtype} (up to "
                f'{float(features.abs().amax()):.1e}): squared distances '
                f'overflow; scale it to about one'
            )
        if self.heads == 1:
            edge_weight = edge_weight.squeeze(1)
        return set_edge_weight(copy.copy(data), edge_weight)

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        # What has no values yet cannot be detached.
        keep_vars = keep_vars or is_lazy(self.weight)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        given = state_dict.get(f'{prefix}weight', self.weight)
        if is_lazy(self.weight) and not is_lazy(given):
            self._materialize(given.size(-1))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'heads={self.heads}, normalization={self.normalization!r})'
        )
