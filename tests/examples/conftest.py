import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / 'examples'

# As Python does by default, outside of the script itself.
SILENT = (
    *(DeprecationWarning, PendingDeprecationWarning),
    *(ImportWarning, ResourceWarning),
)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """The examples import their neighbours and write where they are run."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    # Bars of fits that a busy machine makes long are no messages.
    bars = 'pyg_unroll.estimators.progress.tqdm'
    monkeypatch.setattr(bars, lambda items, *_, **__: items)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process, as a command would be."""
    threads = torch.get_num_threads()

    def run_here(script, *arguments):
        monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        with torch.enable_grad(), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('default')
            for category in SILENT:
                warnings.simplefilter('ignore', category)
            try:
                runpy.run_path(str(EXAMPLES / script), run_name='__main__')
            except SystemExit as end:
                code = end.code or 0
        out, err = capsys.readouterr()
        err += ''.join(f'{warning.message}\n' for warning in found)
        if isinstance(code, str):
            code, err = 1, f'{err}{code}\n'
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    yield run_here
    torch.set_num_threads(threads)


@pytest.fixture
def refusal(run):
    """The messages of an example that ends with an error."""

    def run_here(script, *arguments):
        done = run(script, *arguments)
        assert done.returncode
        assert 'error: ' in done.stderr.splitlines()[-1]
        return done.stderr

    return run_here
