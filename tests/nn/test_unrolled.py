"""Stacks of feature nets, learned graphs and layers, on pixels and points."""

import copy

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import to_torch_csr_tensor

from pyg_unroll import (
    GridGraph,
    KNNGraph,
    Topology,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    mosaic,
    points_to_data,
)
from pyg_unroll.imaging import CNNFeatures
from pyg_unroll.nn import MLPFeatures
from pyg_unroll.testing import (
    assert_batch_equals_loop,
    assert_compiles,
    assert_exports,
    assert_same,
)
from tests.oracles import random_graph

MODELS = {
    UnrolledGLR: {'num_steps': 3},
    UnrolledGTV: {'num_iters': 2, 'num_steps': 2},
}
CHANNELS = {'image': 3, 'points': 2}
parametrize_models = pytest.mark.parametrize(
    'cls', MODELS, ids=[cls.__name__ for cls in MODELS]
)
parametrize_domains = pytest.mark.parametrize('domain', CHANNELS)
# Each domain with and without a guide, not their product with all else.
parametrize_guides = pytest.mark.parametrize(
    ('domain', 'guide'),
    [('image', False), ('image', True), ('points', False), ('points', True)],
)


def make_model(cls, domain='image', guide=False, neighbors=8, **kwargs):
    channels = CHANNELS[domain]
    size = 4 + channels * guide
    if domain == 'image':
        features = CNNFeatures(channels, size, 8)
        graph = GridGraph(neighbors)
    else:
        features = MLPFeatures(channels, size, 8, pos_channels=2)
        graph = KNNGraph(neighbors)
    return cls(channels, features, graph, guide=guide, **(MODELS[cls] | kwargs))


def make_data(domain='image', height=7, width=9):
    if domain == 'image':
        row = torch.linspace(0, 1, height).view(1, -1, 1)
        col = torch.linspace(0, 1, width).view(1, 1, -1)
        tint = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1)
        return mosaic(row * tint + col * (1 - tint) + 0.05 * torch.rand(1))
    pos = torch.rand(height * width, 2)
    signal = torch.stack([pos.sum(1), (4 * pos[:, 0]).sin()], 1)
    mask = torch.rand(height * width, 2) < 0.4
    mask[0] = True
    return points_to_data(pos, signal, mask)


def path_data(num_nodes=12, channels=2):
    src = torch.arange(num_nodes - 1)
    edge_index = torch.stack([src, src + 1])
    return Data(
        x=torch.randn(num_nodes, channels),
        mask=torch.arange(num_nodes) % 3 == 0,
        edge_index=torch.cat([edge_index, edge_index.flip(0)], 1),
    )


def perturb(model):
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@parametrize_models
@parametrize_guides
def test_known_entries_are_exact(cls, domain, guide, device):
    data = make_data(domain).to(device)
    before = data.clone()
    model = perturb(make_model(cls, domain, guide)).to(device)
    out = model(data)
    assert out.shape == data.x.shape and out.requires_grad
    assert bool(out.isfinite().all())
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert not torch.equal(out, data.x)
    assert data.keys() == before.keys() and torch.equal(data.x, before.x)
    if domain == 'image':
        assert data_to_image(data, out).shape == (3, 7, 9)


@parametrize_models
@pytest.mark.parametrize(
    ('domain', 'fidelity', 'guide', 'heads'),
    [
        ('image', 'hard', False, 1),
        ('image', 'soft', True, 2),
        ('points', 'hard', True, 2),
        ('points', 'soft', False, 1),
    ],
)
def test_gradients_reach_parameters(cls, domain, fidelity, guide, heads):
    model = make_model(cls, domain, guide, fidelity=fidelity, heads=heads)
    model(make_data(domain)).square().sum().backward()
    # The prior's weight cannot matter where known entries are held.
    unused = {'conv.log_mu'} if fidelity == 'hard' else set()
    for name, parameter in model.named_parameters():
        matters = name.split('.', 2)[2] not in unused
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()) == matters, name


@parametrize_models
@pytest.mark.parametrize(
    ('domain', 'guide'), [('image', False), ('points', True)]
)
def test_training_lowers_the_loss(cls, domain, guide):
    data = make_data(domain)
    if domain == 'points':
        target = torch.stack([data.pos.sum(1), (4 * data.pos[:, 0]).sin()], 1)
    else:
        target = data.x.sum(1, keepdim=True).expand(-1, 3)
    model = make_model(cls, domain, guide, num_blocks=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (model(data) - target)[~data.mask].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses


@parametrize_models
@parametrize_domains
@pytest.mark.parametrize(
    'sizes', [[(5, 6)] * 2, [(5, 6), (7, 4), (6, 5)]], ids=['equal', 'mixed']
)
def test_batch_equals_loop(cls, domain, sizes):
    model = make_model(cls, domain, neighbors=4)
    assert_batch_equals_loop(model, [make_data(domain, *s) for s in sizes])
    data = make_data(domain)
    assert_same(model(Batch.from_data_list([data])), model(data))


@parametrize_models
def test_state_dict_and_copies(cls):
    data = make_data('points')
    model = perturb(make_model(cls, 'points', guide=True, heads=3))
    out = model(data)
    loaded = make_model(cls, 'points', guide=True, heads=3)
    assert not torch.equal(loaded(data), out)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(data), out)
    assert torch.equal(copy.deepcopy(model)(data), out)


@parametrize_models
@parametrize_domains
def test_guide_starts_as_plain_solver(cls, domain):
    data = make_data(domain)
    plain = make_model(cls, domain)
    guided = make_model(cls, domain, guide=True)
    # Same features, and a guide that is zero.
    own = guided.state_dict()
    for name, value in plain.state_dict().items():
        own[name][: len(value)] = value
    guided.load_state_dict(own)
    assert_same(guided(data), plain(data))
    guided.reset_parameters()
    count = CHANNELS[domain]
    for block in guided.blocks:
        head = block.features.head
        assert not bool(head.weight[-count:].any())
        assert not bool(head.bias[-count:].any())
        assert bool(head.weight[:-count].any())


@parametrize_models
@parametrize_domains
def test_uses_edges_of_the_data(cls, domain):
    data = make_data(domain)
    model = make_model(cls, domain, neighbors=8)
    if domain == 'image':
        same, other = GridGraph(8)(data), GridGraph(4)(data)
    else:
        same, other = KNNGraph(8)(data), KNNGraph(3)(data)
    expected = model(data)
    assert torch.equal(model(same), expected)
    out = model(other)
    assert not torch.allclose(out, expected)
    sparse, topology = other.clone(), other.clone()
    sparse.adj_t = to_torch_csr_tensor(sparse.edge_index)
    sparse.edge_index = None
    assert torch.equal(model(sparse), out)
    topology.edge_index = Topology.from_edge_index(other.edge_index, 63)
    assert torch.equal(model(topology), out)


@parametrize_models
def test_sizes_alone(cls):
    # Data with edges needs neither a feature net nor a graph.
    data, model = path_data(), cls(np.int64(2))
    out = model(data)
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert not torch.equal(out, data.x)
    assert len(model.blocks) == 2 and model.heads == 2
    assert str(model) == f'{cls.__name__}(2, num_blocks=2, heads=2)'
    # Eight features with or without a guide.
    sizes = {
        m.blocks[0].metric.in_channels for m in (model, cls(2, guide=True))
    }
    assert sizes == {8}


class PathGraph(BaseTransform):
    """A transform of the user's own, which knows no topologies."""

    def forward(self, data):
        data.edge_index = path_data(data.num_nodes).edge_index
        return data


@parametrize_models
def test_any_transform_makes_the_graph(cls):
    data = path_data()
    model = cls(2, graph=PathGraph())
    expected = model(data)
    del data.edge_index
    assert torch.equal(model(data), expected)
    assert 'edge_index' not in data


class Positions(torch.nn.Module):
    """A feature net of the user's own."""

    out_channels = 3

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def reset_parameters(self):
        pass

    def forward(self, x, mask, data):
        assert mask.dtype == torch.bool and mask.shape == x.shape
        return self.scale * torch.cat([x[:, :1], data.pos], 1)


@parametrize_models
def test_any_features(cls):
    data = make_data('points')
    one = cls(2, Positions(2.0), KNNGraph(4), **MODELS[cls])
    # One net is copied for each block.
    nets = [block.features for block in one.blocks]
    assert nets[0] is not nets[1]
    assert [net.scale.item() for net in nets] == [2.0, 2.0]
    own = [Positions(2.0), Positions(2.0)]
    for features in (own, torch.nn.ModuleList(own)):
        model = cls(2, features, KNNGraph(4), **MODELS[cls])
        assert [block.features for block in model.blocks] == own
        model.load_state_dict(one.state_dict())
        assert torch.equal(model(data), one(data))
    with torch.no_grad():
        own[1].scale.fill_(0.1)
    assert not torch.allclose(model(data), one(data))


def test_options_of_the_layer():
    data = make_data('points')
    model = make_model(UnrolledGLR, 'points', order=2, mu=3.0, checkpoint=True)
    for block in model.blocks:
        assert (block.conv.order, block.conv.mu) == (2, 3.0)
        assert block.conv.checkpoint
    assert bool(model(data).isfinite().all())
    model = make_model(UnrolledGTV, 'points')
    assert {block.conv.rho for block in model.blocks} == {16.0}
    other = make_model(UnrolledGTV, 'points', rho=2.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(data), model(data))
    assert {block.conv.rho for block in other.blocks} == {2.0}


@parametrize_models
def test_default_weight_floor(cls):
    floors = {block.metric.floor for block in cls(1).blocks}
    assert floors == {0.03 if cls is UnrolledGTV else 0.0}


def test_weight_floor():
    data = make_data('points')
    default = make_model(UnrolledGTV, 'points')
    outs = []
    for floor in (0.0, 0.03, 0.5):
        model = make_model(UnrolledGTV, 'points', weight_floor=floor)
        model.load_state_dict(default.state_dict())
        outs.append(model(data))
        assert {block.metric.floor for block in model.blocks} == {floor}
    assert torch.equal(outs[1], default(data))
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(outs[1], outs[2])


@parametrize_models
def test_permutation_equivariance_on_points(cls):
    data = make_data('points')
    model = perturb(make_model(cls, 'points', guide=True)).double()
    data.x, data.pos = data.x.double(), data.pos.double()
    order = torch.randperm(data.num_nodes)
    renamed = Data(x=data.x[order], pos=data.pos[order], mask=data.mask[order])
    assert_same(model(renamed), model(data)[order])


@parametrize_models
@parametrize_domains
def test_denoises_without_mask(cls, domain):
    data = make_data(domain)
    data.x = data.x + 0.1 * torch.randn_like(data.x)
    soft = make_model(cls, domain, fidelity='soft')
    hard = make_model(cls, domain)
    hard.load_state_dict(soft.state_dict())
    masked = soft(data)
    assert not torch.equal(masked[data.mask], data.x[data.mask])
    del data.mask
    out = hard(data)
    assert out.shape == data.x.shape
    assert not torch.allclose(out, data.x)
    assert_same(out, soft(data))


@parametrize_models
def test_mask_of_nodes(cls):
    data = make_data('points')
    nodes = data.mask[:, :1]
    model = make_model(cls, 'points')
    data.mask = nodes.expand(-1, 2)
    expected = model(data)
    for mask in (nodes, nodes[:, 0]):
        data.mask = mask
        assert_same(model(data), expected)


@parametrize_models
@pytest.mark.parametrize('size', [(2, 9), (6, 2), (2, 2), (3, 5)])
def test_odd_sizes(cls, size):
    assert bool(make_model(cls)(make_data('image', *size)).isfinite().all())


@parametrize_models
def test_reset_parameters(cls):
    model = make_model(cls)
    for parameter in model.parameters():
        parameter.data.fill_(1e3)
    model.reset_parameters()
    assert all(float(p.detach().abs().max()) < 50 for p in model.parameters())
    assert float(model(make_data()).detach().abs().max()) < 10


@parametrize_models
def test_devices_and_types(cls, device):
    model = make_model(cls).to(device).double()
    data = make_data().to(device)
    data.x = data.x.double()
    assert model(data).dtype == torch.float64


@pytest.mark.parametrize(
    ('cls', 'domain'), [(UnrolledGLR, 'image'), (UnrolledGTV, 'points')]
)
def test_compile(cls, domain):
    model = make_model(cls, domain, guide=True, num_blocks=1)
    data = make_data(domain)
    data.edge_index = model.graph.topology(data)
    if domain == 'points':
        # The edges of a transform, which carry no topology, do as well.
        data.edge_index = data.edge_index.edge_index
    assert_compiles(model, data, backend='aot_eager')


@pytest.mark.parametrize(
    ('cls', 'domain'), [(UnrolledGLR, 'points'), (UnrolledGTV, 'image')]
)
def test_export(cls, domain):
    model, data = make_model(cls, domain, guide=True), make_data(domain)
    topology = model.graph.topology(data)

    class OnTensors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, mask):
            example = data.clone()
            example.update({'x': x, 'mask': mask, 'edge_index': topology})
            return self.model(example)

    assert_exports(OnTensors(), data.x, data.mask)


@parametrize_models
@parametrize_domains
def test_autocast(cls, domain, device):
    model, data = make_model(cls, domain), make_data(domain).to(device)
    model.to(device)
    outs, grads = [], []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            out = model(data)
        loss = (out - 0.5).square().mean()
        wanted = list(model.parameters())
        grads.append(torch.autograd.grad(loss, wanted, materialize_grads=True))
        outs.append(out)
    assert outs[1].dtype == torch.float32
    assert torch.equal(outs[1][data.mask], data.x[data.mask])
    assert not torch.equal(*outs)
    # Only the feature nets compute in half precision.
    torch.testing.assert_close(*outs, rtol=0.02, atol=0.02)
    for full, half in zip(*grads, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).norm() <= 0.2 * full.norm() + 1e-3


@parametrize_models
@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'in_channels': 0}, r"'in_channels' must be a positive.*got 0\)"),
        ({'num_blocks': 0}, "'num_blocks' must be a positive integer"),
        ({'num_steps': 0}, "'num_steps' must be a positive integer"),
        ({'heads': 0}, "'heads' must be a positive integer"),
        ({'fidelity': 'firm'}, "'fidelity' must be one of"),
        (
            {'features': [MLPFeatures(3)]},
            r"'features' must be one module or one for each of 2.*got 1\)",
        ),
        (
            {'features': torch.nn.ReLU()},
            "'features' must be modules with 'out_channels'.*'ReLU'",
        ),
        (
            {'features': MLPFeatures(3, 3), 'guide': True},
            "'out_channels' of more than 3, .*'MLPFeatures' with 3",
        ),
    ],
)
def test_wrong_arguments(cls, kwargs, match):
    with pytest.raises(ValueError, match=match):
        cls(**({'in_channels': 3} | kwargs))


@parametrize_models
def test_layers_do_not_check_again(cls):
    with pytest.raises(TypeError, match='validate_args'):
        cls(1, validate_args=True)


@parametrize_models
def test_wrong_weight_floor(cls):
    with pytest.raises(ValueError, match="'weight_floor' must be a finite"):
        cls(1, weight_floor=-0.1)


@parametrize_models
def test_options_are_keywords(cls):
    # Numbers of steps and heads would be taken for each other.
    with pytest.raises(TypeError, match='positional'):
        cls(1, None, None, 2, 8)
    with pytest.raises(TypeError, match='unknown'):
        cls(1, unknown=1)


@parametrize_models
def test_wrong_data(cls):
    model = cls(2)
    data = path_data()
    with pytest.raises(ValueError, match="'data' must be a homogeneous 'Data'"):
        model(data.x)
    with pytest.raises(ValueError, match=r"'data.x'.*got 'NoneType'"):
        model(Data(edge_index=data.edge_index))
    with pytest.raises(ValueError, match=r"3 channels, but.*'in_channels=2'"):
        model(path_data(channels=3))
    with pytest.raises(ValueError, match=r"no 'edge_index'; give .*KNNGraph"):
        model(Data(x=data.x))
    bad = data.clone()
    bad.edge_index = data.edge_index[:, 1:]
    with pytest.raises(ValueError, match='no reverse edge'):
        model(bad)
    # One case for each thing that the reader says of the signal.
    bad = data.clone()
    bad.x[1] = float('nan')
    with pytest.raises(ValueError, match=r"'x' must be finite.*start of the"):
        model(bad)
    bad.x[0] = float('nan')
    with pytest.raises(ValueError, match=r"'data.x' must be finite.*data.mask"):
        model(bad)
    bad = data.clone()
    bad.mask = bad.mask.float()
    with pytest.raises(ValueError, match=r"'data.mask' must be boolean"):
        model(bad)
    bad = data.clone()
    bad.x = bad.x.double()
    with pytest.raises(ValueError, match=r"'data.x' must have the type of the"):
        model(bad)
    with pytest.raises(ValueError, match="no 'height'"):
        make_model(cls)(Data(x=torch.rand(4, 3)))


def test_wrong_positions():
    net = MLPFeatures(2, pos_channels=2)
    for pos, match in (
        (None, "no positions; set 'data.pos'"),
        (torch.rand(12, 3), r"must have 2 coordinates.*\[12, 3\].*'pos_cha"),
    ):
        data = path_data()
        data.pos = pos
        with pytest.raises(ValueError, match=match):
            UnrolledGLR(2, net)(data)
    for kwargs in ({'pos_channels': -1}, {'hidden_channels': 0}):
        with pytest.raises(ValueError, match=f"'{next(iter(kwargs))}' must be"):
            MLPFeatures(2, **kwargs)
    with pytest.raises(ValueError, match="'out_channels' must be a positive"):
        CNNFeatures(2, 0)


def test_convolutions_see_positions():
    torch.manual_seed(0)
    mask = torch.rand(35, 3) > 0.5
    data = make_data('image', 5, 7)
    net = CNNFeatures(3, 4, 8, pos_channels=2)
    seen = torch.cat([data.x, mask, data.pos], 1).T.unflatten(1, (5, 7))
    expected = net.net(seen.unsqueeze(0))[0].flatten(1).T
    torch.testing.assert_close(net(data.x, mask, data), expected)
    data.pos = data.pos + 1
    assert not torch.allclose(net(data.x, mask, data), expected)


def test_compiles_once_for_all_sizes():
    model, counter = UnrolledGLR(2), CompileCounterWithBackend('eager')
    torch.compiler.reset()
    compiled = torch.compile(
        model, fullgraph=True, dynamic=True, backend=counter
    )
    for num_nodes in (10, 13, 21, 40, 77):
        graph = random_graph(num_nodes, 2 * num_nodes)
        data = Data(x=torch.randn(num_nodes, 2), mask=torch.ones(num_nodes) > 0)
        data.mask[1::3] = False
        data.edge_index = Topology.from_edge_index(graph.edge_index, num_nodes)
        with torch.no_grad():
            assert_same(compiled(data), model(data))
    assert counter.frame_count == 1
