"""Large images in tiles: the result of the whole, in bounded memory."""

import math
import threading

import pytest
import torch

from pyg_unroll import Demosaic, GraphDemosaic, Inpaint, data_to_image, mosaic
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock, SelfEnsemble, Tiled
from pyg_unroll.imaging.restorer import Restorer
from tests.imaging.utils import BLOCKS, make, mosaics, observed


class Watcher(Restorer):
    """Changes nothing, and remembers the windows that it saw."""

    receptive_field = 2

    def __init__(self, receptive_field=2, phase=(0, 0)):
        super().__init__(margin=4, max_pixels=10**6)
        self.receptive_field = receptive_field
        self.offset = phase
        self.windows = []

    def phase(self, mask):
        return self.offset

    def noise_level(self, image, mask, noise_std):
        return None

    def prepare(self, image, mask, noise_std):
        return image, mask

    def run(self, image, mask):
        self.windows.append(mask)
        return image


class Blur(Watcher):
    """Takes means of 5 x 5 pixels."""

    def run(self, image, mask):
        super().run(image, mask)
        return torch.nn.functional.avg_pool2d(image, 5, 1, 2)


class Threads(Blur):
    """Two tiles at once."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.barrier = threading.Barrier(2)

    def run(self, image, mask):
        self.barrier.wait(60)
        self.seen.append(
            (
                threading.get_ident(),
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.get_num_threads(),
            )
        )
        return super().run(image, mask)


@pytest.mark.parametrize('phase', [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize('max_pixels', [1, 1200, 3000])
def test_tiles_equal_the_whole(phase, max_pixels):
    image = torch.rand(2, 3, 71, 94)
    position = torch.arange(71)[:, None] * 1000 + torch.arange(94)
    position = position.expand(2, 1, -1, -1)
    whole, tiles = Blur(phase=phase), Blur(phase=phase)
    expected = Tiled(whole).restore(image, position)
    assert len(whole.windows) == 1
    out = Tiled(tiles, max_pixels).restore(image, position)
    assert len(tiles.windows) > 2
    torch.testing.assert_close(out, expected)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode='reflect')
    means = torch.nn.functional.avg_pool2d(padded, 5, 1)
    torch.testing.assert_close(out, means)
    for window in tiles.windows:
        height, width = window.shape[-2:]
        assert height % 2 == width % 2 == 0
        # Cells of 2 x 2 pixels stay together: windows begin in phase.
        row, col = divmod(int(window[0, 0, height // 2, width // 2]), 1000)
        assert (row - height // 2 - phase[0]) % 2 == 0
        assert (col - width // 2 - phase[1]) % 2 == 0


@pytest.mark.parametrize('max_pixels', [54_000, 330_000])
@pytest.mark.parametrize('size', [(548, 804), (2018, 3018), (300, 9000)])
def test_tiles_waste_little(size, max_pixels):
    restorer = Watcher(receptive_field=40)
    image = torch.randint(99, (1, 1, *size), dtype=torch.uint8)
    out = Tiled(restorer, max_pixels).restore(image, image)
    assert torch.equal(out, image)
    largest = 3 * max_pixels // 4
    shapes = [window.shape[-2:] for window in restorer.windows]
    areas = [shape.numel() for shape in shapes]
    assert max(areas) <= largest
    assert len(set(shapes)) == 1
    # At least as good as square tiles of that many pixels.
    inner = (math.isqrt(largest) - 2 * restorer.receptive_field) ** 2
    whole = math.prod(s + 2 * restorer.margin + 1 for s in size)
    assert sum(areas) <= 1.1 * whole * largest / inner


@pytest.fixture
def four_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(threads)


@pytest.mark.parametrize('size', [(400, 90), (90, 401)])
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_threads_take_a_tile_each(four_threads, mode, size):
    image = torch.rand(2, 3, *size)
    expected = Blur().restore(image, image)
    restorer = Threads()
    with mode():
        out = restorer.restore(image, image)
    torch.testing.assert_close(out, expected)
    assert len(restorer.windows) == len(restorer.seen) == 2
    # Tiles wait for each other to begin: they run at once, and share threads.
    assert len({thread for thread, *_ in restorer.seen}) == 2
    modes = False, mode is torch.inference_mode, 2
    assert all(tuple(rest) == modes for _, *rest in restorer.seen)


def test_threads_hand_on_errors(four_threads):
    restorer = Threads()
    restorer.barrier.abort()
    with torch.no_grad(), pytest.raises(threading.BrokenBarrierError):
        restorer.restore(*[torch.rand(1, 3, 400, 90)] * 2)


def test_derivatives_are_recorded_in_one_thread(four_threads):
    image = torch.rand(1, 3, 400, 90, requires_grad=True)
    blur = Blur()
    blur.restore(image, image.detach()).sum().backward()
    assert len(blur.windows) == 1
    assert image.grad.sum() == pytest.approx(image.numel(), rel=1e-4)


def test_autocast_holds_in_tiles(four_threads):
    blur, images = Blur(), [torch.rand(1, 3, 400, 90)] * 2
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        blur.restore(*images)
    assert len(blur.windows) == 1


def test_small_images_of_a_batch_share_a_tile():
    restorer, image = Watcher(), torch.rand(5, 1, 8, 10)
    Tiled(restorer, 2 * 16 * 18).restore(image, image)
    assert len(restorer.windows) == 3
    restorer.windows.clear()
    Tiled(restorer).restore(image, image)
    assert len(restorer.windows) == 1


@pytest.mark.parametrize(
    ('kind', 'block', 'prior'),
    [(Demosaic, *case) for case in BLOCKS]
    + [(Inpaint, GuidedBlock, prior) for prior in ('glr', 'gtv')],
)
def test_restorers(kind, block, prior):
    steps = (4,) if prior == 'glr' else (2, 2)
    model = make(
        kind,
        block,
        dtype=torch.float64,
        prior=prior,
        num_layers=2,
        num_blocks=1,
        steps=steps,
    )
    # Tiles are at least four times as large as their halo.
    height = 4 * model.receptive_field + 20
    image, mask = observed(kind, torch.rand(1, 3, height, 30).double())
    with torch.no_grad():
        whole = model.restore(image, mask)
        tiled = Tiled(model, 1).restore(image, mask)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)
    assert torch.equal(
        tiled[mask.expand_as(image)], image[mask.expand_as(image)]
    )


@pytest.mark.parametrize('prior', ['glr', 'gtv'])
@pytest.mark.parametrize('pattern', ['GRBG', 'X-Trans'])
def test_graph_demosaic(prior, pattern):
    image, mask = mosaics(torch.rand(1, 3, 290, 12), pattern)
    model = GraphDemosaic(prior)
    with torch.no_grad():
        whole = model.restore(image, mask)
        strips = Tiled(model, 12 * 40).restore(image, mask)
    torch.testing.assert_close(strips, whole, atol=1e-5, rtol=0)


def test_data_and_other_wrappers():
    data = mosaic(torch.rand(3, 12, 14), 'BGGR')
    model = make(block=DifferenceBlock, num_blocks=1)
    with torch.no_grad():
        expected = model(data)
        tiled = Tiled(model, 12 * 14)
        torch.testing.assert_close(tiled(data), expected)
        # A self-ensemble around tiles.
        out = SelfEnsemble(tiled, 2)(data)
        torch.testing.assert_close(out, SelfEnsemble(model, 2)(data))
    assert data_to_image(data, out).shape == (3, 12, 14)
    assert list(tiled.parameters()) == list(model.parameters())


def test_refuses_what_cannot_be_cut():
    with pytest.raises(ValueError, match="'restorer' must not be a 'SelfEns"):
        Tiled(SelfEnsemble(GraphDemosaic()))
