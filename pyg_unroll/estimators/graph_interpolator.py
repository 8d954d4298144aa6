"""Interpolation of signals on points and graphs."""

from collections import defaultdict
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data
from torch import Tensor
from torch_geometric.data.data import BaseData

from pyg_unroll import checks
from pyg_unroll.estimators import saving
from pyg_unroll.estimators.blending import Blend
from pyg_unroll.estimators.feature_fit import LEAST_KNOWN, FeatureFit
from pyg_unroll.estimators.inputs import Sites, SiteSignal
from pyg_unroll.estimators.kriging import Kriging
from pyg_unroll.estimators.progress import progress
from pyg_unroll.estimators.smoothing import GraphSmoother
from pyg_unroll.estimators.tables import Columns, Target, to_numpy
from pyg_unroll.estimators.trends import Detrended
from pyg_unroll.graph import Topology
from pyg_unroll.threads import one_thread

# Arrays as PyTorch takes them.
_NUMBERS: dict[str, Any] = {'dtype': np.float64, 'order': 'C', 'copy': True}
# Classes that files of estimators hold.
_SAVED: list[type] = [
    *(Sites, SiteSignal, Topology, FeatureFit, Blend),
    *(Kriging, GraphSmoother, Detrended, Columns, Target),
]


class GraphInterpolator(RegressorMixin, BaseEstimator):
    r"""Interpolates signals on points or on a graph, with prediction
    intervals.

    A regressor of scikit-learn: :obj:`fit(X, y)` takes a table of points,
    positions and covariates, and :obj:`predict(X)` goes anywhere else.
    Instead, :obj:`fit(data)` takes :class:`~torch_geometric.data.Data` some of
    whose nodes are known, joined by edges or near each other, and
    :obj:`predict()` fills in the others.

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
        neighbors (int, optional): Neighbours of each node of data with
            positions. (default: :obj:`8`)
        samples (bool, optional): Take features as samples of one signal, such
            as time steps of a sensor: they then share a unit.
            (default: :obj:`False`)
        covariates (str, optional): Attribute of the data with covariates of
            all nodes, :math:`(N)` or :math:`(N, D)`; used with positions.
            (default: :obj:`'covariates'`)
        kriging (bool, optional): Use kriging, too; tables need it.
            (default: :obj:`True`)
        positions (int or list, optional): Columns of a table that are
            positions: so many of the first, or their names or indices. The
            others are covariates. (default: :obj:`2`)
        geographic (bool, optional): Positions are longitude and latitude in
            degrees. (default: :obj:`False`)
        seed (int, optional): Seed of folds and kriging. (default: :obj:`0`)

    Attributes:
        report_ (dict[str, float]): Mean weights of the blended candidates by
            name; they are not negative and need not sum to one.
        n_features_in_ (int): Columns of the table.
        feature_names_in_ (numpy.ndarray): Their names, if they have any.

    Shapes:
        - **X:** table :math:`(N, P + D)` of places: an array, a tensor or a
          data frame, whose columns that are no numbers are categories; points
          of a GeoDataFrame are its first columns
        - **y:** signal :math:`(N)` or :math:`(N, F)`, NaN where not known;
          results are of its kind
        - **data:** :class:`~torch_geometric.data.Data` with :obj:`x`
          :math:`(N)` or :math:`(N, F)`, :obj:`mask`, True where known, of that
          shape or :math:`(N)` (where :obj:`x` is not NaN if absent), and an
          undirected :obj:`edge_index` or :obj:`adj_t`, with symmetric
          :obj:`edge_weight` (larger is nearer) *(optional)*, or :obj:`pos`
          :math:`(N, P)`, or both; results are signals :math:`(N, F)`, known
          entries unchanged

    Example:
        >>> import torch
        >>> pos = torch.rand(150, 2)
        >>> height = pos.sum(1)
        >>> model = GraphInterpolator().fit(pos, height)
        >>> new = torch.tensor([[0.5, 0.5]])
        >>> bool((model.predict(new) - 1).abs() < 0.05)
        True

        Of a graph, or of points that are known in part:

        >>> from torch_geometric.data import Data
        >>> data = Data(x=height, pos=pos, mask=torch.rand(150) < 0.5)
        >>> filled = GraphInterpolator().fit(data).predict()
        >>> bool((filled[:, 0] - data.x).abs().max() < 0.05)
        True
    """

    _checks: ClassVar[checks.Checks] = {
        'neighbors': checks.check_positive,
        'samples': checks.one_of(False, True),
        'kriging': checks.one_of(False, True),
        'geographic': checks.one_of(False, True),
        'seed': checks.check_count,
    }

    def __init__(
        self,
        neighbors: int = 8,
        samples: bool = False,
        covariates: str = 'covariates',
        kriging: bool = True,
        positions: Any = 2,
        geographic: bool = False,
        seed: int = 0,
    ) -> None:
        self.neighbors = neighbors
        self.samples = samples
        self.covariates = covariates
        self.kriging = kriging
        self.positions = positions
        self.geographic = geographic
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @torch.inference_mode(False)  # the metric is learned by gradients
    @one_thread()
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learns from what is known.

        Args:
            X (array, DataFrame, torch.Tensor or Data): A table of places, or
                data; see the class.
            y (array, Series, DataFrame or torch.Tensor, optional): The signal
                of a table's rows; none of data.

        Raises:
            ValueError: If shapes or types do not fit, values are not finite,
                of data there is neither a graph nor positions, or nothing is
                known of a feature.
        """
        checks.check_parameters(self._checks, self.get_params())
        if isinstance(X, BaseData):
            self._refuse_signal(y)
            self._columns: Columns | None = None
            self._target: Target | None = None
            sites = self._read_data(X)
        else:
            sites = self._read_known(X, y)
        patterns, which = sites.mask.unique(dim=1, return_inverse=True)
        settings = self.samples, self.kriging, self.seed
        groups = [
            (which == k).nonzero().squeeze(1) for k in range(len(patterns.T))
        ]
        self._fits = [
            FeatureFit.make(chosen, sites.average(chosen), settings)
            for chosen in progress(groups, 'features')
        ]
        self._sites = sites
        self.report_ = self._report()
        return self

    @one_thread()
    def predict(
        self,
        X: Any = None,
        return_std: bool = False,
        return_interval: float | None = None,
    ) -> Any:
        r"""Predicts signals at places, or the missing entries of data.

        Intervals are as wide as the posterior deviation of the likeliest
        candidate (exact on small graphs, Hutchinson's estimate on large
        ones), scaled such that they would have held that share of the known
        values, each predicted from the others (conformal prediction). Up to a
        hundred known values, these are predicted by fits of their own, made
        when first asked for.

        Args:
            X (array, DataFrame, torch.Tensor or Data, optional): Places, in
                columns as in :meth:`fit`. Of a fit to data, data of the same
                features, some of them known, to which the fit is applied, or
                :obj:`None` for those of the fit. (default: :obj:`None`)
            return_std (bool, optional): Return standard deviations of errors,
                too. (default: :obj:`False`)
            return_interval (float, optional): Return the lower and upper ends
                of intervals, too, that hold a value with this probability,
                such as :obj:`0.9`. (default: :obj:`None`)

        Returns:
            Signals; or these, their deviations, and the pair of ends, as far
            as asked for.

        Raises:
            ValueError: If it was not fitted, :obj:`X` does not fit, or
                intervals are asked for of fewer than 12 known values.

        Warns:
            ConvergenceWarning: If a system was not solved to its tolerance.
        """
        sites = self._read(X)
        middle = self._gather(FeatureFit.predict, sites)
        middle = torch.where(sites.mask, sites.x, middle)
        results = [self._give(middle, sites, X)]
        if return_std:
            std = self._gather(FeatureFit.deviation, sites)
            std = torch.where(sites.mask, 0, std)
            results.append(self._give(std, sites, X))
        if return_interval is not None:
            width = self._half_width(sites, return_interval)
            ends = middle - width, middle + width
            results.append(tuple(self._give(end, sites, X) for end in ends))
        return results[0] if len(results) == 1 else tuple(results)

    def predict_interval(self, X: Any = None, coverage: float = 0.9) -> Any:
        r"""Prediction intervals, as :meth:`predict` returns them.

        Args:
            X (optional): See :meth:`predict`. (default: :obj:`None`)
            coverage (float, optional): The probability.
                (default: :obj:`0.9`)

        Returns:
            Lower and upper ends; known entries of data are both.

        Raises:
            ValueError: As :meth:`predict`, or if :obj:`coverage` is not
                between 0 and 1.
        """
        return self.predict(X, return_interval=coverage)[1]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        r"""Coefficient of determination :math:`R^2` of predictions.

        Args:
            X: See :meth:`predict`; of data, missing entries are scored.
            y: The truth; of data, NaN where not known either.
            sample_weight (array, optional): Weights of a table's rows.
                (default: :obj:`None`)

        Returns:
            Mean over the features; of data, over those that have missing
            entries to score.

        Raises:
            ValueError: If it was not fitted, shapes do not fit, or there is
                nothing to score.
        """
        if not isinstance(X, BaseData | None):
            return super().score(X, y, sample_weight)
        mask = self._read(X).mask
        vector = [mask.shape[:1]] if mask.size(1) == 1 else []
        checks.check_shape('y', y, *vector, mask.shape)
        truth = y.detach().cpu().double().view(mask.shape)
        out = self.predict(X).cpu().double()
        scored = ~mask & ~truth.isnan()
        scores = [
            float(r2_score(value[rows], guess[rows]))
            for guess, value, rows in zip(out.T, truth.T, scored.T, strict=True)
            if len(value[rows].unique()) > 1
        ]
        if not scores:
            raise ValueError(
                "'y' has no feature with missing entries that differ: "
                'there is nothing to score'
            )
        return sum(scores) / len(scores)

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
        self._require_fit()
        fits = {f: fit for fit in self._fits for f in fit.features.tolist()}
        if feature not in fits:
            raise ValueError(
                f"'feature' must be an integer in [0, {len(fits)}), the "
                f'features of the signal (got {feature!r})'
            )
        metric = fits[feature].blends[0][1].metric()
        if metric is None:
            raise ValueError(
                'no metric was learned: that takes positions and at least '
                f'{LEAST_KNOWN} known nodes'
            )
        return metric

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the fitted estimator to one safetensors file; :meth:`load`
        reads it without running code from it.

        Args:
            path (str or PathLike): File to write.

        Raises:
            ValueError: If it was not fitted.
        """
        self._require_fit()
        saving.write(path, [self.get_params(), vars(self)])

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Reads what :meth:`save` wrote.

        Args:
            path (str or PathLike): File to read.

        Raises:
            ValueError: If it is no such file.
        """
        params, fitted = saving.read(path, _SAVED)
        out = cls(**params)
        out.__dict__.update(fitted)
        return out

    def _read(self, X: Any) -> Sites:
        """The sites of other data or places, or those of the fit."""
        self._require_fit()
        if self._columns is None:
            if X is None:
                return self._sites
            checks.check_data(X)
            sites = self._read_data(X)
            sites.match(self._sites)
            return sites
        if X is None or isinstance(X, BaseData):
            raise ValueError(
                "'X' must be a table of places as in 'fit' (got "
                f"'{type(X).__name__}'); fit data to predict data"
            )
        return self._sites.at(self._read_places(X))

    def _require_fit(self) -> None:
        if not hasattr(self, 'report_'):
            raise NotFittedError(f"{type(self).__name__}: call 'fit' first")

    def _read_data(self, data: Any) -> Sites:
        return Sites.read(
            data, self.covariates, self.neighbors, self.geographic
        )

    def _read_places(self, X: Any, reset: bool = False) -> Tensor:
        """Features of places in a table."""
        assert self._columns is not None
        array = validate_data(
            self, self._columns.encode(X), reset=reset, **_NUMBERS
        )
        return self._columns.features(array)

    def _read_known(self, X: Any, y: Any) -> Sites:
        """Sites of a table's rows of which something is known."""
        if not self.kriging:
            raise ValueError(
                "'kriging' must be True for tables of points (got False); it "
                'is what takes them to other places'
            )
        if y is None:
            validate_data(self, to_numpy(X), y)  # says that it is required
        signal = check_array(
            to_numpy(y),
            **_NUMBERS,
            ensure_2d=False,
            ensure_all_finite='allow-nan',
            input_name='y',
            estimator=self,
        )
        self._target = Target.of(y, signal.ndim == 1)
        columns = Columns.find(to_numpy(X), self.positions, self.geographic)
        self._columns = columns
        features = self._read_places(X, reset=True)
        check_consistent_length(features, signal)
        signal = torch.from_numpy(signal).view(len(features), -1)
        known = ~signal.isnan()
        if not bool(known.any(0).all()):
            column = int((~known.any(0)).nonzero()[0])
            raise ValueError(
                f"'y' must have a known entry in each feature (got none in "
                f'feature {column}); drop it'
            )
        rows = known.any(1)
        count = columns.num_coordinates
        return Sites.of_points(features[rows], count, signal[rows])

    def _gather(self, result: Any, sites: Sites, *args: Any) -> Tensor:
        """Results of all fits, by feature."""
        out = torch.empty_like(sites.x)
        for fit in self._fits:
            out[:, fit.features] = result(fit, sites, *args)
        return out

    def _half_width(self, sites: Sites, coverage: float) -> Tensor:
        checks.check_between('coverage', coverage, high=1.0)
        width = self._gather(FeatureFit.half_width, sites, coverage)
        return torch.where(sites.mask, 0, width)

    def _give(self, value: Tensor, sites: Sites, X: Any) -> Any:
        """A result in the type of the signal."""
        if self._target is None:
            return value.to(sites.like)
        return self._target.give(value, X)

    def _report(self) -> dict[str, float]:
        blends = [blend for fit in self._fits for _, blend in fit.blends]
        total: dict[str, float] = defaultdict(float)
        for blend in blends:
            for weight, candidate in blend.terms:
                total[candidate.name] += weight / len(blends)
        return dict(total)

    @staticmethod
    def _refuse_signal(y: Any) -> None:
        if y is not None:
            raise ValueError(
                "'y' must be None with data (got a "
                f"'{type(y).__name__}'); its signal is 'data.x'"
            )
