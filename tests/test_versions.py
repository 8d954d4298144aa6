"""What version 0.1.0 wrote, read with the present code.

The files of `version_0_1_0` hold models as its :meth:`save` wrote them, the
state of layers, and what all of them computed.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.data import Data

import pyg_unroll
from pyg_unroll.nn.models import unrolled_gtv

FOLDER = Path(__file__).parent / 'version_0_1_0'
LAYERS = {
    'GLRConv': {'num_steps': 3, 'heads': 2},
    'GTVConv': {'num_iters': 2, 'num_steps': 2, 'heads': 2},
    'GraphDemosaic': {},
    'MahalanobisGraph': {'in_channels': 2, 'heads': 2},
}


@pytest.fixture(scope='module')
def written():
    return load_file(FOLDER / 'layers.safetensors')


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
    layer = getattr(pyg_unroll, name)(**LAYERS[name])
    state = {
        key.partition('/')[2]: value
        for key, value in written.items()
        if key.startswith(f'{name}/')
    }
    output = state.pop('output', None)
    layer.load_state_dict(state, strict=True)
    if output is not None:
        data = make_data()
        out = layer(data.x, data.edge_index, mask=data.mask)
        torch.testing.assert_close(out, output)


@pytest.mark.parametrize('name', ['UnrolledGLR', 'UnrolledGTV'])
@pytest.mark.parametrize('domain', ['image', 'points'])
def test_models(name, domain, written, monkeypatch):
    # What has been added to weights since.
    monkeypatch.setattr(unrolled_gtv, '_WEIGHT_FLOOR', 0.0)
    file = f'{name}-{domain}'
    model = getattr(pyg_unroll, name).load(FOLDER / f'{file}.safetensors')
    data = make_data()
    del data.edge_index
    if domain == 'image':
        data.height = data.width = 3
    torch.testing.assert_close(model(data), written[f'{file}/output'])
