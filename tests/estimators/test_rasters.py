import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import spsolve

from pyg_unroll import FillWarning, fill_raster


def surface(height=40, width=50, seed=0):
    row, col = np.mgrid[:height, :width] / 10.0
    out = np.sin(row) * np.cos(1.3 * col) + 0.3 * row
    return out + 0.001 * np.random.default_rng(seed).normal(size=out.shape)


def holes(shape, size=6, count=8, seed=0):
    chance = np.random.default_rng(seed)
    missing = np.zeros(shape, dtype=bool)
    for _ in range(count):
        row, col = (chance.integers(-2, n - 3) for n in shape)
        missing[max(row, 0) : row + size, max(col, 0) : col + size] = True
    return missing


def whole(image, order):
    """The same by SciPy, on all pixels of the grid."""
    missing = np.isnan(image)
    height, width = image.shape
    number = np.arange(height * width).reshape(height, width)
    entries = []
    for i in range(height):
        for j in range(width):
            for k, m in ((0, 1), (1, 0)):
                if i + k < height and j + m < width:
                    entries.append((number[i, j], number[i + k, j + m]))
    src, dst = np.array(entries).T
    half = scipy.sparse.coo_array(
        (np.ones(len(src)), (src, dst)), (number.size, number.size)
    )
    adjacency = (half + half.T).tocsr()
    degree = adjacency.sum(1)
    matrix = scipy.sparse.diags_array(degree) - adjacency
    if order == 2:
        matrix = matrix @ scipy.sparse.diags_array(1 / degree) @ matrix
    matrix, free = matrix.tocsr(), missing.ravel()
    known = np.where(missing, 0, image).ravel()
    out = image.ravel().copy()
    right = -(matrix @ known)[free]
    out[free] = spsolve(matrix[free][:, free].tocsc(), right)
    return out.reshape(image.shape)


@pytest.mark.parametrize('order', [1, 2])
def test_is_the_solution_on_the_whole_grid(order):
    truth = surface()
    missing = holes(truth.shape)
    raster = np.where(missing, np.nan, truth)
    out = fill_raster(raster, order, tol=1e-10)
    assert np.array_equal(out[~missing], truth[~missing])
    np.testing.assert_allclose(out, whole(raster, order), atol=1e-7)


def test_chooses_the_order():
    truth = surface()
    missing = holes(truth.shape)
    raster = np.where(missing, np.nan, truth)
    out = fill_raster(raster, tol=1e-8)
    np.testing.assert_allclose(out, fill_raster(raster, 2, 1e-8), atol=1e-9)
    noise = np.random.default_rng(0).normal(size=truth.shape)
    raster = np.where(missing, np.nan, noise)
    out = fill_raster(raster, tol=1e-8)
    np.testing.assert_allclose(out, fill_raster(raster, 1, 1e-8), atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_stacks_of_tensors(dtype):
    stack = np.stack([surface(seed=k) for k in range(2)])[None]
    missing = np.stack([holes(stack.shape[2:], seed=k) for k in range(2)])
    raster = torch.from_numpy(np.where(missing, np.nan, stack)).to(dtype)
    before = raster.clone()
    out = fill_raster(raster)
    assert out.dtype == dtype and out.shape == raster.shape
    assert torch.equal(raster.nan_to_num(), before.nan_to_num())
    alone = torch.stack([fill_raster(image) for image in raster[0]])[None]
    assert torch.equal(out, alone)
    full = torch.from_numpy(stack).to(dtype)
    assert torch.equal(fill_raster(full), full)


def test_data_arrays_and_chunks():
    xr = pytest.importorskip('xarray')
    truth = surface(60, 90)
    missing = holes(truth.shape, count=20)
    raster = xr.DataArray(
        np.where(missing, np.nan, truth),
        {'y': 10.0 - np.arange(60), 'x': np.arange(90) / 2},
        ('y', 'x'),
        name='height',
        attrs={'units': 'm'},
    )
    out = fill_raster(raster, 2, 1e-9)
    assert out.name == 'height' and out.attrs == raster.attrs
    xr.testing.assert_allclose(
        out.drop_vars(('x', 'y')),
        xr.DataArray(
            fill_raster(raster.to_numpy(), 2, 1e-9),
            dims=('y', 'x'),
            name='height',
        ),
    )
    pytest.importorskip('dask.array')
    lazy = fill_raster(raster.chunk({'y': 25, 'x': 40}), 2, 1e-9, depth=24)
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy.to_numpy(), out.to_numpy(), atol=1e-6)
    small = fill_raster(raster[:20].chunk(10), 2, 1e-9)  # of less than a margin
    alone = fill_raster(raster[:20], 2, 1e-9)
    np.testing.assert_allclose(small.to_numpy(), alone.to_numpy(), atol=1e-6)


def test_kinds_of_arrays():
    truth = surface(20, 30)
    missing = holes(truth.shape, 4, 3)
    raster = np.where(missing, np.nan, truth)
    out = fill_raster(raster)
    big = fill_raster(raster.astype('>f8'))
    assert big.dtype == np.dtype('>f8')
    np.testing.assert_array_equal(big, out)
    masked = np.ma.array(np.where(missing, -9999, truth), mask=missing)
    np.testing.assert_array_equal(fill_raster(masked), out)


def test_what_cannot_be_filled():
    nothing = np.full((2, 5, 5), np.nan)
    nothing[1, 0, 0] = 3
    with pytest.warns(FillWarning, match='nothing is known'):
        out = fill_raster(nothing)
    assert np.isnan(out[0]).all()
    np.testing.assert_allclose(out[1], 3)
    for wrong, problem in (
        (np.zeros(5), 'floating-point pixels of shape'),
        (np.zeros((5, 5), dtype=int), 'floating-point'),
        (np.zeros((0, 5)), 'floating-point'),
        (np.full((5, 5), np.inf), 'infinity'),
    ):
        with pytest.raises(ValueError, match=problem):
            fill_raster(wrong)
    for options, name in (({'order': 3}, 'order'), ({'tol': 0}, 'tol')):
        with pytest.raises(ValueError, match=f"'{name}' must"):
            fill_raster(np.zeros((5, 5)), **options)
