"""The steps of a model's solver layers, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch_geometric.data import Data

from pyg_unroll.explain.calls import record_calls
from pyg_unroll.explain.figure import make_axes
from pyg_unroll.explain.layer_trace import LayerTrace
from pyg_unroll.explain.measures import trace_call


@dataclass(frozen=True, eq=False)
class Trace:
    """What each step of each solver layer of a model did.

    Attributes:
        layers (list[LayerTrace]): One for each call of a layer, in order.
    """

    layers: list[LayerTrace]

    def rises(self, tolerance: float = 1e-6) -> list[tuple[str, int, str]]:
        """Where a layer does not descend.

        Args:
            tolerance (float, optional): Relative rise that is taken for
                rounding. (default: :obj:`1e-6`)

        Returns:
            Layer, step and head, or :obj:`'combined'`, of each step after
            which the objective is larger than before.
        """
        return [
            (layer.name, *where)
            for layer in self.layers
            for where in layer.rises(tolerance)
        ]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per layer, step and head, for example for
        :class:`pandas.DataFrame`.
        """
        return [row for layer in self.layers for row in layer.records()]

    def plot(self, axes: Any = None) -> Any:
        """Draws the objective of each layer over its steps.

        Args:
            axes (sequence of matplotlib axes, optional): One per layer.
                (default: :obj:`None`)

        Returns:
            The axes, an array with one row.

        Raises:
            ImportError: If matplotlib (extra :obj:`viz`) is missing.
        """
        axes = make_axes(axes, 1, len(self.layers))
        for ax, layer in zip(axes[0], self.layers, strict=True):
            layer.plot(ax)
        return axes

    def __str__(self) -> str:
        return '\n\n'.join(str(layer) for layer in self.layers)


def trace(model: torch.nn.Module, data: Data) -> Trace:
    r"""Runs a model and measures each step of its solver layers.

    The steps are the layers' own: each layer is run again on what it was
    given, stopped after one, two, ... of its steps. A trained layer need not
    descend at each of them; :meth:`Trace.rises` says where it does not.

    Images of the domains :obj:`'mosaic'` and :obj:`'inpainting'` are mirrored
    at the border, and figures include the margin; where a net gives a guide,
    they are of what is left of the signal.

    Args:
        model (torch.nn.Module): :class:`~pyg_unroll.nn.UnrolledGLR`,
            :class:`~pyg_unroll.nn.UnrolledGTV`, or any model with layers
            :class:`~pyg_unroll.nn.GLRConv` and
            :class:`~pyg_unroll.nn.GTVConv` that is called as
            :obj:`model(data)`; or one such layer.
        data (Data): What to run it on; for a layer with :obj:`x`,
            :obj:`edge_index` and, if any, :obj:`edge_weight`, :obj:`mask`
            and :obj:`confidence`.

    Returns:
        The figures, see :class:`Trace`; :obj:`print` shows a table.

    Raises:
        ValueError: If the model has no solver layer, or data is of several
            images or of more than one tile.
    """
    return Trace([trace_call(call) for call in record_calls(model, data)])
