"""Checks of what an environment is given; what does not fit raises a ValueError that says what was expected and what came."""

from collections.abc import Mapping
from typing import Any

import numpy as np

SMALLEST_RENDER = 96  # px


def check_rendering(render_mode: str, render_size: int) -> None:
    """Refuse a render mode other than "rgb_array", for no window is ever opened, and images smaller than 96 px."""
    if render_mode != "rgb_array":
        raise ValueError(f"render_mode must be 'rgb_array'; got {render_mode!r}.")
    if render_size < SMALLEST_RENDER:
        raise ValueError(f"render_size must be at least {SMALLEST_RENDER} px; got {render_size}.")


def restored(options: Mapping[str, Any] | None, *, name: str, size: int) -> np.ndarray | None:
    """The vector (size,) float64 that the reset option `name` holds, or None without it; any other option is refused."""
    unknown = sorted(set(options or {}) - {name})
    if unknown:
        raise ValueError(f"reset takes the option '{name}' only; got {unknown}.")
    if not options or options.get(name) is None:
        return None
    return finite_vector(options[name], size=size, name=f"options['{name}']")


def finite_vector(values: Any, *, size: int, name: str) -> np.ndarray:
    """`values` as float64 of shape (size,)."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise ValueError(f"{name} must be {size} finite numbers; got shape {vector.shape}, values {vector.tolist()}.")
    return vector
