"""GLRConv as the propagation layer of a net that classifies nodes."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import APPNP, HeteroConv, SAGEConv, to_hetero
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from torch_geometric.utils import k_hop_subgraph, stochastic_blockmodel_graph

from pyg_unroll import GLRConv
from pyg_unroll.testing import assert_same
from tests.oracles import random_graph

HOPS, CLASSES, CHANNELS = 3, 3, 8
needs_sampler = pytest.mark.skipif(
    not (WITH_PYG_LIB or WITH_TORCH_SPARSE),
    reason='NeighborLoader needs pyg-lib or torch-sparse',
)


class Net(torch.nn.Module):
    """As APPNP is used: first predict, then propagate."""

    def __init__(self, propagate=True):
        super().__init__()
        self.lin = torch.nn.Linear(CHANNELS, CLASSES)
        self.conv = GLRConv(HOPS, mu=5.0) if propagate else None

    def forward(self, x, edge_index, edge_weight=None):
        x = self.lin(x)
        return x if self.conv is None else self.conv(x, edge_index, edge_weight)


def communities(num_nodes=90):
    probability = torch.full((CLASSES, CLASSES), 0.02)
    probability.fill_diagonal_(0.25)
    size = num_nodes // CLASSES
    edge_index = stochastic_blockmodel_graph([size] * CLASSES, probability)
    y = torch.arange(CLASSES).repeat_interleave(size)
    x = 2 * torch.randn(CLASSES, CHANNELS)[y]
    x += 2 * torch.randn(num_nodes, CHANNELS)
    train = torch.arange(num_nodes) % 5 == 0
    return Data(x=x, y=y, edge_index=edge_index, train=train)


@torch.no_grad()
@pytest.mark.parametrize('alpha', [0.1, 0.5])
def test_has_the_limit_of_appnp(alpha):
    # APPNP solves (1 + mu (1 - D^-1/2 A D^-1/2)) z = x; in z / sqrt(d), that
    # is the proximal step with the degrees as confidence.
    graph = random_graph(30, 60, dtype=torch.float64)
    x = torch.randn(30, CLASSES).double()
    expected = APPNP(1000, alpha, add_self_loops=False)(x, *graph[:2])
    degrees = torch.zeros(30).double()
    degrees.index_add_(0, graph.edge_index[0], graph.edge_weight)
    root = degrees.sqrt().unsqueeze(1)
    conv = GLRConv(300, mu=(1 - alpha) / alpha, spectrum=(0.02, 2.0))
    out = root * conv(x / root, *graph[:2], confidence=degrees)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


def fit(net, batches, num_epochs=30):
    """Trains in place on the nodes at the front of each batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = []
    for _ in range(num_epochs):
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            out = net(batch.x, batch.edge_index)[: batch.batch_size]
            loss = F.cross_entropy(out, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total)
    return losses


def test_propagation_helps():
    data = communities()
    accuracies = []
    for propagate in (False, True):
        net = Net(propagate)
        order = data.train.float().argsort(descending=True, stable=True)
        name = torch.empty_like(order)
        name[order] = torch.arange(data.num_nodes)
        batch = Data(
            x=data.x[order],
            y=data.y[order],
            edge_index=name[data.edge_index],
            batch_size=int(data.train.sum()),
        )
        losses = fit(net, [batch], 60)
        assert losses[-1] < losses[0] / 2
        right = net(data.x, data.edge_index).argmax(1) == data.y
        accuracies.append(float(right[~data.train].float().mean()))
    # Nodes without labels lie in the communities of those with.
    assert accuracies[1] > accuracies[0] + 0.1, accuracies


def k_hop_batch(data, seeds, num_hops):
    """What a loader samples if it takes all neighbours; seeds in front."""
    nodes, edge_index, place, edges = k_hop_subgraph(
        seeds, num_hops, data.edge_index, True, data.num_nodes
    )
    others = torch.ones(nodes.numel()).bool()
    others[place] = False
    order = torch.cat([place, others.nonzero().view(-1)])
    name = torch.empty_like(order)
    name[order] = torch.arange(order.numel())
    out = Data(
        x=data.x[nodes[order]],
        y=data.y[nodes[order]],
        edge_index=name[edge_index],
        batch_size=seeds.numel(),
    )
    if 'edge_weight' in data:
        out.edge_weight = data.edge_weight[edges]
    return out


def ring(num_nodes=60):
    """Far from all of it within a few hops of a node."""
    src = torch.arange(num_nodes)
    pairs = torch.cat(
        [torch.stack([src, (src + k) % num_nodes]) for k in (1, 3)], 1
    )
    weight = torch.rand(pairs.size(1)).double() + 0.1
    return Data(
        x=torch.randn(num_nodes, CHANNELS).double(),
        y=torch.randint(CLASSES, (num_nodes,)),
        edge_index=torch.cat([pairs, pairs.flip(0)], 1),
        edge_weight=torch.cat([weight, weight]),
    )


@torch.no_grad()
def test_hops_make_a_part_exact():
    data, net = ring(), Net().double()
    whole = net(data.x, data.edge_index, data.edge_weight)
    seeds = torch.tensor([5, 30, 31])
    batch = k_hop_batch(data, seeds, HOPS)
    assert batch.num_nodes < data.num_nodes
    out = net(batch.x, batch.edge_index, batch.edge_weight)
    assert_same(out[:3], whole[seeds])
    # One hop less is not enough.
    batch = k_hop_batch(data, seeds, HOPS - 1)
    out = net(batch.x, batch.edge_index, batch.edge_weight)
    assert not torch.allclose(out[:3], whole[seeds], atol=1e-4)


def test_training_on_parts():
    data = communities()
    seeds = data.train.nonzero().view(-1)
    batches = [k_hop_batch(data, part, HOPS) for part in seeds.split(6)]
    net = Net()
    before = [value.clone() for value in net.parameters()]
    losses = fit(net, batches)
    assert losses[-1] < losses[0] / 2
    pairs = zip(before, net.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)
    right = net(data.x, data.edge_index).argmax(1) == data.y
    assert float(right[~data.train].float().mean()) > 0.8


@needs_sampler
@pytest.mark.parametrize('subgraph_type', ['bidirectional', 'induced'])
def test_neighbor_loader_is_exact_with_all_neighbours(subgraph_type):
    data, net = ring(), Net().double()
    del data.edge_weight
    whole = net(data.x, data.edge_index)
    loader = NeighborLoader(
        data, [-1] * HOPS, batch_size=2, subgraph_type=subgraph_type
    )
    for batch in loader:
        assert batch.num_nodes < data.num_nodes
        out = net(batch.x, batch.edge_index)
        assert_same(out[:2], whole[batch.n_id[:2]])


@needs_sampler
@pytest.mark.parametrize('subgraph_type', ['bidirectional', 'induced'])
def test_training_on_neighbor_loader(subgraph_type):
    data, net = communities(), Net()
    loader = NeighborLoader(
        data,
        [6] * HOPS,
        input_nodes=data.train,
        batch_size=6,
        subgraph_type=subgraph_type,
        shuffle=True,
    )
    losses = fit(net, loader)
    assert losses[-1] < losses[0] / 2
    right = net(data.x, data.edge_index).argmax(1) == data.y
    assert float(right[~data.train].float().mean()) > 0.8


@needs_sampler
def test_directed_batches_are_refused():
    data = communities()
    batch = next(iter(NeighborLoader(data, [2] * HOPS, batch_size=4)))
    with pytest.raises(ValueError, match=r"no reverse edge.*'torch_geometric"):
        Net()(batch.x, batch.edge_index)


def hetero_input():
    x = {'road': torch.randn(9, CHANNELS), 'river': torch.randn(7, CHANNELS)}
    edges = {
        ('road', 'near', 'road'): random_graph(9, 9).edge_index,
        ('road', 'like', 'road'): random_graph(9, 20).edge_index,
        ('river', 'near', 'river'): random_graph(7, 9).edge_index,
    }
    return x, edges


def test_to_hetero():
    # Relations within node types: each has parameters of its own.
    x, edges = hetero_input()
    net = to_hetero(Net(), (list(x), list(edges)), aggr='sum')
    convs = {
        name: net.get_submodule(f'conv.{"__".join(name)}') for name in edges
    }
    for k, conv in enumerate(convs.values()):
        conv.log_mu.data.fill_(float(k))
    out = net(x, edges)
    hidden = {
        name: net.get_submodule(f'lin.{name}')(value)
        for name, value in x.items()
    }
    for node_type in x:
        expected = sum(
            conv(hidden[node_type], edges[name])
            for name, conv in convs.items()
            if name[0] == node_type
        )
        assert_same(out[node_type], expected)
    sum(value.square().sum() for value in out.values()).backward()
    for name, conv in convs.items():
        assert bool((conv.alpha.grad != 0).any()), name


def test_relations_between_node_types():
    # Two sets of nodes have no Laplacian.
    x, edges = hetero_input()
    bridge = ('road', 'cross', 'river')
    edges[bridge] = torch.tensor([[0, 1, 2], [0, 3, 4]])
    edges['river', 'cross', 'road'] = edges[bridge].flip(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        net = to_hetero(Net(), (list(x), list(edges)), aggr='sum')
    with pytest.raises(ValueError, match=r'no bipartite form.*HeteroConv'):
        net(x, edges)
    # The way that the message names: other layers for those.
    conv = HeteroConv(
        {
            name: GLRConv(HOPS)
            if name[0] == name[2]
            else SAGEConv((CHANNELS, CHANNELS), CHANNELS)
            for name in edges
        }
    )
    out = conv(x, edges)
    assert {k: v.shape for k, v in out.items()} == {
        k: v.shape for k, v in x.items()
    }
    # Or all nodes as one set.
    data = HeteroData({name: {'x': value} for name, value in x.items()})
    for name, edge_index in edges.items():
        data[name].edge_index = edge_index
    data = T.ToUndirected()(data.to_homogeneous())
    assert Net()(data.x, data.edge_index).shape == (16, CLASSES)
