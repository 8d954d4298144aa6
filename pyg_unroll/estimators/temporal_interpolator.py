"""Interpolation of missing sensor readings over time."""

import warnings
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor

from pyg_unroll import checks
from pyg_unroll.estimators.blending import stacking_weights
from pyg_unroll.estimators.feature_fit import least_errors, quantile
from pyg_unroll.estimators.gaps import LEAST_HELD, Horizons, hold_out
from pyg_unroll.estimators.graph_interpolator import GraphInterpolator
from pyg_unroll.estimators.progress import progress
from pyg_unroll.estimators.readings import Readings
from pyg_unroll.estimators.series import SmoothSeries
from pyg_unroll.inputs import FillWarning
from pyg_unroll.threads import one_thread

# Sensors, or times, above which courses that all share are not sought.
_LARGEST = 1000


class TemporalInterpolator(BaseEstimator):
    r"""Interpolates missing readings of sensors from their neighbours and
    from the times before and after, with prediction intervals.

    Readings less their sensor's level are smooth on the product of a sensor
    graph and time (:class:`~pyg_unroll.transforms.TemporalProduct`):

    .. math::
        \arg\min_{\mathbf{Z}} \sum_{\textrm{known}} (z_{it} - y_{it})^2 + \mu
        \left( \sum_{\{i,j\}, t} w_{ij} (z_{it} - z_{jt})^2 + \omega
        \sum_{i,t} \frac{(z_{it} - z_{i,t+1})^2}{\tau_t} \right)

    The weight of an edge between sensors is the inverse variance of their
    difference at times when both are known, the maximum-likelihood estimate;
    :math:`\tau_t` is the time between two readings. Several such candidates are
    blended: on the graph of near sensors and on that of correlated ones, and
    around courses that all sensors share, with a gain of each sensor (after
    SoftImpute, Mazumder, Hastie, Tibshirani, 2010).

    The weight :math:`\omega` of time, the noise :math:`\omega \mu` (zero holds
    the readings) and the blend are those that predict held-out readings best.
    These are single ones, and gaps as long as those that are there, counted as
    often as missing readings are as far from known ones of their sensor.
    Sensors without a reading follow last, by :class:`GraphInterpolator` from
    the filled series of the others.

    Args:
        neighbors (int, optional): Neighbours of each sensor, unless the data
            has edges. (default: :obj:`8`)
        geographic (bool, optional): Positions are longitude and latitude in
            degrees. (default: :obj:`False`)
        seed (int, optional): Seed of the held-out readings.
            (default: :obj:`0`)

    Attributes:
        report_ (dict[str, float]): Weights of the blended candidates by name,
            and the :obj:`'error'` of held-out readings (RMSE, NaN if too few
            are known to hold some out; the blend is then preset).

    Shapes:
        - **table:** times in rows, sensors in columns :math:`(T, N)`, NaN where
          not known: an array, a tensor or a data frame, whose index are times
          or numbers; **positions** :math:`(N, P)`, one row for each column, by
          name in a data frame *(optional)*; results are of its kind
        - **data:** :class:`~torch_geometric.data.Data` with :obj:`x`
          :math:`(N, T)`, :obj:`mask`, True where known, :math:`(N, T)` (where
          :obj:`x` is not NaN if absent), and an undirected :obj:`edge_index`
          (empty if sensors have no neighbours) or :obj:`pos` :math:`(N, P)`,
          and :obj:`time` :math:`(T)` *(optional)*; weights of edges are not
          used; results are readings :math:`(N, T)`
        - known readings are unchanged

    Example:
        >>> import torch
        >>> wave = torch.linspace(0, 6, 50).sin().view(50, 1)
        >>> table = wave * torch.rand(20) + torch.arange(20.0)
        >>> gaps = torch.where(torch.rand(50, 20) < 0.5, table, torch.nan)
        >>> filled = TemporalInterpolator().fit(gaps).predict()
        >>> bool((filled - table).abs().mean() < 0.1)
        True
    """

    _checks: ClassVar[checks.Checks] = {
        'neighbors': checks.check_positive,
        'geographic': checks.one_of(False, True),
        'seed': checks.check_count,
    }

    def __init__(
        self, neighbors: int = 8, geographic: bool = False, seed: int = 0
    ) -> None:
        self.neighbors = neighbors
        self.geographic = geographic
        self.seed = seed

    @one_thread()
    def fit(self, X: Any, positions: Any = None) -> Self:
        """Chooses weights by the known readings.

        Args:
            X (DataFrame, array, torch.Tensor or Data): See the class.
            positions (DataFrame, array or torch.Tensor, optional): Of the
                columns of a table; without them, sensors are joined to
                correlated ones only. (default: :obj:`None`)

        Raises:
            ValueError: If shapes or types do not fit, values are not finite,
                times do not increase, nothing is known, or data has neither a
                graph nor positions.

        Warns:
            FillWarning: If a sensor has no reading.
        """
        checks.check_parameters(self._checks, self.get_params())
        readings = self._read(X, positions)
        generator = torch.Generator().manual_seed(self.seed)
        held = hold_out(readings.mask, 0.1, generator)
        # Others for intervals, which the tuning does not see.
        fresh = hold_out(readings.mask & ~held, 0.1, generator)
        self._series = _candidates(readings)
        self._weights, self.report_ = self._blend(readings, held)
        self._horizons, self._errors = self._judge(readings, fresh)
        self._fitted = readings
        return self

    @one_thread()
    def predict(
        self,
        X: Any = None,
        positions: Any = None,
        return_interval: float | None = None,
    ) -> Any:
        """Predicts missing readings.

        Args:
            X (optional): Other sensors or times, as in :meth:`fit`, as often
                and as many, or :obj:`None` for those of the fit; only the
                blend and its weights are those of the fit.
                (default: :obj:`None`)
            positions (optional): As in :meth:`fit`. (default: :obj:`None`)
            return_interval (float, optional): Return the lower and upper ends
                of intervals, too, that hold a reading with this probability,
                such as :obj:`0.9`. (default: :obj:`None`)

        Returns:
            Readings in the kind of :obj:`X`; or these, and the pair of ends.

        Raises:
            ValueError: If it was not fitted, for other data as :meth:`fit`,
                or if intervals are asked for of too few known readings.

        Warns:
            ConvergenceWarning: If a system was not solved to its tolerance.
        """
        if not hasattr(self, 'report_'):
            raise NotFittedError(f"{type(self).__name__}: call 'fit' first")
        readings = self._fitted if X is None else self._read(X, positions)
        out, space = readings.x, None
        if not bool(readings.mask.all()):
            out = self._fill(readings, tol=1e-6)
            out = torch.where(readings.mask, readings.x, out)
            space = self._between_sensors(readings, out)
        if space is not None:
            out = torch.where(readings.silent[:, None], space.predict(), out)
        if return_interval is None:
            return readings.form.give(out)
        width = self._half_width(readings, space, return_interval)
        ends = out - width, out + width
        return readings.form.give(out), tuple(map(readings.form.give, ends))

    def predict_interval(
        self, X: Any = None, positions: Any = None, coverage: float = 0.9
    ) -> Any:
        """Prediction intervals, as :meth:`predict` returns them.

        Half their width is the quantile of the errors of held-out readings
        that were as far from others of their sensor (conformal prediction), in
        units of the usual change of a sensor from one reading to the next.
        Those of sensors without a reading are :class:`GraphInterpolator`'s;
        they are infinite without positions or edges, or where too few others
        have some.

        Args:
            X (optional): See :meth:`predict`. (default: :obj:`None`)
            positions (optional): See :meth:`predict`. (default: :obj:`None`)
            coverage (float, optional): The probability.
                (default: :obj:`0.9`)

        Returns:
            Lower and upper ends; known readings are both.

        Raises:
            ValueError: As :meth:`predict`, or if :obj:`coverage` is not
                between 0 and 1.
        """
        return self.predict(X, positions, coverage)[1]

    def _read(self, X: Any, positions: Any) -> Readings:
        out = Readings.read(X, positions, self.neighbors, self.geographic)
        silent = (~out.mask.any(1)).nonzero().squeeze(1).tolist()
        if silent:
            names = [out.names[k] for k in silent[:5]]
            warnings.warn(
                f'{len(silent)} sensor(s) have no reading ({names}): they are '
                'interpolated from others by their places, or get the mean '
                'without such; leave them out if that is of no use',
                FillWarning,
                stacklevel=4,
            )
        return out

    def _blend(
        self, readings: Readings, held: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Tunes candidates by held-out readings; their weights, and the
        report.
        """
        count, names = int(held.sum()), [one.name for one in self._series]
        if count < LEAST_HELD:
            weights = torch.full((len(names),), 1 / len(names)).double()
            report = dict(zip(names, weights.tolist(), strict=True))
            return weights, {**report, 'error': float('nan')}
        part = replace(readings, mask=readings.mask & ~held)
        share = _as_often(part.distance[held], readings)
        level = part.level.expand_as(readings.x)[held]
        truth = readings.x[held]

        def loss(out: Tensor) -> float:
            return float((share * (out[held] - truth).square()).mean())

        outs = [
            one.tune(part, loss)[held]
            for one in progress(self._series, 'candidates')
        ]
        root = share.sqrt().unsqueeze(1)
        guesses = (torch.stack(outs, -1) - level.unsqueeze(1)) * root
        target = (truth - level).unsqueeze(1) * root
        weights = stacking_weights(guesses.unsqueeze(1), target)
        error = (guesses @ weights - target.squeeze(1)).square().mean().sqrt()
        error *= readings.form.scale
        report = dict(zip(names, weights.tolist(), strict=True))
        return weights, {**report, 'error': float(error)}

    def _fill(self, readings: Readings, tol: float) -> Tensor:
        """The blend of all candidates `[N, T]`."""
        level = readings.level
        out = torch.zeros_like(readings.x)
        pairs = zip(self._weights.tolist(), self._series, strict=True)
        for weight, one in pairs:
            if weight > 0:
                out += weight * (one.fill(readings, tol) - level)
        return level + out

    def _judge(
        self, readings: Readings, held: Tensor
    ) -> tuple[Horizons, list[Tensor]]:
        """Errors of held-out readings, in units of their sensor, by range of
        the distance to others.
        """
        part = replace(readings, mask=readings.mask & ~held)
        error = (self._fill(part, 1e-3) - readings.x).abs() / part.unit
        distance = part.distance[held]
        horizons = Horizons.of(distance, LEAST_HELD)
        place = horizons(distance)
        errors = error[held]
        return horizons, [errors[place == k] for k in range(len(horizons))]

    def _between_sensors(
        self, readings: Readings, filled: Tensor
    ) -> GraphInterpolator | None:
        """Fits the series of other sensors, for those without a reading."""
        place, silent = readings.place, readings.silent
        if place is None or not readings.near.num_edges or not silent.any():
            return None
        data = place.clone()
        data.x, data.mask = filled, ~silent
        model = GraphInterpolator(
            self.neighbors,
            samples=True,
            geographic=self.geographic,
            seed=self.seed,
        )
        return model.fit(data)

    def _half_width(
        self,
        readings: Readings,
        space: GraphInterpolator | None,
        coverage: float,
    ) -> Tensor:
        checks.check_between('coverage', coverage, high=1.0)
        every, least = torch.cat(self._errors), least_errors(coverage)
        if len(every) < least:
            raise ValueError(
                f'intervals of coverage={coverage} need more known readings: '
                f'{least} to hold out (got {len(every)})'
            )
        # Ranges of too few errors take those of all.
        errors = [e if len(e) >= least else every for e in self._errors]
        widths = [quantile(e.unsqueeze(1), coverage) for e in errors]
        place = self._horizons(readings.distance)
        width = torch.cat(widths)[place] * readings.unit
        silent = readings.silent[:, None]
        if space is None or len(silent) - int(silent.sum()) < least:
            width = torch.where(silent, torch.inf, width)
        else:
            low, high = space.predict_interval(coverage=coverage)
            width = torch.where(silent, (high - low) / 2, width)
        return torch.where(readings.mask, 0, width)


def _candidates(readings: Readings) -> list[SmoothSeries]:
    """All candidates that the readings allow."""
    out = []
    if readings.near.num_edges or len(readings.x) == 1:
        out.append(SmoothSeries('near'))
    if len(readings.x) > 1:
        out.append(SmoothSeries('similar'))
        if min(readings.x.shape) <= _LARGEST:
            out.append(SmoothSeries('similar', courses=True))
    return out


def _as_often(distance: Tensor, readings: Readings) -> Tensor:
    """Weights of held-out readings by their distance to others, such that
    distances count as often as those of missing readings.
    """
    missing = readings.distance[~readings.mask]
    missing = missing[missing.isfinite()]
    if not len(missing):
        return torch.ones_like(distance)
    horizons = Horizons.of(distance, LEAST_HELD)
    place, least = horizons(distance), len(horizons)
    here = torch.bincount(place, minlength=least)
    wanted = torch.bincount(horizons(missing), minlength=least)
    share = (wanted / len(missing)) / (here / len(distance))
    return share[place]
