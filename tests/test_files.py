"""Files of tensors: whole or as they were, and readable by all."""

import os
import stat

import pytest
import torch

from pyg_unroll.files import read_tensors, write_tensors


def test_round_trip(tmp_path):
    path = tmp_path / 'a.safetensors'
    tensors = {'x': torch.rand(3, 4).T, 'n': torch.arange(5)}
    write_tensors(path, tensors, {'said': 'this'})
    found, texts = read_tensors(path)
    assert texts == {'said': 'this'} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == 'nt', reason='permissions of POSIX')
def test_usual_permissions(tmp_path):
    (tmp_path / 'usual').write_bytes(b'')
    write_tensors(tmp_path / 'a', {}, {})
    modes = [
        stat.S_IMODE((tmp_path / f).stat().st_mode) for f in ('usual', 'a')
    ]
    assert modes[0] == modes[1]


@pytest.mark.skipif(os.name == 'nt', reason='links and modes of POSIX')
def test_links_and_modes_stay(tmp_path):
    path, link = tmp_path / 'a', tmp_path / 'link'
    path.write_bytes(b'')
    path.chmod(0o600)
    link.symlink_to(path)
    write_tensors(link, {'x': torch.ones(2)}, {})
    assert link.is_symlink() and torch.equal(
        read_tensors(path)[0]['x'], torch.ones(2)
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for wrong in ('', '/', tmp_path, 3):
        with pytest.raises(ValueError, match="'path' cannot be written"):
            write_tensors(wrong, {}, {})


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.safetensors'
    write_tensors(path, {'x': torch.ones(3)}, {})
    before = path.read_bytes()

    def full_disk(self, data):
        with open(self, 'wb') as file:
            file.write(data[:10])
        raise OSError('no space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full_disk)
    with pytest.raises(ValueError, match=r"'path' cannot be written.*no space"):
        write_tensors(path, {'x': torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="'path' cannot be written"):
        write_tensors(tmp_path / 'none' / 'a', {}, {})
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        read_tensors(tmp_path / 'none')
