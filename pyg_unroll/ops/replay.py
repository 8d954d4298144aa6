"""ADMM that computes its edge signals again instead of keeping them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyg_unroll.graph import Topology
from pyg_unroll.ops.admm import admm_step


class _Kept(NamedTuple):
    tensor: Tensor
    version: int


class DualReplay:
    r"""Consecutive steps of ADMM whose derivative keeps no dual variable.

    The dual variables of all iterations, :math:`(E, F, H)` each, would take
    most of the memory of training. They follow from the first one and the
    node signals, which are kept anyway. The derivative asks for them from the
    last to the first: for :math:`T` iterations, this computes
    :math:`O(T \log T)` steps along the edges again and holds
    :math:`O(\log T)` dual variables at a time.

    Args:
        topology (Topology): The graph.
        weight (torch.Tensor): Edge weights :math:`(E, H)`.
        dual (torch.Tensor): Dual variable before the first step,
            :math:`(E, F, H)`.
    """

    def __init__(self, topology: Topology, weight: Tensor, dual: Tensor):
        self._topology, self._weight = topology, weight
        # What each step reads but the dual variable, and those known.
        self._steps: list[tuple[Tensor, ...]] = []
        self._duals = {0: dual.detach()}

    def step(
        self, x: Tensor, dual: Tensor, *coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :func:`.reference.admm_step`."""
        number = len(self._steps)
        self._steps.append(tuple(v.detach() for v in (x, *coefficients)))

        # PyTorch keeps the function that packs: it must not hold the tensor.
        place, shape = dual.data_ptr(), dual.shape

        def pack(tensor: Tensor) -> _Kept | int:
            same = tensor.data_ptr() == place and tensor.shape == shape
            if number > 0 and same:
                return number
            return _Kept(tensor, tensor._version)

        with torch.autograd.graph.saved_tensors_hooks(pack, self._unpack):
            return admm_step(
                self._topology, self._weight, x, dual, *coefficients
            )

    def _unpack(self, packed: _Kept | int) -> Tensor:
        if isinstance(packed, int):
            return self._dual(packed)
        # As autograd checks where no such hooks are.
        if packed.tensor._version != packed.version:
            raise RuntimeError(
                'a tensor that the derivative of GTVConv needs was changed '
                'in place after the forward pass'
            )
        return packed.tensor

    @torch.no_grad()
    def _dual(self, number: int) -> Tensor:
        """The dual variable before a step."""
        self._duals = {k: v for k, v in self._duals.items() if k <= number}
        begin = max(self._duals)
        dual = self._duals[begin]
        while begin < number:
            # Those asked for next are the ones before this: halve the way.
            middle = (begin + number + 1) // 2
            for x, *coefficients in self._steps[begin:middle]:
                operands = self._topology, self._weight, x, dual
                dual = admm_step(*operands, *coefficients)[1]
            if middle < number:
                self._duals[middle] = dual
            begin = middle
        return dual
