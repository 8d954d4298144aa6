import sys

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_torch_csr_tensor

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GraphDemosaic,
    GridGraph,
    Inpaint,
    KNNGraph,
    MahalanobisGraph,
    UnrolledGLR,
    UnrolledGTV,
    image_to_data,
)
from pyg_unroll.explain import (
    learned_graphs,
    learned_metrics,
    parameter_table,
    spectral_response,
    trace,
)
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock, Tiled
from pyg_unroll.nn import MLPFeatures


def test_plots_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    model = UnrolledGLR(1)
    with pytest.raises(ImportError, match="extra 'viz'"):
        spectral_response(model.blocks[0].conv).plot()


def test_metrics():
    model = UnrolledGTV(3, MLPFeatures(3, 5), heads=2, num_blocks=3)
    metrics = learned_metrics(model)
    assert [metric.name for metric in metrics] == [
        f'blocks.{k}.metric' for k in range(3)
    ]
    for metric, block in zip(metrics, model.blocks, strict=True):
        rows = block.metric.weight
        torch.testing.assert_close(metric.matrix[1], rows[1].T @ rows[1])
        rebuilt = metric.axes @ metric.eigenvalues.diag_embed() @ metric.axes.mT
        torch.testing.assert_close(rebuilt, metric.matrix)
    with pytest.raises(ValueError, match='two features'):
        metrics[0].ellipse(0)
    with pytest.raises(ValueError, match="no 'MahalanobisGraph'"):
        learned_metrics(torch.nn.Linear(1, 1))


def test_ellipse_of_unit_distance():
    graph = MahalanobisGraph(2, heads=2)
    with torch.no_grad():
        graph.weight.copy_(torch.randn(2, 2, 2))
    metric = learned_metrics(graph)[0]
    for head in range(2):
        points = metric.ellipse(head)
        image = points @ graph.weight[head].detach().T
        distance = image.square().sum(1)
        torch.testing.assert_close(distance, torch.ones(100))


def test_plot_of_metrics():
    pytest.importorskip('matplotlib').use('Agg')
    for channels, kind in ((2, 'lines'), (4, 'images')):
        metric = learned_metrics(MahalanobisGraph(channels, heads=3))[0]
        axes = metric.plot()
        assert axes.shape == (1, 3)
        assert len(getattr(axes[0, 2], kind)) >= 1


def parts(block):
    """Feature net and metrics of a block."""
    if isinstance(block, DifferenceBlock):
        return block.features, [
            block.step.smooth_metric,
            block.step.fill_metric,
        ]
    return block.features, [block.metric]


MODELS = {
    'glr': lambda: UnrolledGLR(3, MLPFeatures(3, hidden_channels=24)),
    'gtv': lambda: UnrolledGTV(3, MLPFeatures(3, hidden_channels=24)),
    'differences': lambda: Demosaic(
        [DifferenceBlock(24, prior=prior) for prior in ('glr', 'gtv')]
    ),
    'guided': lambda: Inpaint([GuidedBlock(3, 24), GuidedBlock(3, 24)]),
}


def count(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.mark.parametrize('kind', MODELS)
def test_parameters(kind):
    model = MODELS[kind]()
    table = parameter_table(model)
    counted = sum(table.total(f'block {k}') for k in range(2))
    assert counted == count(model)
    net, metrics = parts(model.blocks[1])
    assert ('block 1', 'feature net', count(net)) in table.rows
    assert ('block 1', 'metric', count(*metrics)) in table.rows
    assert table.width == 24
    block = torch.nn.TransformerEncoderLayer(24, 4, dim_feedforward=96)
    norms = sum(
        p.numel() for name, p in block.named_parameters() if 'norm' in name
    )
    assert table.total('transformer') == count(block) - norms
    assert len(table.records()) == len(table.rows) == 8
    assert 'feature net' in str(table)


@pytest.mark.parametrize(
    'make',
    [lambda: torch.nn.Linear(1, 1), GraphDemosaic, lambda: Tiled(Demosaic())],
)
def test_parameters_of_other_modules(make):
    with pytest.raises(ValueError, match="'model' must be an 'UnrolledGLR'"):
        parameter_table(make())


class Plain(torch.nn.Module):
    """A feature net of no particular width."""

    out_channels = 1

    def reset_parameters(self):
        pass

    def forward(self, x, mask, data):
        return x


def test_parameters_of_any_feature_net():
    model = UnrolledGLR(1, Plain())
    table = parameter_table(model, width=6)
    assert table.width == 6
    assert table.total('transformer') == 4 * 6 * 7 + 8 * 6 * 6 + 5 * 6
    assert ('block 0', 'feature net', 0) in table.rows
    with pytest.raises(ValueError, match=r"'width' must be given.*'Plain'"):
        parameter_table(model)
    with pytest.raises(ValueError, match="'width' must be a positive integer"):
        parameter_table(model, width=0)


def test_learned_graphs_of_a_batch_are_refused():
    part = image_to_data(torch.rand(1, 4, 4))
    model = UnrolledGLR(1, graph=GridGraph())
    with pytest.raises(ValueError, match=r'one graph.*to_data_list'):
        learned_graphs(model, Batch.from_data_list([part, part]))


def test_learned_graphs_have_edges_of_their_own():
    data = KNNGraph(3)(Data(x=torch.randn(20, 1), pos=torch.rand(20, 2)))
    data.edge_attr = torch.rand(data.num_edges, 3)
    data.length = torch.rand(data.num_edges)

    class Rewired(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.graph, self.conv = KNNGraph(5), GLRConv(2)

        def forward(self, data):
            return self.conv(data.x, self.graph.topology(data))

    (graph,) = learned_graphs(Rewired(), data)
    edges = {key for key in graph.keys() if graph.is_edge_attr(key)}
    assert edges == {'edge_index', 'edge_weight'}
    assert graph.num_edges > data.num_edges == len(data.edge_attr)
    part = graph.subgraph(torch.arange(10))
    assert len(part.edge_weight) == part.num_edges


def test_single_layer_on_a_matrix():
    data = KNNGraph(3)(Data(x=torch.randn(20, 1), pos=torch.rand(20, 2)))
    layer = GLRConv(3)
    matrix = to_torch_csr_tensor(data.edge_index, size=(20, 20))
    expected = trace(layer, data)
    out = trace(layer, Data(x=data.x, adj_t=matrix))
    assert str(out) == str(expected)
    with pytest.raises(ValueError, match="'KNNGraph' first"):
        trace(layer, Data(x=data.x))
