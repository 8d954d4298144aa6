"""Training in several processes."""

import pytest
import torch
from torch import multiprocessing
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch, Data

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GTVConv,
    Inpaint,
    UnrolledGLR,
    UnrolledGTV,
    image_to_data,
    mosaic,
)
from pyg_unroll.testing import assert_same
from tests.imaging.utils import make_blocks
from tests.oracles import random_graph

SIZE = 2  # processes


class OnData(torch.nn.Module):
    """A layer that is called like a model."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, data):
        arguments = data.x, data.edge_index, data.edge_weight, data.mask
        return self.conv(*arguments)


class WithoutMask(OnData):
    """The same, on noisy observations."""

    def forward(self, data):
        return self.conv(data.x, data.edge_index, data.edge_weight)


def make_models():
    """A model of each kind, with settings that leave parts of it unused."""
    torch.manual_seed(0)
    convs = {'GLRConv': GLRConv, 'GTVConv': lambda k, **o: GTVConv(2, k, **o)}
    models = {
        (kind, cls.__name__, *options.values()): cls(conv(3, **options))
        for kind, conv in convs.items()
        for cls in (OnData, WithoutMask)
        for options in (
            {'heads': 1, 'fidelity': 'hard'},
            {'heads': 2, 'fidelity': 'hard'},
            {'heads': 1, 'fidelity': 'soft'},
        )
    }
    for heads in (1, 2):
        models['UnrolledGLR', heads] = UnrolledGLR(2, num_steps=3, heads=heads)
        models['UnrolledGTV', heads] = UnrolledGTV(2, num_steps=2, heads=heads)
    models['Demosaic'] = Demosaic(make_blocks())
    models['Inpaint'] = Inpaint(make_blocks(prior='gtv', heads=1))
    return {name: model.double() for name, model in models.items()}


def make_data(name, rank):
    """The data of a process; sizes differ."""
    torch.manual_seed(rank)
    if name in ('Demosaic', 'Inpaint'):
        image = torch.rand(3, 12, 14, dtype=torch.float64)
        if name == 'Demosaic':
            return mosaic(image)
        data = image_to_data(image)
        data.mask = (torch.rand(12 * 14) < 0.4).unsqueeze(-1)
        return data
    num_nodes = 9 + rank
    graph = random_graph(num_nodes, 20, dtype=torch.float64)
    return Data(
        x=torch.randn(num_nodes, 2, dtype=torch.float64),
        mask=torch.arange(num_nodes) % 3 == 0,
        edge_index=graph.edge_index,
        edge_weight=graph.edge_weight,
    )


def gradients(model, data):
    """Those of the second of two steps, where a missing one is noticed."""
    for _ in range(2):
        model.zero_grad()
        model(data).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def work(rank, folder):
    """What each process does."""
    torch.set_num_threads(1)
    init_process_group(
        'gloo', f'file://{folder}/start', rank=rank, world_size=SIZE
    )
    found = {}
    for name, model in make_models().items():
        key = name if isinstance(name, str) else name[0]
        data = make_data(key, rank)
        found[name] = gradients(DistributedDataParallel(model), data)
    torch.save(found, f'{folder}/{rank}.pt')
    destroy_process_group()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason='PyTorch lacks processes'
)
def test_gradients_are_those_of_the_joint_batch(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), SIZE)
    found = [torch.load(tmp_path / f'{rank}.pt') for rank in range(SIZE)]
    for name, model in make_models().items():
        key = name if isinstance(name, str) else name[0]
        data = [make_data(key, rank) for rank in range(SIZE)]
        expected = gradients(model, Batch.from_data_list(data))
        for grads in found:
            # The mean over processes, of sums over their data.
            assert_same([SIZE * grad for grad in grads[name]], expected)
