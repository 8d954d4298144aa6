"""Tries the installed package without its extras, away from the checkout."""

from __future__ import annotations

from importlib.metadata import files
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch

import pyg_unroll
from pyg_unroll import (
    Demosaic,
    GLRConv,
    GridGraph,
    Inpaint,
    data_to_image,
    image_to_data,
    mosaic,
    solvers,
)

EXTRAS = ('numba', 'PIL', 'skimage', 'matplotlib', 'sklearn', 'rawpy')


def check_files() -> None:
    """Weights and their cards are there, and nothing but the package is."""
    assert 'site-packages' in Path(pyg_unroll.__file__).parts
    names = {str(path) for path in files('pyg_unroll') or ()}
    weights = {name for name in names if name.endswith('.safetensors')}
    assert weights, 'no trained weights'
    cards = {name.removesuffix('.safetensors') + '.md' for name in weights}
    assert cards <= names, cards - names
    assert 'pyg_unroll/py.typed' in names
    tops = {name.split('/')[0] for name in names if not name.startswith('.')}
    assert {top.split('-')[0] for top in tops} == {'pyg_unroll'}, tops


def check_weights() -> None:
    """Each model restores a generated image better than it was."""
    row, col = torch.meshgrid(
        torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing='ij'
    )
    disc = ((row - 0.5) ** 2 + (col - 0.4) ** 2 < 0.09).float()
    image = torch.stack([0.2 + 0.6 * disc, 0.3 + 0.4 * row, 0.8 - 0.5 * col])
    holes = image_to_data(image)
    holes.mask = torch.rand(48 * 40) < 0.5
    for cls, prior in product((Demosaic, Inpaint), ('glr', 'gtv')):
        names = cls.pretrained_names(prior)
        assert names, f'no weights of {cls.__name__}, {prior}'
        for name in names:
            pattern = 'X-Trans' if name == 'xtrans' else 'GBRG'
            data = mosaic(image, pattern) if cls is Demosaic else holes
            with torch.no_grad():
                out = cls.from_pretrained(name, prior)(data)
            error = data_to_image(data, out) - image
            rmse = float(error.square().mean().sqrt())
            print(f'{cls.__name__} {name}, {prior}: error {rmse:.4f}')
            assert rmse < 0.05, rmse


def check_layers() -> None:
    """A layer of many steps comes to the solver's result."""
    graph = GridGraph()(image_to_data(torch.rand(1, 12, 12)))
    mask = torch.rand(144) < 0.5
    exact = solvers.glr(graph.x, graph.edge_index, mask=mask)
    assert exact.converged
    out = GLRConv(num_steps=100)(graph.x, graph.edge_index, mask=mask)
    torch.testing.assert_close(out, exact.x, rtol=1e-3, atol=1e-3)
    assert solvers.gtv(graph.x, graph.edge_index, mask=mask).converged


def check_estimator() -> None:
    """An estimator names the extra that it needs."""
    try:
        print(pyg_unroll.GraphInterpolator)
    except ModuleNotFoundError as error:
        assert "pip install 'pyg_unroll[estimators]'" in str(error), error
    else:
        raise AssertionError('GraphInterpolator without scikit-learn')


if __name__ == '__main__':
    torch.manual_seed(0)
    found = [name for name in EXTRAS if find_spec(name) is not None]
    assert not found, f'not a plain environment: {found}'
    for check in (check_files, check_weights, check_layers, check_estimator):
        check()
    print(f'pyg_unroll {pyg_unroll.__version__} works without extras')
