import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_dense_adj

from pyg_unroll import (
    GLRConv,
    GridGraph,
    KNNGraph,
    UnrolledGLR,
    UnrolledGTV,
    data_to_image,
    image_to_data,
    mosaic,
    points_to_data,
)
from pyg_unroll.explain import learned_graphs, neighbourhood


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


@pytest.mark.parametrize('hops', [1, 3])
def test_points(hops):
    data = points()
    model = UnrolledGLR(1, 'points', num_blocks=2, heads=2)
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


@pytest.mark.parametrize('cls', [UnrolledGLR, UnrolledGTV])
@pytest.mark.parametrize('pattern', ['RGGB', 'GBRG', 'GRBG', 'BGGR'])
def test_pixels_of_mirrored_images(cls, pattern):
    # Where the graph is cut is known from the features alone: the feature
    # net is replaced by one that shows the image itself.
    model = cls(3, 'mosaic', hidden_channels=8, num_layers=2, heads=1)
    image = 0.05 * torch.rand(3, 9, 11)
    image[:, 4, 6] = 1.0
    data = mosaic(image, pattern)

    class Show(torch.nn.Module):
        radius = 0

        def forward(self, seen):
            # The first context channel is the sensor.
            shown = seen.new_zeros((*seen.shape[:1], 8, *seen.shape[2:]))
            shown[:, 0] = 5 * seen[:, 0]
            return shown

    for block in model.blocks:
        block.features = Show()
    bright = neighbourhood(model, data, (4, 6)).layers[0]
    near = neighbourhood(model, data, (4, 5)).layers[0]
    center = 4 * 11 + 6
    offsets = {-12, -11, -10, -1, 1, 10, 11, 12}
    assert {int(n) - center for n in bright.neighbours} == offsets
    # The bright pixel is far from all others, and from its neighbour.
    floor = near.weight.min()
    at = near.neighbours.tolist().index(center)
    assert near.weight[at] == floor
    assert floor < 0.9 * near.weight.median()


def test_plot():
    plt = pytest.importorskip('matplotlib')
    plt.use('Agg')
    data = points()
    model = UnrolledGLR(1, 'points', num_blocks=2, heads=2)
    axes = neighbourhood(model, data, 3, 2).plot()
    assert axes.shape == (2, 2)
    model = UnrolledGLR(3, 'image', num_blocks=1, heads=2)
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
        neighbourhood(UnrolledGLR(3), images, 3)
    for node in ([3, 4], (1, 2, 3), 4.5, (3.5, 2)):
        with pytest.raises(ValueError, match="'node' must be an integer or"):
            neighbourhood(
                UnrolledGLR(3), image_to_data(torch.rand(3, 6, 6)), node
            )
    data = points()
    model = UnrolledGLR(1, 'points')
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
