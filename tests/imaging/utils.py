"""Pieces shared by the tests of restorers."""

import torch

from pyg_unroll import Demosaic, Inpaint, cfa_mask
from pyg_unroll.imaging import DifferenceBlock, GuidedBlock

# Each block with each prior.
BLOCKS = [
    (DifferenceBlock, 'glr'),
    (DifferenceBlock, 'gtv'),
    (GuidedBlock, 'glr'),
    (GuidedBlock, 'gtv'),
]


def make_blocks(block=GuidedBlock, num_blocks=2, **options):
    options = {'hidden_channels': 8, 'feature_channels': 4} | options
    return [block(**options) for _ in range(num_blocks)]


def make(
    kind=Demosaic,
    block=GuidedBlock,
    seed=0,
    dtype=torch.float32,
    strength=20.0,
    **options,
):
    """A small restorer whose nets matter as much as those of a trained one."""
    torch.manual_seed(seed)
    model = kind(make_blocks(block, **options)).to(dtype)
    with torch.no_grad():
        for one in model.blocks:
            one.features.head.weight.mul_(strength)
    return model.eval()


def mosaics(image, pattern='RGGB'):
    """Images `[B, 3, H, W]` with zeros where unknown, and their mask."""
    mask = cfa_mask(pattern, *image.shape[2:])[None]
    return torch.where(mask, image, 0), mask


def holes(image, share=0.4, seed=0):
    """Images with missing pixels, of all channels, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = image.size(0), 1, *image.shape[2:]
    mask = torch.rand(shape, generator=generator) < share
    mask[..., 0, 0] = True
    mask = mask.expand_as(image)
    return torch.where(mask, image, 0), mask


def observed(kind, image):
    """What a restorer of a kind is given of images, and the mask."""
    return holes(image) if kind is Inpaint else mosaics(image)


def silent_parameters(model):
    """Names of the parameters that the last `backward` did not reach."""
    return {
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.abs().sum() > 0
    }


def psnr(out, image):
    return float(-10 * (out.clamp(0, 1) - image).square().mean().log10())
