"""The priors of restorers, and their solver layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pyg_unroll.checks import check_positive
from pyg_unroll.nn import GLRConv, GTVConv
from pyg_unroll.nn.smoothness_conv import SmoothnessConv

Prior: TypeAlias = Literal['glr', 'gtv']

# Default sizes of a layer: steps of GLR, iterations of GTV and steps of each.
STEPS: dict[Prior, tuple[int, ...]] = {'glr': (5,), 'gtv': (3, 2)}

# Default floors of edge weights. Where all weights of a node vanish, the dual
# variable of the block before would be divided by almost nothing.
FLOORS: dict[Prior, float] = {'glr': 0.0, 'gtv': 0.03}


def check_steps(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a list of positive integers."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(
            f"'{name}' must be a sequence of positive integers, such as (5,) "
            f'(got {value!r})'
        )
    for number in value:
        check_positive(name, number)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a block with the sizes and the floor that its
    prior has by default.
    """
    prior = config['prior']
    steps, floor = config['steps'], config['weight_floor']
    return {
        **config,
        'steps': list(STEPS[prior] if steps is None else steps),
        'weight_floor': FLOORS[prior] if floor is None else floor,
    }


def make_conv(
    prior: Prior, steps: Sequence[int], heads: int, **options: Any
) -> SmoothnessConv:
    """Makes the layer of a prior, with steps `(num_steps,)` of
    :class:`~pyg_unroll.nn.GLRConv` or `(num_iters, num_steps)` of
    :class:`~pyg_unroll.nn.GTVConv`.
    """
    if len(steps) != len(STEPS[prior]):
        raise ValueError(
            f"'steps' must be {len(STEPS[prior])} number(s) for prior="
            f'{prior!r}, such as {STEPS[prior]} (got {tuple(steps)})'
        )
    conv: Any = GLRConv if prior == 'glr' else GTVConv
    made: SmoothnessConv = conv(
        *steps, heads=heads, validate_args=False, **options
    )
    return made
