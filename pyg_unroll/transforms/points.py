"""Points: signals on them as data, and graphs of nearest neighbours."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pyg_unroll.checks import check_data, check_positive, check_shape
from pyg_unroll.graph import Topology
from pyg_unroll.inputs import read_signal
from pyg_unroll.transforms.utils import join_graphs, set_graph


def points_to_data(
    pos: Tensor, signal: Tensor, mask: Tensor | None = None
) -> Data:
    r"""Turns a signal on points, some of its entries known, into data.

    Args:
        pos (torch.Tensor): Positions :math:`(N, D)`.
        signal (torch.Tensor): Values :math:`(N)` or :math:`(N, F)`; unknown
            entries are ignored.
        mask (torch.Tensor, optional): True where known, boolean :math:`(N)`
            or :math:`(N, F)`; where :obj:`signal` is not NaN if :obj:`None`.
            (default: :obj:`None`)

    Returns:
        :class:`~torch_geometric.data.Data` with :obj:`pos`, :obj:`mask`
        :math:`(N, F)`, and :obj:`x` :math:`(N, F)`, in which unknown entries
        are the mean of the known ones of that feature, a start for the
        layers.

    Raises:
        ValueError: If shapes do not fit, a known entry is not finite or a
            feature has no known entry.
    """
    check_shape('pos', pos, ['num_points', 'dimensions'])
    rows = pos.size(0)
    check_shape('signal', signal, [rows], [rows, 'features'])
    signal = signal.unsqueeze(-1) if signal.dim() == 1 else signal
    if not signal.is_floating_point():
        signal = signal.float()
    mask = ~signal.isnan() if mask is None else mask
    mask = read_signal(signal, mask, name='signal').observed
    total = torch.where(mask, signal, 0).sum(0, dtype=torch.float64)
    mean = (total / mask.sum(0)).to(signal.dtype)
    return Data(
        x=torch.where(mask, signal, mean), pos=pos, mask=mask.contiguous()
    )


@functional_transform('symmetric_knn_graph')
class KNNGraph(BaseTransform):
    r"""Connects each point to its :math:`k` nearest neighbours, symmetrically
    (functional name: :obj:`symmetric_knn_graph`).

    An edge joins two points if either is among the :math:`k` nearest
    neighbours of the other, so that the graph is undirected and each node has
    at least :math:`k` neighbours. Needs no compiled extension: a k-d tree on
    the CPU, chunked distances on other devices. Points of different examples
    of a batch are never joined. For gradients or weights, follow it with
    :class:`~pyg_unroll.transforms.MahalanobisGraph`.

    Args:
        k (int, optional): The number of neighbours. (default: :obj:`8`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch` with :obj:`pos`
          :math:`(|\mathcal{V}|, D)`
        - **output:** the same with :obj:`edge_index`
          :math:`(2, |\mathcal{E}|)`, both directions, sorted by row

    Raises:
        ValueError: If positions are missing or not finite, or an example has
            :math:`k` points or fewer, or :obj:`batch` is not sorted.
    """

    def __init__(self, k: int = 8) -> None:
        check_positive('k', k)
        self.k = k

    def forward(self, data: Data) -> Data:
        """Returns the data with :obj:`edge_index`."""
        return set_graph(data, self.topology(data))

    def topology(self, data: Data) -> Topology:
        """Returns the edges without putting them into the data."""
        check_data(data)
        pos = data.get('pos')
        if not isinstance(pos, Tensor):
            raise ValueError(
                "'data' has no positions; set 'data.pos' of shape [num_nodes, "
                "dimensions], for example with 'pyg_unroll.points_to_data'"
            )
        pos = pos.detach()
        pos = pos.view(-1, 1) if pos.dim() == 1 else pos
        if pos.dim() != 2 or pos.size(1) == 0 or pos.is_complex():
            raise ValueError(
                f"'data.pos' must be real numbers of shape [num_nodes, "
                f'dimensions] (got {pos.dtype} of {list(pos.shape)})'
            )
        if not bool(torch.isfinite(pos).all()):
            node = int((~torch.isfinite(pos)).any(-1).nonzero()[0])
            raise ValueError(
                f"'data.pos' must be finite (got {pos[node].tolist()} at node "
                f'{node}); remove such points first'
            )
        sizes = _sizes_of_examples(data, pos.size(0))
        edges = [self._neighbours(part) for part in pos.split(sizes)]
        return join_graphs(edges, sizes)

    def _neighbours(self, pos: Tensor) -> Tensor:
        num_nodes = pos.size(0)
        if num_nodes <= self.k:
            raise ValueError(
                f"'k' must be smaller than the number of points of each "
                f'example (got k={self.k} for {num_nodes} points); of an '
                f"estimator it is 'neighbors'"
            )
        # Among duplicates, a point need not be its own first neighbour.
        on_cpu = pos.device.type == 'cpu'
        find = nearest_by_tree if on_cpu else nearest_by_distance
        near = find(pos, self.k + 1)
        itself = torch.arange(num_nodes, device=pos.device).unsqueeze(1)
        is_self = near == itself
        is_self[~is_self.any(1), -1] = True
        dst = near[~is_self].view(num_nodes, self.k)
        src = itself.expand_as(dst)
        pair = torch.minimum(src, dst) * num_nodes + torch.maximum(src, dst)
        pair = pair.unique()
        return torch.stack([pair // num_nodes, pair % num_nodes])

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(k={self.k})'


def nearest_by_tree(pos: Tensor, k: int) -> Tensor:
    """Indices of the `k` nearest points, `[N, k]`, nearest first."""
    from scipy.spatial import KDTree  # late: slow to load

    points = pos.double().numpy()
    _, near = KDTree(points).query(points, k=k, workers=-1)
    return torch.from_numpy(near).view(-1, k)


def nearest_by_distance(
    pos: Tensor, k: int, max_distances: int = 2**26
) -> Tensor:
    """The same on any device; the distances held at once, by default, take
    256 MiB in float32.
    """
    pos = pos if pos.is_floating_point() else pos.float()
    chunk = max(1, max_distances // pos.size(0))
    exact = 'donot_use_mm_for_euclid_dist'
    near = [
        torch.cdist(part, pos, compute_mode=exact).topk(k, largest=False)[1]
        for part in pos.split(chunk)
    ]
    return torch.cat(near)


def _sizes_of_examples(data: Data, num_nodes: int) -> list[int]:
    ptr, batch = data.get('ptr'), data.get('batch')
    if ptr is not None:
        return ptr.diff().tolist()
    if batch is None:
        return [num_nodes]
    if batch.shape != (num_nodes,) or bool((batch.diff() < 0).any()):
        raise ValueError(
            f"'data.batch' must be sorted, one number for each of {num_nodes} "
            f'nodes (got {list(batch.shape)}); sort the nodes by it'
        )
    return batch.bincount().tolist()
