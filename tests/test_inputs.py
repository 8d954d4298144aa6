"""The reader of signals, masks and confidence: what it takes and refuses."""

import pytest
import torch

from pyg_unroll.inputs import (
    BatchLayout,
    Observations,
    check_start,
    read_mask,
    read_signal,
)

NAN, INF = float('nan'), float('inf')
N, F = 5, 3
X = torch.arange(float(N * F)).view(N, F)
MASK = (torch.arange(N * F) % 2 == 0).view(N, F)


def with_value(value, known):
    """The signal with a value at a known or an unknown entry."""
    x = X.clone()
    x[0, 2 if known else 1] = value
    return x


def without_column():
    mask = MASK.clone()
    mask[:, 1] = False
    return mask


@pytest.mark.parametrize('shape', [(N,), (N, 1), (N, F)])
def test_masks(shape):
    mask = MASK.view(N, F)[:, 0] if len(shape) == 1 else MASK[:, : shape[1]]
    signal = read_signal(X, mask)
    assert signal.x is X and signal.known.shape == (
        N,
        shape[-1] if shape[1:] else 1,
    )
    wide = mask.view(N, -1).expand(N, F)
    assert torch.equal(signal.observed, wide)
    filled = signal.fill(-1.0)
    assert torch.equal(filled[wide], X[wide])
    assert bool((filled[~wide] == -1).all())
    means = X.mean(0)
    assert torch.equal(signal.fill(means)[~wide], means.expand(N, F)[~wide])


@pytest.mark.parametrize('shape', [(N,), (N, 1), (N, F), (2, N, F)])
def test_masks_of_samples(shape):
    x = torch.stack([X, X])
    mask = torch.ones(shape).bool()
    signal = read_signal(x, mask, samples=True)
    assert signal.observed.shape == x.shape and bool(signal.observed.all())
    assert torch.equal(read_mask('mask', mask, x), signal.known)
    confidence = read_signal(x, None, mask.double(), samples=True).confidence
    assert confidence.shape == signal.known.shape
    assert confidence.dtype == x.dtype


def test_without_mask():
    signal = read_signal(X)
    assert signal.known is None and signal.confidence is None
    assert torch.equal(signal.observed, torch.ones(N, F).bool())
    assert signal.fill(0.0) is X


def test_unknown_entries_may_hold_anything():
    for value in (NAN, INF):
        x = with_value(value, known=False)
        assert read_signal(x, MASK).x is x
        with pytest.raises(ValueError, match='start of the iteration') as error:
            check_start(x)
        assert f'{value} at node 0, feature 1' in str(error.value)
        assert "'torch.where(mask, x, 0)'" in str(error.value)
    check_start(X)


@pytest.mark.parametrize(
    ('x', 'mask', 'text'),
    [
        (X.tolist(), None, r"'x' must be a tensor of shape .*got 'list'"),
        (X[0], None, r"'x' must have shape.*got \[3\].*'\.unsqueeze\(-1\)'"),
        (X[None, None], None, r"'x' must have shape.*got \[1, 1, 5, 3\]"),
        (X.long(), None, r"'x' must be floating point \(got torch.int64"),
        (X, [True] * N, "'mask' must be a tensor of shape .*got 'list'"),
        (X, MASK.float(), r"'mask' must be boolean.*got torch.float32"),
        (X, MASK[1:], r"'mask' must have shape \[5\] or \[5, 3\] \(got \[4, 3"),
        (X, MASK[:, :2], r"'mask' must have shape .*got \[5, 2\]"),
        (X, MASK & False, r"'x' has no known entry in feature 0: there is"),
        (X, MASK[:, 0] & False, "'x' has no known entry: there is nothing"),
        (X, without_column(), "'x' has no known entry in feature 1"),
        (
            with_value(NAN, True),
            MASK,
            r"'x' must be finite where it is known \(got nan at node 0, "
            r"feature 2\); mark it as False in 'mask'",
        ),
        (with_value(-INF, True), MASK, 'got -inf at node 0, feature 2'),
        (with_value(NAN, False), None, 'got nan at node 0, feature 1'),
    ],
)
def test_signals_that_are_refused(x, mask, text):
    with pytest.raises(ValueError, match=text):
        read_signal(x, mask)
    # Under the name that the caller knows; the mask's follows.
    named = text.replace("'x'", "'data.x'").replace("'mask'", "'data.mask'")
    with pytest.raises(ValueError, match=named):
        read_signal(x, mask, name='data.x')


@pytest.mark.parametrize(
    ('confidence', 'text'),
    [
        ([1.0] * N, "'confidence' must be a tensor of shape .*got 'list'"),
        (torch.ones(N - 1), r"'confidence' must have shape \[5\].*got \[4\]"),
        (
            -torch.ones(N),
            r"'confidence' must be finite and non-neg.*-1.0 to -1",
        ),
        (torch.full((N,), NAN), "'confidence' must be finite and non-negative"),
        (torch.zeros(N, F), "'confidence' is zero everywhere"),
        ((~MASK[:, 0]).float(), 'zero .*wherever it is known'),
    ],
)
def test_confidences_that_are_refused(confidence, text):
    with pytest.raises(ValueError, match=text):
        read_signal(X, MASK[:, 0], confidence)


def test_samples_that_are_refused():
    x, mask = torch.stack([X, X]), torch.stack([MASK, MASK])
    with pytest.raises(ValueError, match=r"'x' must have shape.*got \[5, 3\]"):
        read_signal(X, samples=True)
    with pytest.raises(ValueError, match=r'\[5\], \[5, 3\] or \[2, 5, 3\] \('):
        read_signal(x, mask[:1], samples=True)
    mask[1, :, 1] = False
    with pytest.raises(ValueError, match='in feature 1 of sample 1'):
        read_signal(x, mask, samples=True)
    x[1, 3, 1] = NAN
    with pytest.raises(ValueError, match='nan at sample 1, node 3, feature 1'):
        read_signal(x, samples=True)


def test_checks_that_are_left_out():
    unknown = without_column()
    assert read_signal(X, unknown, allow_unknown=True).known is not None
    bad = with_value(NAN, True)
    with pytest.raises(ValueError, match='finite'):
        read_signal(bad, unknown, allow_unknown=True)
    signal = read_signal(bad, unknown, -X, validate_args=False)
    assert torch.equal(signal.confidence, -X)
    # Shapes and types are looked at always.
    with pytest.raises(ValueError, match="'mask' must be boolean"):
        read_signal(bad, X, validate_args=False)


def test_observations():
    signal = read_signal(X, MASK)
    hard = Observations.of(signal, 'hard')
    assert hard.x.shape == (N, F, 1) and hard.confidence is None
    assert torch.equal(hard.free, ~MASK.unsqueeze(-1))
    soft = Observations.of(signal, 'soft')
    assert soft.free is None
    assert torch.equal(soft.confidence, MASK.unsqueeze(-1).float())
    both = Observations.of(read_signal(X, MASK, X + 1), 'soft')
    assert torch.equal(both.confidence, ((X + 1) * MASK).unsqueeze(-1))
    # Without a mask there is no difference.
    for fidelity in ('hard', 'soft'):
        all_known = Observations.of(read_signal(X), fidelity)
        assert all_known.free is None
        assert bool((all_known.confidence == 1).all())
    with pytest.raises(ValueError, match=r"'confidence' was given.*'soft'"):
        Observations.of(read_signal(X, MASK, X + 1), 'hard')


@pytest.mark.parametrize('own', [False, True])
def test_layouts_of_samples(own):
    x = torch.rand(2, N, F)
    layout = BatchLayout(2, 3, own, F)
    folded = layout.fold(x)
    # Samples are further features of shared graphs, and heads of their own.
    assert folded.shape == ((N, F, 6) if own else (N, 2 * F, 1))
    assert torch.equal(layout.unfold(layout.first_heads(folded)), x)
    heads = torch.rand(2, N, F, 3)
    assert torch.equal(layout.unfold_heads(layout.fold_heads(heads)), heads)
    parameter = torch.rand(4, 3)
    tiled = layout.tile(parameter)
    assert tiled.shape == (4, 6 if own else 3)
    assert torch.equal(tiled[:, -3:], parameter)
    # What is the same for all samples broadcasts.
    shared = layout.fold(x[0])
    assert torch.equal(
        shared.expand_as(folded), layout.fold(x[:1].expand(2, -1, -1))
    )
