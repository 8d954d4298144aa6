import math

import pytest
import torch

from pyg_unroll import GLRConv, GTVConv
from pyg_unroll.explain import spectral_response
from tests.explain.test_trace import scramble
from tests.oracles import dense_laplacian, random_graph


def in_double(layer):
    """The layer with random coefficients and an exact weight of the prior."""
    layer = scramble(layer.double())
    with torch.no_grad():
        layer.log_mu.fill_(math.log(layer.mu))
        if isinstance(layer, GTVConv):
            layer.relaxation_logit.zero_()
            layer.log_rho.fill_(math.log(layer.rho))
    return layer


def dense_filter(matrix, diagonal, start, b, response, head):
    """Applies the polynomials through an eigendecomposition."""
    root = diagonal.sqrt()
    values, vectors = torch.linalg.eigh(matrix / root[:, None] / root)
    error = response.error(values[:, None])[0, :, head]
    solution = response.solution(values[:, None])[0, :, head]
    kept = vectors @ (error[:, None] * (vectors.T @ (root[:, None] * start)))
    added = vectors @ (solution[:, None] * (vectors.T @ (b / root[:, None])))
    return (kept + added) / root[:, None]


@pytest.mark.parametrize('order', [1, 2])
def test_held_entries(order):
    graph = random_graph(24, 40, heads=2, dtype=torch.float64)
    layer = in_double(GLRConv(4, heads=2, order=order))
    x = torch.randn(24, 3, dtype=torch.float64)
    mask = torch.arange(24) % 3 == 0
    response = spectral_response(layer)
    assert not response.alpha.requires_grad  # though in the layer's own type
    expected = torch.zeros_like(x)
    for head, share in enumerate(layer.head_logits.softmax(0)):
        matrix = dense_laplacian(
            graph.edge_index, graph.edge_weight[:, head], 24
        )
        diagonal = matrix.diagonal()
        if order == 2:
            matrix = matrix @ (matrix / diagonal[:, None])
        out = x.clone()
        out[~mask] = dense_filter(
            matrix[~mask][:, ~mask],
            diagonal[~mask],
            x[~mask],
            -matrix[~mask][:, mask] @ x[mask],
            response,
            head,
        )
        expected = expected + share * out
    actual = layer(x, graph.edge_index, graph.edge_weight, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_noisy_observations():
    graph = random_graph(24, 40, dtype=torch.float64)
    layer = in_double(GLRConv(4, mu=0.6))
    x = torch.randn(24, 2, dtype=torch.float64)
    confidence = torch.rand(24, dtype=torch.float64)
    matrix = dense_laplacian(graph.edge_index, graph.edge_weight, 24)
    matrix = matrix + (confidence / 0.6).diag()
    expected = dense_filter(
        matrix,
        matrix.diagonal(),
        x,
        confidence[:, None] * x / 0.6,
        spectral_response(layer),
        0,
    )
    actual = layer(
        x, graph.edge_index, graph.edge_weight, confidence=confidence
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('order', [1, 2])
def test_denoising_on_a_regular_graph(order):
    # Random weights by distance on a ring: all degrees are the same.
    nodes, reach = torch.arange(15), torch.arange(1, 5)
    weight = torch.rand(4, dtype=torch.float64)
    row = nodes.repeat(4)
    col = (nodes + reach[:, None]).flatten() % 15
    edge_index = torch.stack([torch.cat([row, col]), torch.cat([col, row])])
    edge_weight = weight.repeat_interleave(15).repeat(2)
    matrix = dense_laplacian(edge_index, edge_weight, 15)
    degree = float(matrix[0, 0])
    values, vectors = torch.linalg.eigh(matrix)

    layer = in_double(GLRConv(4, mu=1.7, order=order))
    x = torch.randn(15, 2, dtype=torch.float64)
    gain, exact = spectral_response(layer).denoising(values, degree)
    expected = vectors @ (gain[0] * (vectors.T @ x))
    actual = layer(x, edge_index, edge_weight)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    prior = matrix if order == 1 else matrix @ matrix / degree
    eye = torch.eye(15, dtype=torch.float64)
    solved = torch.linalg.solve(eye + 1.7 * prior, x)
    expected = vectors @ (exact[0] * (vectors.T @ x))
    torch.testing.assert_close(expected, solved, rtol=1e-9, atol=1e-9)


def test_inner_solve_of_gtv():
    # Below the threshold, the first iteration is a solve with target zero.
    graph = random_graph(20, 30, dtype=torch.float64)
    layer = in_double(GTVConv(1, num_steps=3, mu=0.8, rho=1.5))
    x = 0.01 * torch.randn(20, 2, dtype=torch.float64)
    response = spectral_response(layer)
    torch.testing.assert_close(response.mu, torch.full_like(response.mu, 0.6))
    matrix = dense_laplacian(graph.edge_index, graph.edge_weight.square(), 20)
    matrix = matrix + torch.eye(20) / 0.6
    expected = dense_filter(matrix, matrix.diagonal(), x, x / 0.6, response, 0)
    actual = layer(x, graph.edge_index, graph.edge_weight)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_each_solve_of_gtv_has_its_own():
    response = spectral_response(scramble(GTVConv(3, num_steps=2, heads=2)))
    eigenvalues = torch.linspace(0, 2, 5).view(-1, 1)
    assert response.solution(eigenvalues).shape == (3, 5, 2)
    assert response.denoising(eigenvalues)[0].shape == (3, 5, 2)


def test_untrained_layer_is_low_pass_and_converges():
    response = spectral_response(GLRConv(12))
    eigenvalues = torch.linspace(1 / 12, 2, 50).view(-1, 1)
    gain = response.solution(eigenvalues)
    torch.testing.assert_close(
        gain, 1 / eigenvalues.double()[None], rtol=0.05, atol=0
    )
    assert response.error(torch.zeros(1, 1)) == 1


def test_plot():
    pytest.importorskip('matplotlib').use('Agg')
    for layer in (GLRConv(3, heads=2), GTVConv(2, heads=2)):
        for denoising in (False, True):
            left, right = spectral_response(layer).plot(denoising=denoising)[0]
            solves = 2 if isinstance(layer, GTVConv) else 1
            assert len(left.lines) == 4 * solves
            assert len(right.lines) == 2 * solves


def test_bad_input():
    with pytest.raises(ValueError, match="'layer' must be a 'GLRConv'"):
        spectral_response(torch.nn.Linear(2, 2))
