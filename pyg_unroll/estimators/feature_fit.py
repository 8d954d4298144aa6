"""The fit of features that are known at the same nodes, with intervals."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.estimators.blending import Blend, Candidate
from pyg_unroll.estimators.inputs import Sites, SiteSignal

# Known sites below which nothing is learned, and below which intervals are
# refused.
LEAST_KNOWN = 8
LEAST_ERRORS = 12
# Principal components that are tuned one by one, and known sites below which
# only the first is.
_OWN_COMPONENTS = 4
_FEW_SITES = 100
# Known sites up to which errors are those of fits to other folds, so many.
_NESTED = 100
_OUTER_FOLDS = 10


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
    # Absolute errors of known sites, each predicted from other folds
    # `[K, F]`, and their deviations but for a factor `[K]`.
    tuned: tuple[Tensor, Tensor] | None = None
    _unseen: tuple[Tensor, Tensor] | None = None

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
            self.error_model, deviation = _likeliest(blends[0], errors)
            self.tuned = errors, deviation

    def predict(self, sites: Sites) -> Tensor:
        """Predicts all nodes; those of a known site get its mean."""
        signal = self._observe(sites)
        out = self._predict(signal)
        out[signal.known] = signal.y[signal.known]
        return out[sites.site]

    def deviation(self, sites: Sites) -> Tensor:
        """Standard deviations of errors at all nodes, `[N, F]`."""
        errors, deviation = self._errors()
        ratio = (errors / deviation.unsqueeze(1)).square().mean(0).sqrt()
        signal = self._observe(sites)
        width = self._deviation(signal).unsqueeze(1) * ratio
        width[signal.known] = errors.square().mean(0).sqrt()
        return width[sites.site]

    def half_width(self, sites: Sites, coverage: float) -> Tensor:
        """Half the width of intervals at all nodes, `[N, F]`."""
        errors, deviation = self._errors()
        # Fewer errors have no conformal quantile.
        least = max(LEAST_ERRORS, math.ceil(coverage / (1 - coverage) - 1e-9))
        if len(errors) < least:
            raise ValueError(
                f'intervals of coverage={coverage} need {least} known places '
                f'(feature {int(self.features[0])} of the signal has '
                f'{len(errors)})'
            )
        signal = self._observe(sites)
        quantile = _quantile(errors / deviation.unsqueeze(1), coverage)
        width = self._deviation(signal).unsqueeze(1) * quantile
        # Missing nodes of known sites err as replicates do. With too few of
        # these: the noise of a node is at most its error when left out, and
        # two nodes differ by the root of two times that.
        replicates = self.signal.sites.replicate_errors(self.features)
        if len(replicates) >= least:
            width[signal.known] = _quantile(replicates, coverage)
        else:
            width[signal.known] = 2**0.5 * _quantile(errors, coverage)
        return width[sites.site]

    def _errors(self) -> tuple[Tensor, Tensor]:
        """Absolute errors of known sites `[K, F]`, and their deviations but
        for a factor `[K]`, by fits that have not seen them if these are few.
        """
        if self._unseen is None:
            values = self.signal.values
            known = len(values)
            if not bool((values != values[0]).any()):
                self._unseen = torch.zeros_like(values), values.new_ones(known)
            elif self.tuned is not None and known > _NESTED:
                self._unseen = self.tuned
            else:
                self._unseen = self._leave_out()
        return self._unseen

    def _leave_out(self) -> tuple[Tensor, Tensor]:
        """Errors and deviations of fits to all but one of some folds."""
        signal = self.signal
        values = signal.values
        errors, deviation = (
            torch.zeros_like(values),
            values.new_ones(len(values)),
        )
        order = np.random.default_rng(self.settings[-1]).permutation(
            len(values)
        )
        fold = torch.from_numpy(order % _OUTER_FOLDS)
        for k in range(int(fold.max()) + 1):
            out = fold == k
            rest = signal.part(~out)
            fit = FeatureFit.make(self.features, rest, self.settings)
            wanted = signal.known[out]
            errors[out] = (fit._predict(rest)[wanted] - values[out]).abs()
            deviation[out] = fit._deviation(rest)[wanted]
        return errors, deviation

    def _observe(self, sites: Sites) -> SiteSignal:
        """The signal of sites: what was fitted, at other places unless they
        have observations of their own.
        """
        if sites is self.signal.sites:
            return self.signal
        if not bool(sites.mask.any()):
            return self.signal.at(sites)
        return sites.average(self.features)

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

    def _deviation(self, signal: SiteSignal) -> Tensor:
        """Deviations at all sites of a signal but for a factor, `[M]`."""
        if self.error_model is None:
            return signal.y.new_ones(len(signal.y))
        return self.error_model.deviation(self._parts(signal)[0]).clamp(
            min=1e-12
        )

    def _components(self, signal: SiteSignal) -> SiteSignal:
        """Principal components of signals."""
        x = signal.y[signal.known]
        y = x.new_zeros((len(signal.y), len(self.rotation)))
        y[signal.known] = (x - self.center) / self.scale @ self.rotation.T
        return replace(signal, y=y)

    def _signals(self, y: Tensor) -> Tensor:
        """The inverse of `_components`."""
        return y @ self.rotation * self.scale + self.center


def _quantile(values: Tensor, coverage: float) -> Tensor:
    """Conformal quantile of each column."""
    count = len(values)
    rank = min(math.ceil((count + 1) * coverage), count)  # but for rounding
    return values.kthvalue(rank, 0).values


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
