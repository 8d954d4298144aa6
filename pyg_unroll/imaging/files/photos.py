"""Photographs of any depth, grey or RGB, upright."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_unroll.imaging.files.orientation import FLIPS, upright
from pyg_unroll.imaging.files.raw import is_raw
from pyg_unroll.imaging.files.srgb import Array, encode

_ROWS = 128  # that are worked on at once

# Formats that may have more than 8 bits; those of 8 bits are Pillow's.
_DEEP = {
    *('tiff', 'png', 'pnm', 'fits', 'openexr', 'hdr', 'jpeg2000', 'jpegxl')
}
# By modes of Pillow, those that are read.
_MODES = {
    **dict.fromkeys(('1', 'L', 'LA', 'La'), 'L'),
    **dict.fromkeys(('P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX'), 'RGB'),
    **dict.fromkeys(('CMYK', 'YCbCr', 'LAB', 'HSV'), 'RGB'),
}

# Photometric interpretations of TIFF.
_WHITE_IS_ZERO, _CIELAB = 0, 8


@dataclass
class Stored:
    """An image as it is stored.

    Args:
        pixels (numpy.ndarray): Of the type in the file, `[H, W, C]`.
        white (float): The value of white.
        flip (int): What makes it upright, see `upright`.
        steps (list): What makes it sRGB, in units of white, one after the
            other.
        notes (list): What is left out.
    """

    pixels: Array
    white: float
    flip: int = 0
    steps: list[Callable[[Array], Array]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_photo(path: str | Path) -> Tensor:
    r"""Reads a photograph, at full depth and upright.

    Args:
        path (str or Path): A file that OpenImageIO or Pillow read, such as
            PNG, JPEG, WebP, TIFF, AVIF, EXR, JPEG 2000, PNM or FITS; its
            content says which. Palettes, CMYK and CIELab become RGB, linear
            light (EXR, HDR) is encoded as sRGB.

    Returns:
        Image :math:`(C, H, W)`, float32 in :math:`[0, 1]`; grey images have
        one channel, others three. Warnings tell what is left out, such as
        transparency.

    Raises:
        ImportError: If a package of the extra :obj:`images` is missing.
        ValueError: If there is no such file, or it holds no image, several of
            them, a camera's mosaic, or values that are not between 0 and 1.
    """
    path = Path(path)
    with reading(path):
        stored = read_stored(path)
        image = finish(stored)
    for note in stored.notes:
        warnings.warn(f"{note} of '{path}'", stacklevel=2)
    return image


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of any kind name the file: decoders raise all of them."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"cannot read image '{path}': {error}") from error


def read_stored(path: Path) -> Stored:
    """Decodes a file: OpenImageIO what may be deep, Pillow the rest."""
    if not path.is_file():
        problem = 'is a folder' if path.is_dir() else 'does not exist'
        raise ValueError(f'it {problem}')
    try:
        import OpenImageIO as oiio
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            f"reading '{path}' needs OpenImageIO and Pillow: pip install "
            f"'pyg_unroll[images]'"
        ) from error
    if path.stat().st_size == 0:
        raise ValueError('the file is empty')
    if is_raw(path):
        raise ValueError("it is a camera file, which 'read_raw' reads")
    # Colours beside their transparency, not multiplied by it.
    wish = oiio.ImageSpec()
    wish.attribute('oiio:UnassociatedAlpha', 1)
    source = oiio.ImageInput.open(str(path), wish)
    if source and _photometric(source.spec()) == _CIELAB:
        wish.attribute('oiio:RawColor', 1)
        source = oiio.ImageInput.open(str(path), wish)
    problem = oiio.geterror()
    if source and source.format_name() in _DEEP:
        if source.format_name() == 'fits' and oiio.VERSION < 30202:
            raise ValueError('FITS needs OpenImageIO 3.2.2 or later')
        return _by_openimageio(source, path)
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(_unknown(path, problem)) from None
    with image:
        return _by_pillow(image)


def _unknown(path: Path, problem: str) -> str:
    """Why a file is not read."""
    with path.open('rb') as file:
        if file.read(12)[4:8] == b'ftyp':
            return 'it may be HEIC: pip install pillow-heif'
    return f'it is not an image file ({_line(problem)})'


def finish(stored: Stored) -> Tensor:
    """The image as float32, `[C, H, W]`."""
    pixels = upright(stored.pixels, stored.flip)
    # Small integers divide exactly as those of PyTorch do.
    exact = np.float32 if pixels.dtype.itemsize < 4 else np.float64
    image = torch.empty(0)
    for top in range(0, len(pixels), _ROWS):
        rows = slice(top, top + _ROWS)
        strip: Array = pixels[rows].astype(exact)
        strip /= exact(stored.white)
        for step in stored.steps:
            strip = step(strip)
        if not ((strip >= 0) & (strip <= 1)).all():
            raise ValueError(
                f'its values are not all between 0 and {stored.white:g}; scale '
                f'them before'
            )
        if top == 0:
            image = torch.empty((strip.shape[2], *pixels.shape[:2]))
        image[:, rows] = torch.from_numpy(strip).movedim(2, 0)
    return image


def _by_openimageio(source: Any, path: Path) -> Stored:
    """An image of any depth."""
    spec = source.spec()
    pixels = source.read_image(0, 0, 0, spec.nchannels, 'unknown')
    problem = source.geterror()
    if pixels is None or problem:
        raise ValueError(_line(problem))
    if source.seek_subimage(1, 0) and source.spec().width > -(-spec.width // 2):
        # Smaller ones are previews of the first.
        raise ValueError('it holds several images, not one')
    stored = _in_units(pixels, spec)
    orientation = spec.get_int_attribute('Orientation')
    stored.flip = FLIPS.get(orientation or _xmp_orientation(path), 0)
    _add_steps(stored, spec, source.format_name())
    profile = spec.getattribute('ICCProfile')
    stored.notes += _profile_notes(None if profile is None else bytes(profile))
    return stored


def _by_pillow(image: Any) -> Stored:
    """An image of 8 bits."""
    count = getattr(image, 'n_frames', 1)
    if count > 1 and image.format != 'MPO':  # whose first is the photograph
        raise ValueError(f'it holds {count} images, not one')
    mode = _MODES.get(image.mode)
    if mode is None:
        raise ValueError(f'its pixels are of a kind {image.mode}')
    flip = FLIPS.get(image.getexif().get(274, 1), 0)
    notes = _profile_notes(image.info.get('icc_profile'))
    if 'a' in image.mode.lower() or 'transparency' in image.info:
        notes.append('dropped the transparency')
    pixels = np.atleast_3d(np.asarray(image.convert(mode)))
    return Stored(pixels, 255, flip, notes=notes)


def _in_units(pixels: Array, spec: Any) -> Stored:
    """Pixels and the value that is white."""
    scale, offset = (
        float(spec.getattribute(name) or default)  # of FITS
        for name, default in (('Bscale', 1), ('Bzero', 0))
    )
    half = 2.0 ** (8 * pixels.itemsize - 1)
    if pixels.dtype.kind == 'i' and (scale, offset) == (1, half):
        pixels = pixels.view(pixels.dtype.str.replace('i', 'u'))
        pixels += pixels.dtype.type(half)
    elif (scale, offset) != (1, 0):
        return Stored(pixels, 1, steps=[lambda x: x * scale + offset])
    if pixels.dtype.kind == 'i':
        raise ValueError(
            'its integers have signs, and which is white is not known; store '
            'it unsigned'
        )
    is_float = pixels.dtype.kind == 'f'
    return Stored(pixels, 1 if is_float else np.iinfo(pixels.dtype).max)


def _add_steps(stored: Stored, spec: Any, kind: str) -> None:
    """Chooses what makes an image sRGB."""
    names = list(spec.channelnames)
    is_grey = len(names) < 3
    if len(names) > 4 or not (is_grey or {*'RGB'} <= {*names}):
        raise ValueError(f'its channels are {names}, not grey or RGB')
    colours = [0] if is_grey else [names.index(name) for name in 'RGB']
    if len(names) > len(colours):
        stored.notes.append('dropped the transparency')
    beside = kind not in ('tiff', 'openexr') or spec.get_int_attribute(
        'oiio:UnassociatedAlpha'
    )
    if 'A' in names and not beside:
        stored.steps.append(_divided_by(names.index('A')))
    stored.steps.append(lambda x: x[..., colours])
    photometric = _photometric(spec)
    bits = spec.get_int_attribute('oiio:BitsPerSample')
    space = spec.get_string_attribute('oiio:ColorSpace').lower()
    if photometric == _WHITE_IS_ZERO and bits > 8:
        stored.steps.append(lambda x: 1 - x)
    elif photometric == _CIELAB and stored.white > 1:
        stored.steps.append(_rgb_of_lab(stored.white))
    elif photometric >= _CIELAB:
        raise ValueError(f'its PhotometricInterpretation is {photometric}')
    elif kind == 'openexr' or space.startswith('lin'):
        stored.steps.append(encode)
    if bits > 8 * stored.pixels.itemsize:
        stored.notes.append('dropped the bits after the first 8')


def _photometric(spec: Any) -> int:
    """The tag of a TIFF file; that of grey for others."""
    return int(spec.get_int_attribute('tiff:PhotometricInterpretation', 1))


def _xmp_orientation(path: Path) -> int:
    """The orientation that only Pillow finds, in a text beside the image."""
    from PIL import Image

    with suppress(OSError), Image.open(path) as image:
        return int(image.getexif().get(274, 1))
    return 1


def _profile_notes(profile: bytes | None) -> list[str]:
    """Says which colours are taken for sRGB."""
    if profile is None:
        return []
    from PIL import ImageCms

    try:
        description = ImageCms.getProfileDescription(io.BytesIO(profile))
    except ImageCms.PyCMSError:
        return []
    is_known = 'srgb' in description.lower()
    return [] if is_known else [f'left out the profile {description.strip()!r}']


def _line(problem: str) -> str:
    """The first line of a message."""
    return (problem.splitlines() or ['no pixels can be read'])[0]


def _divided_by(alpha: int) -> Callable[[Array], Array]:
    """Colours of those that are multiplied by their transparency."""

    def divide(x: Array) -> Array:
        share = x[..., alpha, None]
        out = np.zeros_like(x)
        return np.divide(x, share, out=out, where=share > 0).clip(max=1)

    return divide


def _rgb_of_lab(white: float) -> Callable[[Array], Array]:
    """Colours of CIELab, whose a and b are signed integers stored unsigned."""

    def convert(x: Array) -> Array:
        from skimage.color import lab2rgb

        signed = x[..., 1:] * white
        signed = np.where(2 * signed > white, signed - white - 1, signed)
        signed *= 256 / (white + 1)
        lab = np.concatenate([100 * x[..., :1], signed], 2)
        return lab2rgb(lab).clip(0, 1)

    return convert
