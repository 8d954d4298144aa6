"""Generated images of what photographs rarely show and demosaicing mistakes
for something else: fine gratings, meshes, text, saturated edges.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Chance = np.random.Generator

# Samples of a pixel along a row and a column, where shapes have sharp edges.
_FINE = 4


def pattern(side: int, chance: Chance) -> Tensor:
    """One of all kinds, `[3, side, side]` in `[0, 1]`."""
    kind = PATTERNS[chance.integers(len(PATTERNS))]
    return torch.from_numpy(kind(side, chance).astype(np.float32))


def grating(side: int, chance: Chance) -> np.ndarray:
    """A wave of 2 to 6 pixels in any direction."""
    along, _ = _turned(side, chance, 1)
    wave = np.cos(2 * np.pi * along / chance.uniform(2, 6))
    return _colored(0.5 + 0.5 * wave, chance)


def zone_plate(side: int, chance: Chance) -> np.ndarray:
    """Rings that reach the sampling limit in the farthest corner."""
    row, col = np.mgrid[:side, :side]
    center = chance.uniform(-0.5, 1.5, size=2) * side
    square = (row - center[0]) ** 2 + (col - center[1]) ** 2
    wave = np.cos(np.pi * square / (2 * np.sqrt(square.max())))
    return _colored(0.5 + 0.5 * wave, chance)


def mesh(side: int, chance: Chance) -> np.ndarray:
    """Wires in two directions, 2 to 8 pixels apart."""
    pitch = chance.uniform(2, 8)
    width = pitch * chance.uniform(0.2, 0.6)
    wires = [line % pitch < width for line in _turned(side, chance, _FINE)]
    return _colored(_coarse(wires[0] | wires[1]), chance)


def edges(side: int, chance: Chance) -> np.ndarray:
    """Areas of saturated colours that meet."""
    image = np.zeros((3, side, side)) + _saturated(chance)
    for _ in range(3):
        along, _ = _turned(side, chance, _FINE)
        share = _coarse(along > np.quantile(along, chance.uniform(0.2, 0.8)))
        image += share * (_saturated(chance) - image)
    return image


def text(side: int, chance: Chance) -> np.ndarray:
    """Letters of 7 to 24 pixels."""
    return _colored(letters(side, chance), chance)


PATTERNS: tuple[Callable[[int, Chance], np.ndarray], ...] = (
    *(grating, zone_plate, mesh, edges, text),
)


def letters(side: int, chance: Chance) -> np.ndarray:
    """The share of each pixel `[side, side]` that lines of text cover."""
    fine = side * _FINE
    size = _FINE * int(chance.integers(7, 25))
    font = ImageFont.load_default(size)
    page = Image.new('L', (fine, fine))
    draw = ImageDraw.Draw(page)
    signs = list(string.ascii_letters + string.digits + '.,-;!?()')
    for top in range(-size // 2, fine, size + size // 4):
        line = ''.join(chance.choice(signs, size=4 + 3 * fine // size))
        draw.text((-chance.integers(size), top), line, 255, font)
    return _coarse(np.asarray(page) / 255)


def scratches(side: int, chance: Chance) -> np.ndarray:
    """The share of each pixel that some thin lines cover."""
    fine = side * _FINE
    page = Image.new('L', (fine, fine))
    draw = ImageDraw.Draw(page)
    for _ in range(chance.integers(2, 9)):
        ends = chance.uniform(-0.2, 1.2, size=(3, 2)) * fine
        width = round(_FINE * chance.uniform(1, 3))
        draw.line([tuple(end) for end in ends.tolist()], 255, width)
    return _coarse(np.asarray(page) / 255)


def _turned(
    side: int, chance: Chance, fine: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (in pixels) along two axes that are turned and shifted."""
    row, col = np.mgrid[: side * fine, : side * fine] / fine
    angle = chance.uniform(0, np.pi)
    sin, cos = np.sin(angle), np.cos(angle)
    shift = chance.uniform(0, 8, size=2)
    return cos * col + sin * row + shift[0], cos * row - sin * col + shift[1]


def _coarse(fine: np.ndarray) -> np.ndarray:
    """The mean over each pixel."""
    side = len(fine) // _FINE
    return fine.reshape(side, _FINE, side, _FINE).mean((1, 3))


def _colored(share: np.ndarray, chance: Chance) -> np.ndarray:
    """A share between two greys or two colours."""
    ends = chance.uniform(size=(2, 3))
    if chance.integers(2):
        ends[:] = ends[:, :1]
    low, high = ends[..., None, None]
    return low + share * (high - low)


def _saturated(chance: Chance) -> np.ndarray:
    """A colour of channels that are nearly off or nearly on."""
    on = chance.integers(2, size=3)
    return np.abs(on - chance.uniform(0, 0.2, size=3))[:, None, None]
