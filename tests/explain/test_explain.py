import subprocess
import sys

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_torch_csr_tensor

from pyg_unroll import (
    GLRConv,
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


def run(code):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )


def test_nothing_is_imported_before_it_is_needed():
    done = run(
        'import sys, pyg_unroll\n'
        "assert 'pyg_unroll.explain' not in sys.modules\n"
        "assert 'matplotlib' not in sys.modules\n"
        'import pyg_unroll.explain\n'
        "assert 'matplotlib' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_plots_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    model = UnrolledGLR(1)
    with pytest.raises(ImportError, match="extra 'viz'"):
        spectral_response(model.blocks[0].conv).plot()


def test_metrics():
    model = UnrolledGTV(3, heads=2, feature_channels=5, num_blocks=3)
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


@pytest.mark.parametrize('cls', [UnrolledGLR, UnrolledGTV])
@pytest.mark.parametrize('domain', ['points', 'mosaic'])
def test_parameters(cls, domain):
    model = cls(3, domain, num_blocks=2, hidden_channels=24)
    table = parameter_table(model)
    counted = sum(table.total(f'block {k}') for k in range(2))
    assert counted == sum(p.numel() for p in model.parameters())
    assert ('block 1', 'metric', model.blocks[1].metric.weight.numel()) in (
        table.rows
    )
    block = torch.nn.TransformerEncoderLayer(24, 4, dim_feedforward=96)
    norms = sum(
        p.numel() for name, p in block.named_parameters() if 'norm' in name
    )
    every = sum(p.numel() for p in block.parameters())
    assert table.total('transformer') == every - norms
    assert len(table.records()) == len(table.rows) == 8
    assert 'feature net' in str(table)
    with pytest.raises(ValueError, match="'model' must be an 'UnrolledGLR'"):
        parameter_table(torch.nn.Linear(1, 1))


def test_learned_graphs_of_a_batch_are_refused():
    part = image_to_data(torch.rand(1, 4, 4))
    model = UnrolledGLR(1, hidden_channels=4)
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
