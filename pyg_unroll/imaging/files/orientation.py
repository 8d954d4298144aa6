"""Images as they are to be seen."""

from pyg_unroll.imaging.files.srgb import Array

# By orientation of Exif: mirror columns (1), rows (2), then transpose (4), as
# LibRaw has it.
FLIPS = {1: 0, 2: 1, 3: 3, 4: 2, 5: 4, 6: 6, 7: 7, 8: 5}


def upright(pixels: Array, flip: int) -> Array:
    """A view of pixels, rows and columns first, see `FLIPS`."""
    if flip & 2:
        pixels = pixels[::-1]
    if flip & 1:
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if flip & 4 else pixels
