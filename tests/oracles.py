"""Graphs to test on, and solutions that our own code has no part in."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import linprog, lsq_linear
from scipy.sparse.linalg import spsolve
from torch_geometric.utils import get_laplacian, to_dense_adj


class Graph(NamedTuple):
    edge_index: torch.Tensor
    edge_weight: torch.Tensor
    num_nodes: int


def random_graph(
    num_nodes,
    num_extra,
    heads=None,
    dtype=torch.float32,
    shuffle=True,
    connected=True,
):
    """A path and some random edges, both directions, in random order."""
    extra = torch.randint(num_nodes, (2, num_extra))
    extra = extra[:, extra[0] != extra[1]]
    path = torch.arange(num_nodes - 1).repeat(2, 1)
    path[1] += 1
    pairs = torch.cat([path, extra], 1) if connected else extra
    low, high = pairs.amin(0), pairs.amax(0)
    key = (low * num_nodes + high).unique()
    return from_pairs(
        torch.stack([key // num_nodes, key % num_nodes]),
        num_nodes,
        heads,
        dtype,
        shuffle,
    )


def grid_graph(height, width, heads=None, dtype=torch.float32):
    """The four-neighbour grid."""
    index = torch.arange(height * width).view(height, width)
    right = torch.stack([index[:, :-1].flatten(), index[:, 1:].flatten()])
    down = torch.stack([index[:-1].flatten(), index[1:].flatten()])
    pairs = torch.cat([right, down], 1)
    return from_pairs(pairs, height * width, heads, dtype, False)


def from_pairs(pairs, num_nodes, heads, dtype, shuffle):
    shape = (pairs.size(1),) if heads is None else (pairs.size(1), heads)
    weight = torch.rand(shape, dtype=torch.float64) + 0.1
    edge_index = torch.cat([pairs, pairs.flip(0)], 1)
    edge_weight = torch.cat([weight, weight]).to(dtype)
    if shuffle:
        order = torch.randperm(edge_index.size(1))
        edge_index, edge_weight = edge_index[:, order], edge_weight[order]
    return Graph(edge_index, edge_weight, num_nodes)


def dense_laplacian(edge_index, edge_weight, num_nodes):
    """By PyG, float64 `[N, N]`."""
    index, value = get_laplacian(
        edge_index, edge_weight.double(), num_nodes=num_nodes
    )
    return to_dense_adj(index, edge_attr=value, max_num_nodes=num_nodes)[0]


def dense_glr(x, edge_index, edge_weight, mask, order=1):
    """Dense solve per column, differentiable."""
    num_nodes = x.size(0)
    adjacency = x.new_zeros(num_nodes, num_nodes)
    adjacency = adjacency.index_put(tuple(edge_index), edge_weight)
    matrix = adjacency.sum(1).diag() - adjacency
    if order == 2:
        matrix = matrix / adjacency.sum(1) @ matrix
    mask = mask.view(num_nodes, -1).expand_as(x)
    columns = []
    for value, known in zip(x.T, mask.T, strict=True):
        right = -matrix[~known][:, known] @ value[known]
        inner = torch.linalg.solve(matrix[~known][:, ~known], right)
        columns.append(value.index_put((~known,), inner))
    return torch.stack(columns, 1)


def dense_proximal(y, edge_index, edge_weight, confidence, mu, order=1):
    """Minimiser of `sum c (z - y)^2 + mu z'Lz`."""
    matrix = dense_laplacian(edge_index, edge_weight, y.size(0))
    if order == 2:
        matrix = matrix / matrix.diagonal() @ matrix
    matrix = mu * matrix
    c = confidence.double().view(y.size(0), -1).expand_as(y)
    return torch.stack(
        [
            torch.linalg.solve(matrix + column.diag(), column * value)
            for column, value in zip(c.T, y.double().T, strict=True)
        ],
        1,
    )


def sparse_laplacian(edge_index, edge_weight, num_nodes):
    row, col = edge_index.numpy()
    adjacency = sp.coo_array(
        (edge_weight.double().numpy(), (row, col)), shape=(num_nodes, num_nodes)
    ).tocsr()
    return (sp.csr_array(sp.diags(adjacency.sum(1))) - adjacency).tocsr()


def spsolve_glr(x, edge_index, edge_weight, mask):
    """SuperLU, one column after the other."""
    matrix = sparse_laplacian(edge_index, edge_weight, x.size(0))
    out = x.double().numpy().copy()
    mask = mask.view(x.size(0), -1).expand_as(x).numpy()
    for f in range(out.shape[1]):
        known = mask[:, f]
        right = -matrix[~known][:, known] @ out[known, f]
        out[~known, f] = superlu(matrix[~known][:, ~known], right)
    return torch.from_numpy(out)


def superlu(matrix, right):
    """Solves a sparse system."""
    system = matrix.tocsc()
    # SuperLU takes no others; SciPy 1.11 does not convert them.
    system.indices, system.indptr = (
        index.astype(np.intc) for index in (system.indices, system.indptr)
    )
    return spsolve(system, right)


def _one_direction(edge_index, edge_weight, num_nodes):
    forward = edge_index[0] < edge_index[1]
    row, col = edge_index[:, forward].numpy()
    count = len(row)
    incidence = sp.coo_array(
        (
            np.concatenate([np.ones(count), -np.ones(count)]),
            (np.tile(np.arange(count), 2), np.concatenate([row, col])),
        ),
        shape=(count, num_nodes),
    ).tocsr()
    return incidence, edge_weight[forward].double().numpy()


def gtv_objective(x, edge_index, edge_weight):
    """Total variation of each column."""
    incidence, weight = _one_direction(edge_index, edge_weight, x.size(0))
    return weight @ np.abs(incidence @ x.detach().double().numpy())


def linprog_gtv(x, edge_index, edge_weight, mask):
    """Smallest total variation of each column, by HiGHS."""
    incidence, weight = _one_direction(edge_index, edge_weight, x.size(0))
    count, num_nodes = incidence.shape
    mask = mask.view(num_nodes, -1).expand_as(x).numpy()
    eye = sp.csr_array(sp.eye(count))
    matrix = sp.hstack([incidence, -eye, eye]).tocsr()
    cost = np.concatenate([np.zeros(num_nodes), weight, weight])
    optimum = []
    for f in range(x.size(1)):
        y = x[:, f].double().numpy()
        bounds = np.full((num_nodes + 2 * count, 2), np.inf)
        bounds[:num_nodes, 0] = -np.inf
        bounds[num_nodes:, 0] = 0
        bounds[:num_nodes][mask[:, f]] = y[mask[:, f], None]
        result = linprog(
            cost,
            A_eq=matrix,
            b_eq=np.zeros(count),
            bounds=bounds,
            method='highs-ipm',
        )
        assert result.status == 0, result.message
        optimum.append(result.fun)
    return np.array(optimum)


def dual_gtv_proximal(y, edge_index, edge_weight, confidence, mu):
    """Minimiser of `sum c (z - y)^2 + mu GTV(z)`, `c > 0`, by its dual:
    a least-squares problem in a box.
    """
    incidence, weight = _one_direction(edge_index, edge_weight, y.size(0))
    push = mu / 2 * (incidence.T @ sp.csr_array(sp.diags(weight))).toarray()
    c = confidence.double().view(y.size(0), -1).expand_as(y).numpy()
    columns = []
    for f in range(y.size(1)):
        value, root = y[:, f].double().numpy(), np.sqrt(c[:, f])
        dual = lsq_linear(
            push / root[:, None], root * value, bounds=(-1, 1), tol=1e-14
        )
        columns.append(value - push @ dual.x / c[:, f])
    return torch.from_numpy(np.stack(columns, 1))


def relative_error(actual, expected):
    difference = (actual.detach().double() - expected.double()).norm()
    return float(difference / expected.double().norm())
