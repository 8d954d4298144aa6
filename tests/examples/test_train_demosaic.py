import csv
import json
import subprocess
import sys

import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open

from pyg_unroll import UnrolledGLR, UnrolledGTV
from tests.examples.test_examples import EXAMPLES, run

SMALL = (
    *('--patch', 32, '--batch', 2, '--hidden', 8, '--blocks', 1),
    *('--layers', 2, '--threads', 1, '--device', 'cpu'),
)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    photo = skimage.data.astronaut()
    for k, part in enumerate((photo[:80, 100:190], photo[180:261, 60:133])):
        Image.fromarray(part).save(folder / f'{k}.png')
    return folder


def rows(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def test_trains_and_resumes(photos, tmp_path):
    out = tmp_path / 'net.safetensors'
    options = (photos, '--out', out, *SMALL, '--budget-minutes', 0.05)
    done = run('train_demosaic.py', *options, '--val', photos)
    assert done.returncode == 0, done.stderr
    first = rows(tmp_path / 'net.csv')
    assert float(first[-1]['psnr_val_db']) > 25
    steps = int(first[-1]['step'])
    assert steps >= 1  # a busy machine does little in three seconds
    model = UnrolledGLR.load(out)
    assert model.config['hidden_channels'] == 8
    with safe_open(out, framework='pt') as file:
        training = json.loads(file.metadata()['training'])
    assert training['steps_taken'] == steps
    assert str(photos) not in json.dumps(training)

    # A run that was killed earlier: the clock stands before the budget.
    path = tmp_path / 'net.checkpoint'
    state = torch.load(path, weights_only=True)
    state['seconds'] = 1.5
    torch.save(state, path)
    done = run('train_demosaic.py', *options, '--resume')
    assert done.returncode == 0, done.stderr
    again = rows(tmp_path / 'net.csv')
    assert again[: len(first)] == first
    assert int(again[-1]['step']) > steps

    done = run('train_demosaic.py', *options, '--resume', '--lr', 0.1)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('--lr 0.001')


def test_two_processes(photos, tmp_path):
    out = tmp_path / 'net.safetensors'
    command = (
        *(sys.executable, '-m', 'torch.distributed.run', '--standalone'),
        *('--nproc-per-node', 2, EXAMPLES / 'train_demosaic.py', photos),
        *('--out', out, *SMALL, '--budget-minutes', 0.05, '--prior', 'gtv'),
    )
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('parameters,') == 1
    UnrolledGTV.load(out)


def test_patches_depend_on_step_and_rank_only(photos, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from train_demosaic import Patches, read_images, subsample_chroma

    images = read_images(photos, 10)
    assert len(images) == 2
    assert images[0].dtype == torch.uint8
    draw = Patches(images, 32, 3, 2, 0.5, seed=7).draw
    assert draw(4, 1).shape == (3, 3, 32, 32)
    assert torch.equal(draw(4, 1), draw(4, 1))
    assert not torch.equal(draw(4, 1), draw(5, 1))
    assert not torch.equal(draw(4, 1), draw(4, 0))
    image = draw(0, 0)[0]
    grey = image.mean(0, keepdim=True).expand_as(image)
    torch.testing.assert_close(subsample_chroma(grey), grey)
    assert not torch.equal(subsample_chroma(image), image)


def test_errors(photos, tmp_path):
    for arguments, problem in (
        ((tmp_path / 'nowhere',), 'is not a folder'),
        ((photos, '--patch', 33), 'must be even'),
        ((photos, '--lr', 0), '--lr must be positive'),
        ((photos, '--patch', 128), 'as large as --patch'),
        ((photos, '--resume'), 'no checkpoint'),
        ((photos, '--init', tmp_path / 'no.safetensors'), 'no file'),
    ):
        out = tmp_path / 'net.safetensors'
        done = run('train_demosaic.py', *arguments, '--out', out)
        assert done.returncode != 0
        assert problem in done.stderr
        assert 'Traceback' not in done.stderr
