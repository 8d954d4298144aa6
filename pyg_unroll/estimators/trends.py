"""Candidates by a trend of positions and covariates, and what is left of it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pyg_unroll.estimators.inputs import SiteSignal
from pyg_unroll.estimators.kriging import Kriging
from pyg_unroll.estimators.smoothing import GraphSmoother

# Predictors of what a trend leaves.
Rest: TypeAlias = GraphSmoother | Kriging

# Penalties of a linear trend, per observation that it is worth.
_RIDGES = np.logspace(-3, 3, 7)
_FOLDS = 5


@dataclass
class Detrended:
    """A trend in all features, and another candidate for its residuals.

    The trend is linear, or one of boosted trees (scikit-learn's). Residuals
    are those of predictions from other folds: trees fit what they have seen.
    """

    kind: str
    rest: Rest
    seed: int = 0
    # By what was observed: the trend, and its residuals.
    _given: tuple[SiteSignal, Any, SiteSignal, Tensor] | None = None

    @property
    def name(self) -> str:
        """Name in reports: trend and candidate."""
        return f'{self.kind} trend, {self.rest.name}'

    def tune(self, signal: SiteSignal, folds: Tensor) -> tuple[Tensor, Tensor]:
        """Fits the trend and its rest, as a candidate of a blend."""
        _, left, guess = self._fitted(signal)
        held_out, deviation = self.rest.tune(left, folds)
        return guess + held_out, deviation

    def predict(self, signal: SiteSignal) -> Tensor:
        """Predicts all sites, `[M, F]`."""
        trend, left, _ = self._fitted(signal.observed)
        if signal.source is not None:
            left = left.at(signal.sites)
        out = trend.predict(signal.sites.features.numpy())
        rest = self.rest.predict(left)
        return torch.from_numpy(out).view_as(rest) + rest

    def deviation(self, signal: SiteSignal) -> Tensor:
        """Posterior deviations of all sites but for a factor, `[M]`."""
        _, left, _ = self._fitted(signal.observed)
        if signal.source is not None:
            left = left.at(signal.sites)
        return self.rest.deviation(left)

    def _fitted(self, signal: SiteSignal) -> tuple[Any, SiteSignal, Tensor]:
        """The trend of a signal, what it leaves, and predictions of known
        sites from other folds; made once.
        """
        if self._given is None or self._given[0] is not signal:
            x = signal.sites.features[signal.known].numpy()
            y = signal.values.numpy()
            order = np.random.default_rng(self.seed).permutation(len(y))
            guess = np.zeros_like(y)
            for out in np.array_split(order, min(_FOLDS, len(y))):
                rest = np.setdiff1d(order, out)
                trend = self._trend().fit(x[rest], y[rest])
                guess[out] = trend.predict(x[out]).reshape(len(out), -1)
            left = torch.zeros_like(signal.y)
            left[signal.known] = torch.from_numpy(y - guess)
            self._given = (
                signal,
                self._trend().fit(x, y),
                SiteSignal(signal.sites, signal.known, left),
                torch.from_numpy(guess),
            )
        return self._given[1:]

    def _trend(self) -> Any:
        if self.kind == 'linear':
            return make_pipeline(StandardScaler(), RidgeCV(_RIDGES))
        trees = HistGradientBoostingRegressor(random_state=self.seed)
        return MultiOutputRegressor(trees)
