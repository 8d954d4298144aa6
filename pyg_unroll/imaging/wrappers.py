"""Wrappers of any restorer: tiles of another size, and the self-ensemble."""

from collections.abc import Sequence
from functools import reduce
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyg_unroll.checks import check_choice, check_positive
from pyg_unroll.imaging.restorer import NoiseStd, Restorer

# Bits: mirror columns, mirror rows, transpose (last). The first 2 or 4 differ
# as much as any: rows of one are columns of the next. Each view by the view
# that turns it back.
_VIEWS = {0: 0, 7: 7, 2: 2, 5: 6, 1: 1, 3: 3, 4: 4, 6: 5}


class Wrapper(Restorer):
    """A restorer that hands on to another what it does not change."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__(restorer.margin, restorer.max_pixels, restorer.cell)
        self.restorer = restorer

    def compile(self, **options: Any) -> None:
        """Compiles the restorer, see :meth:`BlockRestorer.compile`."""
        self.restorer.compile(**options)

    @property
    def receptive_field(self) -> int:
        """See :class:`Restorer`."""
        return self.restorer.receptive_field

    def halo(self, images: Sequence[Tensor]) -> int:
        """See :class:`Restorer`."""
        return self.restorer.halo(images)

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """See :class:`Restorer`."""
        return self.restorer.phase(mask)

    def noise_level(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> Tensor | None:
        """See :class:`Restorer`."""
        return self.restorer.noise_level(image, mask, noise_std)

    def prepare(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> tuple[Tensor, ...]:
        """See :class:`Restorer`."""
        return self.restorer.prepare(image, mask, noise_std)

    def run(self, *images: Tensor) -> Tensor:
        """See :class:`Restorer`."""
        return self.restorer.run(*images)


class Tiled(Wrapper):
    r"""Wraps a restorer, which works on images larger than some size tile by
    tile; the result is the same to rounding, as tiles overlap by the
    receptive field.

    Restorers do so by themselves, with a size of their own.

    Args:
        restorer (Restorer): :class:`~pyg_unroll.imaging.Demosaic`,
            :class:`~pyg_unroll.imaging.Inpaint` or
            :class:`~pyg_unroll.imaging.GraphDemosaic`.
        max_pixels (int, optional): Images up to this size, their mirrored
            margin included, are cut for two threads only; tiles of larger
            ones have at most three quarters of it, or half each if there are
            two at once, if that is larger than their halo.
            (default: :obj:`450_000`)

    Shapes:
        - **input:** as that of the restorer
        - **output:** the same

    Raises:
        ValueError: If :obj:`max_pixels` is not positive, or the restorer
            works on whole images.
    """

    def __init__(self, restorer: Restorer, max_pixels: int = 450_000) -> None:
        super().__init__(restorer)
        check_positive('max_pixels', max_pixels)
        if isinstance(restorer, SelfEnsemble):
            raise ValueError(
                "'restorer' must not be a 'SelfEnsemble', which turns whole "
                "images; wrap it around 'Tiled', as in "
                "'SelfEnsemble(Tiled(restorer))'"
            )
        self.max_pixels = max_pixels


class SelfEnsemble(Wrapper):
    r"""Wraps a restorer, whose results on mirrored and transposed copies of an
    image are turned back and averaged: a geometric self-ensemble (Timofte et
    al., "Seven Ways to Improve Example-Based Single Image Super Resolution",
    CVPR 2016).

    Four views gain about 0.1 to 0.2 dB for four times the work.

    Args:
        restorer (Restorer): Any restorer, such as
            :class:`~pyg_unroll.imaging.Demosaic` or a
            :class:`~pyg_unroll.imaging.Tiled` one.
        num_views (int, optional): Copies, 1, 2, 4 or 8; the first is the
            image itself. (default: :obj:`4`)

    Shapes:
        - **input:** as that of the restorer
        - **output:** the same

    Raises:
        ValueError: If there are not so many views.
    """

    def __init__(self, restorer: Restorer, num_views: int = 4) -> None:
        super().__init__(restorer)
        check_choice('num_views', num_views, (1, 2, 4, 8))
        self.num_views = num_views

    def restore(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd = None
    ) -> Tensor:
        """Restores images; see the restorer."""
        noise = self.noise_level(image, mask, noise_std)
        images = [image, mask] if noise is None else [image, mask, noise]
        outs = (
            _turn(
                self.restorer.restore(*(_turn(v, view) for v in images)), back
            )
            for view, back in islice(_VIEWS.items(), self.num_views)
        )
        out = reduce(torch.add, outs) / self.num_views
        # Held samples are exact, not to rounding only.
        return torch.where(mask, image, out) if noise is None else out


def _turn(image: Tensor, view: int) -> Tensor:
    image = image.flip(-1) if view & 1 else image
    image = image.flip(-2) if view & 2 else image
    return image.mT if view & 4 else image
