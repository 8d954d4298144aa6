"""Several signals on one graph, side by side in one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    r"""How the samples of :math:`(B, N, F)` share the axes of operators.

    Samples that share their edge weights become further features,
    :math:`(N, B F, 1)`; samples with weights of their own become further
    heads, :math:`(N, F, B H)`. Either way the graph is read once for all.

    Attributes:
        count (int or None): Number of samples :math:`B`; :obj:`None` for one
            signal :math:`(N, F)`.
        heads (int): Number of heads :math:`H` of a sample.
        own_weights (bool): Whether each sample has its own weights.
        num_features (int): Number of features :math:`F` of each of several
            samples.
    """

    count: int | None = None
    heads: int = 1
    own_weights: bool = False
    num_features: int = 0

    @property
    def num_groups(self) -> int:
        """Number of groups of heads."""
        if not self.own_weights or self.count is None:
            return 1
        return self.count

    def fold(self, value: Tensor) -> Tensor:
        r"""Brings node values in shape.

        Args:
            value (torch.Tensor): Per node :math:`(N)`, per entry
                :math:`(N, F)` or per sample :math:`(B, N, F)`.

        Returns:
            A shape that broadcasts to that of the folded signal.
        """
        if value.dim() == 1:
            return value.view(-1, 1, 1)
        if value.dim() == 2:
            value = value.unsqueeze(-1)
            if self.count is None or self.own_weights or value.size(1) == 1:
                return value
            return value.repeat(1, self.count, 1)
        if self.own_weights:
            return value.permute(1, 2, 0).repeat_interleave(self.heads, -1)
        return value.transpose(0, 1).flatten(1).unsqueeze(-1)

    def first_heads(self, value: Tensor) -> Tensor:
        """One of the equal values that `fold` gives the heads of a sample."""
        if self.own_weights and value.size(-1) > 1:
            return value[..., :: self.heads]
        return value

    def unfold(self, value: Tensor) -> Tensor:
        r"""Node values :math:`(N, F', G)`, one per group of heads, to
        :math:`(N, F)` or :math:`(B, N, F)`.
        """
        if self.own_weights:
            return value.permute(2, 0, 1)
        value = value.squeeze(-1)
        if self.count is None:
            return value
        shape = self.count, self.num_features
        return value.unflatten(1, shape).transpose(0, 1)

    def fold_edges(self, value: Tensor) -> Tensor:
        r"""Edge values :math:`(E, F, H)` or :math:`(B, E, F, H)` likewise."""
        if self.own_weights:
            return value.permute(1, 2, 0, 3).flatten(2)
        return (
            value if self.count is None else value.movedim(0, 1).flatten(1, 2)
        )

    def unfold_edges(self, value: Tensor) -> Tensor:
        """The inverse of :meth:`fold_edges`."""
        if self.own_weights:
            return value.unflatten(2, (-1, self.heads)).permute(2, 0, 1, 3)
        if self.count is None:
            return value
        shape = self.count, self.num_features
        return value.unflatten(1, shape).movedim(1, 0)

    def tile(self, parameter: Tensor) -> Tensor:
        """Repeats what there is per head, :math:`(*, H)`, for each group."""
        if self.num_groups == 1:
            return parameter
        return parameter.repeat(*(1,) * (parameter.dim() - 1), self.num_groups)
