"""Missing signals on graphs and points, without settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor
from torch_geometric.data import Data

from pyg_unroll.checks import (
    check_between,
    check_choice,
    check_count,
    check_data,
    check_positive,
    check_tensor,
)
from pyg_unroll.estimators.blending import LEAST_KNOWN, FeatureFit
from pyg_unroll.estimators.nodes import Nodes
from pyg_unroll.estimators.observations import read_signal
from pyg_unroll.estimators.problem import InterpolationProblem
from pyg_unroll.estimators.scoring import mean_r_squared


class GraphInterpolator:
    r"""Fills in missing signals on a graph or on points, and says how sure it
    is.

    Signals of several candidates are blended: smoothness on the given graph,
    with its weights as they are, sharpened or without them, and on that of
    nearest neighbours, of first order (:math:`\mathbf{x}^{\top} \mathbf{L}
    \mathbf{x}`, as :class:`~pyg_unroll.nn.GLRConv`), normalised by degrees, and
    of second order; and, of points, kriging with a learned Mahalanobis metric
    of position and covariates. How strong each prior is, the metric, and the
    blend are learned from known nodes alone: by predicting each from the others
    (cross-validated stacking, Breiman, 1996), or by likelihood. All systems are
    sparse.

    Points without edges that have the same position and covariates are one
    place, at which the mean of those that are known is.

    Several signals are rotated to their principal components, which are
    interpolated one by one.

    Args:
        neighbors (int, optional): Neighbours of each point.
            (default: :obj:`8`)
        samples (bool, optional): Whether features are samples of one signal,
            such as time steps of a sensor: they then share a unit.
            (default: :obj:`False`)
        covariates (str, optional): Attribute of the data with what else is
            known of all nodes, :math:`(N)` or :math:`(N, D)`; used with
            positions. (default: :obj:`'covariates'`)
        kriging (bool, optional): Whether to use kriging, too.
            (default: :obj:`True`)
        seed (int, optional): Seed of folds and kriging. (default: :obj:`0`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` with :obj:`x`
          :math:`(N)` or :math:`(N, F)`, :obj:`mask`, True where known, of that
          shape or :math:`(N)` (where :obj:`x` is not NaN if absent), and an
          undirected :obj:`edge_index` or :obj:`adj_t`, with symmetric
          :obj:`edge_weight` (larger is nearer) *(optional)*, or :obj:`pos`
          :math:`(N, P)`, or both
        - **output:** signals :math:`(N, F)`, known entries unchanged

    Features that are known at different nodes are fitted separately.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> pos = torch.rand(300, 2)
        >>> data = Data(x=pos.sum(1), pos=pos, mask=torch.rand(300) < 0.5)
        >>> filled = GraphInterpolator().fit(data).predict()
        >>> bool((filled[:, 0] - data.x).abs().max() < 0.05)
        True
    """

    def __init__(
        self,
        neighbors: int = 8,
        samples: bool = False,
        covariates: str = 'covariates',
        kriging: bool = True,
        seed: int = 0,
    ) -> None:
        check_positive('neighbors', neighbors)
        check_choice('samples', samples, (False, True))
        check_choice('kriging', kriging, (False, True))
        check_count('seed', seed)
        self.neighbors = neighbors
        self.samples = samples
        self.covariates = covariates
        self.kriging = kriging
        self.seed = seed
        self._fits: list[FeatureFit] = []
        self._data: Data | None = None
        self._nodes: Nodes | None = None

    @torch.inference_mode(False)  # the metric is learned by gradients
    def fit(self, data: Data) -> Self:
        """Learns from the known nodes.

        Args:
            data (Data): See the class.

        Raises:
            ValueError: If shapes or types do not fit, values are not finite,
                there is neither a graph nor positions, or nothing is known of
                a feature.
        """
        check_data(data)
        x, mask = read_signal(data)
        nodes = Nodes.read(data, self.covariates, self.neighbors)
        patterns, which = torch.unique(mask, dim=1, return_inverse=True)
        # What is changed later is not of the fit.
        self._fits, self._data, self._nodes = [], data.clone(), nodes
        for pattern in range(patterns.size(1)):
            features = (which == pattern).nonzero().squeeze(1)
            part, known = x[:, features], patterns[:, pattern]
            problem, values = nodes.problem(part, known)
            fit = FeatureFit.make(
                *(problem, values, features),
                *(self.samples, self.kriging, self.seed),
            )
            fit.twins = nodes.twins(part, known)
            self._fits.append(fit)
        return self

    def predict(self, data: Data | None = None) -> Tensor:
        """Fills in what is missing.

        To predict at new places, give them to :meth:`fit`, too, as nodes
        whose signal is missing.

        Args:
            data (Data, optional): The same features on another graph or on
                other points, some of them known, to which what was learned
                is applied; those of :meth:`fit` if :obj:`None`.
                (default: :obj:`None`)

        Returns:
            Signals :math:`(N, F)` in the type of :obj:`data.x`.

        Raises:
            ValueError: If it was not fitted, or the data does not fit.

        Warns:
            ConvergenceWarning: If a system was not solved to its tolerance.
        """
        data = self._check(data)
        x, mask = read_signal(data)
        out = torch.empty_like(x)
        for fit, problem, values, place in self._problems(data, x, mask):
            out[:, fit.features] = fit.predict(problem, values)[place]
        out = torch.where(mask, x, out)
        return out.to(data.x)

    def predict_interval(
        self, data: Data | None = None, coverage: float = 0.9
    ) -> tuple[Tensor, Tensor]:
        r"""Intervals that hold missing values with a given probability.

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
        check_between('coverage', coverage, high=1.0)
        data = self._check(data)
        x, mask = read_signal(data)
        width = torch.empty_like(x)
        for fit, problem, values, place in self._problems(data, x, mask):
            half = fit.half_width(problem, values, coverage)
            width[:, fit.features] = half[place]
        width = torch.where(mask, 0, width).to(data.x)
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
            Mean over the features that have something to score.

        Raises:
            ValueError: If it was not fitted, shapes do not fit, or there is
                nothing to score.
        """
        data = self._check(data)
        _, mask = read_signal(data)
        check_tensor('truth', truth, str(list(mask.shape)))
        truth = truth.detach().cpu().double().view(truth.size(0), -1)
        if truth.shape != mask.shape:
            raise ValueError(
                f"'truth' must have shape {list(mask.shape)} (got "
                f'{list(truth.shape)})'
            )
        out = self.predict(data).cpu().double()
        return mean_r_squared(out, truth, ~mask & ~truth.isnan())

    @property
    def report(self) -> dict[str, float]:
        """The blend, as mean weights of candidates by name, which are not
        negative and need not sum to one.
        """
        blends = [blend for fit in self._fits for blend in fit.blends]
        total: dict[str, float] = {}
        for blend in blends:
            for candidate, weight in zip(
                blend.candidates, blend.weights.tolist(), strict=True
            ):
                total.setdefault(candidate.name, 0.0)
                total[candidate.name] += weight / len(blends)
        return total

    def metric(self, feature: int = 0) -> Tensor:
        r"""The learned metric :math:`\mathbf{M} = \mathbf{R}^{\top}
        \mathbf{R}` of position and covariates, in their units, of the kriging
        candidate that has most weight, :math:`(D, D)`.

        Args:
            feature (int, optional): Feature of the signal; the metric is that
                of the strongest component of all that are known at the same
                nodes. (default: :obj:`0`)

        Raises:
            ValueError: If it was not fitted, there is no such feature, or no
                metric was learned.
        """
        self._check(None)
        fits = {f: fit for fit in self._fits for f in fit.features.tolist()}
        if feature not in fits:
            raise ValueError(
                f"'feature' must be an integer in [0, {len(fits)}), the "
                f"features of 'data.x' (got {feature!r})"
            )
        metric = fits[feature].blends[0].metric(self._has_covariates)
        if metric is None:
            raise ValueError(
                'no metric was learned: that takes positions and at least '
                f'{LEAST_KNOWN} known nodes'
            )
        return metric

    @property
    def _has_covariates(self) -> bool:
        assert self._data is not None
        return self._data.get(self.covariates) is not None

    def _check(self, data: Data | None) -> Data:
        if self._data is None:
            raise ValueError("call 'fit' first")
        data = self._data if data is None else data
        check_data(data)
        x = data.get('x')
        count = sum(fit.features.numel() for fit in self._fits)
        if not isinstance(x, Tensor) or x[:1].numel() != count:
            raise ValueError(
                f"'data.x' must have the {count} feature(s) of 'fit' (got "
                f'{list(x.shape) if isinstance(x, Tensor) else x})'
            )
        return data

    def _problems(
        self, data: Data, x: Tensor, mask: Tensor
    ) -> Iterator[tuple[FeatureFit, InterpolationProblem, Tensor, Tensor]]:
        """For each fit its places, their signals, and the place of nodes."""
        nodes = Nodes.read(data, self.covariates, self.neighbors)
        assert self._nodes is not None
        nodes.match(self._nodes)
        for fit in self._fits:
            known = mask[:, fit.features]
            if not bool((known == known[:, :1]).all()):
                raise ValueError(
                    "'data.mask' must be the same for features that were "
                    f'known at the same nodes in fit ({fit.features.tolist()})'
                )
            problem, values = nodes.problem(x[:, fit.features], known[:, 0])
            yield fit, problem, values, nodes.place

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(neighbors={self.neighbors}, '
            f'samples={self.samples}, kriging={self.kriging})'
        )
