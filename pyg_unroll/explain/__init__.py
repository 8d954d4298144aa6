"""Looking into models: steps, filters, learned graphs, parameters.

Not imported by :obj:`import pyg_unroll`; plots need the extra :obj:`viz`.
"""

from pyg_unroll.explain.graphs import (
    LayerNeighbourhood,
    Neighbourhood,
    learned_graphs,
    neighbourhood,
)
from pyg_unroll.explain.parameters import (
    LearnedMetric,
    ParameterTable,
    SpectralResponse,
    learned_metrics,
    parameter_table,
    spectral_response,
)
from pyg_unroll.explain.trace import LayerTrace, Trace, trace

__all__ = [
    'LayerNeighbourhood',
    'LayerTrace',
    'LearnedMetric',
    'Neighbourhood',
    'ParameterTable',
    'SpectralResponse',
    'Trace',
    'learned_graphs',
    'learned_metrics',
    'neighbourhood',
    'parameter_table',
    'spectral_response',
    'trace',
]
