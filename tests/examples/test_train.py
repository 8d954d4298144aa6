import csv
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from pyg_unroll import Demosaic, GraphDemosaic, Inpaint, cfa_mask, mosaic
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock
from pyg_unroll.imaging.cfa import CELLS
from tests.examples.conftest import EXAMPLES

lightning = pytest.importorskip('lightning.pytorch')
yaml = pytest.importorskip('yaml')

RECIPES = sorted((EXAMPLES / 'recipes').glob('*.yaml'))

# A net of a hundredth of the recipe's size, in rounds of three steps.
TINY = """
model:
  net:
    neighbors: 4
    blocks:
      - {class: DifferenceBlock, hidden_channels: 8, num_layers: 2}
  warm_up: 2
data: {side: 32, batch: 4, steps: 3, revisited: 0.5, pool: 4}
trainer: {accelerator: cpu, log_every_n_steps: 1, check_val_every_n_epoch: 1}
"""


class CtrlC(lightning.Callback):
    """Presses Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    photo = skimage.data.astronaut()
    for k, part in enumerate((photo[:80, 100:190], photo[180:261, 60:133])):
        Image.fromarray(part).save(folder / f'{k}.png')
    return folder


@pytest.fixture
def options(photos, tmp_path):
    recipe = tmp_path / 'tiny.yaml'
    recipe.write_text(TINY)
    return photos, '--config', recipe


def rows(folder):
    with (folder / 'metrics.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_ctrl_c_and_resume(run, options, photos, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    # Five steps at once, and in two parts that meet in the midst of a round.
    steps = '--trainer.max_steps', 5
    done = run('train.py', *options, *steps, '--out', 'whole.safetensors')
    assert done.returncode == 0, done.stderr
    assert not done.stderr.count('Warning')
    assert '2 photographs for 60 minutes or until step 5' in done.stdout
    assert '5 steps in ' in done.stdout
    assert "minutes; wrote 'whole.safetensors'" in done.stdout

    press = (
        *('--trainer.callbacks+', 'tests.examples.test_train.CtrlC'),
        *('--trainer.callbacks.step', 4, '--val', photos),
    )
    done = run('train.py', *options, *steps, *press)
    assert done.returncode == 130, done.stderr
    assert 'Ctrl-C: ending after this step' in done.stdout
    assert '4 steps in' in done.stdout
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = load_file('weights.safetensors')
    log = rows(tmp_path / 'weights-log/version_0')
    assert [float(row['psnr']) > 25 for row in log if row['psnr']]

    done = run('train.py', *options, *steps, '--resume')
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / 'weights-log/version_1')) >= 1
    whole, parts = map(load_file, ('whole.safetensors', 'weights.safetensors'))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not all(torch.equal(whole[key], stopped[key]) for key in whole)

    # For longer, and not otherwise.
    longer = '--trainer.max_steps', 7, '--minutes', 90, '--resume'
    done = run('train.py', *options, *longer, '--val', photos)
    assert done.returncode == 0, done.stderr
    assert '7 steps in' in done.stdout
    assert '2 images of --val: ' in done.stdout
    done = run('train.py', *options, *longer, '--model.lr', 0.1)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('other options: model.lr 0.001')

    (block,) = Demosaic.load('weights.safetensors').config['blocks']
    assert block['class'] == 'DifferenceBlock'
    assert block['hidden_channels'] == 8
    with safe_open('weights.safetensors', framework='pt') as file:
        training = json.loads(file.metadata()['training'])
    assert training['steps'] == 7
    assert training['recipe']['seed'] == 0
    assert training['recipe']['data']['variety']['hard'] == 2
    assert training['hours'] > 0
    assert 'cpu' in training['machine']
    assert str(photos) not in json.dumps(training)


def test_nothing_is_replaced_silently(refusal, run, options, tmp_path):
    once = *options, '--trainer.max_steps', 1
    out = tmp_path / 'weights.safetensors'
    checkpoint = tmp_path / 'weights.ckpt'
    for path in (out, checkpoint):
        path.write_text('of before')
        assert 'exists; go on with --resume' in refusal('train.py', *once)
        assert path.read_text() == 'of before'
        path.unlink()
    assert 'there is no checkpoint' in refusal('train.py', *once, '--resume')
    checkpoint.write_text('of before')
    # A mistake costs nothing.
    wrong = '--overwrite', '--data.side', 33
    assert 'must be even' in refusal('train.py', *once, *wrong)
    assert checkpoint.read_text() == 'of before'
    done = run('train.py', *once, '--overwrite')
    assert done.returncode == 0, done.stderr
    assert Demosaic.load(out)
    assert torch.load(checkpoint, weights_only=True)['global_step'] == 1
    other = tmp_path / 'other'
    other.mkdir()
    Image.new('RGB', (50, 50)).save(other / 'black.png')
    done = run('train.py', other, *once[1:], '--resume')
    assert 'the photographs are not those' in done.stderr


def test_time_is_up(run, options):
    tiny = '--trainer.max_time', '{"milliseconds": 60}'
    done = run('train.py', *options, *tiny)
    assert done.returncode == 0, done.stderr
    state = torch.load('weights.ckpt', weights_only=True)
    assert state['global_step'] >= 1
    # It is already.
    done = run('train.py', *options, '--minutes', 0.001, '--resume')
    assert done.returncode == 0, done.stderr
    assert f'{state["global_step"]} steps in' in done.stdout
    assert Demosaic.load('weights.safetensors')


def test_two_processes(options, tmp_path):
    command = (
        *(sys.executable, '-m', 'torch.distributed.run', '--standalone'),
        *('--nproc-per-node', 2, EXAMPLES / 'train.py', *options),
        *('--trainer.max_steps', 4, '--trainer.devices', 2),
        *('--trainer.strategy', 'ddp_find_unused_parameters_true'),
    )
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('parameters,') == 1
    assert Demosaic.load(tmp_path / 'weights.safetensors')
    state = torch.load('weights.ckpt', weights_only=True)
    data = state['Photographs']
    # All patches of the first round, and those of the step after it.
    assert data['step'] == 4
    assert len(data['hardest']) == 4
    assert len(data['losses']) == 4


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes(path, photos):
    from train import Restoration
    from training_data import Photographs
    from training_patches import Variety

    default = yaml.safe_load((EXAMPLES / 'recipes/bayer.yaml').read_text())
    recipe = yaml.safe_load(path.read_text())
    data = default['data'] | recipe.get('data', {}) | {'side': 36}
    variety = Variety(**data.pop('variety'))
    data = Photographs([photos], variety=variety, **data)
    module = Restoration(**default['model'] | recipe['model'])
    size = sum(p.numel() for p in module.parameters())
    most = {'bayer-small': 60_000, 'xtrans': 300_000}
    assert size <= most.get(path.stem, 240_000)
    batch = torch.utils.data.default_collate(
        [data.patches[k, k] for k in range(2)]
    )
    loss, losses = module.loss(batch)
    loss.backward()
    assert torch.isfinite(losses).all()
    assert any(p.grad.any() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ('prior', 'cfa'), [('glr', 'Bayer'), ('gtv', 'Bayer'), ('glr', 'X-Trans')]
)
def test_starts_as_well_as_the_untrained_restorer(prior, cfa):
    from photos import psnr
    from train import start_as_graph

    pattern, cell = CELLS[cfa]
    options = {'prior': prior, 'cell': cell, 'hidden_channels': 8}
    net = Demosaic([DifferenceBlock(**options) for _ in range(2)], cfa=cfa)
    start_as_graph(net)
    score = {net: 0.0, GraphDemosaic(prior): 0.0}
    for photo in (skimage.data.astronaut(), skimage.data.chelsea()):
        truth = torch.from_numpy(photo[60:260, 130:330] / 255).float()
        truth = truth.movedim(2, 0)[None]
        mask = cfa_mask(pattern, 200, 200)[None]
        for model in score:
            with torch.no_grad():
                out = model.restore(torch.where(mask, truth, 0), mask)
            score[model] += psnr(out, truth) / 2
    trained, untrained = score.values()
    assert trained > untrained


def test_a_gradient_that_is_not_finite(photos):
    from train import Restoration

    module = Restoration(Demosaic([DifferenceBlock(8)]).config)
    weight = module.net.blocks[0].features.head.weight
    weight.grad = torch.full_like(weight, torch.nan)
    module.on_before_optimizer_step(None)
    assert not weight.grad.any()
    assert module.skipped == 1
    weight.grad += 1
    module.on_before_optimizer_step(None)
    assert weight.grad.all()
    weight.grad *= torch.inf
    module.skipped = 20
    with pytest.raises(ValueError, match='training diverged'):
        module.on_before_optimizer_step(None)


def test_schedule():
    from train import Average, progress, rate

    assert rate(0, 4, 0) == 0.25
    assert rate(3, 4, 0) == rate(99, 4, 0) == 1
    assert abs(rate(99, 4, 0.5) - 0.5) < 1e-9
    assert rate(99, 4, 1) == 1e-3

    timer = lightning.callbacks.Timer({'seconds': 100})
    trainer = SimpleNamespace(
        callbacks=[timer], max_steps=-1, global_step=30, world_size=1
    )
    assert progress(trainer) == 0
    # A training that took 40 of these seconds and goes on.
    timer.load_state_dict({'time_elapsed': {'train': 40.0}})
    assert progress(trainer) == 0.4
    trainer.max_steps = 50
    assert progress(trainer) == 0.6
    trainer.max_steps = 30
    trainer.callbacks = [lightning.callbacks.Timer()]
    assert progress(trainer) == 1

    mean = Average(0.5)._kwargs['avg_fn']
    one, zero = torch.ones(1), torch.zeros(1)
    assert mean(zero, one, torch.tensor(90)) == 0.5
    assert mean(zero, one, torch.tensor(0)) == 1
    mean = Average(0.999)._kwargs['avg_fn']
    torch.testing.assert_close(mean(zero, one, torch.tensor(90)), one / 10)


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
    with pytest.raises(ValueError, match='no weights for this model'):
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


def test_inpainting_starts_from_weights(run, options, tmp_path):
    Inpaint([GuidedBlock(hidden_channels=4, num_layers=2)]).save('few.st')
    (tmp_path / 'holes.yaml').write_text(
        'model:\n  restorer: Inpaint\n  weights: few.st\n  net:\n'
        '    neighbors: 8\n    blocks:\n'
        '      - {class: GuidedBlock, hidden_channels: 8, num_layers: 2}\n'
        'data: {mask: random, workers: 1}\n'
    )
    done = run(
        *('train.py', *options, '--config', 'holes.yaml'),
        *('--trainer.max_steps', 1, '--out', 'holes.safetensors'),
    )
    assert done.returncode == 0, done.stderr
    (block,) = Inpaint.load('holes.safetensors').config['blocks']
    assert block['class'] == 'GuidedBlock'


def test_errors(refusal, options, photos, tmp_path):
    for arguments, problem in (
        ((tmp_path / 'nowhere',), 'is not a folder'),
        ((photos, '--data.side', 33), 'must be even'),
        ((photos, '--data.side', 128), "as large as 'side'"),
        ((photos, '--data.revisited', 1), 'below 1'),
        ((photos, '--data.batch', 0), "'batch' must be positive"),
        ((photos, '--data.variety.linear', 2), "'linear' is out of range"),
        ((photos, '--model.lr', 0), "'lr' must be positive"),
        ((photos, '--model.weights', 'none'), "no file 'none'"),
        ((*options, '--average.decay', 1), 'below 1'),
        ((photos, '--minutes', 0), '--minutes must be positive'),
        ((photos, '--out', 'weights.pt'), '--out must be .safetensors'),
    ):
        assert problem in refusal('train.py', *arguments)
