"""Peers of the layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import DifferenceConv, EdgeConv
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import FeaturePropagation

from pyg_unroll import GLRConv, GTVConv


class MessagePassingGLR(torch.nn.Module):
    """The unrolled loop of `GLRConv`, written with PyG's message passing."""

    def __init__(self, conv: GLRConv) -> None:
        super().__init__()
        self.conv, self.laplacian = conv, DifferenceConv()

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Runs the same steps with the same coefficients."""
        free = ~mask.unsqueeze(-1)
        out = x.unsqueeze(-1).expand(-1, -1, edge_weight.size(1))
        residual = -self.laplacian(out, edge_index, edge_weight)
        residual = torch.where(free, residual, 0)
        alpha, beta = self.conv.alpha, self.conv.beta
        out = self.iterate(
            out, residual, edge_index, edge_weight, free, alpha, beta
        )
        share = self.conv.head_logits.softmax(0)
        return torch.where(mask, x, (out * share).sum(-1))

    def iterate(
        self,
        out: Tensor,
        residual: Tensor,
        edge_index: Tensor,
        weight: Tensor,
        free: Tensor,
        alpha: Tensor,
        beta: Tensor,
    ) -> Tensor:
        """Steps like those of conjugate gradients."""
        degree = out.new_zeros(out.size(0), weight.size(1))
        degree = degree.index_add(0, edge_index[1], weight).unsqueeze(1)
        direction = residual / degree
        out = out + alpha[0] * direction
        for k in range(1, len(alpha)):
            image = self.laplacian(direction, edge_index, weight)
            image = torch.where(free, image, 0)
            residual = residual - alpha[k - 1] * image
            direction = residual / degree + beta[k - 1] * direction
            out = out + alpha[k] * direction
        return out


class MessagePassingGTV(MessagePassingGLR):
    """The unrolled loop of `GTVConv`, written with PyG's message passing."""

    conv: GTVConv

    def __init__(self, conv: GTVConv) -> None:
        torch.nn.Module.__init__(self)
        self.conv, self.laplacian, self.edges = (
            conv,
            DifferenceConv(),
            EdgeConv(),
        )

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Runs the same iterations with the same coefficients."""
        conv, num_nodes = self.conv, x.size(0)
        free = ~mask.unsqueeze(-1)
        out = x.unsqueeze(-1).expand(-1, -1, edge_weight.size(1))
        flow = self.edges.gradient(out, edge_index, edge_weight)
        dual = torch.zeros_like(flow)
        for t in range(conv.num_iters):
            rho = conv.log_rho[t].exp()
            relaxation = 2 * conv.relaxation_logit[t].sigmoid()
            scaled = dual / rho
            target = torch.nn.functional.relu((flow + scaled).abs() - 1 / rho)
            target = target * (flow + scaled).sign()
            target = relaxation * target + (1 - relaxation) * flow
            residual = self.edges.divergence(
                target - scaled - flow, edge_index, edge_weight, num_nodes
            )
            out = self.iterate(
                out,
                torch.where(free, residual, 0),
                edge_index,
                edge_weight.square(),
                free,
                conv.alpha[t],
                conv.beta[t],
            )
            flow = self.edges.gradient(out, edge_index, edge_weight)
            dual = dual + rho * (flow - target)
        share = conv.head_logits.softmax(0)
        return torch.where(mask, x, (out * share).sum(-1))


def propagation(
    x: Tensor, edge_index: Tensor, weight: Tensor, mask: Tensor, steps: int
) -> Callable[[], Data]:
    """PyG's `FeaturePropagation`, with weights `[2E]`."""
    transform = FeaturePropagation(~mask, steps)
    data = Data(x=x, edge_index=edge_index, edge_weight=weight)
    return lambda: transform(data)
