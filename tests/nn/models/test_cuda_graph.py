"""Stacks on images in CUDA graphs, which nothing may look into."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyg_unroll import UnrolledGLR, UnrolledGTV
from pyg_unroll.data import cfa_mask

CASES = [
    (UnrolledGLR, {'domain': 'mosaic', 'color_differences': True}),
    (UnrolledGTV, {'domain': 'mosaic', 'color_differences': True}),
    (UnrolledGLR, {'domain': 'mosaic', 'fidelity': 'soft'}),
    (UnrolledGTV, {'domain': 'inpainting', 'guide': True}),
]


class Restore(torch.nn.Module):
    """A stack as a function of tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, mask, *noise_std):
        return self.model.estimates(image, mask, *noise_std)[-1]


def make(cls, options, device='cpu', seed=0):
    torch.manual_seed(seed)
    model = cls(3, hidden_channels=8, feature_channels=2, **options)
    image = torch.rand(2, 3, 12, 10)
    mask = cfa_mask('RGGB', 12, 10)[None]
    if options['domain'] == 'inpainting':
        mask = (torch.rand(2, 1, 12, 10) < 0.5).repeat(1, 3, 1, 1)
    args = [torch.where(mask, image, 0), mask]
    if options.get('fidelity') == 'soft':
        args.append(torch.tensor([0.05, 0.1]))
    return Restore(model).to(device), [v.to(device) for v in args]


@pytest.mark.filterwarnings('ignore:Accessing the data pointer')
@pytest.mark.parametrize('cls, options', CASES)
def test_reads_no_value(cls, options, monkeypatch):
    restore, args = make(cls, options)
    restore(*args).sum().backward()  # makes the grid
    for module in ('nn.models.image_restoration', 'nn.models.scene'):
        monkeypatch.setattr(
            f'pyg_unroll.{module}.can_read_values', lambda: False
        )
    # Tensors without values: whoever looks at one gets an error.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(v) for v in args]
        out = restore(*fake)
        out.sum().backward()
    assert out.shape == args[0].shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('cls, options', CASES)
def test_cuda_graph(cls, options):
    restore, first = make(cls, options, 'cuda')
    graphed = torch.cuda.make_graphed_callables(
        make(cls, options, 'cuda')[0],
        tuple(v.clone() for v in first),
        allow_unused_input=True,
    )
    for seed in (0, 1):
        _, args = make(cls, options, 'cuda', seed)
        grads = []
        for function in (restore, graphed):
            function.zero_grad()
            out = function(*args)
            out.square().sum().backward()
            grads.append([out.detach().clone()])
            for p in function.parameters():
                unused = torch.zeros_like(p)
                grads[-1].append(unused if p.grad is None else p.grad.clone())
        for expected, value in zip(*grads, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
