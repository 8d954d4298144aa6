"""More than 2^31 numbers, without the memory for them: files with holes."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from pyg_unroll import Topology
from tests.backends import needs_numba

HEADS, FEATURES = 4, 512
WIDTH = HEADS * FEATURES
NODES = 2**31 // WIDTH + 3  # offsets of the last rows exceed 32 bits
EDGES = 2**31 // HEADS + 3


@pytest.fixture
def file_of(tmp_path):
    """Makes an array of zeros that takes space only where it is written."""

    def make(size):
        name = tmp_path / f'{len(list(tmp_path.iterdir()))}'
        try:
            with name.open('wb') as file:
                file.truncate(4 * size)
            return np.memmap(name, np.float32, 'r+')
        except OSError as error:
            pytest.skip(f'no file of {4 * size} bytes: {error}')

    return make


@needs_numba
def test_offsets_of_cpu_kernels(file_of):
    from pyg_unroll.ops.cpu.launch import NO_GRID, SCRATCH
    from pyg_unroll.ops.cpu.operators import laplacian_kernel, to_edges_kernel
    from pyg_unroll.ops.cpu.simd import Lanes

    # The last node has two neighbours; its edges are the last two.
    last, near, edges = NODES - 1, [5, NODES - 2], [EDGES - 2, EDGES - 1]
    rowptr = np.zeros(NODES + 1, np.int32)
    rowptr[-1] = 2
    index = rowptr, np.array(near, np.int32), np.array(edges, np.int32)
    graph = *index, *NO_GRID
    x, out = file_of(NODES * WIDTH), file_of(NODES * WIDTH)
    w = file_of(EDGES * HEADS)
    rng = np.random.default_rng(0)
    rows = x.reshape(NODES, WIDTH)
    weights = w.reshape(EDGES, HEADS)
    for row in (last, *near):
        rows[row] = rng.random(WIDTH)
    weights[edges] = rng.random((2, HEADS))
    lanes = Lanes(3, HEADS)
    first = WIDTH - lanes.features * HEADS  # the last block of features
    place, scratch = (WIDTH, first, HEADS, 0), np.empty(SCRATCH, np.int64)
    arguments = (last, NODES, scratch, graph, place, lanes)
    laplacian_kernel(*arguments, w, x, x[:0], out)
    weight = np.tile(weights[edges], lanes.features)
    block = rows[[*near, last], first:]
    expected = (weight * (block[2] - block[:2])).sum(0)
    np.testing.assert_allclose(out[-len(expected) :], expected, rtol=1e-5)

    # The edges' own signals: as wide as the node's here.
    both = np.array([NODES - 2]), np.array([last])
    place, lanes = (WIDTH, first, WIDTH, first), Lanes(1, 3 * HEADS)
    difference = np.zeros(WIDTH, np.float32)
    to_edges_kernel(0, 1, scratch, both, place, lanes, -1, x, difference)
    np.testing.assert_array_equal(difference[first:], block[1] - block[2])


@pytest.mark.skipif(
    find_spec('triton') is None, reason='Triton is not installed'
)
@pytest.mark.parametrize('rows', [NODES, NODES // 2])
def test_offsets_of_triton_kernels(rows):
    import triton.language as tl

    from pyg_unroll.ops.cuda.tiles import Launch

    x = torch.empty(rows, FEATURES, HEADS, device='meta')
    launch = Launch(*x.shape, x)
    wide = x.numel() >= 2**31
    assert launch.tile.INDEX == (tl.int64 if wide else tl.int32)
    assert launch.programs * launch.tile.BLOCK.value >= rows


@pytest.mark.parametrize('num_nodes', [2**31 - 1, 2**31])
def test_numbers_of_nodes(num_nodes):
    with FakeTensorMode():
        src = torch.empty(7, dtype=torch.long)
        topology = Topology.from_pairs(src, src, num_nodes)
    expected = torch.int32 if num_nodes < 2**31 else torch.int64
    for value in topology.pack()[0][:5]:
        assert value.dtype == expected
    assert topology.rowptr.shape == (num_nodes + 1,)
