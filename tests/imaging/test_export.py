"""Files of models for programs without the library."""

import shutil
from importlib.util import find_spec

import pytest
import torch
from torch_geometric.testing import onlyFullTest

from pyg_unroll import Demosaic
from pyg_unroll.imaging import DifferenceBlock, cfa_mask, white_level
from pyg_unroll.imaging.export import Program

PATTERNS = 'RGGB', 'BGGR', 'GRBG', 'GBRG'
SIZES = (20, 20), (22, 50), (34, 20)


def mosaic(pattern, size, unit=1.0):
    """An image of a known part, and its mask."""
    mask = cfa_mask(pattern, *size).unsqueeze(0)
    return torch.where(mask, unit * torch.rand(1, 3, *size), 0), mask


def given(model, x, mask, noise_std=0.05):
    """Inputs of a program, and the result that it is to have."""
    level = white_level(x, mask).view(1)
    inputs = [x.sum(1, keepdim=True), level]
    if model.fidelity == 'hard':
        return inputs, model.restore(x, mask)
    noise = noise_std * level
    return [*inputs, noise], model.restore(x, mask, noise)


def small(**options):
    block = DifferenceBlock(8, 2, num_layers=2, steps=(2,), **options)
    return Demosaic([block])


@pytest.mark.parametrize(
    ('name', 'prior'),
    [('bayer', 'glr'), ('bayer', 'gtv'), ('bayer-noisy', 'glr')],
)
@pytest.mark.parametrize('pattern', PATTERNS)
@torch.no_grad()
def test_program(name, prior, pattern):
    model = Demosaic.from_pretrained(name, prior=prior)
    program = Program(model, pattern)
    for size in SIZES:
        inputs, expected = given(model, *mosaic(pattern, size))
        torch.testing.assert_close(
            program(*inputs), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize('neighbors', [4, 12, 24])
@torch.no_grad()
def test_windows(neighbors):
    block = DifferenceBlock(8, 2, num_layers=2, steps=(2,))
    model = Demosaic([block], neighbors)
    inputs, expected = given(model, *mosaic('RGGB', (20, 22)))
    found = Program(model, 'RGGB')(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_any_unit():
    model = Demosaic.from_pretrained('bayer')
    for unit in (1e-3, 255.0, 65535.0):
        inputs, expected = given(model, *mosaic('RGGB', (20, 24), unit))
        torch.testing.assert_close(
            Program(model, 'RGGB')(*inputs), expected, rtol=0, atol=1e-5 * unit
        )


@torch.no_grad()
def test_tiles():
    model = Demosaic.from_pretrained('bayer')
    program, halo = Program(model, 'RGGB'), model.receptive_field
    (x, level), expected = given(model, *mosaic('RGGB', (20, 2 * halo + 40)))
    left = program(x[..., : 20 + halo], level)[..., :20]
    torch.testing.assert_close(left, expected[..., :20], rtol=0, atol=1e-5)
    right = program(x[..., 40:], level)[..., halo:]
    torch.testing.assert_close(
        right, expected[..., 40 + halo :], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_onnx(tmp_path):
    pytest.importorskip('onnx', reason='needs onnx')
    pytest.importorskip('onnxscript', reason='needs onnxscript')
    ort = pytest.importorskip('onnxruntime', reason='needs onnxruntime')
    model, path = small(), tmp_path / 'model.onnx'
    model.export(path, 'GBRG')
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [value.name for value in session.get_inputs()]
    assert names == ['mosaic', 'white_level']
    assert [v.name for v in session.get_outputs()] == ['restored']
    assert 'pyg_unroll' not in str(path.read_bytes())
    for size in SIZES:
        inputs, expected = given(model, *mosaic('GBRG', size, 255.0))
        feed = dict(zip(names, (v.numpy() for v in inputs), strict=True))
        found = torch.from_numpy(session.run(None, feed)[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    for size in ((23, 24), (24, 23), (8, 24)):
        feed['mosaic'] = torch.rand(1, 1, *size).numpy()
        with pytest.raises(Exception, match=r'(?i)shape|dimension|pad'):
            session.run(None, feed)


@onlyFullTest  # compiles for one or several minutes
@pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler')
@torch.no_grad()
def test_package(tmp_path):
    model, path = small(), tmp_path / 'model.pt2'
    model.export(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    run = torch._inductor.aoti_load_package(str(path))
    for size in SIZES:
        inputs, expected = given(model, *mosaic('RGGB', size))
        torch.testing.assert_close(run(*inputs), expected, rtol=0, atol=1e-4)


def test_arguments(tmp_path):
    model = small()
    with pytest.raises(ValueError, match=r"must end in .*'\.onnx'"):
        model.export(tmp_path / 'model.pt')
    with pytest.raises(ValueError, match="'pattern' must be one of 'RGGB'"):
        model.export(tmp_path / 'model.onnx', 'X-Trans')
    with pytest.raises(ValueError, match="'path' cannot be written"):
        model.export(tmp_path / 'none' / 'model.onnx')


@pytest.mark.skipif(bool(find_spec('onnxscript')), reason='has onnxscript')
def test_missing_package(tmp_path):
    with pytest.raises(ImportError, match='pip install'):
        small().export(tmp_path / 'model.onnx')
    assert not any(tmp_path.iterdir())
