import pytest
import torch
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

from pyg_unroll import GLRConv, GTVConv, Topology
from pyg_unroll.testing import assert_laplacian
from tests.oracles import dense_laplacian, random_graph

LAYERS = {
    'glr': lambda: GLRConv(num_steps=4),
    'gtv': lambda: GTVConv(num_iters=2, num_steps=3),
}


class Net(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index, edge_weight=None):
        return self.conv(x, edge_index, edge_weight)


@pytest.mark.parametrize('name', LAYERS)
def test_masks_act_on_symmetric_weights(name):
    graph = random_graph(12, 20)
    x = torch.randn(12, 2)
    net = Net(LAYERS[name]())
    plain = net(x, graph.edge_index, graph.edge_weight)
    # One value per direction, as an explainer has.
    logits = 3 * torch.randn(graph.edge_index.size(1))
    set_masks(net, torch.nn.Parameter(logits), graph.edge_index)
    masked = net(x, graph.edge_index, graph.edge_weight)

    gate = torch.zeros(12, 12)
    gate[tuple(graph.edge_index)] = logits.sigmoid()
    gate = (gate + gate.T) / 2
    weight = graph.edge_weight * gate[tuple(graph.edge_index)]
    with torch.no_grad():
        constant = net(torch.ones(12, 2), graph.edge_index, graph.edge_weight)
    # Rows of a Laplacian sum to zero: constants stay.
    torch.testing.assert_close(constant, torch.ones(12, 2), rtol=0, atol=1e-6)
    clear_masks(net)
    torch.testing.assert_close(masked, net(x, graph.edge_index, weight))
    assert (masked - plain).abs().max() > 1e-2
    torch.testing.assert_close(
        net(x, graph.edge_index, graph.edge_weight), plain, rtol=0, atol=0
    )


def test_masked_operator_is_a_laplacian():
    graph = random_graph(12, 20)
    conv = GLRConv(num_steps=1)
    logits = 3 * torch.randn(graph.edge_index.size(1))
    set_masks(conv, torch.nn.Parameter(logits), graph.edge_index)
    columns = [
        conv(unit.unsqueeze(1), graph.edge_index, graph.edge_weight)
        for unit in torch.eye(12)
    ]
    # One step without a mask: x - alpha (1 + D)^-1 L x; L has the diagonal D.
    step = (torch.eye(12) - torch.cat(columns, 1)) / conv.alpha[0, 0]
    share = step.diagonal()
    operator = step * (1 / (1 - share)).unsqueeze(1)
    torch.testing.assert_close(operator, operator.T, rtol=1e-4, atol=1e-5)
    assert operator.sum(1).abs().max() < 1e-4
    assert torch.linalg.eigvalsh(operator.double()).min() > -1e-4

    _, topology, weight, *_ = conv.read(
        torch.ones(12, 1), graph.edge_index, graph.edge_weight
    )
    assert_laplacian(topology, weight)
    dense = dense_laplacian(
        topology.edge_index, topology.directed_weight(weight[:, 0]), 12
    )
    torch.testing.assert_close(
        operator.double(), dense.double(), rtol=1e-3, atol=1e-4
    )


def test_gnn_explainer_finds_the_edges_that_matter():
    # Two components: nothing flows between them.
    one, other = random_graph(8, 6), random_graph(8, 6)
    edge_index = torch.cat([one.edge_index, other.edge_index + 8], 1)
    edge_weight = torch.cat([one.edge_weight, other.edge_weight])
    explainer = Explainer(
        Net(GLRConv(num_steps=3)),
        GNNExplainer(epochs=20),
        explanation_type='model',
        node_mask_type=None,
        edge_mask_type='object',
        model_config={
            'mode': 'regression',
            'task_level': 'node',
            'return_type': 'raw',
        },
    )
    mask = explainer(
        torch.randn(16, 1), edge_index, edge_weight=edge_weight, index=2
    ).edge_mask
    inside = one.edge_index.size(1)
    assert (mask[inside:] == 0).all()
    near = ((edge_index == 2).any(0)).nonzero().flatten()
    assert (mask[near] > 0).all()


def test_masks_of_another_graph_are_refused():
    graph = random_graph(6, 4)
    conv = GLRConv(num_steps=2)
    set_masks(conv, torch.nn.Parameter(torch.zeros(3)), graph.edge_index)
    with pytest.raises(ValueError, match='edge mask has 3 entries'):
        conv(torch.randn(6, 1), graph.edge_index)


def test_topology_takes_masks_in_its_own_order():
    graph = random_graph(6, 4)
    topology = Topology.from_edge_index(graph.edge_index, 6)
    x = torch.randn(6, 1)
    mask = torch.nn.Parameter(torch.randn(graph.edge_index.size(1)))
    conv = GLRConv(num_steps=2)
    set_masks(conv, mask, graph.edge_index)
    torch.testing.assert_close(
        conv(x, topology), conv(x, graph.edge_index), rtol=0, atol=0
    )
