r"""Systems whose weights are of very different size, to a proven tolerance.

Where a strong part of a graph hangs on weak edges, a small residual proves
nothing. The spanning trees :math:`T` of largest weight do (Vaidya, 1991):
whatever the weights, they are good preconditioners, solved without a
subtraction, and as :math:`T \preceq A`, both :math:`A^{-1} \preceq T^{-1}` and

.. math::
    |x - A^{-1} b|_i^2 \le (T^{-1})_{ii} \cdot r^{\top} T^{-1} r.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.ops.cg import LaplacianSystem
from pyg_unroll.ops.reference.cg import Matrix

# Chosen by random problems: the residual alone bounds errors by ten tolerances
# in all of 3000 of them.
_EVEN = 100
_STIFF = 30
_MOST = 17.0


def caution(system: Matrix) -> float:
    """How much smaller than the tolerance a residual must be, or infinity if it
    says too little, of a system whose weights differ in size.
    """
    weight, c = system.weight, system.confidence
    if weight.numel() == 0 or system.degree is not None:
        return 1.0
    low, high = _extremes(weight)
    spread = high / low
    if c is not None:
        least, most = _extremes(c)
        # Its size matters, too, where something is not observed.
        if float(c.amin()) <= 0:
            spread = torch.maximum(spread, most / low)
        spread = torch.maximum(spread, most / least)
    out = max(1.0, float(spread) / _EVEN) ** 0.5
    return out if out < _MOST else torch.inf


def is_stiff(system: Matrix) -> bool:
    """Whether smoothness outweighs some observation by far."""
    c, diagonal = system.confidence, system.diagonal
    if c is None or c.numel() == 0:
        return False
    largest = diagonal.amax()
    if float(largest) == torch.inf:
        largest = torch.where(diagonal < torch.inf, diagonal, 0).amax()
    return float(largest) > _STIFF * float(_extremes(c)[0])


def _extremes(value: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest positive number."""
    low, high = value.aminmax()
    if float(low) <= 0 < float(high):
        low = value[value > 0].amin()
    return low, high


class _Tree(NamedTuple):
    """A forest of one column, eliminated from its leaves to what is held."""

    order: Any  # free nodes, leaves first
    factor: Any  # unit lower triangular
    pivot: Any  # in that order
    variance: Any  # diagonal of the inverse, the same

    def __call__(self, residual: Any) -> Any:
        """Applies the inverse."""
        out = np.zeros_like(residual)
        half = self.factor.solve(residual[self.order]) / self.pivot
        out[self.order] = self.factor.solve(half, 'T')
        return out


def _grow(src: Any, dst: Any, weight: Any, ground: Any) -> _Tree:
    """The tree of the edges between free nodes and of those to the ground,
    what is held or observed; nodes that do not reach it are left out.
    """
    from scipy.sparse import csc_matrix, csgraph, csr_matrix
    from scipy.sparse.linalg import splu

    size = len(ground)
    (down,) = np.nonzero(ground)
    ends = np.append(src, down), np.append(dst, np.full(len(down), size))
    weight = np.append(weight, ground[down])
    best = np.argsort(-weight, kind='stable')
    rank = np.empty(len(best))
    rank[best] = np.arange(1, len(best) + 1)
    shape = size + 1, size + 1
    tree = csgraph.minimum_spanning_tree(csr_matrix((rank, ends), shape=shape))
    order, parent = csgraph.breadth_first_order(tree, size, directed=False)
    row, col = tree.nonzero()
    child = np.where(parent[row] == col, row, col)
    above = np.zeros(size)  # weight of the edge to a parent that is free
    above[child] = weight[best[tree.data.astype(np.int64) - 1]]
    above[parent[:size] == size] = 0
    order = order[:0:-1]
    # Loops over lists, which are faster than over arrays.
    leak, up, root = [*ground.tolist(), 0.0], above.tolist(), parent.tolist()
    pivot, share = [0.0] * size, [0.0] * (size + 1)
    for i in order.tolist():
        pivot[i] = up[i] + leak[i]
        share[i] = up[i] / pivot[i]
        leak[root[i]] += share[i] * leak[i]
    variance = [0.0] * (size + 1)
    for i in order[::-1].tolist():
        variance[i] = 1 / pivot[i] + share[i] ** 2 * variance[root[i]]
    place = np.empty(size + 1, np.intc)
    place[order] = np.arange(len(order))
    row, col = place[parent[order]], np.arange(len(order), dtype=np.intc)
    inner, value = parent[order] < size, -np.take(share, order)
    entries = np.append(value[inner], np.ones(len(order)))
    index = np.append(row[inner], col), np.append(col[inner], col)
    factor = splu(
        csc_matrix((entries, index), shape=(len(order), len(order))),
        permc_spec='NATURAL',
        diag_pivot_thresh=0,
        options={'Equil': False},
    )
    return _Tree(order, factor, *(np.take(v, order) for v in (pivot, variance)))


@dataclass(frozen=True, eq=False)
class _Forest:
    """Trees of columns, and what to sum over their connected parts."""

    trees: list[tuple[int, int, _Tree]]  # with feature and head
    part: Tensor  # number of each entry's part, of all columns, [N * F * H]
    variance: Tensor  # largest of each part

    @classmethod
    def of(cls, system: LaplacianSystem, shape: torch.Size) -> Self:
        """Grows the trees of a system."""
        from scipy.sparse import csgraph, csr_matrix

        topology, (size, *columns) = system.topology, shape
        ends = np.stack([topology.src.numpy(), topology.dst.numpy()])
        grown: dict[bytes, tuple[_Tree, Any]] = {}
        trees, part, count = [], np.zeros(tuple(shape), np.int64), 1
        variance = [np.zeros(1)]
        for f, h in product(*map(range, columns)):
            free = np.ones(size, bool)
            ground = np.zeros(size)
            if system.free is not None:
                free = system.free.expand(shape)[:, f, h].numpy()
            if system.confidence is not None:
                c = system.confidence.expand(shape)[:, f, h].numpy()
                ground = np.where(free, c, 0)
            weight = system.weight[:, h].numpy()
            key = b''.join(map(np.ndarray.tobytes, (free, ground, weight)))
            if key not in grown:
                is_free = free[ends] & (weight > 0)
                for end, other in ((0, 1), (1, 0)):
                    rim = is_free[end] & ~is_free[other]
                    ground += np.bincount(ends[end][rim], weight[rim], size)
                inner = is_free.all(0)
                src, dst = ends[:, inner]
                links = csr_matrix(
                    (weight[inner], (src, dst)), shape=(size, size)
                )
                label = csgraph.connected_components(links, directed=False)[1]
                tree = _grow(src, dst, weight[inner], ground)
                grown[key] = tree, label
            tree, label = grown[key]
            trees.append((f, h, tree))
            part[free, f, h] = label[free] + count
            largest = np.zeros(size)
            np.maximum.at(largest, label[tree.order], tree.variance)
            variance.append(largest)
            count += size
        return cls(
            trees,
            torch.from_numpy(part).flatten(),
            torch.from_numpy(np.concatenate(variance)),
        )

    def __call__(self, residual: Tensor) -> Tensor:
        """Applies the inverse of the trees."""
        out = torch.zeros_like(residual)
        for f, h, tree in self.trees:
            out[:, f, h] = torch.from_numpy(tree(residual[:, f, h].numpy()))
        return out

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Products of each part."""
        out = torch.zeros_like(self.variance)
        return out.index_add(0, self.part, (a * b).flatten())

    def size(self, a: Tensor, least: float = 0.0) -> Tensor:
        """The largest number of each part, or some least size."""
        out = torch.full_like(self.variance, least)
        return out.scatter_reduce(0, self.part, a.abs().flatten(), 'amax')

    def descend(
        self,
        system: LaplacianSystem,
        x: Tensor,
        residual: Tensor,
        tol: float,
        unit: float,
        max_steps: int,
    ) -> tuple[Tensor, Tensor, int]:
        """A correction by conjugate gradients, until no entry's error is above
        the tolerance relative to the size of its part; with the bounds.
        """
        out, residual = torch.zeros_like(x), residual.clone()
        z = self(residual)
        direction, energy, count = z, self.dot(residual, z), 0
        while True:
            bound = (self.variance * energy.clamp(min=0)).sqrt()
            is_near = bound <= tol * self.size(x + out, unit)
            if count == max_steps or bool(is_near.all()):
                return out, bound, count
            image = system(direction)
            curvature = self.dot(direction, image)
            step = torch.where(curvature > 0, energy / curvature, 0)
            step = step[self.part].view_as(x)
            out += step * direction
            residual -= step * image
            z = self(residual)
            previous, energy = energy, self.dot(residual, z)
            momentum = torch.where(previous > 0, energy / previous, 0)
            direction = z + momentum[self.part].view_as(x) * direction
            count += 1


def solve_by_trees(
    system: LaplacianSystem,
    right: Tensor,
    tol: float,
    max_steps: int,
    unit: float = 0.0,
) -> tuple[Tensor, float, int]:
    """The solution, a bound of its largest error relative to the largest entry
    of its connected part or to some unit, and the number of steps.

    Rounding is seen by a second look: the solution for the residual that is
    left must be small, too.
    """
    device = right.device
    topology, *parts = *system.operands, system.free
    moved: list[Any] = [v if v is None else v.cpu() for v in parts]
    system = LaplacianSystem(topology.cpu(), *moved)
    right = right.cpu()
    forest = _Forest.of(system, right.shape)
    x, error, num_steps = torch.zeros_like(right), torch.inf, 0
    for look in range(5):
        rest = system.restrict(right - system(x))
        change, bound, count = forest.descend(
            system, x, rest, tol / 2, unit, max_steps - num_steps
        )
        x, num_steps, previous = x + change, num_steps + count, error
        bound = bound + forest.size(change)
        size = forest.size(x, unit)
        error = float(torch.where(bound == 0, 0, bound / size).max())
        if look and (error <= tol or error > previous / 2):
            break
    return x.to(device), error, num_steps
