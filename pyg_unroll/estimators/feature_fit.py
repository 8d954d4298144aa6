"""The fit of features that are known at the same nodes, with intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.blending import Blend, Candidate
from pyg_unroll.estimators.conditioning import Neighbors
from pyg_unroll.estimators.inputs import Sites, SiteSignal, same_place

# Known sites below which nothing is learned, and below which intervals are
# refused.
LEAST_KNOWN = 8
LEAST_ERRORS = 12
# Principal components that are tuned one by one, and known sites below which
# only the first is.
_OWN_COMPONENTS = 4
_FEW_SITES = 100
# Folds that errors of intervals are made of, and such errors that suffice.
_OUTER_FOLDS = 10
_OUTER_ERRORS = 100
# Known sites beyond which the tuning, of some twenty numbers, cannot have
# made its own errors smaller by more than a hundredth.
_MANY = 3000


@dataclass
class FeatureFit:
    """The fit of the features that are known at the same nodes."""

    features: Tensor  # their indices, [F]
    signal: SiteSignal  # what was observed of them
    settings: tuple[bool, bool, int]  # samples, kriging and seed
    center: Tensor  # means, [F]
    scale: Tensor  # units, [F]
    rotation: Tensor  # principal components, [R, F]
    # Blends for some of the components, and these.
    blends: list[tuple[slice, Blend]] = field(default_factory=list)
    parts: list[SiteSignal] = field(default_factory=list)
    # Candidate whose posterior deviations normalise errors, if any does.
    error_model: Candidate | None = None
    unit: Tensor = field(default_factory=lambda: torch.ones(1))  # its unit
    # Deviations of errors of known sites `[K, F]`, and errors over them, each
    # site predicted from the other folds of the tuning.
    known_spread: Tensor = field(default_factory=lambda: torch.ones(1))
    tuned: Tensor | None = None
    _places: Neighbors | None = None  # known sites, to be found again
    unseen: Tensor | None = None  # those of `_leave_out`, when asked for

    @classmethod
    def make(
        cls,
        features: Tensor,
        signal: SiteSignal,
        settings: tuple[bool, bool, int],
    ) -> Self:
        """Fits some features, by the arguments of the estimator."""
        values = signal.values
        center = values.mean(0)
        centred = values - center
        spread = values.std(0, correction=0)
        if settings[0]:
            spread = centred.square().mean().sqrt().expand_as(spread)
        # A constant signal has no unit.
        scale = torch.where(spread > 1e-12 * center.abs(), spread, 1)
        _, size, rotation = torch.linalg.svd(
            centred / scale, full_matrices=False
        )
        rank = max(int((size > 1e-9 * size.max().clamp(min=1)).sum()), 1)
        fit = cls(features, signal, settings, center, scale, rotation[:rank])
        fit.unit = scale
        fit._learn()
        return fit

    def _learn(self) -> None:
        """Tunes candidates and blends them, and keeps the errors."""
        values, components = self.signal.values, self._components(self.signal)
        _, kriging, seed = self.settings
        known, rank = len(values), len(self.rotation)
        few = known < LEAST_KNOWN or not bool(components.y.any())
        groups = [slice(0, rank)] if few else _groups(rank, known)
        self.parts = [components.columns(columns) for columns in groups]
        make = (
            Blend.preset
            if few
            else partial(Blend.tune, options=(kriging, seed))
        )
        blends = [make(part) for part in self.parts]
        self.blends = list(zip(groups, blends, strict=True))
        if not few:
            held_out = torch.cat([blend.held_out for blend in blends], 1)
            errors = (self._signals(held_out) - values).abs()
            relative = errors / self.scale
            self.error_model, deviation = _likeliest(blends[0], relative)
            ratios = errors / deviation.unsqueeze(1)
            unit = ratios.square().mean(0).sqrt()
            self.unit = unit.maximum(1e-9 * self.scale)
            self.tuned = ratios / self.unit
            self.known_spread = deviation.unsqueeze(1) * self.unit

    def predict(self, sites: Sites) -> Tensor:
        """Predicts all nodes; those of a known site get its mean."""
        signal = self._observe(sites)
        out = self._predict(signal)
        out[signal.known] = signal.y[signal.known]
        return out[sites.site]

    def deviation(self, sites: Sites) -> Tensor:
        """Standard deviations of errors at all nodes, `[N, F]`."""
        return self._width(sites, lambda ratios: ratios.square().mean(0).sqrt())

    def half_width(self, sites: Sites, coverage: float) -> Tensor:
        """Half the width of intervals at all nodes, `[N, F]`."""
        least = least_errors(coverage)
        if len(self.signal.values) < least:
            raise ValueError(
                f'intervals of coverage={coverage} need {least} known places '
                f'(feature {int(self.features[0])} of the signal has '
                f'{len(self.signal.values)})'
            )
        summary = partial(quantile, coverage=coverage)
        return self._width(sites, summary, least)

    def _width(
        self,
        sites: Sites,
        summary: Callable[[Tensor], Tensor],
        least: int = LEAST_ERRORS,
    ) -> Tensor:
        """A summary of absolute errors, at all nodes."""
        signal, ratios = self._observe(sites), self._ratios()
        width = self._spread(signal) * summary(ratios)
        # Missing nodes of known sites err as replicates do. With too few of
        # these: the noise of a node is at most its error when left out, and
        # two nodes differ by the root of two times that.
        if len(signal.known):
            errors = self.signal.sites.replicate_errors(self.features)
            if len(errors) < least:
                errors = 2**0.5 * ratios * self.known_spread
            width[signal.known] = summary(errors)
        return width[sites.site]

    def _ratios(self) -> Tensor:
        """Absolute errors of known sites over their deviations, `[K, F]`, by
        fits that have not seen them.
        """
        if self.unseen is None:
            values = self.signal.values
            constant = bool((values == values[0]).all())
            self.unseen = 0 * values if constant else self._leave_out()
        return self.unseen

    def _leave_out(self) -> Tensor:
        """Ratios of fits to all but one of some folds.

        Of many sites, some folds tell how much larger these are than those of
        the folds of the tuning.
        """
        signal, values = self.signal, self.signal.values
        if self.tuned is not None and len(values) >= _MANY:
            return self.tuned
        ratios = torch.zeros_like(values)
        chance = np.random.default_rng(self.settings[-1])
        fold = chance.permutation(len(values)) % _OUTER_FOLDS
        share = values.numel() / _OUTER_FOLDS
        count = min(_OUTER_FOLDS, math.ceil(_OUTER_ERRORS / share))
        for k in range(min(count, len(values))):
            out = torch.from_numpy(fold == k)
            rest = signal.part(~out)
            fit = FeatureFit.make(self.features, rest, self.settings)
            wanted = signal.known[out]
            error = (fit._predict(rest)[wanted] - values[out]).abs()
            ratios[out] = error / fit._spread(rest)[wanted]
        if self.tuned is None or count == _OUTER_FOLDS:
            return ratios
        seen = torch.from_numpy(fold < count)
        usual = self.tuned[seen].mean(0).clamp(min=1e-30)
        return self.tuned * ratios[seen].mean(0) / usual

    def _observe(self, sites: Sites) -> SiteSignal:
        """The signal of sites: what was fitted, at other places unless they
        have observations of their own.
        """
        if sites is self.signal.sites:
            return self.signal
        if bool(sites.mask.any()):
            return sites.average(self.features)
        signal = self.signal.at(sites)
        if self._repeats():
            own, known = self.signal, self.signal.known
            places = own.sites.features[known]
            if self._places is None:
                self._places = Neighbors(places)
            near = self._places.nearest(sites.features, 1).squeeze(1)
            away = (places[near] - sites.features).abs()
            same = (away <= same_place(places)).all(1)
            signal.known = same.nonzero().squeeze(1)
            signal.y[same] = own.values[near[same]]
        return signal

    def _repeats(self) -> bool:
        """Whether the mean of a known site predicts another observation there
        better than its neighbours do, as far as replicates tell.
        """
        errors = self.signal.sites.replicate_errors(self.features)
        if len(errors) < LEAST_ERRORS or self.tuned is None:
            return False
        others = (self.tuned * self.known_spread).square().mean(0)
        return bool((errors.square().mean(0) / others).mean() < 1)

    def _parts(self, signal: SiteSignal) -> list[SiteSignal]:
        """Components of a signal, by blend."""
        if signal is self.signal:
            return self.parts
        if signal.source is self.signal:
            return [part.at(signal.sites) for part in self.parts]
        components = self._components(signal)
        return [components.columns(columns) for columns, _ in self.blends]

    def _predict(self, signal: SiteSignal) -> Tensor:
        """Predicts all sites of a signal, `[M, F]`."""
        parts = zip(self.blends, self._parts(signal), strict=True)
        out = [blend.predict(part) for (_, blend), part in parts]
        return self._signals(torch.cat(out, 1))

    def _spread(self, signal: SiteSignal) -> Tensor:
        """Deviations at all sites of a signal, `[M, F]`."""
        if self.error_model is None:
            return self.unit.expand(len(signal.y), -1).clone()
        deviation = self.error_model.deviation(self._parts(signal)[0])
        return deviation.clamp(min=1e-12).unsqueeze(1) * self.unit

    def _components(self, signal: SiteSignal) -> SiteSignal:
        """Principal components of signals."""
        x = signal.y[signal.known]
        y = x.new_zeros((len(signal.y), len(self.rotation)))
        y[signal.known] = (x - self.center) / self.scale @ self.rotation.T
        return replace(signal, y=y)

    def _signals(self, y: Tensor) -> Tensor:
        """The inverse of `_components`."""
        return y @ self.rotation * self.scale + self.center


def least_errors(coverage: float) -> int:
    """Errors below which there is no conformal quantile."""
    return max(LEAST_ERRORS, math.ceil(coverage / (1 - coverage) - 1e-9))


def quantile(values: Tensor, coverage: float) -> Tensor:
    """Conformal quantile of each column: another value is below the k-th of n
    with probability k / (n + 1).
    """
    ordered, count = values.sort(0).values, len(values)
    rank = min((count + 1) * coverage - 1, count - 1.0)  # but for rounding
    rank = max(rank, 0.0)  # the smallest is the least that is known
    below, above = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return torch.lerp(below, above, rank % 1)


def _groups(rank: int, known: int) -> list[slice]:
    """Components that share settings: strong ones alone, weak ones all."""
    own = rank
    if rank > _OWN_COMPONENTS:
        own = 1 if known < _FEW_SITES else _OWN_COMPONENTS
    groups = [slice(k, k + 1) for k in range(own)]
    return [*groups, slice(own, rank)] if own < rank else groups


def _likeliest(blend: Blend, errors: Tensor) -> tuple[Candidate | None, Tensor]:
    """The deviations under which errors are most likely, or constant ones."""

    def loss(deviation: Tensor) -> float:
        ratio = errors / deviation.unsqueeze(1)
        scale = ratio.square().mean(0).clamp(min=1e-30).log() / 2
        return float(deviation.log().mean() + scale.mean())

    options: list[tuple[Candidate | None, Tensor]] = [
        (None, errors.new_ones(errors.size(0))),
        *(
            (candidate, deviation.clamp(min=1e-12))
            for (_, candidate), deviation in zip(
                blend.terms, blend.deviations, strict=True
            )
        ),
    ]
    return min(options, key=lambda option: loss(option[1]))
