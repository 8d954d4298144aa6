"""Missing node features, interpolated on the graph."""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric import utils
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pyg_unroll import checks
from pyg_unroll.graph import Topology, read_edges, required_edges
from pyg_unroll.inputs import check_known, read_mask, read_signal
from pyg_unroll.ops import degree
from pyg_unroll.solvers.glr import glr
from pyg_unroll.solvers.problem import CHECKS, unreachable


def _check_missing(name: str, value: Any) -> None:
    if isinstance(value, str):
        return
    shape = ['num_nodes', 'features']
    what = f'[{", ".join(shape)}], or the name of an attribute'
    checks.check_tensor(name, value, what)
    checks.check_shape(name, value, shape[:1], shape)
    checks.check_boolean(name, value)


@functional_transform('interpolate_features')
class InterpolateFeatures(BaseTransform):
    r"""Fills in missing node features with the smoothest ones on the graph
    (functional name: :obj:`interpolate_features`).

    A drop-in for :class:`torch_geometric.transforms.FeaturePropagation`,
    solved to a tolerance by :func:`~pyg_unroll.solvers.glr` instead of a
    number of iterations. By default it is harmonic,

    .. math::
        \arg\min_{\mathbf{z}} \sum_{\{i,j\}} w_{ij} (z_i - z_j)^2 \quad
        \textrm{s.t.} \quad \mathbf{z}_{\textrm{known}} =
        \mathbf{x}_{\textrm{known}},

    hence each missing entry is the weighted mean of its neighbours: constant
    features stay constant, and nothing exceeds the known values. With
    :obj:`normalization='sym'` it is the limit of
    :class:`~torch_geometric.transforms.FeaturePropagation` on an undirected
    graph, :math:`\mathbf{z} = \mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}
    \mathbf{z}` at missing entries. That is harmonic in :math:`z_i /
    \sqrt{d_i}`: it assumes features to grow with the degree, for which reason
    features whose mean is not zero need :obj:`center=True`.

    .. code-block:: python

        from pyg_unroll import InterpolateFeatures

        transform = InterpolateFeatures(missing_mask=torch.isnan(data.x))
        data = transform(data)

    The graph is made undirected: an edge gets the mean weight of the
    directions that are there, hence the subgraphs that a
    :class:`~torch_geometric.loader.NeighborLoader` samples keep the weights of
    the whole graph; but results depend on what was sampled
    (:obj:`subgraph_type='induced'` keeps more edges). Weights are
    :obj:`edge_weight`, or else :obj:`edge_attr`, which must hold one number
    per edge. Parallel edges are added up, and self-loops count in :math:`d_i`
    only.

    Args:
        missing_mask (torch.Tensor or str): True where missing, boolean
            :math:`(N)` or :math:`(N, F)`, or the name of an attribute of the
            data that holds it, which loaders slice and collate like any
            other. A tensor is that of the full graph where the data has
            :obj:`n_id`, as mini-batches of a
            :class:`~torch_geometric.loader.NeighborLoader` have.
        normalization (str, optional): :obj:`'sym'` or :obj:`None`, see above.
            (default: :obj:`None`)
        order (int, optional): :obj:`2` minimises the squared distances of
            all entries from their neighbours' mean instead, for smoother
            features at the price of many more steps. (default: :obj:`1`)
        center (bool, optional): Subtract the mean of each feature's known
            entries before, and add it afterwards; matters with
            :obj:`normalization='sym'` only. (default: :obj:`False`)
        tol (float, optional): Tolerance of the relative residual.
            (default: :obj:`1e-6`)
        max_steps (int, optional): Largest number of steps.
            (default: :obj:`10000`)
        fill (float or str, optional): Value of entries that no path of
            positive weight joins to a known one; :obj:`'mean'` of the
            feature's known entries in the same example, or zero if there are
            none, with a warning; :obj:`None` refuses such data.
            (default: :obj:`'mean'`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with :obj:`x`
          :math:`(|\mathcal{V}|, F)`, where missing entries may be NaN, and
          :obj:`edge_index` :math:`(2, |\mathcal{E}|)` or :obj:`adj_t`
        - **output:** the same with missing entries of :obj:`x` filled in,
          in its type; the solver computes in float64

    Raises:
        ValueError: If an argument is not one of the above, the data is
            heterogeneous, lacks something or does not fit the mask, or a
            known entry is not finite.

    Warns:
        UserWarning: If entries get the mean because none near them is known.
        ConvergenceWarning: If the tolerance was not reached.
    """

    def __init__(
        self,
        missing_mask: Tensor | str,
        *,
        normalization: Literal['sym'] | None = None,
        order: int = 1,
        center: bool = False,
        tol: float = 1e-6,
        max_steps: int = 10_000,
        fill: float | str | None = 'mean',
    ) -> None:
        table = {
            **CHECKS,
            'missing_mask': _check_missing,
            'normalization': checks.one_of('sym', None),
            'order': checks.one_of(1, 2),
        }
        checks.check_parameters(table, locals())
        self.missing_mask = missing_mask
        self.normalization = normalization
        self.order = order
        self.center = center
        self.tol, self.max_steps, self.fill = tol, max_steps, fill

    def forward(self, data: Data) -> Data:
        """Returns the data with all entries of :obj:`x`."""
        checks.check_data(data)
        x = data.get('x')
        is_vector = isinstance(x, Tensor) and x.dim() == 1
        x = x.unsqueeze(1) if is_vector else x
        read_signal(x, name='data.x', validate_args=False)
        out = self._solve(data, x, self._known(data, x))
        data.x = out.squeeze(1) if is_vector else out
        return data

    def _known(self, data: Data, x: Tensor) -> Tensor:
        """Observed entries, `[N, F]`, of the nodes of the data."""
        name, mask = 'missing_mask', self.missing_mask
        if isinstance(mask, str):
            name = f'data.{mask}'
            if data.get(mask) is None:
                raise ValueError(
                    f"'missing_mask' names {mask!r}, which the data does not "
                    f'have; set {name}, True where missing'
                )
            mask = data[mask]
        elif data.get('n_id') is not None:
            nodes = data.n_id.to(mask.device)
            if nodes.numel() > 0 and int(nodes.max()) >= mask.size(0):
                raise ValueError(
                    f"'missing_mask' has {mask.size(0)} rows, but the data is "
                    f'a part of a graph with a node {int(nodes.max())} in '
                    f"'n_id'; give the mask of the full graph, or the name of "
                    f'an attribute that holds that of the part'
                )
            mask = mask[nodes]
        return ~read_mask(name, mask, x).to(x.device).expand_as(x)

    def _solve(self, data: Data, x: Tensor, known: Tensor) -> Tensor:
        check_known(
            *('data.x', x, known),
            "mark missing entries as True in 'missing_mask', for example by "
            "'torch.isnan(data.x)'",
        )
        if bool(known.all()):
            return x.clone()
        y = torch.where(known, x, 0).double()
        topology, weight, loops = _undirected_graph(data, x.size(0))
        mean = _known_mean(data, y, known)
        lost = unreachable(topology, weight.detach(), known)
        if bool(lost.any()):
            y = torch.where(lost, self._fill_value(lost, known, mean), y)
        free = ~(known | lost)
        if bool(free.any()):
            shift = mean if self.center else 0.0
            scale = y.new_ones(())  # makes the features harmonic
            if self.normalization == 'sym':
                degrees = degree(topology, weight.unsqueeze(1))
                degrees = degrees + loops.unsqueeze(1)
                scale = torch.where(degrees > 0, degrees, 1).sqrt()
            result = glr(
                *((y - shift) / scale, topology, weight, ~free),
                order=self.order,
                tol=self.tol,
                max_steps=self.max_steps,
            )
            y = torch.where(free, result.x * scale + shift, y)
        # Known entries as they are, bit for bit.
        return torch.where(known, x, y.to(x.dtype))

    def _fill_value(self, lost: Tensor, known: Tensor, mean: Tensor) -> Tensor:
        first = int(lost.any(1).nonzero()[0])
        where = (
            f"'missing_mask' leaves {int(lost.sum())} entries, the first of "
            f'them at node {first}, without a known one in their connected '
            f'component'
        )
        if self.fill is None:
            raise ValueError(
                f'{where}; connect the graph, observe one of them, or pass '
                f"'fill' (a number or 'mean')"
            )
        if not isinstance(self.fill, str):
            return mean.new_tensor(self.fill)
        columns = int((~known.any(0)).sum())
        unseen = f' ({columns} features have none at all)' if columns else ''
        warnings.warn(
            f"{where}: they get the mean of the feature's known entries, or "
            f"zero where there are none{unseen}; pass 'fill' to choose another "
            f'value',
            stacklevel=2,
        )
        return mean

    def __repr__(self) -> str:
        if isinstance(self.missing_mask, str):
            missing = f'missing_mask={self.missing_mask!r}'
        else:
            share = self.missing_mask.double().mean()
            missing = f'missing_features={100 * float(share):.1f}%'
        return (
            f'{self.__class__.__name__}({missing}, '
            f'normalization={self.normalization!r}, order={self.order})'
        )


def _known_mean(data: Data, y: Tensor, known: Tensor) -> Tensor:
    """Mean of each feature's known entries per example, at its nodes."""
    example = data.get('batch')
    if not isinstance(example, Tensor):
        example = torch.zeros(y.size(0), dtype=torch.long, device=y.device)
    total = utils.scatter(torch.where(known, y, 0), example)
    count = utils.scatter(known.double(), example)
    return (total / count.clamp(min=1))[example]


def _undirected_graph(
    data: Data, num_nodes: int
) -> tuple[Topology, Tensor, Tensor]:
    """The undirected graph, its weights `[E]` and those of each node's
    self-loop `[N]`, in float64.
    """
    edge_index, weight = _read_edges(data)
    if edge_index.numel() > 0:
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"'data' has edges between nodes {low} and {high}, but "
                f"'data.x' has {num_nodes} rows; give it one row per node"
            )
    if weight is None:
        edge_index = utils.coalesce(edge_index, num_nodes=num_nodes)
        weight = torch.ones_like(edge_index[0], dtype=torch.double)
    else:
        edge_index, weight = utils.coalesce(
            edge_index, weight.double(), num_nodes
        )
    loops = utils.get_self_loop_attr(edge_index, weight, num_nodes)
    ends, weight = utils.to_undirected(
        edge_index, weight, num_nodes, reduce='mean'
    )
    is_edge = ends[0] < ends[1]
    src, dst = ends[:, is_edge]
    topology = Topology.from_pairs(src, dst, num_nodes)
    return topology, weight[is_edge], loops


def _read_edges(data: Data) -> tuple[Tensor, Tensor | None]:
    """Edge indices, and one weight per edge if there are weights."""
    cure = "make one, of points with 'KNNGraph', or set a sparse 'adj_t'"
    graph, weight = required_edges(data, cure), data.get('edge_weight')
    if weight is not None:
        name = 'edge_weight'
    elif utils.is_sparse(graph):  # which has its own
        name = 'adj_t' if data.get('edge_index') is None else 'edge_index'
    else:
        name, weight = 'edge_attr', data.get('edge_attr')
    if isinstance(graph, Topology):
        edge_index = graph.edge_index
        if weight is not None and weight.size(0) == graph.num_edges:
            weight = graph.directed_weight(weight)
    else:
        # Transposed if PyG's `adj_t`, but both directions will be the same.
        edge_index, weight = read_edges(graph, weight)
        checks.check_indices(edge_index)
    edge_index = edge_index.as_subclass(Tensor).long()
    if weight is None:
        return edge_index, None
    count = edge_index.size(1)
    note = ": one weight per edge; set 'data.edge_weight', for example to ones"
    checks.check_shape(f'data.{name}', weight, [count], [count, 1], note=note)
    weight = weight.view(-1)
    checks.check_weights(f'data.{name}', weight, *edge_index)
    return edge_index, weight
