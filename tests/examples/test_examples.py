import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.examples.conftest import EXAMPLES

SHARED = Path(__file__).parents[3] / 'shared' / 'data'


@pytest.fixture(scope='module')
def photo():
    return skimage.data.astronaut()[180:281, 60:163]


def figures(output, method):
    line = next(line for line in output.splitlines() if line.startswith(method))
    return float(line[22:31]), float(line[31:40])


def test_demosaic_odd_image(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    out = tmp_path / 'figure.png'
    done = run(
        'demosaic.py', tmp_path / 'photo.png', '--pattern', 'GBRG', '--out', out
    )
    assert done.returncode == 0, done.stderr
    ours, bilinear = (
        figures(done.stdout, m)[0] for m in ('Demosaic', 'bilinear')
    )
    assert ours > bilinear + 4
    plain = run('demosaic.py', tmp_path / 'photo.png', '--untrained')
    assert figures(plain.stdout, 'GraphDemosaic, GLR')[0] < ours
    for file in (out, tmp_path / 'demosaic.png'):  # named, and by default
        assert min(Image.open(file).size) > 500


def test_demosaic_noise(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    out = tmp_path / 'figure.png'
    done = run(
        *('demosaic.py', tmp_path / 'photo.png', '--noise', 20),
        *('--num-views', 2, '--out', out),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    ours, bilinear = (
        figures(done.stdout, m)[0] for m in ('Demosaic', 'bilinear')
    )
    assert ours > bilinear + 3


def test_demosaic_folder_with_grey_and_deep_images(run, tmp_path, photo):
    grey = photo.mean(-1).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    done = run('demosaic.py', tmp_path, '--prior', 'gtv')
    assert done.returncode == 0, done.stderr
    assert '2 images' in done.stdout
    assert done.stderr.count('is grey') == 2


@pytest.mark.parametrize(
    ('arguments', 'problem'),
    [
        (('missing.png',), "missing.png': it does not exist"),
        (('note.png',), "note.png': it is not an image"),
        (('dot.png',), "'dot.png' is too small (1 x 1 pixels)"),
        (('dot.png', '--out', 'figure.xyz'), '--out must be .png'),
        (('.', '--out', 'figure.png'), '--out is for one image'),
    ],
)
def test_demosaic_errors(tmp_path, refusal, arguments, problem):
    (tmp_path / 'note.png').write_text('no image')
    Image.new('RGB', (1, 1)).save(tmp_path / 'dot.png')
    name, *options = arguments
    assert problem in refusal('demosaic.py', tmp_path / name, *options)


def test_demosaic_folder_with_a_broken_image(run, tmp_path, photo):
    (tmp_path / 'a.png').write_text('no image')
    for name in ('b.png', 'c.png'):
        Image.fromarray(photo[:20, :20]).save(tmp_path / name)
    done = run('demosaic.py', tmp_path)
    assert done.returncode == 1
    assert 'error: 1 images are not in the scores' in done.stderr
    assert "a.png': it is not an image" in done.stderr
    assert '2 images' in done.stdout
    assert figures(done.stdout, 'Demosaic')[0] > 20


@pytest.mark.parametrize(
    ('folder', 'least'), [('kodak24', 41.2), ('val', 39.9)]
)
def test_demosaic_quality(run, folder, least):
    # Menon: 39.20 and 36.80 dB.
    if not (SHARED / folder).is_dir():
        pytest.skip(f'no photographs in ../shared/data/{folder}')
    if not os.environ.get('FULL_TEST'):
        pytest.skip('scores all photographs only with FULL_TEST=1')
    done = run('demosaic.py', SHARED / folder)
    assert figures(done.stdout, 'Demosaic')[0] >= least


@pytest.mark.parametrize(
    'options', [(), ('--prior', 'gtv', '--task', 'inpaint')]
)
def test_explain(run, tmp_path, photo, options):
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


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        (('--size', 20), 'error: the image must have 42 pixels'),
        (('--out', 'page.xyz'), '--out must be .png'),
        (('flat.png',), 'no edges in its middle'),
    ],
)
def test_explain_errors(tmp_path, refusal, options, problem):
    Image.new('RGB', (60, 60)).save(tmp_path / 'flat.png')
    options = [tmp_path / o if o == 'flat.png' else o for o in options]
    out = tmp_path / 'page.png'
    assert problem in refusal('explain_demosaic.py', '--out', out, *options)


def rmse_of(output, method):
    line = next(line for line in output.splitlines() if line.startswith(method))
    return float(line[36:48])


@pytest.mark.parametrize('options', [(), ('--temperature',)])
def test_terrain(run, tmp_path, options):
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


def test_counties_and_sensors(run, tmp_path):
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


@pytest.mark.parametrize('script', ['counties', 'sensors'])
def test_no_file(tmp_path, refusal, script):
    wrong = refusal(f'interpolate_{script}.py', tmp_path / 'nowhere')
    assert 'there is no file or folder' in wrong


@pytest.fixture
def load():
    from graph_data import load

    return load


LINE = np.stack([np.arange(3), np.arange(1, 4)])
POINTS = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        ({'y': None}, "no signal 'y'"),
        ({'pos': None, 'edge_index': None}, "neither 'pos' nor"),
        ({'y': POINTS[:, :0]}, "'y' is empty"),
        ({'y': np.ones((4, 1, 2))}, "'y' must have shape"),
        ({'y': np.array([[1, {}]] * 4)}, "'y' is no readable array"),
        ({'y': POINTS.astype(str)}, "'y' is no readable array"),
        ({'y': POINTS * np.nan}, "'y' must be finite"),
        ({'y': np.ones((5, 2))}, r"'pos' must have shape \[5, columns\]"),
        ({'pos': POINTS[:, 0]}, 'must have two columns'),
        ({'pos': POINTS - [np.nan, 0]}, "'pos' must be finite .* row 0"),
        ({'pos': POINTS - [0, -90]}, 'latitude in degrees .* row 0'),
        ({'pos': POINTS - [181, 0]}, 'latitude in degrees .* row 0'),
        ({'x': POINTS[:2]}, "'x' must have shape"),
        ({'edge_index': LINE.T}, r'of shape \[2, edges\]'),
        ({'edge_index': LINE + 0.5}, "'edge_index' must be integers"),
        ({'edge_index': LINE + 1}, "rows of 'y', 0 to 3"),
        ({'edge_weight': [1]}, "'edge_weight' must have shape"),
        ({'edge_weight': [1, 1, -1]}, 'not negative'),
        ({'edge_weight': [1], 'edge_index': None}, "no 'edge_index'"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, load, change, problem):
    arrays = {'y': POINTS, 'pos': POINTS, 'edge_index': LINE, **change}
    arrays = {n: value for n, value in arrays.items() if value is not None}
    np.savez(tmp_path / 'signal.npz', **arrays)
    with pytest.raises(SystemExit, match=f'error: cannot read .*{problem}'):
        load(tmp_path)


@pytest.mark.parametrize('content', [b'', b'y\n1\n', b'PK', None])
def test_not_an_npz_file(tmp_path, load, content):
    file = tmp_path / 'signal.npz'
    np.savez(file, y=POINTS, pos=POINTS)
    data = file.read_bytes()[:300] if content is None else content
    file.write_bytes(data)
    with pytest.raises(SystemExit, match='it is no NPZ file'):
        load(file)


def test_type_of_numbers(tmp_path, load):
    file = tmp_path / 'signal.npz'
    np.savez(file, y=POINTS[:, 0].astype('>f4'), pos=POINTS - [-240, 0])
    assert load(file).data.x.squeeze(1).tolist() == POINTS[:, 0].tolist()


@pytest.mark.parametrize(
    ('arguments', 'problem'),
    [
        (('counties.py', 'FILE'), 'leaves 2 of 4 nodes known'),
        (('terrain.py', '--points', 100, '--hidden', 0.95), 'leaves 5 of 100'),
        (('terrain.py', '--seed', -1), '--seed must not be negative'),
        (('terrain.py', '--out', 'map'), '--out must be .png'),
        (('terrain.py', '--out', 'none/map.png'), "no folder 'none'"),
    ],
)
def test_interpolation_errors(tmp_path, refusal, arguments, problem):
    file = tmp_path / 'signal.npz'
    np.savez(file, y=POINTS, edge_index=LINE)
    script, *options = (file if a == 'FILE' else a for a in arguments)
    assert problem in refusal(f'interpolate_{script}', *options)


def test_node_classification(run):
    done = run(
        'node_classification.py', '--nodes', 500, '--seeds', 1, '--epochs', 30
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    rows = [line for line in done.stdout.splitlines() if '+-' in line]
    scores = {row[:34].strip(): float(row[34:].split()[0]) for row in rows}
    assert len(scores) == 4
    assert scores['MLP + GLRConv'] > scores['MLP'] + 10


@pytest.mark.parametrize(
    ('option', 'value', 'problem'),
    [
        ('--mixing', 1, '--mixing must be below 1'),
        ('--noise', 'nan', '--noise must be positive'),
        ('--nodes', 100_000, '--nodes must be at most'),
        ('--degree', 201, '--degree must not exceed'),
    ],
)
def test_node_classification_errors(refusal, option, value, problem):
    assert problem in refusal('node_classification.py', option, value)


SCRIPTS = [
    'demosaic.py',
    'explain_demosaic.py',
    'interpolate_counties.py',
    'interpolate_sensors.py',
    'interpolate_terrain.py',
    'node_classification.py',
    *(['train.py'] if find_spec('lightning') else []),
]


@pytest.mark.parametrize('script', SCRIPTS)
def test_help(run, script):
    done = run(script, '--help')
    assert done.returncode == 0
    assert 'usage' in done.stdout


# Each as Python starts a script, in one process that imports torch once.
COMMANDS = """
import runpy
import sys
from pathlib import Path

for script in sys.argv[1:]:
    sys.path[0] = str(Path(script).parent)
    sys.argv = [script, '--no-such-option']
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as stop:
        print(Path(script).name, stop.code)
"""


def test_commands(tmp_path):
    # From another folder; what is wrong is said on the other stream.
    done = subprocess.run(
        [sys.executable, '-c', COMMANDS, *(EXAMPLES / s for s in SCRIPTS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert done.stdout.splitlines() == [f'{script} 2' for script in SCRIPTS]
    assert done.stderr.count('usage: ') == len(SCRIPTS)
