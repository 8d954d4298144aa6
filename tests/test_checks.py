"""Checks of single arguments: each message once, for all who use them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

from pyg_unroll import checks
from pyg_unroll.checks import (
    can_read_values,
    check_between,
    check_boolean,
    check_choice,
    check_count,
    check_data,
    check_finite,
    check_model_type,
    check_non_negative,
    check_not_half,
    check_one_graph,
    check_parameters,
    check_positive,
    check_shape,
    check_signal,
    check_tensor,
    one_of,
    optional,
)

NAN, INF = math.nan, math.inf
POSITIVE = r"'n' must be a positive integer \(got {}\)"
FINITE = r"'n' must be positive and finite \(got {}\)"


@pytest.mark.parametrize(
    ('check', 'good', 'bad', 'text'),
    [
        (check_positive, [1, 7, np.int64(3)], [0, -2, 2.0, True], POSITIVE),
        (check_positive, [], [None], POSITIVE),
        (
            check_count,
            [0, 1, np.int32(3)],
            [-1, 1.0, False, None],
            r"'n' must be a non-negative integer \(got {}\)",
        ),
        (
            check_non_negative,
            [0, 0.0, 1e-9, np.float32(2)],
            [-1e-9, NAN, INF, '1', None],
            r"'n' must be a finite, non-negative number \(got {}\)",
        ),
        (check_between, [1e-9, 3, np.float32(2)], [0, NAN, INF, '1'], FINITE),
        (check_between, [], [None, torch.ones(1)], FINITE),
        (
            partial(check_between, low=0.0, high=2.0),
            [0.1, 1.9],
            [0.0, 2.0, NAN],
            r"'n' must lie in \(0, 2\) \(got {}\)",
        ),
        (
            one_of('a', 2),
            ['a', 2],
            ['b', 3, None],
            r"'n' must be one of 'a', 2 \(got {}\)",
        ),
        (optional(check_positive), [None, 1], [0, True], POSITIVE),
    ],
)
def test_numbers(check, good, bad, text):
    for value in good:
        check('n', value)
    for value in bad:
        match = text.format('.*')
        with pytest.raises(ValueError, match=match) as caught:
            check('n', value)
        assert f'(got {value!r})' in str(caught.value)


def test_parameters():
    table = {'heads': check_positive, 'prior': one_of('glr', 'gtv')}

    def build(heads, prior='glr', other=None):
        check_parameters(table, locals())

    build(2)
    build(1, 'gtv', other=-1)
    with pytest.raises(ValueError, match=r"'heads' must be a positive.*got 0"):
        build(0)
    with pytest.raises(ValueError, match=r"'prior' must be one of.*'tv'"):
        build(1, 'tv')
    # In the order of the table, which must fit the arguments.
    with pytest.raises(ValueError, match="'heads'"):
        build(0, 'tv')
    with pytest.raises(KeyError):
        check_parameters(table, {'heads': 1})


@pytest.mark.parametrize(
    ('check', 'good', 'bad', 'text'),
    [
        (
            lambda name, value: check_tensor(name, value, '[N, F]'),
            torch.ones(1),
            [1.0],
            r"'v' must be a tensor of shape \[N, F\] \(got 'list'\); convert "
            r"it with 'torch.as_tensor'",
        ),
        (
            lambda name, value: check_shape(name, value, [2], [2, 'F'], [1]),
            torch.ones(2, 3),
            torch.ones(3),
            r"'v' must have shape \[2\], \[2, F\] or \[1\] \(got \[3\]\)",
        ),
        (
            lambda name, value: check_shape(name, value, [2, 'F'], note='; x'),
            torch.ones(2, 0),
            torch.ones(1, 2),
            r"'v' must have shape \[2, F\] \(got \[1, 2\]\); x",
        ),
        (
            lambda name, value: check_shape(name, value, []),
            torch.tensor(1.0),
            2.0,
            r"'v' must be a tensor of shape \[\] \(got 'float'\)",
        ),
        (
            check_boolean,
            torch.ones(1).bool(),
            torch.ones(1),
            r"'v' must be boolean.*got torch.float32\); .*'mask.bool\(\)'",
        ),
        (
            check_signal,
            torch.ones(1).half(),
            torch.ones(1).byte(),
            r"'v' must be floating point \(got torch.uint8\).*'v.float\(\) / 2",
        ),
        (
            check_signal,
            torch.ones(1),
            torch.ones(1).cfloat(),
            r"'v' must be floating point \(got torch.complex64\)",
        ),
        (
            check_finite,
            torch.ones(2, 2),
            torch.tensor([[1, 1], [1, -INF]]),
            r"'v' must be finite \(got -inf at index \[1, 1\]\).*'nan_to_num'",
        ),
        (
            lambda name, value: check_not_half(name, value.dtype),
            torch.ones(1).bfloat16(),
            torch.ones(1).half(),
            r"'v' must not be of type torch.float16.*torch.bfloat16",
        ),
    ],
)
def test_tensors(check, good, bad, text):
    check('v', good)
    with pytest.raises(ValueError, match=text):
        check('v', bad)


def test_data():
    check_data(Data())
    check_data(Batch.from_data_list([Data(x=torch.ones(1))]))
    for value in (HeteroData(), torch.ones(1), None):
        name = type(value).__name__
        with pytest.raises(ValueError, match=f"'data' must be.*got '{name}'"):
            check_data(value)


def test_model_type():
    model = torch.nn.Linear(1, 1)
    check_model_type(model, 'x', torch.ones(1))
    check_model_type(model, 'x', torch.ones(1).long())  # said elsewhere
    match = r"'x' must have the type of the model, torch.float32 \(got torch.f"
    with pytest.raises(ValueError, match=match):
        check_model_type(model, 'x', torch.ones(1).double())
    with torch.autocast('cpu', torch.bfloat16):  # which converts
        check_model_type(model, 'x', torch.ones(1).bfloat16())
    with pytest.raises(ValueError, match=r"'model' must not be.*float16"):
        check_model_type(model.half(), 'x', torch.ones(1).half())


def test_values_are_not_read_while_compiling():
    assert can_read_values()

    @torch.compile(fullgraph=True, backend='eager')
    def double(x):
        if can_read_values():
            check_finite('x', x)
        return 2 * x

    assert double(torch.tensor([NAN])).isnan().all()
    assert can_read_values()


def test_check_one_graph():
    data = Data(x=torch.ones(2, 1))
    check_one_graph(data)
    with pytest.raises(ValueError, match=r"'data' must be one graph \(got a b"):
        check_one_graph(Batch.from_data_list([data]))
    with pytest.raises(ValueError, match=r"'data' must be a homogeneous"):
        check_one_graph(data.x)


def test_all_are_tested():
    # Those of graphs are in `test_graph.py`.
    graph = {'check_edge_index', 'check_edge_weight', 'check_weights'}
    names = {name for name in dir(checks) if name.startswith('check_')}
    assert names - graph - {'check_indices', 'check_pairs'} <= set(globals())
    check_choice('n', 1, (1,))
