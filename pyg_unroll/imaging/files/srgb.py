"""The transfer function of sRGB, IEC 61966-2-1, linear below zero."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def encode(linear: Array) -> Array:
    """From linear light."""
    high = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear > 0.0031308, high, 12.92 * linear)


def decode(encoded: Array) -> Array:
    """The inverse of `encode`."""
    high = ((np.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(encoded > 0.04045, high, encoded / 12.92)
