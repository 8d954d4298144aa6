"""Graphs and signals to draw.

Hypothesis chooses structure, shapes, types and a seed; PyTorch fills in the
numbers.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor

from pyg_unroll import Topology

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
# Few, as the CPU kernels are compiled for each.
FEATURES = st.sampled_from([1, 2])
HEADS = st.sampled_from([1, 2])
LAYOUTS = ('coo', 'int32', 'csr', 'csc', 'EdgeIndex', 'Topology') + (
    ('SparseTensor',) if WITH_TORCH_SPARSE else ()
)


def share(part):
    """Tries only a part of the profile's examples, for slow tests."""
    count = max(round(part * settings.default.max_examples), 2)
    return settings(max_examples=count)


def _star(n):
    return [(0, k) for k in range(1, n)]


def _path(n):
    return [(k, k + 1) for k in range(n - 1)]


def _complete(n):
    return list(combinations(range(n), 2))


@st.composite
def pairs(draw, max_nodes=9):
    """A number of nodes, and unordered pairs (i, j), i < j."""
    kind = draw(
        st.sampled_from(
            ['random', 'empty', 'star', 'path', 'complete', 'two parts']
        )
    )
    n = draw(st.integers(1, max_nodes))
    if kind == 'empty':
        return n, []
    if kind == 'random':  # isolated nodes, too
        chosen = draw(st.sets(st.sampled_from(_complete(n)))) if n > 1 else []
        return n, sorted(chosen)
    make = {'star': _star, 'path': _path, 'complete': _complete}
    if kind != 'two parts':
        return n, make[kind](n)
    m = draw(st.integers(1, max_nodes))
    second = [(i + n, j + n) for i, j in _complete(m)]
    return n + m + 1, _path(n) + second  # and an isolated node


@dataclass
class Case:
    """A signal on a graph; `weight` is None or one row per pair."""

    num_nodes: int
    pairs: Tensor
    weight: Tensor | None
    x: Tensor
    mask: Tensor | None
    generator: torch.Generator

    @property
    def dtype(self):
        return self.x.dtype

    @property
    def num_edges(self):
        return self.pairs.size(1)

    @property
    def heads(self):
        many = self.weight is not None and self.weight.dim() == 2
        return self.weight.size(1) if many else 1

    def randn(self, *shape):
        values = torch.randn(shape, generator=self.generator)
        return values.to(self.dtype)

    def rand(self, *shape):
        values = torch.rand(shape, generator=self.generator)
        return values.to(self.dtype)

    def permutation(self, n):
        return torch.randperm(n, generator=self.generator)

    def renaming(self):
        """A random order of the nodes, and the new name of each."""
        order = self.permutation(self.num_nodes)
        name = torch.empty_like(order)
        name[order] = torch.arange(self.num_nodes)
        return order, name

    def known(self):
        """The mask of all entries."""
        if self.mask is None:
            return torch.ones_like(self.x, dtype=torch.bool)
        return self.mask.view(self.num_nodes, -1).expand_as(self.x)

    def columns(self):
        """Both directions in random order, and weights in that order."""
        order = self.permutation(2 * self.num_edges)
        index = torch.cat([self.pairs, self.pairs.flip(0)], 1)[:, order]
        if self.weight is None:
            return index, None
        return index, torch.cat([self.weight, self.weight])[order]

    def per_head(self):
        """Weights `[E, H]`, ones if there are none."""
        if self.weight is None:
            return torch.ones(self.num_edges, 1, dtype=self.dtype)
        return self.weight.view(self.num_edges, self.heads)

    def topology(self):
        return Topology.from_pairs(*self.pairs, self.num_nodes)

    def dense(self):
        """Adjacency matrices, float64 `[H, N, N]`."""
        n = self.num_nodes
        out = torch.zeros(self.heads, n, n, dtype=torch.double)
        out[:, self.pairs[0], self.pairs[1]] = self.per_head().double().T
        return out + out.mT

    def layout(self, name):
        """The graph in one of PyG's layouts, and weights to go with it."""
        index, weight = self.columns()
        if name == 'coo':
            return index, weight
        if name == 'int32':
            return index.int(), weight
        n = self.num_nodes
        if name == 'EdgeIndex':
            return EdgeIndex(index, sparse_size=(n, n)), weight
        if name == 'Topology':
            return self.topology(), self.weight
        value = torch.ones(index.size(1)) if weight is None else weight
        if name == 'SparseTensor':
            row, col = index
            return SparseTensor(
                row=row, col=col, value=weight, sparse_sizes=(n, n)
            ), None
        if value.dim() == 2:  # a sparse matrix holds one number per edge
            return index, weight
        coo = torch.sparse_coo_tensor(index, value, (n, n)).coalesce()
        matrix = coo.to_sparse_csr() if name == 'csr' else coo.to_sparse_csc()
        return matrix, None


def _weights(kind, num_edges, heads, dtype, generator):
    shape = (num_edges,) if heads is None else (num_edges, heads)
    u = torch.rand(shape, generator=generator, dtype=torch.double)
    if kind == 'zeros':
        u = torch.where(u < 0.4, 0.0, u)
    elif kind == 'extreme':
        # The edges of the range are frequent.
        powers = ((2 * u - 1) * 40).clamp(-30, 30)
        u = 10.0 ** (powers / (10 if dtype == torch.float16 else 1))
    else:
        u = u + 0.1
    return u.to(dtype)


@st.composite
def cases(
    draw,
    dtypes=FLOATS,
    weights=('none', 'unit', 'zeros'),
    masked=(False, True),
    max_nodes=9,
    headless=False,
):
    n, edges = draw(pairs(max_nodes))
    seed = draw(st.integers(0, 2**32))
    torch.manual_seed(seed)  # of the parameters of layers and models
    generator = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from(dtypes))
    kind = draw(st.sampled_from(weights))
    heads = None if headless else draw(st.none() | HEADS)
    index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T.contiguous()
    weight = None
    if kind != 'none':
        weight = _weights(kind, len(edges), heads, dtype, generator)
    features = draw(FEATURES)
    x = torch.randn((n, features), generator=generator).to(dtype)
    mask = None
    if n > 1 and draw(st.sampled_from(masked)):
        per_node = draw(st.booleans())
        shape = (n,) if per_node else (n, features)
        mask = torch.rand(shape, generator=generator) < draw(
            st.sampled_from([0.1, 0.5, 0.9])
        )
        # Something is known, something is not, in each feature.
        mask[draw(st.integers(0, n - 1))] = True
        if mask.view(n, -1).all(0).any():
            first = int(draw(st.integers(0, n - 1)))
            mask[first] = False
            mask[(first + 1) % n] = True
    return Case(n, index, weight, x, mask, generator)
