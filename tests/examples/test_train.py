import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open

from pyg_unroll import Demosaic, Inpaint, mosaic
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock
from tests.examples.conftest import EXAMPLES

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


def test_trains_and_resumes(run, photos, tmp_path):
    out = tmp_path / 'net.safetensors'
    options = (photos, '--out', out, *SMALL, '--budget-minutes', 0.05)
    done = run('train.py', *options, '--val', photos)
    assert done.returncode == 0, done.stderr
    first = rows(tmp_path / 'net.csv')
    assert float(first[-1]['psnr_val_db']) > 25
    steps = int(first[-1]['step'])
    assert steps >= 1  # a busy machine does little in three seconds
    (block,) = Demosaic.load(out).config['blocks']
    assert block['class'] == 'DifferenceBlock'
    assert block['hidden_channels'] == 8
    with safe_open(out, framework='pt') as file:
        training = json.loads(file.metadata()['training'])
    assert training['steps_taken'] == steps
    assert str(photos) not in json.dumps(training)

    # A run that was killed earlier: the clock stands before the budget.
    path = tmp_path / 'net.checkpoint'
    state = torch.load(path, weights_only=True)
    state['seconds'] = 1.5
    torch.save(state, path)
    done = run('train.py', *options, '--resume', '--workers', 1)
    assert done.returncode == 0, done.stderr
    again = rows(tmp_path / 'net.csv')
    assert again[: len(first)] == first
    assert int(again[-1]['step']) > steps

    done = run('train.py', *options, '--resume', '--lr', 0.1)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('--lr 0.001')
    changed = '--no-amp', '--warm-up', 7
    done = run('train.py', *options, '--resume', *changed)
    assert done.returncode == 1
    assert '--warm-up 100, without --no-amp' in done.stderr


@pytest.mark.parametrize('task', ['demosaic-noisy', 'inpaint'])
def test_other_tasks(run, task, photos, tmp_path):
    out = tmp_path / 'net.safetensors'
    done = run(
        *('train.py', photos, '--task', task, '--out', out, *SMALL),
        *('--budget-minutes', 0.03, '--val', photos, '--num-patches', 9),
    )
    assert done.returncode == 0, done.stderr
    assert float(rows(tmp_path / 'net.csv')[-1]['psnr_val_db']) > 15
    restorer = Inpaint if task == 'inpaint' else Demosaic
    (block,) = restorer.load(out).config['blocks']
    assert (block['fidelity'] == 'soft') == (task == 'demosaic-noisy')


def test_two_processes(photos, tmp_path):
    out = tmp_path / 'net.safetensors'
    command = (
        *(sys.executable, '-m', 'torch.distributed.run', '--standalone'),
        *('--nproc-per-node', 2, EXAMPLES / 'train.py', photos),
        *('--out', out, *SMALL, '--budget-minutes', 0.05, '--prior', 'gtv'),
    )
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('parameters,') == 1
    (block,) = Demosaic.load(out).config['blocks']
    assert block['prior'] == 'gtv'


def test_patches_depend_on_step_and_rank_only(photos):
    from training_data import Patches, Task, read_images, subsample_chroma

    images = read_images(photos, 10)
    assert len(images) == 2
    assert images[0].dtype == torch.uint8
    task = Task('inpaint')
    mine, others = (
        Patches(images, task, 32, 3, 2, 0.5, limit=0, seed=7, rank=rank)
        for rank in (1, 0)
    )
    assert mine[4].truth.shape == (3, 3, 32, 32)
    for name in ('truth', 'image', 'mask'):
        first, again, later, other = (
            getattr(sample, name)
            for sample in (mine[4], mine[4], mine[5], others[4])
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, later)
        assert not torch.equal(first, other)
    few = Patches(images, task, 32, 3, 1, 0.0, limit=1, seed=7)
    means = {float(patch.mean()) for k in range(5) for patch in few[k].truth}
    assert max(means) - min(means) < 1e-6
    image = mine[0].truth[0]
    grey = image.mean(0, keepdim=True).expand_as(image)
    torch.testing.assert_close(subsample_chroma(grey), grey)
    assert not torch.equal(subsample_chroma(image), image)


def test_tasks():
    from training_data import Task

    truth = torch.rand(40, 3, 32, 32)
    chance = np.random.default_rng(0)
    plain = Task('demosaic').hide(truth, chance)
    assert plain.noise_std is None
    assert torch.equal(plain.image, torch.where(plain.mask, truth, 0))
    assert plain.mask.float().sum(1).eq(1).all()
    noisy = Task('demosaic-noisy').hide(truth, chance)
    assert (
        0 <= noisy.noise_std.min() < 0.05 < 0.15 < noisy.noise_std.max() < 0.2
    )
    error = torch.where(noisy.mask, noisy.image - truth, 0).square()
    std = (3 * error.mean((1, 2, 3))).sqrt()
    torch.testing.assert_close(std, noisy.noise_std, rtol=0.15, atol=1e-4)
    holes = Task('inpaint').hide(truth, chance)
    share = holes.mask[:, 0].float().mean((1, 2))
    assert share.min() < 0.1 and share.max() < 0.81
    assert (share == 1 / 16).any() and (share == 1 / 4).any()
    share = Task('inpaint').hide(truth, chance, known=0.3).mask.float().mean()
    assert abs(float(share) - 0.3) < 1e-3


def test_transfer():
    from train import transfer

    def guided(hidden, **options):
        return Demosaic(
            [GuidedBlock(hidden_channels=hidden, **options) for _ in range(2)]
        )

    small = guided(8)
    large = guided(12, prior='gtv', fidelity='soft')
    rho = large.blocks[0].conv.log_rho.clone()
    transfer(small.state_dict(), large)
    before = small.blocks[1].features.head.weight
    after = large.blocks[1].features.head.weight
    assert torch.equal(after[: before.size(0), :8], before)
    assert not after[: before.size(0), 8:].any()
    wider = guided(12)
    transfer(small.state_dict(), wider)
    data = mosaic(torch.rand(3, 12, 12))
    torch.testing.assert_close(wider(data), small(data))
    wider(data).square().mean().backward()
    # Nothing looks at the new channels yet, but it can learn to.
    assert wider.blocks[1].features.head.weight.grad[:, 8:].any()
    assert torch.equal(large.blocks[0].conv.log_rho, rho)
    with pytest.raises(SystemExit, match='no weights for this model'):
        transfer({'other': torch.ones(3)}, large)


def test_transfer_of_colour_differences():
    from train import transfer

    small, wider = (
        Demosaic([DifferenceBlock(hidden_channels=size)]) for size in (8, 12)
    )
    with torch.no_grad():
        small.blocks[0].step.gain_limit.fill_(0.7)
    transfer(small.state_dict(), wider)
    data = mosaic(torch.rand(3, 12, 12))
    torch.testing.assert_close(wider(data), small(data))


def test_errors(refusal, photos, tmp_path):
    for arguments, problem in (
        ((tmp_path / 'nowhere',), 'is not a folder'),
        ((photos, '--patch', 33), 'must be even'),
        ((photos, '--lr', 0), '--lr must be positive'),
        ((photos, '--workers', -1), '--workers must not be negative'),
        ((photos, '--patch', 128), 'as large as --patch'),
        ((photos, '--resume'), 'no checkpoint'),
        ((photos, '--init', tmp_path / 'no.safetensors'), 'no file'),
    ):
        out = tmp_path / 'net.safetensors'
        assert problem in refusal('train.py', *arguments, '--out', out)
