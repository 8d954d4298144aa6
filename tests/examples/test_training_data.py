import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from PIL import Image

from pyg_unroll import cfa_mask


@pytest.fixture(scope='module')
def photo():
    pixels = skimage.data.astronaut()[:240, 100:340]
    return torch.from_numpy(pixels.copy()).movedim(2, 0)


@pytest.fixture
def chance():
    return np.random.default_rng(0)


def test_shrink(photo):
    from augmentations import shrink

    image = photo[:, :231, :231] / 255
    small = shrink(image, 96)
    for channel, mine in zip(image, small, strict=True):
        # Pillow's filter is as wide as the pixels of its output.
        page = Image.fromarray(channel.numpy(), 'F')
        other = np.asarray(page.resize((96, 96), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(mine, other.clip(0, 1), atol=1e-5)
    assert torch.equal(shrink(image, 231), image)
    stripes = torch.tensor([0.0, 1.0]).repeat(48).expand(3, 96, -1)
    assert (shrink(stripes, 32) - 0.5).abs().max() < 0.1


def test_subsample_chroma(photo):
    from augmentations import subsample_chroma

    image = 0.25 + photo / 510
    out = subsample_chroma(image)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(
        torch.tensordot(luma, out, 1), torch.tensordot(luma, image, 1)
    )
    grey = image.mean(0, keepdim=True).expand_as(image)
    torch.testing.assert_close(subsample_chroma(grey), grey)
    # The finest colours are lost.
    stripes = torch.tensor([0.3, 0.7]).repeat(16).expand(32, -1)
    colours = torch.stack([stripes, torch.full_like(stripes, 0.5), 1 - stripes])
    red, _, blue = subsample_chroma(colours)
    assert (red - blue).abs().max() < 1e-6


def test_white_balance(photo):
    from augmentations import white_balance

    out = white_balance(photo / 255, torch.tensor([0.25, 0.5, 0.4]))
    expected = np.array([0.5, 1, 0.8])[:, None, None] * photo.numpy() / 255
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_orient(photo):
    from augmentations import orient

    image = photo[:, :20, :30]
    seen = set()
    for rows, cols, transpose in np.ndindex(2, 2, 2):
        expected = image.numpy()
        expected = np.flip(expected, 1) if rows else expected
        expected = np.flip(expected, 2) if cols else expected
        expected = expected.transpose(0, 2, 1) if transpose else expected
        out = orient(image, rows, cols, transpose).numpy()
        np.testing.assert_array_equal(out, expected)
        seen.add(out.tobytes())
    assert len(seen) == 8


def test_light(photo):
    from augmentations import to_display, to_light

    image = (photo / 255).double()
    light = to_light(image)
    np.testing.assert_allclose(light, image.numpy() ** 2.2)
    is_shadow = light < 3e-3
    back = to_display(light)
    torch.testing.assert_close(back[~is_shadow], image[~is_shadow])
    line = torch.linspace(-0.1, 1.1, 10_000, dtype=torch.double)
    assert (to_display(line).diff() > 0).all()
    assert to_display(line).diff().max() < 3e-3
    values = torch.tensor([-0.1, 0, 1e-3, 0.1, 1.0], dtype=torch.double)
    assert torch.autograd.gradcheck(to_display, values.requires_grad_())


def test_detail(photo):
    from augmentations import detail

    ramp = torch.linspace(0, 1, 32).expand(3, 32, -1)
    assert detail(ramp) < 1e-6
    blurred = scipy.ndimage.gaussian_filter(photo / 255, (0, 2, 2))
    assert detail(torch.from_numpy(blurred)) < 0.3 * detail(photo / 255)


def frequencies(image):
    """Frequencies (of each axis, cycles a pixel) and their energy."""
    grey = image.mean(0) - image.mean()
    window = np.hanning(len(grey))
    energy = np.abs(np.fft.fft2(grey * np.outer(window, window))) ** 2
    along = np.abs(np.fft.fftfreq(len(grey)))
    return np.hypot(*np.meshgrid(along, along)), energy / energy.sum()


def test_patterns(chance):
    import patterns

    for make in patterns.PATTERNS:
        for _ in range(5):
            image = make(64, chance)
            assert image.shape == (3, 64, 64)
            assert -1e-9 <= image.min() <= image.max() <= 1 + 1e-9
        first, again = (make(32, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
    assert patterns.pattern(64, chance).dtype == torch.float32

    for _ in range(10):
        # One frequency, of a wave of 2 to 6 pixels.
        size, energy = frequencies(patterns.grating(64, chance))
        peak = size.flat[energy.argmax()]
        assert 1 / 6 - 0.02 < peak < 0.5 + 0.02
        assert energy[np.abs(size - peak) < 0.05].sum() > 0.95
        # All frequencies up to the limit, none far beyond it.
        size, energy = frequencies(patterns.zone_plate(64, chance))
        assert energy[size > 0.55].sum() < 0.05

    for _ in range(5):
        image = patterns.edges(64, chance)
        saturated = np.minimum(image, 1 - image) <= 0.2
        assert saturated.mean() > 0.9
        assert image.std() > 0.1


def test_wires_have_their_pitch(monkeypatch):
    import patterns

    class Fixed:
        """Chance that is none: upright wires 4 pixels apart, white on black."""

        answers = (4.0, 0.25, 0.0, np.zeros(2))

        def __init__(self):
            self.left = list(self.answers)

        def uniform(self, *_, size=None):
            if self.left:
                return self.left.pop(0)
            return np.array([[0.0] * 3, [1.0] * 3])

        def integers(self, *_):
            return 0

    image = patterns.mesh(32, Fixed())
    row = np.arange(32) % 4 == 0
    expected = row[:, None] | row
    np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape))


def test_masks(chance):
    from patterns import letters, scratches
    from training_tasks import holes, make_mask, regular, scattered

    assert torch.equal(make_mask('bayer', 6, 8, chance), cfa_mask('RGGB', 6, 8))
    grid = make_mask('grid', 6, 8, chance).numpy()
    assert grid.shape == (3, 6, 8)
    np.testing.assert_array_equal(np.argwhere(grid[0]) % 2, 0)
    assert grid.sum() == 3 * 12
    assert scattered(40, 50, 0.3, chance).sum() == 600
    assert regular(9, 9, 4, (0, 3)).sum() == 3 * 2
    for _ in range(10):
        hidden = scratches(64, chance) > 0.3
        assert 0 < hidden.mean() < 0.6
        # No hole is as wide as nine pixels, but where scratches cross.
        wide = scipy.ndimage.binary_erosion(hidden, np.ones((9, 9)))
        assert wide.mean() < 0.02
        hidden = letters(64, chance) > 0.3
        assert 0.03 < hidden.mean() < 0.7
    shares = [holes(64, 48, chance).mean() for _ in range(60)]
    assert min(shares) < 0.15 and max(shares) > 0.75
    assert any(abs(share - 1 / 16) < 1e-9 for share in shares)
    assert holes(64, 48, chance).shape == (64, 48)


def test_task(photo, chance):
    from training_tasks import Sample, Task

    truth = photo / 255
    plain = Task('bayer').hide(truth, chance)
    assert torch.equal(plain.image, torch.where(plain.mask, truth, 0))
    assert plain.mask.float().sum(0).eq(1).all()
    assert plain.noise_std == 0
    xtrans = Task('xtrans').hide(truth, chance).mask
    assert torch.equal(xtrans, cfa_mask('X-Trans', *truth.shape[1:]))

    levels = []
    for _ in range(20):
        noisy = Task('bayer', 50 / 255).hide(truth, chance)
        error = (noisy.image - truth)[noisy.mask]
        torch.testing.assert_close(
            error.std(), noisy.noise_std, rtol=0.02, atol=1e-6
        )
        levels.append(float(noisy.noise_std))
    assert min(levels) < 0.03 and 0.1 < max(levels) < 50 / 255

    linear = Task('random').hide(truth, chance, is_light=True, number=7)
    torch.testing.assert_close(linear.image, truth**2.2 * linear.mask)
    assert linear.number == 7
    # Scored as it is displayed.
    batch = Sample(*(part[None] for part in linear))
    shown = batch.to_truth(truth[None] ** 2.2)
    bright = truth > 0.1
    torch.testing.assert_close(shown[0][bright], truth[bright])

    score = Task('random', 0.2).hide_to_score(truth, chance)
    assert abs(score.mask.float().mean() - 0.3) < 1e-3
    assert abs(score.noise_std - 0.08) < 1e-6
    with pytest.raises(ValueError, match="'mask' must be one of"):
        Task('stripes')


def test_patches(photo):
    from training_patches import Patches, Variety
    from training_tasks import Task

    def patches(images=None, task='random', **variety):
        images = [photo, photo[:, :70, :50]] if images is None else images
        return Patches(images, Task(task), 32, Variety(**variety), seed=7)

    mine = patches()
    for k in range(12):
        first, again = mine[k, 5], mine[k, 5]
        assert first.truth.shape == (3, 32, 32)
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)
        # Elsewhere it shows the same, turned, and hides something else.
        moved = mine[k, 6 + k]
        for one, other in zip(first.truth, moved.truth, strict=True):
            assert torch.equal(
                one.flatten().sort()[0], other.flatten().sort()[0]
            )
        assert not torch.equal(first.mask, moved.mask)
    assert not torch.equal(mine[1, 0].truth, mine[2, 0].truth)
    other = Patches([photo], Task('random'), 32, Variety(), seed=8)
    assert not torch.equal(mine[1, 0].truth, other[1, 0].truth)

    # Each kind alone.
    cut = patches(subsampled=0, generated=0, balanced=0, linear=0)
    windows = photo[1].unfold(0, 32, 1).unfold(1, 32, 1)
    windows = {bytes(w.numpy().tobytes()) for w in windows.flatten(0, 1)}
    sample = cut[3, 0]
    green = (sample.truth[1] * 255).round().byte().numpy()
    turned = [np.rot90(g, k) for g in (green, green.T) for k in range(4)]
    assert windows & {patch.tobytes() for patch in turned}
    assert not sample.is_light
    light = patches(linear=1)
    assert all(light[k, 0].is_light for k in range(5))
    only = patches(generated=1)
    assert only[3, 3].number == -1 and cut[3, 4].number == 3
    assert not torch.equal(only[0, 0].truth, cut[0, 0].truth)

    # A large photograph is shrunk, so that stripes of a pixel become grey.
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(550)
    large = patches([stripes.expand(3, 300, -1)], 'bayer', generated=0)
    contrast = [float(large[k, 0].truth.std()) for k in range(40)]
    assert min(contrast) < 0.1
    deep = (photo.int() * 257).to(torch.uint16)
    same = dict(generated=0, subsampled=0)
    torch.testing.assert_close(
        patches([deep], **same)[0, 0].truth,
        patches([photo], **same)[0, 0].truth,
    )


def test_hard_patches_have_more_detail(photo):
    from augmentations import detail
    from training_patches import Patches, Variety
    from training_tasks import Task

    def mean(hard):
        variety = Variety(hard, generated=0, subsampled=0, balanced=0)
        patches = Patches([photo], Task('bayer'), 32, variety)
        return np.mean([detail(patches[k, k].truth) for k in range(60)])

    assert mean(8) > 1.2 * mean(1)


def test_rounds_revisit_the_hardest():
    from training_patches import Rounds

    rounds = Rounds(count=8, steps=3, revisited=0.25, pool=5, seed=1)
    assert len(rounds) == 3
    losses, seen = {}, []
    for _ in range(6):
        batches = list(rounds)
        assert len(batches) == 3
        places = [place for batch in batches for _, place in batch]
        assert places == list(range(24 * (len(seen) // 3), places[0] + 24))
        if losses:
            hardest = sorted(losses, key=losses.get)[-5:]
            again = [n for batch in batches for n, place in batch if n != place]
            assert len(again) == 3 * 2
            assert set(again) <= set(hardest)
        numbers = [number for batch in batches for number, _ in batch]
        # A loss of its own; it shrinks with each visit.
        new = [losses.get(n, 2 + np.sin(7 * n)) * 0.9 for n in numbers]
        rounds.record(3, numbers, new)
        losses = {n: losses[n] for n in losses if n in rounds.hardest}
        losses |= dict(zip(numbers, new, strict=True))
        seen += batches
    assert len(rounds.hardest) == 5

    rounds.record(0, [-1], [99.0])
    assert -1 not in rounds.losses | rounds.hardest

    # From a checkpoint within a round, and in two processes.
    begin = [rounds.batch(step) for step in (18, 19, 20)]
    rounds.record(1, [place for _, place in begin[0]], [0.0] * 8)
    other = Rounds(count=8, steps=3, revisited=0.25, pool=5, seed=1)
    other.load_state_dict(rounds.state_dict())
    assert list(other) == begin[1:]
    parts = []
    for rank in range(2):
        half = Rounds(8, 3, 0.25, 5, 1, rank, 2)
        half.load_state_dict(rounds.state_dict())
        parts += next(iter(half))
    assert sorted(parts) == sorted(begin[1])
    with pytest.raises(ValueError, match='a multiple of 3 processes'):
        Rounds(8, 3, world=3)


def test_read_images(tmp_path, photo):
    from training_patches import read_images

    pixels = photo.movedim(0, 2).numpy()
    for k in range(4):
        Image.fromarray(pixels[k : k + 40, :50]).save(tmp_path / f'{k}.png')
    Image.fromarray(pixels[:40, :50, 0]).save(tmp_path / 'grey.png')
    (tmp_path / 'notes.txt').write_text('no image')
    images = read_images(tmp_path)
    assert [image.shape for image in images] == [(3, 40, 50)] * 5
    assert all(image.dtype == torch.uint8 for image in images)
    np.testing.assert_array_equal(images[1].movedim(0, 2), pixels[1:41, :50])
    few = read_images(tmp_path, 2)
    assert torch.equal(few[1], images[2])
    with pytest.raises(ValueError, match='is not a folder'):
        read_images(tmp_path / 'none')
