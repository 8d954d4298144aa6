"""The priors of restorers, and their solver layers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from pyg_unroll import checks
from pyg_unroll.nn import GLRConv, GTVConv
from pyg_unroll.nn.smoothness_conv import SmoothnessConv

Prior: TypeAlias = Literal['glr', 'gtv']

# The layer of each prior, and the defaults of its size (steps of GLR,
# iterations of GTV and steps of each) and of the floor of edge weights.
_PRIORS: dict[Prior, tuple[Any, tuple[int, ...], float]] = {
    'glr': (GLRConv, (5,), 0.0),
    # Where all weights of a node vanish, the dual variable of the block before
    # would be divided by almost nothing.
    'gtv': (GTVConv, (3, 2), 0.03),
}


class BlockOptions(TypedDict, total=False):
    """Arguments that blocks share, see
    :class:`~pyg_unroll.imaging.GuidedBlock`.
    """

    num_layers: int
    prior: Prior
    steps: Sequence[int] | None
    weight_floor: float | None
    cell: int


def block_config(
    sizes: Mapping[str, int],
    num_layers: int = 6,
    prior: Prior = 'glr',
    steps: Sequence[int] | None = None,
    weight_floor: float | None = None,
    cell: int = 2,
) -> dict[str, Any]:
    """Checks the arguments of a block, and gives those that follow from its
    prior their defaults.
    """
    sizes = {**sizes, 'num_layers': num_layers, 'cell': cell}
    for name, value in sizes.items():
        checks.check_positive(name, value)
    checks.check_choice('prior', prior, tuple(_PRIORS))
    _, size, floor = _PRIORS[prior]
    steps = size if steps is None else steps
    if not (
        isinstance(steps, Sequence)
        and len(steps) == len(size)
        and all(checks.is_integer(number) and number > 0 for number in steps)
    ):
        raise ValueError(
            f"'steps' must be a sequence of {len(size)} positive integer(s) "
            f'for prior={prior!r}, such as {size} (got {steps!r})'
        )
    floor = floor if weight_floor is None else weight_floor
    checks.check_non_negative('weight_floor', floor)
    layers = {'prior': prior, 'steps': list(steps), 'weight_floor': floor}
    return {**sizes, **layers}


def make_conv(
    prior: Prior, steps: Sequence[int], heads: int, **options: Any
) -> SmoothnessConv:
    """Makes the layer of a prior, with steps `(num_steps,)` of
    :class:`~pyg_unroll.nn.GLRConv` or `(num_iters, num_steps)` of
    :class:`~pyg_unroll.nn.GTVConv`.
    """
    conv: SmoothnessConv = _PRIORS[prior][0](
        *steps, heads=heads, validate_args=False, **options
    )
    return conv
