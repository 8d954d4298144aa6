"""Interpolation of missing signals on graphs and points."""

from collections import defaultdict
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll import checks
from pyg_unroll.estimators.blending import LEAST_KNOWN, FeatureFit
from pyg_unroll.estimators.inputs import Sites
from pyg_unroll.threads import one_thread


class GraphInterpolator:
    r"""Interpolates missing signals on a graph or on points, with prediction
    intervals.

    Predictions of several candidates are blended: smoothness on the given
    graph, with its weights as they are, sharpened or without them, and on that
    of nearest neighbours, of first order (:math:`\mathbf{x}^{\top} \mathbf{L}
    \mathbf{x}`, as :class:`~pyg_unroll.nn.GLRConv`), normalised by degrees, and
    of second order; and, of points, kriging with a learned Mahalanobis metric
    of position and covariates. The strength of each prior, the metric and the
    blend are learned from known nodes alone: by predicting each from the others
    (cross-validated stacking, Breiman, 1996), or by likelihood. All systems are
    sparse.

    Points without edges that have the same position and covariates are one
    site, whose observation is the mean over its known points. Several signals
    are rotated to their principal components, which are interpolated one by
    one; features that are known at different nodes are fitted separately.

    Args:
        neighbors (int, optional): Neighbours of each point.
            (default: :obj:`8`)
        samples (bool, optional): Take features as samples of one signal, such
            as time steps of a sensor: they then share a unit.
            (default: :obj:`False`)
        covariates (str, optional): Attribute of the data with covariates of
            all nodes, :math:`(N)` or :math:`(N, D)`; used with positions.
            (default: :obj:`'covariates'`)
        kriging (bool, optional): Use kriging, too. (default: :obj:`True`)
        seed (int, optional): Seed of folds and kriging. (default: :obj:`0`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` with :obj:`x`
          :math:`(N)` or :math:`(N, F)`, :obj:`mask`, True where known, of that
          shape or :math:`(N)` (where :obj:`x` is not NaN if absent), and an
          undirected :obj:`edge_index` or :obj:`adj_t`, with symmetric
          :obj:`edge_weight` (larger is nearer) *(optional)*, or :obj:`pos`
          :math:`(N, P)`, or both
        - **output:** signals :math:`(N, F)`, known entries unchanged

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> pos = torch.rand(300, 2)
        >>> data = Data(x=pos.sum(1), pos=pos, mask=torch.rand(300) < 0.5)
        >>> filled = GraphInterpolator().fit(data).predict()
        >>> bool((filled[:, 0] - data.x).abs().max() < 0.05)
        True
    """

    _checks: ClassVar[checks.Checks] = {
        'neighbors': checks.check_positive,
        'samples': checks.one_of(False, True),
        'kriging': checks.one_of(False, True),
        'seed': checks.check_count,
    }

    def __init__(
        self,
        neighbors: int = 8,
        samples: bool = False,
        covariates: str = 'covariates',
        kriging: bool = True,
        seed: int = 0,
    ) -> None:
        checks.check_parameters(self._checks, locals())
        self.neighbors = neighbors
        self.samples = samples
        self.covariates = covariates
        self.kriging = kriging
        self.seed = seed
        self._fitted: Sites | None = None
        self._fits: list[FeatureFit] = []

    @torch.inference_mode(False)  # the metric is learned by gradients
    @one_thread()
    def fit(self, data: Data) -> Self:
        """Learns from the known nodes.

        Args:
            data (Data): See the class.

        Raises:
            ValueError: If shapes or types do not fit, values are not finite,
                there is neither a graph nor positions, or nothing is known of
                a feature.
        """
        sites = Sites.read(data, self.covariates, self.neighbors)
        patterns, which = sites.mask.unique(dim=1, return_inverse=True)
        options = self.samples, self.kriging, self.seed
        self._fits = [
            FeatureFit.make(sites, (which == k).nonzero().squeeze(1), *options)
            for k in range(patterns.size(1))
        ]
        self._fitted = sites
        return self

    @one_thread()
    def predict(self, data: Data | None = None) -> Tensor:
        """Predicts missing entries.

        To predict at new points, give them to :meth:`fit`, too, as nodes
        whose signal is missing.

        Args:
            data (Data, optional): The same features on another graph or on
                other points, some of them known, to which the fit is applied;
                those of :meth:`fit` if :obj:`None`. (default: :obj:`None`)

        Returns:
            Signals :math:`(N, F)` in the type of :obj:`data.x`.

        Raises:
            ValueError: If it was not fitted, or the data does not fit.

        Warns:
            ConvergenceWarning: If a system was not solved to its tolerance.
        """
        sites = self._read(data)
        out = torch.empty_like(sites.x)
        for fit in self._fits:
            out[:, fit.features] = fit.predict(sites)
        return torch.where(sites.mask, sites.x, out).to(sites.like)

    @one_thread()
    def predict_interval(
        self, data: Data | None = None, coverage: float = 0.9
    ) -> tuple[Tensor, Tensor]:
        r"""Prediction intervals that hold missing values with a given
        probability.

        Their width follows the posterior deviation of the likeliest candidate
        (exact on small graphs, Hutchinson's estimate on large ones), scaled
        such that they would have held that share of the known nodes, each
        predicted from the others (split conformal prediction).

        Args:
            data (Data, optional): See :meth:`predict`.
                (default: :obj:`None`)
            coverage (float, optional): The probability.
                (default: :obj:`0.9`)

        Returns:
            Lower and upper ends, :math:`(N, F)` each; known entries are both.

        Raises:
            ValueError: If it was not fitted, too few nodes were known, or
                :obj:`coverage` is not between 0 and 1.
        """
        checks.check_between('coverage', coverage, high=1.0)
        sites = self._read(data)
        width = torch.empty_like(sites.x)
        for fit in self._fits:
            width[:, fit.features] = fit.half_width(sites, coverage)
        width = torch.where(sites.mask, 0, width).to(sites.like)
        middle = self.predict(data)
        return middle - width, middle + width

    def score(self, truth: Tensor, data: Data | None = None) -> float:
        r"""Coefficient of determination :math:`R^2` of missing entries.

        Args:
            truth (torch.Tensor): True signals :math:`(N)` or
                :math:`(N, F)`, NaN where not known either.
            data (Data, optional): See :meth:`predict`.
                (default: :obj:`None`)

        Returns:
            Mean over the features that have missing entries to score.

        Raises:
            ValueError: If it was not fitted, shapes do not fit, or there is
                nothing to score.
        """
        mask = self._read(data).mask
        vector = [mask.shape[:1]] if mask.size(1) == 1 else []
        checks.check_shape('truth', truth, *vector, mask.shape)
        truth = truth.detach().cpu().double().view(mask.shape)
        out = self.predict(data).cpu().double()
        scored = ~mask & ~truth.isnan()
        scores = []
        for guess, value, rows in zip(out.T, truth.T, scored.T, strict=True):
            guess, value = guess[rows], value[rows]
            total = (value - value.mean()).square().sum()
            if len(value) > 1 and total > 0:
                error = (guess - value).square().sum()
                scores.append(float(1 - error / total))
        if not scores:
            raise ValueError(
                "'truth' has no feature with missing entries that differ: "
                'there is nothing to score'
            )
        return sum(scores) / len(scores)

    @property
    def report(self) -> dict[str, float]:
        """Mean weights of the blended candidates by name; they are not
        negative and need not sum to one.
        """
        blends = [blend for fit in self._fits for blend in fit.blends]
        total: dict[str, float] = defaultdict(float)
        for blend in blends:
            for weight, candidate in blend.terms:
                total[candidate.name] += weight / len(blends)
        return dict(total)

    def metric(self, feature: int = 0) -> Tensor:
        r"""The learned metric :math:`\mathbf{M} = \mathbf{R}^{\top}
        \mathbf{R}` of position and covariates, in their units, of the kriging
        candidate of the largest weight, :math:`(D, D)`.

        Args:
            feature (int, optional): Feature of the signal; the metric is that
                of the strongest component of all that are known at the same
                nodes. (default: :obj:`0`)

        Raises:
            ValueError: If it was not fitted, there is no such feature, or no
                metric was learned.
        """
        self._read(None)
        fits = {f: fit for fit in self._fits for f in fit.features.tolist()}
        if feature not in fits:
            raise ValueError(
                f"'feature' must be an integer in [0, {len(fits)}), the "
                f"features of 'data.x' (got {feature!r})"
            )
        metric = fits[feature].blends[0].metric()
        if metric is None:
            raise ValueError(
                'no metric was learned: that takes positions and at least '
                f'{LEAST_KNOWN} known nodes'
            )
        return metric

    def _read(self, data: Data | None) -> Sites:
        """The sites of other data, or those of the fit."""
        if self._fitted is None:
            raise ValueError("call 'fit' first")
        if data is None:
            return self._fitted
        sites = Sites.read(data, self.covariates, self.neighbors)
        sites.match(self._fitted)
        return sites

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(neighbors={self.neighbors}, '
            f'samples={self.samples}, kriging={self.kriging})'
        )
