"""Restorers made of a first estimate and blocks that improve it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from pyg_unroll import checks
from pyg_unroll.files import read_tensors, write_tensors
from pyg_unroll.imaging.blocks import Block, DifferenceBlock, GuidedBlock, Scene
from pyg_unroll.imaging.images import white_level
from pyg_unroll.imaging.noise import REACH, smooth_noise
from pyg_unroll.imaging.restorer import NoiseStd, Restorer, read_images
from pyg_unroll.imaging.tiles import whole
from pyg_unroll.transforms import GridGraph
from pyg_unroll.transforms.grid_graph import WINDOWS

_FOLDER = Path(__file__).parent / 'pretrained'


class FirstEstimate(Protocol):
    """The initialiser of a restorer, without parameters: the class of blocks
    that improve it by default, the number of channels that it is for (any if
    :obj:`None`), the side of the cells that images consist of, and the number
    of pixels from which a value can matter.
    """

    block: type[Block]
    channels: int | None
    cell: int
    receptive_field: int

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """See :meth:`Restorer.phase`; a `ValueError` for masks that it is not
        for.
        """
        return 0, 0

    def fill(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fills in on whole images what can only be seen from afar, and tells
        what to take as known from there on.
        """
        return image, mask

    def noise_std(self, image: Tensor, mask: Tensor) -> Tensor:
        """Estimates the standard deviation of the noise, :math:`(B)`."""
        raise ValueError("'noise_std' must be given for this model")

    def smooth(self, image: Tensor, mask: Tensor, noise_std: Tensor) -> Tensor:
        """Smooths filled images for nets that never saw noise, where that can
        be done before the first estimate.
        """
        return image

    def __call__(
        self, image: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate, context and reference of filled images."""


class BlockRestorer(Restorer):
    """A first estimate of images, and blocks that improve it, by default two
    of the class that goes with it, on pixels with so many neighbours.
    """

    def __init__(
        self,
        first_estimate: FirstEstimate,
        blocks: Sequence[Block] | None,
        neighbors: int,
    ) -> None:
        # The margin lets the layers forget that convolutions see zeros
        # outside; so many pixels at once take 0.3 to 0.4 GB.
        cell = first_estimate.cell
        super().__init__(margin=18, max_pixels=450_000, cell=cell)
        checks.check_choice('neighbors', neighbors, tuple(WINDOWS))
        if blocks is None:
            blocks = [first_estimate.block(cell=cell) for _ in range(2)]
        kinds = {(block.channels, block.fidelity) for block in blocks}
        if len(kinds) != 1:
            raise ValueError(
                f"'blocks' must be at least one block, all with the same "
                f'channels and fidelity (got {sorted(kinds)})'
            )
        ((self.channels, self.fidelity),) = kinds
        cells = sorted({block.features.cell for block in blocks})
        if cells != [cell]:
            raise ValueError(
                f"'blocks' must work on cells of {cell} x {cell} pixels (got "
                f'sides {cells}); make them with cell={cell}'
            )
        if first_estimate.channels not in (None, self.channels):
            raise ValueError(
                f"'blocks' must work on {first_estimate.channels} channels "
                f'(got {self.channels})'
            )
        self.first_estimate = first_estimate
        self.graph = GridGraph(neighbors)
        self.blocks: Any = torch.nn.ModuleList(blocks)

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for block in self.blocks:
            block.reset_parameters()

    def estimates(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd = None
    ) -> list[Tensor]:
        r"""Runs the blocks on images as they are, to train on them.

        Can be captured in a CUDA graph, by
        :func:`torch.cuda.make_graphed_callables`; values are not checked then.

        Args:
            image (torch.Tensor): Images :math:`(B, C, H, W)` of whole cells:
                of even size, and a Bayer mosaic with red at the top left; of
                sizes that 3 divides, and an X-Trans mosaic with green at the
                corners and in the middle of its first 3 x 3 pixels.
            mask (torch.Tensor): The mask, :math:`(B, C, H, W)` or
                :math:`(1, C, H, W)`.
            noise_std (torch.Tensor or float, optional): See :meth:`restore`.
                (default: :obj:`None`)

        Returns:
            The estimate of each block, :math:`(B, C, H, W)`; about
            :attr:`receptive_field` pixels along the border are worse.

        Raises:
            ValueError: As :meth:`restore`, and if an image does not consist
                of whole cells.
        """
        if noise_std is not None and self.fidelity == 'hard':
            raise ValueError(
                f"'noise_std' was given (got {noise_std}), but the blocks hold "
                f"known entries; train some with fidelity='soft', or use "
                f"'restore'"
            )
        with torch.autocast(image.device.type, enabled=False):
            images = self._read(image, mask, noise_std)
        can_read = checks.can_read_values(mask)
        phase = self.phase(mask) if can_read else (0, 0)
        cell = self.cell
        if phase != (0, 0) or any(size % cell for size in image.shape[2:]):
            raise ValueError(
                f"'image' must consist of whole cells of {cell} x {cell} "
                f'pixels, of which the first begins at [0, 0] (got '
                f'{list(image.shape)}, where it begins at {list(phase)}); use '
                f"'restore' for others"
            )
        return self._estimates(*images)

    @property
    def receptive_field(self) -> int:
        """See :class:`Restorer`."""
        size = self.first_estimate.receptive_field
        size += sum(block.receptive_field for block in self.blocks)
        return whole(size, self.cell)

    def halo(self, images: Sequence[Tensor]) -> int:
        """See :class:`Restorer`."""
        is_loose = self.fidelity == 'hard' and len(images) == 4
        # Bayer mosaics are smoothed at half resolution before.
        smoothing = 3 * REACH if is_loose else 0
        return self.receptive_field + whole(smoothing, self.cell)

    def phase(self, mask: Tensor) -> tuple[int, int]:
        """See :class:`Restorer`."""
        return self.first_estimate.phase(mask)

    def prepare(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> tuple[Tensor, ...]:
        """See :class:`Restorer`."""
        filled, mask, *noise = self._read(image, mask, noise_std)
        unit = white_level(image, mask).expand(-1, -1, *image.shape[2:])
        return filled, mask, unit, *noise

    def _read(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> tuple[Tensor, ...]:
        checks.check_model_type(self, 'image', image)
        read_images(image, mask, self.channels)
        image, mask = self.first_estimate.fill(image, mask)
        noise = self.noise_level(image, mask, noise_std)
        if noise is None:
            return image, mask
        return image, mask, noise.expand(-1, -1, *image.shape[2:])

    def run(self, *images: Tensor) -> Tensor:
        """See :class:`Restorer`."""
        image, mask, unit, *noise = images
        shown = image / unit, mask, *(std / unit for std in noise)
        is_held = self.fidelity == 'hard'
        if noise and is_held:
            smoothed = self.first_estimate.smooth(*shown)
            out = self._estimates(smoothed, mask)[-1]
            return unit * smooth_noise(out, shown[2])
        out = unit * self._estimates(*shown)[-1]
        return torch.where(mask, image, out) if is_held else out

    def _estimates(
        self, image: Tensor, mask: Tensor, noise_std: Tensor | None = None
    ) -> list[Tensor]:
        """The estimates of filled images."""
        with torch.autocast(image.device.type, enabled=False):
            # Nothing to learn here, and half precision would spoil it.
            first = self.first_estimate(image, mask)
        return self._improved(image, mask, noise_std, first)

    def _improved(
        self,
        image: Tensor,
        mask: Tensor,
        noise_std: Tensor | None,
        first: tuple[Tensor, Tensor, Tensor],
    ) -> list[Tensor]:
        """The estimates from the first, its context and reference."""
        height, width = image.shape[2:]
        topology = self.graph.pixels(height, width, image.device)
        scene = Scene(image, mask, *first, noise_std, topology)
        estimate, state = scene.estimate, None
        results = []
        for block in self.blocks:
            estimate, state = block(scene, estimate, state)
            results.append(estimate)
        return results

    def compile(self, **options: Any) -> None:
        """Compiles the blocks, in place: once for images of all sizes. The
        first estimate, without parameters, and checks stay outside.

        Args:
            **options: Those of :func:`torch.compile`.
        """
        options = {'fullgraph': True, 'dynamic': True, **options}
        improved: Any = torch.compile(self._improved, **options)
        self._improved = improved  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        # A copy must not run the weights of the original.
        state: dict[str, Any] = super().__getstate__()
        state.pop('_improved', None)
        return state

    def noise_level(
        self, image: Tensor, mask: Tensor, noise_std: NoiseStd
    ) -> Tensor | None:
        """See :class:`Restorer`."""
        if noise_std is None:
            if self.fidelity == 'hard':
                return None
            image, mask = self.first_estimate.fill(image, mask)
            noise = self.first_estimate.noise_std(image, mask)
            return noise.view(-1, 1, 1, 1)
        noise = torch.as_tensor(
            noise_std, dtype=image.dtype, device=image.device
        )
        size = image.size(0)
        is_map = noise.shape == (size, 1, *image.shape[2:])
        fits = is_map or noise.numel() in (1, size)
        can_read = checks.can_read_values(image, mask, noise)
        if fits and can_read:
            fits = bool((noise.isfinite() & (noise >= 0)).all())
        if not fits:
            raise ValueError(
                f"'noise_std' must be finite and non-negative, one value, one "
                f'for each of {size} image(s), or a map (got {noise_std})'
            )
        largest = torch.where(mask, image, 0).abs().amax()
        if can_read and bool((noise > largest).any() & (largest > 0)):
            raise ValueError(
                f"'noise_std' must be in the unit of the image, such as "
                f'20 / 255 in [0, 1] (got {noise_std}; the largest value is '
                f'{float(largest):.3g})'
            )
        return noise if is_map else noise.view(-1, 1, 1, 1)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the model again."""
        blocks = [
            {'class': type(block).__name__, **block.config}
            for block in self.blocks
        ]
        return {'blocks': blocks, 'neighbors': self.graph.window}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds a model of a :attr:`config`."""
        kinds = {kind.__name__: kind for kind in (DifferenceBlock, GuidedBlock)}
        blocks = []
        for options in map(dict, config['blocks']):
            blocks.append(kinds[options.pop('class')](**options))
        make: Any = cls  # whose first estimate is its own
        model: Self = make(**{**config, 'blocks': blocks})
        return model

    def save(
        self, path: str | Path, notes: Mapping[str, str] | None = None
    ) -> None:
        """Writes weights and configuration to one safetensors file.

        Args:
            path (str or Path): The file.
            notes (dict[str, str], optional): More metadata, for example about
                the training. (default: :obj:`None`)

        Raises:
            ValueError: If the file cannot be written.
        """
        metadata = {
            **(notes or {}),
            'class': type(self).__name__,
            'config': json.dumps(self.config, default=np.generic.item),
        }
        write_tensors(path, self.state_dict(), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a model that :meth:`save` wrote.

        Raises:
            ValueError: If the file cannot be read or holds another model.
        """
        state, metadata = read_tensors(path)
        name = cls.__name__
        if metadata.get('class') != name:
            raise ValueError(
                f"'path' holds a {metadata.get('class', 'foreign file')}, not "
                f"a {name} (got {path}); load it with that class's 'load'"
            )
        try:
            model = cls.from_config(json.loads(metadata['config']))
            model.load_state_dict(state, assign=True)  # keeps their type
            for key, value in state.items():
                checks.check_finite(key, value)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"'path' holds a {name} whose weights or configuration are "
                f'damaged (got {path}: {error})'
            ) from error
        return model

    @classmethod
    def pretrained_names(cls, prior: str = 'glr') -> list[str]:
        """Names that :meth:`from_pretrained` takes."""
        files = _FOLDER.glob(f'{cls.__name__.lower()}-*-{prior}.safetensors')
        return sorted('-'.join(file.stem.split('-')[1:-1]) for file in files)

    @classmethod
    def from_pretrained(cls, name: str, prior: str = 'glr') -> Self:
        """Reads a trained model that comes with the package, in evaluation
        mode. A model card lies beside each file.

        Args:
            name (str): One of :meth:`pretrained_names`.
            prior (str, optional): :obj:`'glr'` or :obj:`'gtv'`.
                (default: :obj:`'glr'`)

        Raises:
            ValueError: If there is no such model of this class.
        """
        names, kind = cls.pretrained_names(prior), cls.__name__
        if name not in names:
            raise ValueError(
                f"'name' must be one of {names} for {kind} with prior="
                f'{prior!r} (got {name!r}); read your own files with '
                f"'{kind}.load'"
            )
        file = f'{kind.lower()}-{name}-{prior}.safetensors'
        return cls.load(_FOLDER / file).eval()

    def __repr__(self) -> str:
        kind = type(self.blocks[0]).__name__
        return f'{type(self).__name__}({len(self.blocks)} x {kind})'
