"""Axes of the plots; matplotlib is imported at the first of them."""

from typing import Any

import numpy as np


def make_axes(axes: Any, rows: int, columns: int) -> Any:
    """Returns an array of axes of this shape: new ones, or those given."""
    if axes is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "plots need matplotlib; install it with 'pip install "
                "matplotlib' or the extra 'viz'"
            ) from error
        size = 3.2 * columns, 3.2 * rows
        _, axes = plt.subplots(
            rows, columns, figsize=size, layout='constrained'
        )
    axes = np.asarray(axes)
    if axes.size != rows * columns:
        raise ValueError(
            f"'axes' must hold {rows * columns} axes, {rows} x {columns} "
            f'(got {axes.size})'
        )
    return axes.reshape(rows, columns)
