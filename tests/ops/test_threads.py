import multiprocessing
from collections import Counter

import pytest
import torch

from pyg_unroll import GridGraph, image_to_data
from tests.backends import needs_numba

launch = pytest.importorskip('pyg_unroll.ops.cpu.launch')


@pytest.mark.parametrize('count', [0, 1, 2, 3, 40])
def test_each_call_once(count):
    calls = Counter()
    launch.run(lambda k: calls.update([k]), count)
    assert calls == Counter(range(count))


@pytest.mark.parametrize('bad', [0, 1, 2])
def test_errors_are_raised(bad):
    def work(k):
        if k == bad:
            raise ZeroDivisionError(k)

    with pytest.raises(ZeroDivisionError, match=str(bad)):
        launch.run(work, 3)
    launch.run(lambda k: None, 3)


_OPERANDS = []


def _laplacian(_):
    from pyg_unroll.ops.cpu import operators

    return operators.laplacian(*_OPERANDS).numpy()


@needs_numba
@pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(),
    reason='no fork on this system',
)
def test_in_a_forked_process():
    # Threads of the pool are lost there, and made again.
    data = image_to_data(torch.rand(4, 300, 300))
    topology = GridGraph(8).topology(data)
    weight = torch.rand(topology.num_edges, 1)
    _OPERANDS[:] = topology, weight, data.x.unsqueeze(-1)
    number = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = _laplacian(None)
        with multiprocessing.get_context('fork').Pool(1) as pool:
            out = pool.map_async(_laplacian, [None]).get(timeout=120)[0]
    finally:
        torch.set_num_threads(number)
    assert (out == expected).all()
