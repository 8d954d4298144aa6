import multiprocessing
from collections import Counter

import pytest
import torch

from pyg_unroll import GridGraph, image_to_data
from tests.backends import needs_numba

launch = pytest.importorskip('pyg_unroll.ops.cpu.launch')


WIDTH = 2**20  # of rows so long that each is a chunk of its own


@pytest.mark.parametrize('count', [0, 1, 2, 3, 40])
def test_each_row_once(count):
    rows = Counter()

    def kernel(first, last, scratch):
        rows.update(range(first, last))

    launch.launch(kernel, count, WIDTH)
    assert rows == Counter(range(count))


@pytest.mark.parametrize('bad', [0, 1, 2])
def test_errors_are_raised(bad):
    def kernel(first, last, scratch):
        if first == bad:
            raise ZeroDivisionError(first)

    with pytest.raises(ZeroDivisionError, match=str(bad)):
        launch.launch(kernel, 3, WIDTH)
    launch.launch(lambda *_: None, 3, WIDTH)


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
