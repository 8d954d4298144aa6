import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GridGraph,
    GTVConv,
    Inpaint,
    KNNGraph,
    UnrolledGLR,
    UnrolledGTV,
    image_to_data,
    mosaic,
    points_to_data,
)
from pyg_unroll.explain import neighbourhood, parameter_table, trace
from pyg_unroll.explain.calls import record_calls
from pyg_unroll.imaging import (
    CNNFeatures,
    DifferenceBlock,
    GuidedBlock,
    SelfEnsemble,
    Tiled,
)
from pyg_unroll.nn import MLPFeatures
from tests.oracles import dense_laplacian, gtv_objective, random_graph

MODELS = {'glr': UnrolledGLR, 'gtv': UnrolledGTV}


COEFFICIENTS = ('alpha', 'beta', 'head_logits', 'log_rho', 'relaxation_logit')


def scramble(module):
    """Coefficients that no initialisation would give."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.split('.')[-1] in COEFFICIENTS:
                value.add_(0.2 * torch.randn_like(value))
    return module


def layer_data(dtype=torch.float32, heads=2):
    graph = random_graph(20, 30, heads=heads, dtype=dtype)
    mask = torch.arange(20) % 3 == 0
    return Data(
        x=torch.randn(20, 2, dtype=dtype),
        edge_index=graph.edge_index,
        edge_weight=graph.edge_weight,
        mask=mask,
    )


def make_data(kind):
    if kind == 'points':
        mask = torch.rand(40) < 0.5
        return points_to_data(torch.rand(40, 2), torch.rand(40, 3), mask)
    if kind == 'mosaic':
        return mosaic(torch.rand(3, 9, 8), 'GRBG')
    data = image_to_data(torch.rand(3, 8, 9))
    data.mask = torch.rand(72) < 0.5
    return data


def make_model(kind, prior, fidelity):
    if kind in ('mosaic', 'inpainting'):
        blocks = [
            GuidedBlock(
                hidden_channels=8, num_layers=2, prior=prior, fidelity=fidelity
            )
            for _ in range(2)
        ]
        return Demosaic(blocks) if kind == 'mosaic' else Inpaint(blocks)
    if kind == 'points':
        features, graph = MLPFeatures(3, 11, 8, pos_channels=2), KNNGraph()
    else:
        features, graph = CNNFeatures(3, 11, 8), GridGraph()
    return MODELS[prior](3, features, graph, guide=True, fidelity=fidelity)


@pytest.mark.parametrize('prior', MODELS)
def test_two_layers_of_a_block(prior):
    model = Demosaic([DifferenceBlock(8, num_layers=2, prior=prior)])
    data = make_data('mosaic')
    names = [f'blocks.0.step.{name}_conv' for name in ('smooth', 'fill')]
    assert [call.name for call in record_calls(model, data)] == names
    layers = trace(model, data).layers
    assert [layer.name for layer in layers] == names
    assert all(torch.isfinite(layer.objective).all() for layer in layers)
    assert len(neighbourhood(model, data, (2, 3)).layers) == 2
    table = parameter_table(model)
    total = sum(p.numel() for p in model.parameters())
    counted = [n for block, _, n in table.rows if block == 'block 0']
    assert sum(counted) == total


@pytest.mark.parametrize('prior', MODELS)
@pytest.mark.parametrize('fidelity', ['hard', 'soft'])
@pytest.mark.parametrize('kind', ['image', 'points', 'mosaic', 'inpainting'])
def test_last_step_is_the_output(prior, fidelity, kind):
    data = make_data(kind)
    if fidelity == 'soft' and kind in ('mosaic', 'inpainting'):
        data.noise_std = 0.05
    model = scramble(make_model(kind, prior, fidelity))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outputs = []
    handles = [
        block.conv.register_forward_hook(lambda *args: outputs.append(args[-1]))
        for block in model.blocks
    ]
    calls = record_calls(model, data)
    for handle in handles:
        handle.remove()
    assert [call.name for call in calls] == ['blocks.0.conv', 'blocks.1.conv']
    for call, output in zip(calls, outputs, strict=True):
        output, state = output  # blocks call 'solve'
        assert (state is None) == (prior == 'glr')
        steps = list(call.iterates())
        assert len(steps) == 1 + len(call.layer.alpha)
        last = steps[-1]
        assert torch.equal(last.x, output.view(-1, 3))
        assert not torch.equal(steps[-2].x, last.x)
        if prior == 'gtv':
            assert torch.equal(last.state, state.view(last.state.shape))
        shares = call.shares.to(last.heads.dtype)
        torch.testing.assert_close(last.heads @ shares, last.x)
    result = trace(model, data)
    for layer in result.layers:
        assert bool(layer.objective.isfinite().all())
        held = fidelity == 'hard'
        assert bool((layer.violation == 0).all()) == held
    # Nothing of it stays behind.
    assert all(not call.layer._forward_hooks for call in calls)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('name', ['glr', 'glr-2', 'gtv'])
def test_steps_are_those_of_shorter_layers(name):
    data = layer_data()

    def make(steps):
        if name == 'gtv':
            return GTVConv(steps, num_steps=2, heads=2)
        return GLRConv(steps, heads=2, order=1 + ('2' in name))

    layer = scramble(make(3))
    steps = list(record_calls(layer, data)[0].iterates())
    torch.testing.assert_close(steps[0].x, data.x)
    for number in (1, 2, 3):
        part = make(number)
        with torch.no_grad():
            for key, value in layer.named_parameters():
                own = getattr(part, key)
                own.copy_(value if value.dim() == 1 else value[: len(own)])
            out = part(data.x, data.edge_index, data.edge_weight, data.mask)
        assert torch.equal(steps[number].x, out)


@pytest.mark.parametrize('own_weights', [False, True])
def test_one_sample_is_no_batch(own_weights):
    data = layer_data()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GTVConv(2, heads=2)

        def forward(self, data):
            weight = data.edge_weight
            weight = weight.unsqueeze(0) if own_weights else weight
            x = data.x.unsqueeze(0)
            return self.conv.solve(x, data.edge_index, weight, data.mask)

    net = Net()
    expected, result = trace(net.conv, data), trace(net, data)
    for name in ('energy', 'residual', 'violation', 'weight'):
        torch.testing.assert_close(
            getattr(result.layers[0], name),
            getattr(expected.layers[0], name),
            equal_nan=True,
        )


def test_glr_figures_against_dense_matrices():
    data = layer_data()
    layer = scramble(GLRConv(num_steps=4, heads=2))
    result = trace(layer, data).layers[0]
    steps = list(record_calls(layer, data)[0].iterates())
    free = ~data.mask
    shares = layer.head_logits.double().softmax(0)
    combined = 0
    for head in range(2):
        matrix = dense_laplacian(
            data.edge_index, data.edge_weight[:, head], 20
        ).double()
        for k, step in enumerate(steps):
            x = step.heads[..., head].double()
            torch.testing.assert_close(
                result.energy[k, head], (x * (matrix @ x)).sum()
            )
            torch.testing.assert_close(
                result.residual[k, head], (matrix @ x)[free].norm()
            )
            if k:
                moved = step.heads - steps[k - 1].heads
                torch.testing.assert_close(
                    result.change[k, head].float(), moved[..., head].norm()
                )
        x = steps[-1].x.double()
        combined += shares[head] * (x * (matrix @ x)).sum()
        torch.testing.assert_close(
            result.degree[[0, -1], head],
            torch.stack(matrix.diagonal().aminmax()),
        )
    torch.testing.assert_close(result.energy[-1, -1], combined)
    torch.testing.assert_close(result.objective, result.energy)
    assert (result.violation == 0).all()
    assert math.isnan(result.change[0, 0])


def test_noisy_objective():
    data = layer_data(heads=1)
    data.confidence = data.mask * torch.rand(20)
    layer = scramble(GLRConv(num_steps=3, fidelity='soft', mu=0.7))
    result = trace(layer, data).layers[0]
    matrix = dense_laplacian(data.edge_index, data.edge_weight[:, 0], 20)
    x = layer(
        data.x, data.edge_index, data.edge_weight, data.mask, data.confidence
    )
    expected = (data.confidence[:, None] * (x - data.x).square()).sum()
    expected = expected + 0.7 * (x * (matrix.float() @ x)).sum()
    torch.testing.assert_close(result.objective[-1, 0].float(), expected)
    far = (x - data.x)[data.mask].abs().max()
    torch.testing.assert_close(result.violation[-1, 0].float(), far)


def test_second_order_energy():
    data = layer_data()
    result = trace(GLRConv(num_steps=3, heads=2, order=2), data).layers[0]
    step = list(record_calls(GLRConv(3, heads=2, order=2), data)[0].iterates())[
        -1
    ]
    matrix = dense_laplacian(
        data.edge_index, data.edge_weight[:, 1], 20
    ).float()
    image = matrix @ step.heads[..., 1]
    expected = (image.square() / matrix.diagonal()[:, None]).sum()
    torch.testing.assert_close(result.energy[-1, 1].float(), expected)


def test_gtv_figures():
    data = layer_data()
    layer = scramble(GTVConv(num_iters=3, num_steps=2, heads=2))
    result = trace(layer, data).layers[0]
    steps = list(record_calls(layer, data)[0].iterates())
    for k, step in enumerate(steps):
        for head in range(2):
            expected = gtv_objective(
                step.heads[..., head],
                data.edge_index,
                data.edge_weight[:, head],
            )
            torch.testing.assert_close(
                result.energy[k, head], torch.as_tensor(expected).double().sum()
            )
    assert result.prior == 'gtv'
    # After the first iteration, from a dual variable of zero.
    (row, col), weight = data.edge_index, data.edge_weight[:, 1:]
    before, after = (
        (weight * (x[row] - x[col]))[row < col]
        for x in (step.heads[..., 1] for step in steps[:2])
    )
    rho = float(layer.log_rho[0, 1].detach().exp())
    relaxation = 2 * float(layer.relaxation_logit[0, 1].detach().sigmoid())
    target = torch.nn.functional.softshrink(before, 1 / rho)
    target = relaxation * target + (1 - relaxation) * before
    expected = (after - target).norm().double()
    torch.testing.assert_close(
        result.residual[1, 1], expected, rtol=1e-4, atol=1e-4
    )


def test_exact_steps_descend_and_overshooting_ones_do_not():
    data = layer_data(torch.float64)
    layer = GLRConv(num_steps=3, heads=2).double()
    with torch.no_grad():
        layer.beta.zero_()
        layer.alpha.fill_(0.5)  # damped Jacobi: descends
    assert trace(layer, data).rises() == []
    with torch.no_grad():
        layer.alpha[1, 1] = 5.0
    rises = trace(layer, data).rises()
    assert ('', 2, 'head 1') in rises
    assert ('', 2, 'head 0') not in rises
    assert ('', 1, 'head 1') not in rises


@pytest.mark.parametrize('prior', MODELS)
def test_graphs_of_a_batch_add_up(prior):
    model = make_model('points', prior, 'hard')
    examples = [make_data('points') for _ in range(2)]
    both = trace(model, Batch.from_data_list(examples))
    alone = [trace(model, data).layers for data in examples]
    for layer, *parts in zip(both.layers, *alone, strict=True):
        total = sum(part.energy for part in parts)
        torch.testing.assert_close(layer.energy, total, rtol=1e-4, atol=1e-4)


def test_records_and_table():
    data = KNNGraph(4)(make_data('points'))
    model = UnrolledGLR(3, num_blocks=2, num_steps=3, heads=2)
    result = trace(model, data)
    rows = result.records()
    assert len(rows) == 2 * 4 * 3
    assert rows[-1]['column'] == 'combined' and rows[-1]['step'] == 3
    assert rows[-1]['energy'] == float(result.layers[1].energy[3, -1])
    assert str(result).count('blocks.') == 2


def test_plot():
    pytest.importorskip('matplotlib').use('Agg')
    result = trace(GTVConv(2, heads=2), layer_data())
    axes = result.plot()
    assert axes.shape == (1, 1)
    lines = {line.get_label() for line in axes[0, 0].lines}
    assert {'head 0', 'head 1', 'combined'} <= lines
    with pytest.raises(ValueError, match="'axes' must hold 1 axes"):
        result.plot([*axes[0], *axes[0]])


def test_large_images_are_not_cut_for_threads():
    model = make_model('mosaic', 'glr', 'hard')
    data = mosaic(torch.rand(3, 700, 20), 'RGGB')
    one = trace(model, data)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert len(trace(model, data).layers) == len(one.layers)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_bad_input():
    data = layer_data()
    with pytest.raises(ValueError, match="no layer 'GLRConv'"):
        trace(torch.nn.Linear(2, 2), data)
    with pytest.raises(ValueError, match="'x' and 'edge_index'"):
        trace(GLRConv(2), Data(x=torch.rand(4, 1)))
    model = make_model('mosaic', 'glr', 'hard')
    images = [mosaic(torch.rand(3, 8, 8), 'RGGB') for _ in range(2)]
    with pytest.raises(ValueError, match=r'one graph.*to_data_list'):
        trace(model, Batch.from_data_list(images))
    large = mosaic(torch.rand(3, 300, 20), 'RGGB')
    with pytest.raises(ValueError, match=r'one image of one tile.*max_pixels'):
        trace(Tiled(model, 64), large)
    for wrapped in (SelfEnsemble(model), SelfEnsemble(Tiled(model))):
        with pytest.raises(ValueError, match="explain its 'restorer'"):
            trace(wrapped, images[0])
    # A hook that raised is gone.
    assert len(trace(model, large).layers) == 2

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GLRConv(2, heads=2)

        def forward(self, data):
            x = torch.stack([data.x, data.x])
            return self.conv(x, data.edge_index, data.edge_weight, data.mask)

    with pytest.raises(ValueError, match='one sample at a time'):
        trace(Twice(), data)
