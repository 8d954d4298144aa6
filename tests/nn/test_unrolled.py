"""What holds for both stacks, on images and on points."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_torch_csr_tensor

from pyg_unroll import (
    GridGraph,
    KNNGraph,
    MahalanobisGraph,
    TemporalProduct,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    image_to_data,
    mosaic,
    points_to_data,
)
from pyg_unroll.testing import (
    assert_batch_equals_loop,
    assert_compiles,
    assert_exports,
    assert_same,
)

MODELS = {
    UnrolledGLR: {'num_steps': 3},
    UnrolledGTV: {'num_iters': 2, 'num_steps': 2},
}
CHANNELS = {'image': 3, 'points': 2}
parametrize_models = pytest.mark.parametrize(
    'cls', MODELS, ids=[cls.__name__ for cls in MODELS]
)
parametrize_domains = pytest.mark.parametrize('domain', CHANNELS)


def make_model(cls, domain='image', **kwargs):
    options = MODELS[cls] | {'hidden_channels': 8, 'feature_channels': 4}
    return cls(CHANNELS[domain], domain, **(options | kwargs))


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


@parametrize_models
@parametrize_domains
@pytest.mark.parametrize('guide', [False, True])
def test_known_entries_are_exact(cls, domain, guide, device):
    data = make_data(domain).to(device)
    before = data.clone()
    model = make_model(cls, domain, guide=guide).to(device)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    out = model(data)
    assert out.shape == data.x.shape and out.requires_grad
    assert bool(out.isfinite().all())
    assert torch.equal(out[data.mask], data.x[data.mask])
    assert not torch.equal(out, data.x)
    assert data.keys() == before.keys() and torch.equal(data.x, before.x)
    if domain == 'image':
        assert data_to_image(data, out).shape == (3, 7, 9)


def unused_parameters(model, hard):
    # What cannot matter: the prior's weight where known entries are held,
    # and the share of an only head.
    unused = {'conv.log_mu'} if hard else set()
    return unused | ({'conv.head_logits'} if model.heads == 1 else set())


@parametrize_models
@parametrize_domains
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
@pytest.mark.parametrize('guide', [False, True])
@pytest.mark.parametrize('heads', [1, 2])
def test_gradients_reach_parameters(cls, domain, fidelity, guide, heads):
    data = make_data(domain)
    model = make_model(cls, domain, fidelity=fidelity, guide=guide, heads=heads)
    model(data).square().sum().backward()
    unused = unused_parameters(model, fidelity == 'hard')
    for name, parameter in model.named_parameters():
        if name.split('.', 2)[2] in unused:
            assert parameter.grad is None or not bool(parameter.grad.any())
        else:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name


@parametrize_models
@parametrize_domains
@pytest.mark.parametrize('guide', [False, True])
def test_training_lowers_the_loss(cls, domain, guide):
    data = make_data(domain)
    target = data.x.clone()
    if domain == 'points':
        target = torch.stack([data.pos.sum(1), (4 * data.pos[:, 0]).sin()], 1)
    else:
        target = data.x.sum(1, keepdim=True).expand(-1, 3)
    model = make_model(cls, domain, guide=guide, num_blocks=1)
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


@parametrize_models
@parametrize_domains
@pytest.mark.parametrize('guide', [False, True])
def test_save_and_load(cls, domain, guide, tmp_path):
    data, path = make_data(domain), tmp_path / 'model.safetensors'
    model = make_model(cls, domain, guide=guide, heads=3, fidelity='soft')
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    model.save(path)
    loaded = cls.load(path)
    assert loaded.config == model.config
    assert torch.equal(loaded(data), model(data))
    assert torch.equal(cls.load(str(path))(data), model(data))
    assert torch.equal(copy.deepcopy(model)(data), model(data))


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / 'model.safetensors'
    model = make_model(UnrolledGLR)
    model.save(path)
    with pytest.raises(ValueError, match='UnrolledGLR, not a UnrolledGTV'):
        UnrolledGTV.load(path)
    content = path.read_bytes()
    for cut in (0, 4, 100, len(content) - 10):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="'path' is not a readable"):
            UnrolledGLR.load(path)
    path.write_text('not a model' * 100)
    with pytest.raises(ValueError, match="'path' is not a readable"):
        UnrolledGLR.load(path)
    for missing in (tmp_path / 'none.safetensors', tmp_path):
        with pytest.raises(ValueError, match="'path' is not a readable"):
            UnrolledGLR.load(missing)


def test_load_refuses_damaged_content(tmp_path):
    path = tmp_path / 'model.safetensors'
    model = make_model(UnrolledGLR)
    state = model.state_dict()
    state.popitem()
    metadata = {'class': 'UnrolledGLR', 'config': '{"in_channels": 3}'}
    save_file(state, path, metadata)
    with pytest.raises(ValueError, match="'path'"):
        UnrolledGLR.load(path)
    save_file(model.state_dict(), path, {'class': 'UnrolledGLR'})
    with pytest.raises(ValueError, match="'path'"):
        UnrolledGLR.load(path)
    save_file(state, path, metadata | {'config': '{"colour": 3}'})
    with pytest.raises(ValueError, match="'path'"):
        UnrolledGLR.load(path)


@parametrize_models
@parametrize_domains
def test_guide_starts_as_plain_solver(cls, domain):
    data = make_data(domain)
    plain = make_model(cls, domain)
    guided = make_model(cls, domain, guide=True)
    # Same features, and a guide that is zero.
    state = plain.state_dict()
    own = guided.state_dict()
    for name, value in state.items():
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
    assert not torch.allclose(model(other), expected)
    sparse = other.clone()
    sparse.adj_t = to_torch_csr_tensor(sparse.edge_index)
    sparse.edge_index = None
    assert torch.equal(model(sparse), model(other))
    other.edge_index = other.edge_index[:, 1:]
    with pytest.raises(ValueError, match='no reverse edge'):
        model(other)


@parametrize_models
def test_any_graph(cls):
    # A user's own graph needs positions for the features only.
    data = make_data('points')
    src = torch.arange(62)
    edge_index = torch.stack([src, src + 1])
    data.edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    assert make_model(cls, 'points')(data).shape == data.x.shape


@parametrize_models
def test_permutation_equivariance_on_points(cls):
    data = make_data('points').to('cpu')
    model = make_model(cls, 'points', guide=True).double()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
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
    data.mask = data.mask[:, 0]
    model = make_model(cls, 'points')
    out = model(data)
    data.mask = data.mask.unsqueeze(1).expand(-1, 2)
    assert_same(out, model(data))


@parametrize_models
@pytest.mark.parametrize('size', [(1, 9), (6, 1), (2, 2), (3, 5)])
def test_odd_sizes(cls, size):
    data = make_data('image', *size)
    if not bool(data.mask.any(0).all()):
        with pytest.raises(ValueError, match='no known entry in feature 2'):
            make_model(cls)(data)
        return
    assert bool(make_model(cls)(data).isfinite().all())


@parametrize_models
def test_reset_parameters(cls):
    model = make_model(cls)
    for parameter in model.parameters():
        parameter.data.fill_(1e3)
    model.reset_parameters()
    assert all(float(p.detach().abs().max()) < 50 for p in model.parameters())
    data = make_data()
    assert float(model(data).detach().abs().max()) < 10


@parametrize_models
def test_compute_devices_and_types(cls, device):
    model = make_model(cls).to(device).double()
    data = make_data().to(device)
    data.x = data.x.double()
    assert model(data).dtype == torch.float64


@parametrize_models
@pytest.mark.parametrize(
    'kwargs, match',
    [
        ({'domain': 'graph'}, "'domain' must be one of.*'graph'"),
        ({'in_channels': 0}, "'in_channels' must be a positive integer"),
        ({'num_blocks': 0}, "'num_blocks' must be a positive integer"),
        ({'hidden_channels': 0}, "'hidden_channels' must be a positive"),
        ({'feature_channels': -1}, "'feature_channels' must be a positive"),
        ({'heads': 0}, "'heads' must be"),
        ({'num_steps': 0}, "'num_steps' must be a positive integer"),
        ({'neighbors': 5}, "'neighbors' must be one of"),
        ({'fidelity': 'firm'}, "'fidelity' must be one of"),
        (
            {'domain': 'points', 'pos_channels': 0},
            "'pos_channels' must be a positive",
        ),
    ],
)
def test_wrong_arguments(cls, kwargs, match):
    with pytest.raises(ValueError, match=match):
        cls(**({'in_channels': 3} | kwargs))


@parametrize_models
def test_wrong_data(cls):
    model, points = make_model(cls), make_model(cls, 'points')
    data = make_data()
    with pytest.raises(ValueError, match=r"'data.x'.*got 'NoneType'"):
        model(Data(height=7, width=9))
    with pytest.raises(ValueError, match=r"2 channels, but.*'in_channels=3'"):
        model(make_data('points'))
    with pytest.raises(ValueError, match="no 'height'"):
        model(Data(x=data.x, mask=data.mask))
    with pytest.raises(ValueError, match='no positions'):
        points(Data(x=data.x[:, :2], mask=data.mask[:, :2]))
    bad = data.clone()
    bad.x[bad.mask.nonzero()[0, 0]] = float('nan')
    with pytest.raises(ValueError, match=r"'data.x' must be finite"):
        model(bad)
    bad = data.clone()
    bad.mask = bad.mask.float()
    with pytest.raises(ValueError, match=r"'data.mask' must be boolean"):
        model(bad)
    bad.mask = torch.zeros(63, 3).bool()
    with pytest.raises(ValueError, match='no known entry'):
        model(bad)


@parametrize_models
def test_wrong_position_channels(cls):
    data = make_data('points')
    data.pos = torch.rand(63, 3)
    with pytest.raises(ValueError, match=r"'pos_channels'|'pos'"):
        make_model(cls, 'points')(data)


@parametrize_models
def test_repr_and_batch_of_one(cls):
    model = make_model(cls, num_blocks=1)
    assert str(model) == (
        f"{cls.__name__}(3, domain='image', num_blocks=1, heads=2)"
    )
    data = make_data()
    assert_same(model(Batch.from_data_list([data])), model(data))


@parametrize_models
@parametrize_domains
def test_compile(cls, domain):
    model = make_model(cls, domain, guide=True)
    data = make_data(domain)
    data.edge_index = model.graph.topology(data)
    assert_compiles(model, data, backend='aot_eager')
    # The edges of a transform, which carry no topology, do as well.
    data.edge_index = data.edge_index.edge_index
    assert_compiles(model, data, backend='aot_eager')


@pytest.mark.skipif(
    torch.__version__.startswith('2.6.'),
    reason="PyTorch 2.6 cannot trace how PyG's data is made",
)
@parametrize_models
@parametrize_domains
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
def test_sizes_of_numpy(cls):
    model = cls(np.int64(1), 'points', neighbors=np.int64(3))
    assert json.loads(json.dumps(model.config, default=int))['neighbors'] == 3
    assert GridGraph(np.int64(4)).offsets == GridGraph(4).offsets
    offsets = [tuple(np.argwhere(np.eye(2))[1])]
    assert GridGraph(offsets).offsets == ((1, 1),)
    assert MahalanobisGraph(np.int64(3)).weight.shape == (1, 3, 3)
    assert TemporalProduct(period=np.int64(3)).period == 3


@parametrize_models
def test_messages_name_what_was_given(cls):
    for domain in ('image', 'points'):
        with pytest.raises(ValueError, match="'neighbors' must be"):
            cls(1, domain, neighbors=0)
    points = Data(x=torch.rand(5, 1), pos=torch.rand(5, 2))
    with pytest.raises(ValueError, match="of a model it is 'neighbors'"):
        cls(1, 'points')(points)
    image = image_to_data(torch.rand(1, 4, 4))
    image.mask = torch.ones(16)
    with pytest.raises(ValueError, match=r"'data.mask' must be boolean"):
        cls(1)(image)


@parametrize_models
def test_noise_is_refused_by_models_that_do_not_look_at_it(cls):
    image = image_to_data(torch.rand(1, 4, 4))
    image.noise_std = 0.1
    with pytest.raises(ValueError, match=r"'data.noise_std' was given.*domain"):
        cls(1, fidelity='soft')(image)
