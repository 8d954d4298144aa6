"""Noise that a net was not trained on, smoothed on graphs of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_unroll.imaging.images import to_images, to_signals
from pyg_unroll.nn import GLRConv
from pyg_unroll.ops import edge_dot
from pyg_unroll.transforms import GridGraph

_GRAPH = GridGraph(24)
_STEPS = 6
_MU = 0.1
# Change of a distance, one where noise alone makes it, that counts as an edge.
_SCALE = 0.4
# Noise that counts as none, of an image's unit.
_FLOOR = 1e-6

# Number of pixels from which a value can matter: the steps, a weight, a patch.
REACH = 2 * _STEPS + 2 + 1


def smooth_noise(image: Tensor, noise_std: Tensor) -> Tensor:
    r"""Smooths images :math:`(B, C, H, W)` by graph Laplacian regularisation
    with as much trust in a pixel as its noise allows.

    Weights compare patches :math:`P` of 3 x 3 pixels, :math:`n` values:

    .. math::
        w_{ij} = \exp \left( - \max(d_{ij} - 1, 0) / 0.4 \right), \qquad
        d_{ij} = \frac{\|P_i - P_j\|^2}{n (\sigma_i^2 + \sigma_j^2)},

    where :math:`d_{ij}` is one on average if the patches differ by their noise
    only. The noise :math:`\sigma` is :math:`(B, 1, H, W)`.
    """
    height, width = image.shape[2:]
    topology = _GRAPH.pixels(height, width, image.device)
    patch = F.unfold(F.pad(image, (1, 1, 1, 1), mode='replicate'), 3)
    patch = patch.permute(2, 1, 0).contiguous()  # [N, n, B]
    variance = noise_std.clamp(min=_FLOOR).square().flatten(1)
    node = variance.mT
    both = node[topology.src.long()] + node[topology.dst.long()]
    distance = edge_dot(topology, patch, patch) / (patch.size(1) * both)
    weight = torch.exp((1 - distance).clamp(max=0) / _SCALE)
    layer = GLRConv(_STEPS, fidelity='soft', mu=_MU, spectrum=(0.1, 2.0))
    signal = to_signals(image)
    trust = (variance.mean(1, keepdim=True) / variance).unsqueeze(-1)
    out = layer.requires_grad_(False).to(image)(
        signal,
        topology,
        weight.mT.unsqueeze(-1),
        confidence=trust.expand_as(signal),
    )
    return to_images(out, image.shape[2:])
