import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / 'examples'
SHARED = Path(__file__).parents[3] / 'shared' / 'data'


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '2'},
        timeout=600,
    )


@pytest.fixture(scope='module')
def photo():
    return skimage.data.astronaut()[180:281, 60:163]


def figures(output, method):
    line = next(line for line in output.splitlines() if line.startswith(method))
    return float(line[22:31]), float(line[31:40])


def test_demosaic_odd_image(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    out = tmp_path / 'figure.png'
    done = run(
        'demosaic.py', tmp_path / 'photo.png', '--pattern', 'GBRG', '--out', out
    )
    assert done.returncode == 0, done.stderr
    ours, bilinear = (
        figures(done.stdout, m)[0] for m in ('UnrolledGLR', 'bilinear')
    )
    assert ours > bilinear + 4
    plain = run('demosaic.py', tmp_path / 'photo.png', '--untrained')
    assert figures(plain.stdout, 'GLR, untrained')[0] < ours
    assert min(Image.open(out).size) > 500


def test_demosaic_noise(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    out = tmp_path / 'figure.png'
    done = run(
        'demosaic.py', tmp_path / 'photo.png', '--noise', 20, '--out', out
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    ours, bilinear = (
        figures(done.stdout, m)[0] for m in ('UnrolledGLR', 'bilinear')
    )
    assert ours > bilinear + 3


def test_demosaic_folder_with_grey_and_deep_images(tmp_path, photo):
    grey = photo.mean(-1).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    done = run('demosaic.py', tmp_path, '--prior', 'gtv')
    assert done.returncode == 0, done.stderr
    assert '2 images' in done.stdout
    assert done.stderr.count('is grey') == 2


def test_demosaic_errors(tmp_path):
    (tmp_path / 'note.png').write_text('no image')
    for path, problem in (
        (tmp_path / 'missing.png', 'does not exist'),
        (tmp_path / 'note.png', 'not an image'),
    ):
        done = run('demosaic.py', path)
        assert done.returncode == 1
        assert done.stderr.startswith('error:'), done.stderr
        assert problem in done.stderr
        assert 'Traceback' not in done.stderr
        assert path.name in done.stderr


@pytest.mark.parametrize(
    ('folder', 'least'), [('kodak24', 41.2), ('val', 39.9)]
)
def test_demosaic_quality(folder, least):
    # Menon: 39.20 and 36.80 dB.
    if not (SHARED / folder).is_dir():
        pytest.skip(f'no photographs in ../shared/data/{folder}')
    if not os.environ.get('FULL_TEST'):
        pytest.skip('scores all photographs only with FULL_TEST=1')
    done = run('demosaic.py', SHARED / folder)
    assert figures(done.stdout, 'UnrolledGLR')[0] >= least


@pytest.mark.parametrize(
    'options',
    [(), ('--prior', 'gtv', '--weights', 'inpaint-random')],
)
def test_explain(tmp_path, photo, options):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    out = tmp_path / 'page.png'
    done = run(
        'explain_demosaic.py', tmp_path / 'photo.png', '--out', out, *options
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    lines = done.stdout.splitlines()
    assert 'blocks.1.' in done.stdout
    # The table and the list of steps say the same.
    rising = [line for line in lines if line.endswith(' rises')]
    named = [line for line in lines if line.endswith(', combined')]
    assert len(rising) == len(named)
    scores = [float(s.split()[-2]) for s in lines if s.endswith('dB')]
    assert len(scores) == 4 and scores[0] >= max(scores[1:]) - 0.2
    assert min(Image.open(out).size) > 1000


def test_explain_errors(tmp_path):
    out = tmp_path / 'page.png'
    done = run('explain_demosaic.py', '--size', 20, '--out', out)
    assert done.returncode == 1
    assert done.stderr.startswith('error: the image must')


def rmse_of(output, method):
    line = next(line for line in output.splitlines() if line.startswith(method))
    return float(line[36:48])


@pytest.mark.parametrize('options', [(), ('--temperature',)])
def test_terrain(tmp_path, options):
    out = tmp_path / 'terrain.png'
    done = run(
        *('interpolate_terrain.py', '--points', 300, '--hidden', 0.5),
        *('--out', out, *options),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    ours = rmse_of(done.stdout, 'GraphInterpolator')
    assert ours < rmse_of(done.stdout, 'FeaturePropagation')
    if options:
        # The elevation says nearly all of a temperature.
        assert ours < 0.85 * rmse_of(done.stdout, 'the same without')
        assert 'm of elevation' in done.stdout
    assert min(Image.open(out).size) > 500


def test_counties_and_sensors(tmp_path):
    chance = np.random.default_rng(0)
    pos = chance.uniform(-1, 1, size=(60, 2))
    pairs = np.stack([np.arange(60), (np.arange(60) + 1) % 60])
    file = tmp_path / 'signal.npz'
    for script, steps in (('counties', 2), ('sensors', 110)):
        waves = np.sin(np.linspace(0, 9, steps))
        y = pos.sum(1, keepdims=True) * waves + waves
        np.savez(file, y=y, pos=pos, edge_index=pairs)
        out = tmp_path / f'{script}.png'
        done = run(f'interpolate_{script}.py', tmp_path, '--out', out)
        assert done.returncode == 0, done.stderr
        assert '60 ' in done.stdout
        assert rmse_of(done.stdout, 'GraphInterpolator') < 0.2
        assert min(Image.open(out).size) > 300
    for script in ('counties', 'sensors'):
        wrong = run(f'interpolate_{script}.py', tmp_path / 'nowhere')
        assert wrong.returncode == 2
        assert 'there is no file or folder' in wrong.stderr
    file.write_bytes(b'nothing')
    wrong = run('interpolate_sensors.py', file)
    assert wrong.stderr.startswith('error: cannot read')


def test_node_classification():
    done = run(
        'node_classification.py', '--nodes', 500, '--seeds', 1, '--epochs', 30
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    rows = [line for line in done.stdout.splitlines() if '+-' in line]
    scores = {row[:34].strip(): float(row[34:].split()[0]) for row in rows}
    assert len(scores) == 4
    assert scores['MLP + GLRConv'] > scores['MLP'] + 10
    wrong = run('node_classification.py', '--mixing', 1)
    assert wrong.returncode == 2 and '--mixing must be below 1' in wrong.stderr


@pytest.mark.parametrize(
    'script',
    [
        'demosaic.py',
        'explain_demosaic.py',
        'interpolate_counties.py',
        'interpolate_sensors.py',
        'interpolate_terrain.py',
        'node_classification.py',
        'train.py',
    ],
)
def test_help(script):
    done = run(script, '--help')
    assert done.returncode == 0
    assert 'usage' in done.stdout
