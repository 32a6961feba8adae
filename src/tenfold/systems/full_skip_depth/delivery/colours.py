"""Depth as colours, one scale for all pictures that are compared."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from tenfold.systems.full_skip_depth.sets.depth_files import Depth


@cache
def _table() -> NDArray[np.uint8]:
    """256 colours ``(256, 3)`` of plotly's Turbo scale."""
    from plotly.colors import get_colorscale, sample_colorscale, unlabel_rgb

    sampled = sample_colorscale(get_colorscale("Turbo"), np.linspace(0, 1, 256).tolist())
    return np.array([unlabel_rgb(colour) for colour in sampled]).round().astype(np.uint8)


def coloured(depth: Depth, low: float, high: float, *, inverse: bool = True) -> NDArray[np.uint8]:
    """Colours of depths: near is red, far is blue; black where there is no value.

    Args:
        depth: ``(..., height, width)`` metres; 0: no value.
        low: depth of one end of the scale.
        high: depth of the other end.
        inverse: whether the scale is even in 1 / depth, as eyes judge distance, or in depth.

    Returns:
        ``(..., height, width, 3)`` uint8.
    """
    low, high = max(low, 1e-3), max(high, low * 1.001)
    values = np.clip(np.nan_to_num(depth, nan=0.0), low, high)
    share = (1 / values - 1 / high) / (1 / low - 1 / high) if inverse else (high - values) / (high - low)
    colours = _table()[np.clip(share * 255, 0, 255).round().astype(np.int64)]
    return np.where((np.asarray(depth) > 0)[..., None], colours, 0).astype(np.uint8)


def coloured_error(prediction: Depth, truth: Depth, most: float = 0.5) -> NDArray[np.uint8]:
    """Relative errors ``|p - d| / d`` from 0 (blue) to ``most`` (red); black where there is no truth."""
    error = np.where(truth > 0, np.abs(prediction - truth) / np.maximum(truth, 1e-6), 0)
    colours = _table()[np.clip(error / most * 255, 0, 255).round().astype(np.int64)]
    return np.where((truth > 0)[..., None], colours, 0).astype(np.uint8)
