"""A catalogue of bad input to whole classes and functions.

All errors are `ValueError`; the text names the argument in quotes, says what
was received, and where it is not obvious how to mend it. Those of checkers
that many share are in `test_checks.py`, `test_inputs.py` and `test_graph.py`:
here is one case for each checker that a class uses.
"""

import re

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

from pyg_unroll import (
    Demosaic,
    GLRConv,
    GraphDemosaic,
    GraphInterpolator,
    GridGraph,
    GTVConv,
    Inpaint,
    InterpolateFeatures,
    KNNGraph,
    MahalanobisGraph,
    TemporalProduct,
    Topology,
    cfa_mask,
    from_product,
    image_to_data,
    mosaic,
    ops,
    solvers,
)
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock, SelfEnsemble, Tiled

NAN = float('nan')
PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
X = torch.tensor([[0.0], [1.0], [2.0]])
X3 = X.unsqueeze(-1)
ONES = torch.ones(4)
EDGES = torch.ones(2, 1)
MASK = torch.tensor([True, False, True])
TOPOLOGY = Topology.from_edge_index(PATH, 3)
IMAGE = torch.rand(3, 4, 4)
GRID = image_to_data(IMAGE)
BAYER = cfa_mask('RGGB', 4, 4)
IMAGES, MASKS = IMAGE[None], BAYER[None]
HEADED = torch.ones(4, 3)


def glr(*args, **kwargs):
    return GLRConv(2)(*args, **kwargs)


def gtv(*args, **kwargs):
    return GTVConv(2)(*args, **kwargs)


def data(**kwargs):
    return Data(**kwargs)


def on_path(**kwargs):
    return Data(x=X, edge_index=PATH, **kwargs)


def product():
    return TemporalProduct()(Data(x=X.expand(-1, 2), edge_index=PATH))


def points():
    return Data(x=torch.rand(9), pos=torch.rand(9, 2), mask=torch.arange(9) > 3)


def fitted():
    return GraphInterpolator(kriging=False).fit(points())


def demosaic():
    return Demosaic([GuidedBlock(hidden_channels=2)])


def inpaint():
    return Inpaint([GuidedBlock(hidden_channels=2)])


def soft():
    return Demosaic([GuidedBlock(hidden_channels=2, fidelity='soft')])


TENSOR = "must be a tensor of shape .*got 'list'.*'torch.as_tensor'"
POSITIVE = "'{}' must be a positive integer \\(got {}\\)"
FINITE = "'{}' must be positive and finite \\(got {}\\)"
DATA = "'data' must be a homogeneous 'Data' or 'Batch' \\(got 'Tensor'\\)"

LAYERS = [
    case
    for conv in (glr, gtv)
    for case in (
        # The reader of signals, the start, the graph and its weights.
        (lambda c=conv: c(X[:, 0], PATH), "'x' must have shape.*unsqueeze"),
        (lambda c=conv: c(X, PATH, mask=~MASK & MASK), "'x' has no known"),
        (
            lambda c=conv: c(
                X / torch.tensor([[1.0], [0], [1]]), PATH, mask=MASK
            ),
            r"'x' must be finite \(got inf at node 1.*'torch.where",
        ),
        (lambda c=conv: c(X, PATH.numpy()), "'edge_index'.*got 'ndarray'"),
        (
            lambda c=conv: c(X, PATH, -ONES),
            r"'edge_weight' must be finite and non-negative \(got -1.0.*\(0, 1",
        ),
    )
] + [
    (
        lambda: glr((X, X), PATH),
        r"'x' must be one tensor \(got 'tuple'\).*no bipartite form",
    ),
    (
        lambda: glr(X, PATH, HEADED),
        "'edge_weight' has 3 heads, but the layer has 1.*'heads=3'",
    ),
    (
        lambda: glr(X, PATH, torch.ones(2, 4, 1)),
        r"'edge_weight' holds weights of 2 samples.*'x' must.*got \[3, 1\]",
    ),
    (
        lambda: glr(X.expand(2, -1, -1), PATH, torch.ones(2, 4, 3)),
        "'edge_weight' has 3 heads, but the layer has 1",
    ),
    (
        lambda: glr(X, PATH, mask=MASK, confidence=X),
        "'confidence' was given.*fidelity='soft'",
    ),
    (lambda: glr(X, PATH, warm_start=[0.0]), f"'warm_start' {TENSOR}"),
    (
        lambda: glr(X, PATH, warm_start=X[:2]),
        r"'warm_start' must have shape \[3, 1\] \(got \[2, 1\]\), as 'x'",
    ),
    (
        lambda: glr(X, PATH, warm_start=X * NAN),
        r"'warm_start' must be finite \(got nan at index \[0, 0\]",
    ),
    (
        lambda: glr(X, PATH, state=X),
        "'state' must be None: the layer has no state.*'warm_start'",
    ),
    (lambda: gtv(X, PATH, state=[0.0]), f"'state' {TENSOR}"),
    (
        lambda: gtv(X, PATH, state=X),
        r"'state' must have shape \[2, 1, 1\].*got \[3, 1\]",
    ),
    (
        lambda: gtv(X.expand(2, -1, -1), PATH, state=X3),
        r"'state' must have shape \[2, 2, 1, 1\].*got \[3, 1, 1\]",
    ),
    (
        lambda: gtv(X, PATH, ONES * 1e30),
        r"'edge_weight' is too large for torch.float32.*1.0e\+30.*its maximum",
    ),
    (lambda: GLRConv(0), POSITIVE.format('num_steps', 0)),
    (lambda: GLRConv(1, heads=True), POSITIVE.format('heads', True)),
    (lambda: GLRConv(1, fidelity='x'), r"'fidelity' must be one of.*got 'x'"),
    (lambda: GLRConv(1, mu=0), FINITE.format('mu', 0)),
    (lambda: GLRConv(1, order='2'), r"'order' must be one of 1, 2 \(got '2'\)"),
    (lambda: GLRConv(1, spectrum=(2, 1)), r"'spectrum'.*got \(2, 1\)"),
    (lambda: GLRConv(1, spectrum=(0.0, 2)), r"'spectrum'.*got \(0.0, 2\)"),
    (lambda: GLRConv(1, spectrum=2.0), r"'spectrum' must be an.*got 2\.0"),
    (lambda: GTVConv(0), POSITIVE.format('num_iters', 0)),
    (lambda: GTVConv(2, 1.5), POSITIVE.format('num_steps', 1.5)),
    (lambda: GTVConv(1, heads=0), POSITIVE.format('heads', 0)),
    (lambda: GTVConv(1, fidelity='x'), r"'fidelity' must be one of.*got 'x'"),
    (lambda: GTVConv(1, mu=-1), FINITE.format('mu', -1)),
    (lambda: GTVConv(1, rho=NAN), FINITE.format('rho', 'nan')),
    (lambda: GTVConv(1, spectrum=(2, 1)), r"'spectrum'.*got \(2, 1\)"),
]

SOLVERS = [
    case
    for solve in (solvers.glr, solvers.gtv)
    for case in (
        (lambda s=solve: s(X[:, 0], PATH), "'x' must have shape.*unsqueeze"),
        (lambda s=solve: s(X, PATH, fidelity='x'), r"'fidelity' must.*got 'x'"),
        (lambda s=solve: s(X, PATH, mu=-1.0), FINITE.format('mu', -1.0)),
        (lambda s=solve: s(X, PATH, tol=0), FINITE.format('tol', 0)),
        (
            lambda s=solve: s(X, PATH, max_steps=2.5),
            POSITIVE.format('max_steps', 2.5),
        ),
        (
            lambda s=solve: s(X, PATH, mask=MASK, fill='median'),
            "'fill' must be a finite number, 'mean' or None.*'median'",
        ),
        (
            lambda s=solve: s(X, PATH[:, :0], mask=MASK),
            r"'mask' has no known entry.*of 1 node\(s\) \(1\).*'fill'",
        ),
        (
            lambda s=solve: s(X, PATH, HEADED),
            "'edge_weight' must have one value per edge.*3 heads",
        ),
    )
] + [
    (lambda: solvers.glr(X, PATH, mask=[True]), f"'mask' {TENSOR}"),
    (lambda: solvers.glr(X, PATH, mu=None), FINITE.format('mu', None)),
    (
        lambda: solvers.glr(X, PATH, mu=torch.ones(2)),
        r"'mu' must be one number \(got shape \[2\]\)",
    ),
    (
        lambda: solvers.glr(X, PATH, mask=MASK, fill=[0.0]),
        r"'fill' must be a finite number.*got \[0.0\]",
    ),
    (
        lambda: solvers.glr(X, PATH, mask=MASK, fill=NAN),
        "'fill' must be a finite number.*got nan",
    ),
    (
        lambda: solvers.glr(X.expand(2, -1, -1), PATH),
        r"'x' must have shape \[num_nodes, features\].*\(got \[2, 3, 1\]\)",
    ),
    (lambda: solvers.glr(X, PATH, order=0), "'order' must be one of 1, 2"),
    (
        lambda: solvers.gtv(X.clone().requires_grad_(), PATH),
        "'x' requires gradients.*'GTVConv'",
    ),
]

OPERATORS = [
    (lambda: ops.gradient(PATH, X3), "'topology'.*from_edge_index"),
    (lambda: ops.gradient(TOPOLOGY, [1.0]), f"'x' {TENSOR}"),
    (lambda: ops.gradient(TOPOLOGY, X), r"'x' must have shape \[3, features"),
    (lambda: ops.divergence(TOPOLOGY, X3), "'z'.*one row per undirected edge"),
    (lambda: ops.laplacian(TOPOLOGY, EDGES[:1], X3), "'weight'.*got .1, 1"),
    (
        lambda: ops.laplacian(TOPOLOGY, EDGES.double(), X3),
        "'weight' and 'x' must agree in type and heads",
    ),
    (
        lambda: ops.edge_dot(TOPOLOGY, X3, X3.expand(-1, 2, -1)),
        "'a' and 'b' must have the same number of features.*1 and 2",
    ),
    (lambda: ops.degree(TOPOLOGY, EDGES[:, 0]), r"'weight' must have shape"),
    (
        lambda: ops.degree(TOPOLOGY, EDGES.long()),
        r"'weight'.*'weight.float\(\)'",
    ),
    (lambda: ops.endpoint_sum(TOPOLOGY, X3), r"'x' must have shape \[3, heads"),
    (lambda: ops.log_degree(TOPOLOGY, X), "'distance' must have shape"),
]

TRANSFORMS = [
    (
        lambda: KNNGraph(1)(data(pos=X, batch=torch.tensor([0, 1, 0]))),
        "'data.batch' must be sorted",
    ),
    (
        lambda: MahalanobisGraph(-1).metric,
        r"the metric has no size yet \('in_channels=-1'\)",
    ),
    (lambda: GridGraph(5), r"'window' must be one of \[4, 8, 12, 24\].*got 5"),
    (lambda: GridGraph(8.0), r"'window' must be one of.*got 8\.0"),
    (lambda: GridGraph([1]), "'window' must list integer.*got 1"),
    (lambda: GridGraph([(0, 0)]), r"'window' must not hold \(0, 0\)"),
    (lambda: GridGraph([]), "'window' must hold at least one offset"),
    (lambda: GridGraph()(X), DATA),
    (lambda: GridGraph()(data(x=X)), "'data' has no 'height' and 'width'"),
    (
        lambda: GridGraph()(data(x=X, height=2, width=2)),
        "'data' has 3 nodes, but its 'height' and 'width' make 4 pixels",
    ),
    (lambda: KNNGraph(0), POSITIVE.format('k', 0)),
    (lambda: KNNGraph()(X), DATA),
    (lambda: KNNGraph()(data(x=X)), "'data' has no positions; set 'data.pos'"),
    (lambda: KNNGraph(3)(data(pos=X)), "'k' must be smaller.*k=3 for 3 points"),
    (lambda: KNNGraph(1)(data(pos=X * NAN)), r"'data.pos'.*nan\] at node 0"),
    (lambda: KNNGraph(1)(data(pos=X3)), r"'data.pos'.*of \[3, 1, 1\]"),
    (lambda: KNNGraph(1)(data(pos=X[:, :0])), r"'data.pos'.*of \[3, 0\]"),
    (
        lambda: MahalanobisGraph(0),
        r"'in_channels' must be positive, or -1.*got 0\)",
    ),
    (lambda: MahalanobisGraph('x'), r"'in_channels' must be.*got 'x'\)"),
    (lambda: MahalanobisGraph(1, heads=1.5), POSITIVE.format('heads', 1.5)),
    (lambda: MahalanobisGraph(1, rank=0), POSITIVE.format('rank', 0)),
    (
        lambda: MahalanobisGraph(1, normalization='col'),
        r"'normalization' must be one of.*got 'col'",
    ),
    (lambda: MahalanobisGraph(1)(X), DATA),
    (
        lambda: MahalanobisGraph(1, attr='f')(on_path()),
        "'data' has no features 'f'.*'attr'",
    ),
    (
        lambda: MahalanobisGraph(1)(data(x=X)),
        "'data' has no 'edge_index'; apply 'GridGraph' or 'KNNGraph'",
    ),
    (
        lambda: MahalanobisGraph(2)(on_path()),
        r"'features' must have shape.*got \[3, 1\].*'in_channels'",
    ),
    (
        lambda: MahalanobisGraph(1)(data(x=X.long(), edge_index=PATH)),
        r"'data.x' must be floating point \(got torch.int64",
    ),
    (
        lambda: MahalanobisGraph(1)(data(x=X * NAN, edge_index=PATH)),
        r"'data.x' must be finite \(got nan",
    ),
    (
        lambda: MahalanobisGraph(1)(data(x=X * 1e30, edge_index=PATH)),
        r"'data.x' is too large for torch.float32 \(up to 2.0e\+30\)",
    ),
    (
        lambda: MahalanobisGraph(1, normalization='row').edge_weights(
            X, TOPOLOGY
        ),
        "normalization='row' gives weights that differ by direction",
    ),
    (lambda: TemporalProduct(0), FINITE.format('time_weight', 0)),
    (lambda: TemporalProduct(period=1), r"'period' must be.*\(got 1\)"),
    (lambda: TemporalProduct(period_weight=1.0), "without a 'period'"),
    (lambda: TemporalProduct(attrs='mask'), r"'attrs'.*write \['mask'\]"),
    (lambda: TemporalProduct(attrs=['m'])(on_path()), "'attrs' names 'm'"),
    (lambda: TemporalProduct()(HeteroData()), "'data'.*got 'HeteroData'"),
    (lambda: TemporalProduct()(data(x=X)), "'data' has no 'edge_index'"),
    (
        lambda: TemporalProduct()(data(x=X[:, 0], edge_index=PATH)),
        r"'data.x' must have shape.*got \[3\]",
    ),
    (
        lambda: TemporalProduct(period=5)(on_path()),
        "'period' must be smaller.*5 for 1",
    ),
    (lambda: from_product(data(x=X)), "'num_time_steps'.*'TemporalProduct'"),
    (lambda: from_product(product(), [1.0]), f"'x' {TENSOR}"),
    (
        lambda: from_product(product(), X),
        r"'x' must have shape \[6\].*\[3, 1\]",
    ),
    (
        lambda: InterpolateFeatures(None),
        "'missing_mask' must be a tensor.*got 'NoneType'",
    ),
    (lambda: InterpolateFeatures(X), "'missing_mask'.*got torch.float32"),
    (
        lambda: InterpolateFeatures(MASK, normalization='row'),
        "'normalization' must be.*got 'row'",
    ),
    (lambda: InterpolateFeatures(MASK, order=0), "'order' must be one of 1, 2"),
    (lambda: InterpolateFeatures(MASK, fill='max'), "'fill' must.*got 'max'"),
    (lambda: InterpolateFeatures(MASK, tol=-1), FINITE.format('tol', -1)),
    (
        lambda: InterpolateFeatures('m')(on_path()),
        "'missing_mask' names 'm'.*set data.m",
    ),
    (
        lambda: InterpolateFeatures(MASK[:2])(on_path()),
        r"'missing_mask' must have shape \[3\] or.*got \[2\]",
    ),
    (
        lambda: InterpolateFeatures(MASK)(data(x=X)),
        "'data' has no 'edge_index'; .* a sparse 'adj_t'",
    ),
    (
        lambda: InterpolateFeatures(MASK)(data(x=X * NAN, edge_index=PATH)),
        "'data.x' must be finite.*node 1.*'missing_mask'",
    ),
    (
        lambda: InterpolateFeatures(MASK)(on_path(edge_weight=-ONES)),
        r"'data.edge_weight' must be finite and non-negative \(got -1",
    ),
]

RESTORERS = [
    (lambda: demosaic()(IMAGE), DATA),
    (lambda: demosaic()(GRID), r"'data' must have a 'mask'.*pyg_unroll.mosaic"),
    (
        lambda: demosaic()(Data(mask=BAYER)),
        r"'data.x' must be a tensor .*got 'NoneType'",
    ),
    (
        lambda: demosaic()(Data(x=GRID.x, mask=GRID.x > 0)),
        r"'data' has no 'height' and 'width'.*image_to_data",
    ),
    (
        lambda: demosaic()(Data(**GRID, mask=GRID.x)),
        "'data.mask' must be boolean",
    ),
    (
        lambda: demosaic()(mosaic(IMAGE.double())),
        r'must have the type of the model, torch.float32 \(got torch.float64',
    ),
    (
        lambda: demosaic().half()(mosaic(IMAGE)),
        "'model' must not be of type torch.float16.*torch.bfloat16",
    ),
    (
        lambda: demosaic()(mosaic(IMAGE, 'X-Trans')),
        "'mask' must be that of Bayer sensors.*GraphDemosaic",
    ),
    (
        lambda: demosaic().restore(IMAGE, BAYER),
        r"'image' must be.*of shape \[batch, 3.*\.unsqueeze\(0\)",
    ),
    (
        lambda: demosaic().restore(IMAGES, IMAGE),
        r"'mask' must be.*of shape \[batch, 3.*\.unsqueeze\(0\)",
    ),
    (
        lambda: demosaic().restore(IMAGES[:, :1], MASKS),
        r"'image' must have shape \[batch, 3, .*\(got \[1, 1, 4, 4\]\)",
    ),
    (
        lambda: demosaic().restore((255 * IMAGES).byte(), MASKS),
        "'image' must be floating point.*uint8.*255",
    ),
    (
        lambda: demosaic().restore(IMAGES, IMAGES),
        "'mask' must be boolean.*got torch.float32",
    ),
    (
        lambda: demosaic().restore(IMAGES, MASKS[:, :, :2]),
        r"'mask' must have shape \[1, 3, 4, 4\].*\[1, 3, 2, 4\]",
    ),
    (
        lambda: demosaic().restore(
            IMAGES.expand(2, -1, -1, -1), MASKS.expand(3, -1, -1, -1)
        ),
        r"'mask' must have shape.*\[3, 3, 4, 4\]",
    ),
    (
        lambda: demosaic().restore(IMAGES * NAN, MASKS),
        "'image' must be finite where it is known",
    ),
    (
        lambda: inpaint().restore(IMAGES, MASKS & False),
        "'image' has no known entry in feature 0",
    ),
    (
        lambda: demosaic().estimates(IMAGES, MASKS, 0.1),
        "'noise_std' was given.*fidelity='soft'",
    ),
    (
        lambda: SelfEnsemble(demosaic()).restore(IMAGES, MASKS, -0.1),
        r"'noise_std' must be finite and non-negative.*got -0\.1",
    ),
    *(
        (
            lambda n=noise: soft().restore(IMAGES, MASKS, n),
            r"'noise_std' must be finite and non-negative, one value, one for "
            r'each of 1 image\(s\), or a map',
        )
        for noise in (-1.0, NAN, torch.ones(3), torch.ones(1, 1, 4, 5))
    ),
    (
        lambda: soft().restore(IMAGES, MASKS, -0.1 * IMAGES[:, :1]),
        "'noise_std' must be finite and non-negative",
    ),
    (
        lambda: soft().restore(IMAGES, MASKS, 20.0),
        r"'noise_std' must be in the unit of the image.*got 20\.0",
    ),
    (lambda: soft()(mosaic(IMAGE)), "6 x 6 pixels.*set 'data.noise_std'"),
    (
        lambda: demosaic().estimates(IMAGES, MASKS.flip(3)),
        r"'image' must consist of whole cells of 2 x 2.*begins at \[0, 1\]",
    ),
    (
        lambda: inpaint().estimates(IMAGES[..., :3], MASKS[..., :3]),
        r"'image' must consist of whole cells.*\[1, 3, 4, 3\]",
    ),
    (lambda: Demosaic(neighbors=5), r"'neighbors' must be one of.*got 5\)"),
    (lambda: Tiled(demosaic(), 0), POSITIVE.format('max_pixels', 0)),
    (lambda: GuidedBlock(channels=0), POSITIVE.format('channels', 0)),
    (lambda: GuidedBlock(hidden_channels=0), POSITIVE.format('hidden_.*', 0)),
    (lambda: GuidedBlock(feature_channels=0), POSITIVE.format('feature_.*', 0)),
    (lambda: GuidedBlock(heads=0), POSITIVE.format('heads', 0)),
    (lambda: GuidedBlock(num_layers=3), r"'num_layers' must be even.*got 3\)"),
    (lambda: GuidedBlock(prior='tv'), "'prior' must be one of.*'tv'"),
    (lambda: GuidedBlock(fidelity='x'), "'fidelity' must be one of.*'x'"),
    (
        lambda: GuidedBlock(steps=(3, 2)),
        r"'steps' must be .* 1 positive integer.*prior='glr', such as "
        r'\(5,\) \(got \(3, 2\)\)',
    ),
    (lambda: GuidedBlock(steps=5), r"'steps' must be a sequence.*got 5\)"),
    (
        lambda: GuidedBlock(steps=(0,)),
        r"'steps' must be .*positive integer.*got \(0,\)\)",
    ),
    (
        lambda: GuidedBlock(weight_floor=-1),
        "'weight_floor' must be a finite, non-negative number",
    ),
    (lambda: DifferenceBlock(heads=0), POSITIVE.format('heads', 0)),
    (lambda: DifferenceBlock(prior='tv'), "'prior' must be one of.*'tv'"),
    (lambda: GraphDemosaic('tv'), r"'prior' must be one of.*got 'tv'"),
    (lambda: GraphDemosaic()(IMAGE), DATA),
    (lambda: GraphDemosaic()(GRID), "'data' must have a 'mask'"),
    (
        lambda: GraphDemosaic().restore(IMAGES, MASKS, 0.1),
        "'noise_std' was given.*'GraphDemosaic' holds",
    ),
    (
        lambda: GraphDemosaic()(mosaic(IMAGE.half())),
        "'image' must not be of type torch.float16.*torch.bfloat16",
    ),
    (
        lambda: GraphDemosaic().restore((255 * IMAGES).byte(), MASKS),
        r"'image' must be floating point.*uint8.*'image.float\(\) / 255'",
    ),
    (
        lambda: GraphDemosaic()(mosaic(IMAGE * 1.0).update({'mask': GRID.x})),
        "'data.mask' must be boolean",
    ),
]

ESTIMATORS = [
    (
        lambda: GraphInterpolator(0).fit(points()),
        POSITIVE.format('neighbors', 0),
    ),
    (
        lambda: GraphInterpolator(2.5).fit(points()),
        POSITIVE.format('neighbors', 2.5),
    ),
    (lambda: GraphInterpolator().predict(), "call 'fit' first"),
    (lambda: GraphInterpolator().fit(X), 'requires y to be passed'),
    (lambda: GraphInterpolator().fit(data(pos=X)), "'data.x' must be a tensor"),
    (
        lambda: GraphInterpolator().fit(on_path(mask=X)),
        "'data.mask' must be boolean.*float32",
    ),
    (
        lambda: GraphInterpolator().fit(data(x=X / 0, pos=X, mask=MASK)),
        "'data.x' must be finite.*nan at node 0.*'data.mask'",
    ),
    (
        lambda: GraphInterpolator().fit(data(x=X * NAN, pos=X)),
        "'data.x' has no known entry",
    ),
    (
        lambda: GraphInterpolator().fit(data(x=X, mask=MASK)),
        "'data' must have 'edge_index', or 'pos' of more.*got neither",
    ),
    (
        lambda: GraphInterpolator().fit(data(x=X, pos=X[:2], mask=MASK)),
        r"'data.pos' must be real, of shape \[3, features\].*of \[2, 1\]",
    ),
    (
        lambda: GraphInterpolator().fit(data(x=X, pos=X * NAN, mask=MASK)),
        r"'data.pos' must be finite \(got nan at index \[0, 0\]\)",
    ),
    (
        lambda: GraphInterpolator().fit(Batch.from_data_list([points()])),
        r"'data' must be one graph.*to_data_list\(\)",
    ),
    (
        lambda: fitted().predict_interval(coverage=1.0),
        r"'coverage' must lie in \(0, 1\) \(got 1\.0\)",
    ),
    (lambda: fitted().predict_interval(), 'coverage=0.9 need 12 known'),
    (
        lambda: fitted().predict_interval(coverage=0.99),
        'coverage=0.99 need 99 known',
    ),
    (
        lambda: GraphInterpolator().fit(on_path(edge_weight=HEADED)),
        r"'data.edge_weight' must be one number per edge \(got 3\)",
    ),
    (lambda: fitted().score(None, [1.0]), f"'y' {TENSOR}"),
    (lambda: fitted().score(None, X), r"'y' must have shape \[9\] or \[9, 1\]"),
    (
        lambda: fitted().score(None, torch.full((9,), NAN)),
        "'y' has no feature with missing entries",
    ),
    (
        lambda: fitted().predict(
            data(x=torch.rand(9, 2), pos=torch.rand(9, 2))
        ),
        r"'data' must have as many features of 'x'.*'fit', \(1, 2, 0\) \(got",
    ),
    (lambda: fitted().metric(), 'no metric was learned'),
]

CATALOGUE = {
    'layer': LAYERS,
    'solver': SOLVERS,
    'operator': OPERATORS,
    'transform': TRANSFORMS,
    'restorer': RESTORERS,
    'estimator': ESTIMATORS,
}


@pytest.mark.parametrize(
    ('call', 'text'),
    [
        pytest.param(*case, id=f'{part}-{k}')
        for part, cases in CATALOGUE.items()
        for k, case in enumerate(cases)
    ],
)
def test_bad_input(call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        call()
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
