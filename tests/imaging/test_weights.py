"""Weights in files: those that come with the package, and any others."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.restoration import inpaint_biharmonic

import pyg_unroll.imaging
from pyg_unroll import (
    Demosaic,
    GraphDemosaic,
    Inpaint,
    data_to_image,
    image_to_data,
    mosaic,
)
from pyg_unroll.imaging import GuidedBlock, Tiled
from tests.imaging.utils import holes, make, make_blocks, mosaics, psnr

FOLDER = Path(pyg_unroll.imaging.__file__).parent / 'pretrained'
# All that must be there.
SHIPPED = [
    (Demosaic, 'bayer', 'glr'),
    (Demosaic, 'bayer', 'gtv'),
    (Demosaic, 'bayer-noisy', 'glr'),
    (Demosaic, 'xtrans', 'glr'),
    (Inpaint, 'random', 'glr'),
    (Inpaint, 'random', 'gtv'),
]


@pytest.fixture(scope='module')
def shipped():
    """Each trained model, read once."""
    return {
        (cls, name, prior): cls.from_pretrained(name, prior)
        for cls, name, prior in SHIPPED
    }


def file_of(cls, name, prior):
    return FOLDER / f'{cls.__name__.lower()}-{name}-{prior}.safetensors'


def test_all_are_there_and_no_others():
    assert {file_of(*key) for key in SHIPPED} == set(
        FOLDER.glob('*.safetensors')
    )
    for cls in (Demosaic, Inpaint):
        for prior in ('glr', 'gtv'):
            names = [n for c, n, p in SHIPPED if (c, p) == (cls, prior)]
            assert cls.pretrained_names(prior) == names


@pytest.mark.parametrize('key', SHIPPED, ids=lambda key: '-'.join(key[1:]))
def test_files(key, shipped):
    path = file_of(*key)
    assert path.stat().st_size <= 1.5e6
    card = path.with_suffix('.md').read_text()
    for section in ('Data', 'Training', 'Scores', 'Limits'):
        assert f'## {section}' in card
    model = shipped[key]
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) <= 320_000
    assert all(torch.isfinite(p).all() for p in model.parameters())
    priors = {block['prior'] for block in model.config['blocks']}
    assert priors == {key[2]}


@pytest.mark.parametrize(
    ('prior', 'pattern'),
    [('glr', 'RGGB'), ('glr', 'GBRG'), ('gtv', 'GRBG'), ('gtv', 'BGGR')],
)
@torch.no_grad()
def test_demosaic_bayer(prior, pattern, shipped, large_photo):
    image, mask = mosaics(large_photo[None], pattern)
    scores = []
    for model in (shipped[Demosaic, 'bayer', prior], GraphDemosaic()):
        out = model.restore(image, mask)
        assert torch.equal(out[mask], image[mask])
        scores.append(psnr(out, large_photo))
    assert scores[0] > scores[1] + 0.2


@torch.no_grad()
def test_demosaic_xtrans(shipped, large_photo):
    image, mask = mosaics(large_photo[None], 'X-Trans')
    image, mask = image[..., 1:, 2:], mask[..., 1:, 2:]
    truth = large_photo[:, 1:, 2:]
    scores = []
    for model in (shipped[Demosaic, 'xtrans', 'glr'], GraphDemosaic()):
        out = model.restore(image, mask)
        assert torch.equal(out[mask], image[mask])
        scores.append(psnr(out, truth))
    assert scores[0] > scores[1] + 2


@pytest.mark.parametrize(('sigma', 'gain'), [(10, 2), (20, 4), (50, 6)])
@torch.no_grad()
def test_demosaic_bayer_noisy(sigma, gain, shipped, large_photo):
    torch.manual_seed(sigma)
    noisy = large_photo + sigma / 255 * torch.randn_like(large_photo)
    image, mask = mosaics(noisy[None])
    plain = shipped[Demosaic, 'bayer', 'glr']
    model = shipped[Demosaic, 'bayer-noisy', 'glr']
    before = psnr(plain.restore(image, mask), large_photo)
    estimated = psnr(model.restore(image, mask), large_photo)
    given = psnr(model.restore(image, mask, sigma / 255), large_photo)
    assert given > before + gain
    assert estimated > given - 0.5


@torch.no_grad()
def test_noise_maps_are_worth_it(shipped, large_photo):
    # Noise of one strength on the left, of another on the right.
    noise = torch.full((1, 1, *large_photo.shape[1:]), 5 / 255)
    noise[..., 70:] = 50 / 255
    torch.manual_seed(0)
    noisy = large_photo + noise * torch.randn_like(large_photo)
    image, mask = mosaics(noisy)
    model = shipped[Demosaic, 'bayer-noisy', 'glr']
    level = float(noise.square().mean().sqrt())
    one = psnr(model.restore(image, mask, level), large_photo)
    assert psnr(model.restore(image, mask, noise), large_photo) > one + 1


@pytest.mark.parametrize('prior', ['glr', 'gtv'])
@pytest.mark.parametrize('share', [0.3, 0.8])
@torch.no_grad()
def test_inpaint_random(prior, share, shipped, large_photo):
    image, mask = holes(large_photo[None], share)
    out = shipped[Inpaint, 'random', prior].restore(image, mask)
    assert torch.equal(out[mask], image[mask])
    peer = inpaint_biharmonic(
        image[0].numpy(), ~mask[0, 0].numpy(), channel_axis=0
    )
    assert (
        psnr(out, large_photo) > psnr(torch.from_numpy(peer), large_photo) + 0.3
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@torch.no_grad()
def test_tiles(dtype):
    torch.manual_seed(0)
    image, mask = mosaics(torch.rand(1, 3, 215, 215, dtype=dtype))
    model = Demosaic.from_pretrained('bayer').to(dtype)
    tiled = Tiled(model, 30_000).restore(image, mask)
    atol = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        tiled, model.restore(image, mask), rtol=0, atol=atol
    )


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (Demosaic, {'prior': 'gtv', 'steps': (2, 1), 'num_layers': 4}),
        (Demosaic, {'fidelity': 'soft', 'num_blocks': 1}),
        (Inpaint, {'channels': 1, 'weight_floor': 0.5}),
        (Inpaint, {'hidden_channels': np.int64(6)}),
        (Inpaint, {'weight_floor': np.float32(0.5)}),
    ],
)
def test_save_and_load(kind, options, tmp_path):
    model = kind(make_blocks(**options), neighbors=4)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    path = tmp_path / 'model.safetensors'
    model.save(path, {'note': 'trained on nothing'})
    image, mask = mosaics(torch.rand(1, 3, 12, 12))
    image, mask = image[:, : model.channels], mask[:, : model.channels]
    noise = 0.1 if model.fidelity == 'soft' else None
    with torch.no_grad():
        expected = model.restore(image, mask, noise)
        for place in (path, str(path)):
            again = kind.load(place)
            assert again.config == model.config
            assert torch.equal(again.restore(image, mask, noise), expected)
    assert all(p.requires_grad for p in again.parameters())


def test_files_keep_the_type(tmp_path):
    model = make(dtype=torch.float64, num_blocks=1)
    model.save(tmp_path / 'model.safetensors')
    again = Demosaic.load(tmp_path / 'model.safetensors')
    image, mask = mosaics(torch.rand(1, 3, 12, 12, dtype=torch.float64))
    assert torch.equal(again.restore(image, mask), model.restore(image, mask))


@pytest.fixture
def saved(tmp_path):
    """A small model in a file."""
    block = GuidedBlock(1, 2, 2, heads=1, num_layers=2, steps=(1,))
    model = Inpaint([block])
    path = tmp_path / 'model.safetensors'
    model.save(path)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], 'little')
    return SimpleNamespace(
        model=model, path=path, content=content, start=8 + header
    )


def test_truncated_files(saved):
    for cut in (*range(0, saved.start, 97), *range(-4, 0)):
        saved.path.write_bytes(saved.content[:cut])
        with pytest.raises(ValueError, match="'path' is not a readable"):
            Inpaint.load(saved.path)
    saved.path.write_bytes(saved.content + b'more')
    with pytest.raises(ValueError, match="'path' is not a readable"):
        Inpaint.load(saved.path)


def test_any_damaged_byte_of_the_header(saved):
    # Refused, or it does not matter: never another error, never another net.
    refused = 0
    places = range(0, saved.start, 5)
    for place in places:
        damaged = bytearray(saved.content)
        damaged[place] ^= 1 << (place % 7)
        saved.path.write_bytes(damaged)
        try:
            model = Inpaint.load(saved.path)
        except ValueError as error:
            assert "'path'" in str(error)
            refused += 1
            continue
        for name, value in saved.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)
    assert refused > 0.8 * len(places)


@pytest.mark.parametrize(
    'config',
    [
        *('', '[]', 'null', '3', '{', '{"neighbors": 8}', '{"blocks": []}'),
        *('{"blocks": 3, "neighbors": 8}', '{"blocks": [], "neighbors": 8}'),
        '{"blocks": [{"class": "Inpaint"}], "neighbors": 8}',
        '{"blocks": [{"class": "GuidedBlock"}], "neighbors": 8}',
        '{"blocks": [{"class": "GuidedBlock", "more": 1}], "neighbors": 8}',
        '{"blocks": [{"class": "GuidedBlock", "heads": "2"}], "neighbors": 8}',
        '{"blocks": [{"class": "GuidedBlock", "heads": 1e9}], "neighbors": 8}',
        '{"blocks": [["class", "GuidedBlock"]], "neighbors": 8}',
        '{"blocks": ["GuidedBlock"], "neighbors": 8}',
    ],
)
def test_wrong_configurations(saved, config):
    metadata = {'class': 'Inpaint', 'config': config}
    save_file(load_file(saved.path), saved.path, metadata)
    with pytest.raises(ValueError, match='weights or configuration'):
        Inpaint.load(saved.path)
    save_file(load_file(saved.path), saved.path, {'class': 'Inpaint'})
    with pytest.raises(ValueError, match='weights or configuration'):
        Inpaint.load(saved.path)


@pytest.mark.parametrize('change', ['shape', 'missing', 'more', 'nan'])
def test_wrong_weights(saved, change):
    state = saved.model.state_dict()
    name = next(iter(state))
    if change == 'shape':
        state[name] = state[name][..., :-1].clone()
    elif change == 'missing':
        del state[name]
    elif change == 'more':
        state['more'] = torch.ones(1)
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    metadata = {'class': 'Inpaint', 'config': json.dumps(saved.model.config)}
    save_file(state, saved.path, metadata)
    with pytest.raises(ValueError, match='weights or configuration'):
        Inpaint.load(saved.path)


def test_foreign_files(saved, tmp_path):
    with pytest.raises(ValueError, match='holds a Inpaint, not a Demosaic'):
        Demosaic.load(saved.path)
    torch.save(saved.model.state_dict(), saved.path)  # a zip of pickles
    with pytest.raises(ValueError, match="'path' is not a readable"):
        Inpaint.load(saved.path)
    for content in (b'\x80\x04}\x94.', b'not a model' * 100):
        saved.path.write_bytes(content)
        with pytest.raises(ValueError, match="'path' is not a readable"):
            Inpaint.load(saved.path)
    for missing in (tmp_path / 'none.safetensors', tmp_path, None):
        with pytest.raises(ValueError, match="'path' is not a readable"):
            Inpaint.load(missing)
    save_file({'weight': torch.ones(2)}, saved.path)
    with pytest.raises(ValueError, match='holds a foreign file'):
        Inpaint.load(saved.path)


def test_files_that_cannot_be_written(saved, tmp_path):
    for path, notes in (
        (tmp_path / 'no' / 'x', None),
        (tmp_path / 'x', {'epochs': 3}),
    ):
        with pytest.raises(ValueError, match="'path' cannot be written"):
            saved.model.save(path, notes)


def test_names_that_there_are_not():
    with pytest.raises(ValueError, match=r"'name' must be one of \['bayer',.*"):
        Demosaic.from_pretrained('bayer-blue')
    with pytest.raises(ValueError, match=r"'name' must be one of.*prior='tv'"):
        Inpaint.from_pretrained('random', 'tv')


def test_data_of_readme_sizes(shipped):
    # Node signals, as of any PyG model.
    image = torch.rand(3, 9, 10)
    data = mosaic(image)
    out = shipped[Demosaic, 'bayer', 'glr'](data)
    assert data_to_image(data, out).shape == (3, 9, 10)
    data = image_to_data(image)
    data.mask = torch.rand(90) < 0.5
    out = shipped[Inpaint, 'random', 'glr'](data)
    assert torch.equal(out[data.mask], data.x[data.mask])
