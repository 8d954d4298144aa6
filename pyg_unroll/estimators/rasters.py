"""Gaps of rasters, such as grids of elevations."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from pyg_unroll import checks
from pyg_unroll.inputs import FillWarning
from pyg_unroll.solvers import glr
from pyg_unroll.threads import one_thread

Array = npt.NDArray[Any]

# Shifts of the gaps that the order is chosen by.
_TRIALS = 2


@one_thread()
def fill_raster(
    raster: Any, order: int | None = None, tol: float = 1e-6, depth: int = 64
) -> Any:
    r"""Fills in the gaps of a raster by the smoothest surface that agrees with
    the pixels around them.

    It minimises :math:`\mathbf{z}^{\top} \mathbf{L} \mathbf{z}` (order 1, a
    membrane) or :math:`\| \mathbf{D}^{-1/2} \mathbf{L} \mathbf{z} \|^2` (order
    2, a thin plate) on the grid of four neighbours, known pixels held. Only
    gaps and the pixels next to them enter the system, which has the same
    solution: the effort is that of the gaps. Neither continues slopes beyond
    the last known row or column.

    Args:
        raster (DataArray, array or torch.Tensor): Pixels :math:`(*, H, W)`,
            NaN where not known, of evenly spaced rows and columns. Each pair of
            the last two axes is filled in on its own. Of chunks of dask, the
            result is as lazy; gaps are filled in by their chunk and a margin.
        order (int, optional): 1 or 2; :obj:`None` takes, for each, what
            predicts pixels better that gaps of the same shapes hide elsewhere.
            (default: :obj:`None`)
        tol (float, optional): Tolerance of the solver; see
            :func:`~pyg_unroll.solvers.glr`. (default: :obj:`1e-6`)
        depth (int, optional): Margin of chunks, in pixels. Gaps that are
            wider are not seen whole, and stay if nothing else is.
            (default: :obj:`64`)

    Returns:
        The raster in its kind and type, known pixels unchanged.

    Raises:
        ValueError: If an argument is not one of the above, or pixels are
            infinite.

    Warns:
        FillWarning: If nothing is known of an image, which stays as it is.
        ConvergenceWarning: If the system was not solved to its tolerance.

    Example:
        >>> import torch
        >>> row, col = torch.meshgrid(*2 * [torch.arange(9.0)], indexing='ij')
        >>> raster = row + 2 * col
        >>> raster[3:6, 3:6] = torch.nan
        >>> filled = fill_raster(raster)
        >>> round(float(filled[4, 4]), 3)
        12.0
    """
    checks.one_of(1, 2, None)('order', order)
    checks.check_between('tol', tol)
    checks.check_positive('depth', depth)
    fill = partial(_fill, order=order, tol=tol)
    if isinstance(raster, Tensor):
        array = raster.detach().cpu().numpy()
        return torch.from_numpy(fill(array)).to(raster)
    if isinstance(raster, np.ma.MaskedArray):
        raster = raster.filled(np.nan)
    if not hasattr(raster, 'dims'):
        return fill(np.asarray(raster))
    if raster.chunks is None:
        return raster.copy(data=fill(raster.to_numpy()))
    from dask.array import map_overlap

    axes = raster.ndim
    margin = {k: min(depth, raster.shape[k]) for k in (axes - 2, axes - 1)}
    data = map_overlap(
        one_thread()(fill),
        raster.data,
        depth=margin,
        boundary='none',
        dtype=raster.dtype,
        meta=np.empty(axes * (0,), raster.dtype),
    )
    return raster.copy(data=data)


def _fill(array: Array, order: int | None, tol: float) -> Array:
    """An array with its gaps filled in."""
    if array.ndim < 2 or array.dtype.kind != 'f' or 0 in array.shape:
        raise ValueError(
            "'raster' must be floating-point pixels of shape [..., H, W], NaN "
            f'where not known (got {array.dtype} of {list(array.shape)})'
        )
    if np.isinf(array).any():
        raise ValueError("'raster' must be finite or NaN (got infinity)")
    out = array.copy()
    for image in out.reshape(-1, *out.shape[-2:]):
        missing = np.isnan(image)
        if missing.all():
            warnings.warn(
                'nothing is known of an image of the raster, or of a chunk and '
                "its margin: it stays unknown; a larger 'depth' sees more",
                FillWarning,
                stacklevel=4,
            )
        elif missing.any():
            best = _choose(image, missing) if order is None else order
            image[missing] = _solve(image, missing, best, tol)
    return out


def _choose(image: Array, missing: Array) -> int:
    """The order that predicts pixels better that shifted gaps hide."""
    chance = np.random.default_rng(0)
    error = {1: 0.0, 2: 0.0}
    for _ in range(_TRIALS):
        shift = tuple(chance.integers(size) for size in image.shape)
        held = np.roll(missing, shift, (0, 1)) & ~missing
        gaps = missing | held
        if held.any() and not gaps.all():
            for order in error:
                guess = image.copy()
                guess[gaps] = _solve(image, gaps, order, 1e-4)
                error[order] += float(np.square(guess - image)[held].sum())
    return 1 if error[1] <= error[2] else 2


def _solve(image: Array, missing: Array, order: int, tol: float) -> Array:
    """The missing pixels."""
    kept = ndimage.binary_dilation(missing, iterations=order)
    number = np.cumsum(kept).reshape(kept.shape) - 1
    pairs = []
    for a, b in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        both = kept[a] & kept[b]
        pairs.append(np.stack([number[a][both], number[b][both]]))
    edges = np.concatenate(pairs, 1)
    out = glr(
        torch.from_numpy(
            np.nan_to_num(image[kept].astype(np.float64))[:, None]
        ),
        torch.from_numpy(np.concatenate([edges, edges[::-1]], 1)),
        mask=torch.from_numpy(~missing[kept]),
        order=order,
        tol=tol,
    )
    result: Array = out.x.numpy()[missing[kept], 0]
    return result
