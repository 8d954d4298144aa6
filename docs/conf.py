"""Sphinx configuration: `make docs` builds the pages without a network."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
META = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']

project = META['name']
author = 'the pyg_unroll authors'
release = version = META['version']

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
    'sphinx-mathjax-offline',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'pyg_unroll {release}'
html_static_path = ['_static']
html_css_files = ['pages.css']
html_show_copyright = False
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True

# Types stand in the docstrings, in the field's terms.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_custom_sections = ['Shapes']
napoleon_preprocess_types = True
_TYPES = {
    'Data': 'torch_geometric.data.Data',
    'Batch': 'torch_geometric.data.Batch',
    'EdgeIndex': 'torch_geometric.EdgeIndex',
    'SparseTensor': 'torch_sparse.SparseTensor',
    'Topology': 'pyg_unroll.graph.Topology',
    'GLRConv': 'pyg_unroll.nn.GLRConv',
    'GTVConv': 'pyg_unroll.nn.GTVConv',
    'UnrolledGLR': 'pyg_unroll.nn.UnrolledGLR',
    'UnrolledGTV': 'pyg_unroll.nn.UnrolledGTV',
    'Restorer': 'pyg_unroll.imaging.restorer.Restorer',
    'Scene': 'pyg_unroll.imaging.blocks.Scene',
    'BaseTransform': 'torch_geometric.transforms.BaseTransform',
    'Path': 'pathlib.Path',
}
napoleon_type_aliases = {
    name: f':class:`~{path}`' for name, path in _TYPES.items()
}

# PyG's docstrings write literals with the role `obj`. Other projects' names
# become links if their inventories may be fetched: DOCS_ONLINE=1 make docs
nitpick_ignore_regex = [
    ('py:obj', '(?s).*'),
    ('py:class', r'callable|[sS]equence|matplotlib axes|.*[\[\]].*'),
    ('py:class', 'LaplacianSystem|Matrix|Observations|Restorer'),
    ('py:class', r'array|DataArray|DataFrame|Series|PathLike|numpy\.ndarray'),
]
if os.environ.get('DOCS_ONLINE'):
    extensions.append('sphinx.ext.intersphinx')
    intersphinx_mapping = {
        'python': ('https://docs.python.org/3', None),
        'torch': ('https://docs.pytorch.org/docs/stable', None),
        'torch_geometric': (
            'https://pytorch-geometric.readthedocs.io/en/latest',
            None,
        ),
    }
else:
    nitpick_ignore_regex.append(
        ('py:.*', r'(torch|torch_geometric|torch_sparse|pandas|pathlib)(\..*)?')
    )
