import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_unroll import (
    GLRConv,
    GTVConv,
    KNNGraph,
    UnrolledGLR,
    UnrolledGTV,
    image_to_data,
    mosaic,
    points_to_data,
)
from pyg_unroll.explain import neighbourhood, parameter_table, trace
from pyg_unroll.explain.calls import record_calls
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


def make_data(domain):
    if domain == 'points':
        mask = torch.rand(40) < 0.5
        return points_to_data(torch.rand(40, 2), torch.rand(40, 3), mask)
    if domain == 'mosaic':
        return mosaic(torch.rand(3, 9, 8), 'GRBG')
    data = image_to_data(torch.rand(3, 8, 9))
    data.mask = torch.rand(72) < 0.5
    return data


@pytest.mark.parametrize('prior', MODELS)
def test_two_layers_of_a_block(prior):
    model = MODELS[prior](
        3,
        'mosaic',
        num_blocks=1,
        hidden_channels=8,
        num_layers=2,
        color_differences=True,
    )
    data = make_data('mosaic')
    names = [f'blocks.0.{name}_conv' for name in ('smooth', 'fill')]
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
@pytest.mark.parametrize('domain', ['image', 'points', 'mosaic', 'inpainting'])
def test_last_step_is_the_output(prior, fidelity, domain):
    data = make_data(domain)
    if fidelity == 'soft' and domain in ('mosaic', 'inpainting'):
        data.noise_std = 0.05
    model = MODELS[prior](
        3,
        domain,
        num_blocks=2,
        hidden_channels=8,
        guide=domain != 'inpainting',
        fidelity=fidelity,
        num_layers=2,
    )
    scramble(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calls = record_calls(model, data)
    assert [call.name for call in calls] == ['blocks.0.conv', 'blocks.1.conv']
    for call in calls:
        steps = list(call.steps())
        assert len(steps) == 1 + len(call.layer.alpha)
        last = steps[-1]
        assert torch.equal(last.combined, call.output.view(-1, 3))
        assert not torch.equal(steps[-2].combined, last.combined)
        shares = call.shares.to(last.heads.dtype)
        torch.testing.assert_close(last.heads @ shares, last.combined)
    result = trace(model, data)
    for layer in result.layers:
        assert bool(layer.objective.isfinite().all())
        held = fidelity == 'hard'
        assert bool((layer.violation == 0).all()) == held
    # Nothing of it stays behind.
    assert all(not call.layer._forward_hooks for call in calls)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_glr_figures_against_dense_matrices():
    data = layer_data()
    layer = scramble(GLRConv(num_steps=4, heads=2))
    result = trace(layer, data).layers[0]
    steps = list(record_calls(layer, data)[0].steps())
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
        x = steps[-1].combined.double()
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
    step = list(record_calls(GLRConv(3, heads=2, order=2), data)[0].steps())[-1]
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
    steps = list(record_calls(layer, data)[0].steps())
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


def test_records_and_table():
    data = KNNGraph(4)(make_data('points'))
    model = UnrolledGLR(3, 'points', num_blocks=2, num_steps=3, heads=2)
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


def test_bad_input():
    data = layer_data()
    with pytest.raises(ValueError, match="no layer 'GLRConv'"):
        trace(torch.nn.Linear(2, 2), data)
    with pytest.raises(ValueError, match="'x' and 'edge_index'"):
        trace(GLRConv(2), Data(x=torch.rand(4, 1)))
    model = UnrolledGLR(3, 'mosaic', hidden_channels=8, num_layers=2)
    images = [mosaic(torch.rand(3, 8, 8), 'RGGB') for _ in range(2)]
    with pytest.raises(ValueError, match=r'one image of one tile.*num_views'):
        trace(model, Batch.from_data_list(images))
    model.max_pixels = 64
    with pytest.raises(ValueError, match='one tile'):
        trace(model, mosaic(torch.rand(3, 300, 300), 'RGGB'))
    # A hook that raised is gone.
    model.max_pixels = 500_000
    assert len(trace(model, images[0]).layers) == 2

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GLRConv(2, heads=2)

        def forward(self, data):
            x = torch.stack([data.x, data.x])
            return self.conv(x, data.edge_index, data.edge_weight, data.mask)

    with pytest.raises(ValueError, match='one sample at a time'):
        trace(Twice(), data)
