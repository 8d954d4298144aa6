"""Weights of version 0.1.0, read with the present code.

The files of `version_0_1_0` hold the state of layers and stacks, and the
outputs of all of them.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.data import Data

from pyg_unroll import (
    GLRConv,
    GraphDemosaic,
    GridGraph,
    GTVConv,
    KNNGraph,
    MahalanobisGraph,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    mosaic,
)
from pyg_unroll.imaging import CNNFeatures
from pyg_unroll.nn import MLPFeatures

FOLDER = Path(__file__).parent / 'version_0_1_0'
LAYERS = {
    'GLRConv': lambda: GLRConv(3, heads=2),
    'GTVConv': lambda: GTVConv(2, 2, heads=2),
    'MahalanobisGraph': lambda: MahalanobisGraph(2, heads=2),
}
STACKS = {
    'UnrolledGLR': (UnrolledGLR, {'num_steps': 2}),
    # Weights had no floor then.
    'UnrolledGTV': (
        UnrolledGTV,
        {'num_iters': 4, 'num_steps': 2, 'weight_floor': 0.0},
    ),
}


@pytest.fixture(scope='module')
def written():
    return load_file(FOLDER / 'layers.safetensors')


def state_of(name, written):
    return {
        key.partition('/')[2]: value
        for key, value in written.items()
        if key.startswith(f'{name}/')
    }


def make_data():
    path = torch.arange(8)
    edge_index = torch.stack(
        [torch.cat([path, path + 1]), torch.cat([path + 1, path])]
    )
    x = torch.linspace(-1, 1, 18).view(9, 2).sin()
    place = torch.arange(9.0)
    return Data(
        x=x,
        mask=torch.arange(9) % 3 == 0,
        pos=torch.stack([place / 9, place.cos()], 1),
        edge_index=edge_index,
    )


@pytest.mark.parametrize('name', LAYERS)
def test_layers(name, written):
    layer, state = LAYERS[name](), state_of(name, written)
    output = state.pop('output', None)
    layer.load_state_dict(state, strict=True)
    if output is not None:
        data = make_data()
        out = layer(data.x, data.edge_index, mask=data.mask)
        torch.testing.assert_close(out, output)


def test_graph_demosaic(written):
    # All but the ratio are parts of its step now, whose metrics are those of
    # luma and chroma in units of an edge.
    state = {
        name if name == 'chroma_ratio' else f'step.{name}': value
        for name, value in state_of('GraphDemosaic', written).items()
    }
    state['step.smooth_metric.weight'] *= torch.tensor([0.15, 0.07, 0.07])
    state['step.fill_metric.weight'] *= 0.3
    model = GraphDemosaic()
    model.load_state_dict(state, strict=True)
    image = (torch.arange(3 * 8 * 10.0).view(3, 8, 10) / 9).sin() / 4 + 0.5
    data = mosaic(image)
    # Results depended on the unit then: it is the largest value.
    data.x = data.x / data.x.max()
    with torch.no_grad():
        out = data_to_image(data, model(data))
    # As of version 0.2.0.
    red = [0.6659626, 0.5980970, 0.4661981, 0.3871985, 0.3391849, 0.3362977]
    blue = [0.8007518, 0.8400532, 0.7455379, 0.7730269, 0.7048063, 0.7007730]
    expected = torch.tensor([red, blue])
    torch.testing.assert_close(out[::2, 3, 2:8], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', STACKS)
@pytest.mark.parametrize('domain', ['image', 'points'])
def test_stacks(name, domain, written):
    cls, options = STACKS[name]
    # Three features, and a guide of two channels.
    if domain == 'image':
        features, graph = CNNFeatures(2, 5, 4), GridGraph(4)
    else:
        features, graph = MLPFeatures(2, 5, 4, pos_channels=2), KNNGraph(4)
    model = cls(2, features, graph, guide=True, **options)
    file = f'{name}-{domain}'
    state = load_file(FOLDER / f'{file}.safetensors')
    model.load_state_dict(state, strict=True)
    data = make_data()
    del data.edge_index
    if domain == 'image':
        data.height = data.width = 3
    torch.testing.assert_close(model(data), written[f'{file}/output'])
