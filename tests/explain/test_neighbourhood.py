import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_dense_adj

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GraphDemosaic,
    GridGraph,
    Inpaint,
    KNNGraph,
    UnrolledGLR,
    data_to_image,
    image_to_data,
    mosaic,
    points_to_data,
)
from pyg_unroll.explain import learned_graphs, neighbourhood
from pyg_unroll.imaging import CNNFeatures, GuidedBlock, Tiled
from pyg_unroll.nn import MLPFeatures


def walk(edge_index, edge_weight, node, hops):
    """Mean over hops of where a random walk is, from dense matrices."""
    matrix = to_dense_adj(edge_index, edge_attr=edge_weight)[0].double()
    step = matrix / matrix.sum(1, keepdim=True)
    powers = [torch.linalg.matrix_power(step, k)[node] for k in range(hops + 1)]
    return torch.stack(powers[1:]).mean(0)


def points(num=30):
    mask = torch.rand(num) < 0.5
    data = points_to_data(torch.rand(num, 2), torch.rand(num), mask)
    return KNNGraph(4)(data)


def points_model():
    return UnrolledGLR(1, MLPFeatures(1, pos_channels=2))


def image_model(num_blocks=2):
    return UnrolledGLR(3, CNNFeatures(3), GridGraph(), num_blocks=num_blocks)


@pytest.mark.parametrize('hops', [1, 3])
def test_points(hops):
    data = points()
    model = points_model()
    result = neighbourhood(model, data, 7, hops)
    graphs = learned_graphs(model, data)
    assert len(result.layers) == len(graphs) == 2
    for layer, graph in zip(result.layers, graphs, strict=True):
        assert torch.equal(
            graph.edge_index.unique(dim=1), data.edge_index.unique(dim=1)
        )
        row, col = graph.edge_index
        adjacent = col[row == 7]
        assert set(layer.neighbours.tolist()) == set(adjacent.tolist())
        for head in range(2):
            matrix = to_dense_adj(
                graph.edge_index, edge_attr=graph.edge_weight[:, head]
            )[0]
            torch.testing.assert_close(
                layer.weight[:, head], matrix[7, layer.neighbours]
            )
            expected = walk(
                graph.edge_index, graph.edge_weight[:, head], 7, hops
            )
            torch.testing.assert_close(layer.reach[:, head], expected)


class Painted(torch.nn.Module):
    """A model whose graph ends at an edge of the image."""

    def __init__(self):
        super().__init__()
        self.conv = GLRConv(2)

    def forward(self, data):
        graph = GridGraph(4)(data)
        row, col = graph.edge_index
        same = (data.x[row] == data.x[col]).all(1)
        return self.conv(data.x, graph.edge_index, same.float())


def test_neighbourhood_ends_at_an_edge():
    image = torch.zeros(1, 6, 8)
    image[:, :, 4:] = 1
    data = image_to_data(image)
    result = neighbourhood(Painted(), data, (2, 3), hops=3)
    reach = data_to_image(data, result.layers[0].reach)
    assert reach[..., 4:].max() == 0
    assert reach[0, 2, 0] > 0
    assert float(reach.sum()) == pytest.approx(1)
    window = result.window(0, 3)
    assert window.shape == (1, 7, 7)
    assert torch.equal(window[0, 1:, :4], reach[0, 0:6, 0:4])
    assert window[0, 0].abs().max() == 0  # above the image


class Show(torch.nn.Module):
    """A feature net that shows the first context channel, the sensor or the
    share of known channels.
    """

    receptive_field = 0

    def __init__(self, out_channels):
        super().__init__()
        self.out_channels = out_channels

    def forward(self, seen):
        size = (*seen.shape[:1], self.out_channels, *seen.shape[2:])
        shown = seen.new_zeros(size)
        shown[:, 3] = 5 * seen[:, 0]  # after a guide of three channels
        return shown


def show_context(model):
    """Puts such nets into a model of guided blocks: graphs follow from what
    they show.
    """
    for block in model.blocks:
        block.features = Show(sum(block.output_sizes))
    return model


def assert_lonely(model, data, node, width, other):
    """Asserts that a pixel has its eight neighbours and is far from them."""
    center = node[0] * width + node[1]
    lonely = neighbourhood(model, data, node).layers[0]
    offsets = {-width - 1, -width, -width + 1, -1, 1}
    offsets |= {width - 1, width, width + 1}
    assert {int(n) - center for n in lonely.neighbours} == offsets
    near = neighbourhood(model, data, other).layers[0]
    floor = near.weight.min()
    at = near.neighbours.tolist().index(center)
    assert near.weight[at] == floor
    assert floor < 0.9 * near.weight.median()


@pytest.mark.parametrize('prior', ['glr', 'gtv'])
@pytest.mark.parametrize('pattern', ['RGGB', 'GBRG', 'GRBG', 'BGGR'])
def test_pixels_of_mirrored_images(prior, pattern):
    blocks = [GuidedBlock(hidden_channels=8, heads=1, prior=prior)]
    model = show_context(Demosaic(blocks))
    image = 0.05 * torch.rand(3, 9, 11)
    image[:, 4, 6] = 1.0
    data = mosaic(image, pattern)
    assert_lonely(model, data, (4, 6), 11, other=(4, 5))
    # A wrapper that cuts nothing changes nothing.
    expected, out = (
        neighbourhood(m, data, (4, 6)).layers[0] for m in (model, Tiled(model))
    )
    assert torch.equal(out.reach, expected.reach)
    assert out.name == f'restorer.{expected.name}'


@pytest.mark.parametrize('per_channel', [False, True])
def test_pixels_of_inpainted_images(per_channel):
    model = show_context(Inpaint([GuidedBlock(hidden_channels=8, heads=1)]))
    data = image_to_data(torch.rand(3, 9, 11))
    data.mask = torch.arange(99) == 4 * 11 + 6
    if per_channel:
        data.mask = data.mask.unsqueeze(1).expand(-1, 3)
    assert_lonely(model, data, (4, 6), 11, other=(4, 5))


@pytest.mark.parametrize('pattern', ['GBRG', 'X-Trans'])
def test_graphs_of_an_untrained_restorer(pattern):
    data = mosaic(torch.rand(3, 9, 11), pattern)
    graphs = learned_graphs(GraphDemosaic(), data)
    grid = GridGraph()(data).edge_index
    assert len(graphs) == 2
    for graph in graphs:
        assert torch.equal(graph.edge_index.unique(dim=1), grid.unique(dim=1))
    large = mosaic(torch.rand(3, 900, 9), pattern)
    with pytest.raises(ValueError, match='one image of one tile'):
        learned_graphs(Tiled(GraphDemosaic(), 64), large)


def test_plot():
    plt = pytest.importorskip('matplotlib')
    plt.use('Agg')
    data = points()
    model = points_model()
    axes = neighbourhood(model, data, 3, 2).plot()
    assert axes.shape == (2, 2)
    model = image_model(num_blocks=1)
    image = image_to_data(torch.rand(3, 8, 8))
    result = neighbourhood(model, image, (0, 7))
    axes = result.plot(radius=3)
    low, high = axes[0, 0].get_xlim()
    assert (low, high) == (3.5, 10.5)
    bare = Data(x=torch.rand(4, 1), edge_index=torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match="'pos'"):
        neighbourhood(GLRConv(1), bare, 0).plot()


def test_nodes_of_any_integer_type():
    data = KNNGraph(3)(Data(x=torch.randn(9, 1), pos=torch.rand(9, 2)))
    expected = neighbourhood(GLRConv(2), data, 3)
    out = neighbourhood(GLRConv(2), data, np.int64(3))
    assert out.node == 3
    assert torch.equal(out.layers[0].reach, expected.layers[0].reach)
    with pytest.raises(ValueError, match="'node' must be an integer"):
        neighbourhood(GLRConv(2), data, True)


def test_bad_input():
    images = image_to_data(torch.rand(2, 3, 6, 6))
    with pytest.raises(ValueError, match="'data' must be one graph"):
        neighbourhood(image_model(), images, 3)
    for node in ([3, 4], (1, 2, 3), 4.5, (3.5, 2)):
        with pytest.raises(ValueError, match="'node' must be an integer or"):
            neighbourhood(
                image_model(), image_to_data(torch.rand(3, 6, 6)), node
            )
    data = points()
    model = points_model()
    with pytest.raises(ValueError, match=r"'node' must lie in \[0, 30\)"):
        neighbourhood(model, data, 30)
    with pytest.raises(ValueError, match="'hops' must be a positive integer"):
        neighbourhood(model, data, 0, hops=0)
    with pytest.raises(ValueError, match='pixel'):
        neighbourhood(model, data, (0, 0))

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GLRConv(1)

        def forward(self, data):
            edge_index = torch.tensor([[0, 1], [1, 0]])
            return self.conv(data.x[:2], edge_index)

    with pytest.raises(ValueError, match='works on a graph of 2 nodes'):
        learned_graphs(Half(), data)


def test_isolated_node():
    data = Data(x=torch.rand(4, 1), edge_index=torch.tensor([[0, 1], [1, 0]]))
    layer = neighbourhood(GLRConv(1), data, 3, hops=2).layers[0]
    assert layer.neighbours.numel() == 0
    assert layer.reach.abs().max() == 0
