"""The learning rate of every step."""

import math

from drifting_policy.types import ConfigError

FIRST_RATE = 1e-6  # of a warm-up; the same share of the peak is where a cosine ends
SHAPES = ("constant", "cosine")


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, shape: str) -> float:
    """The learning rate of update `step`, counted from 0.

    It rises along a line from 1e-6 to `peak` in `warmup_steps` and then stays ("constant") or falls along half a cosine
    to 1e-6 `peak` at `total_steps` ("cosine"), as in the release.

    Raises:
        ConfigError: an unknown shape.
    """
    if shape not in SHAPES:
        raise ConfigError(f"Unknown schedule '{shape}'; choose one of {list(SHAPES)}.")
    if step < warmup_steps:
        return FIRST_RATE + (peak - FIRST_RATE) * step / warmup_steps
    if shape == "constant":
        return peak
    length = max(total_steps - warmup_steps, 1)
    turn = math.pi * min(step - warmup_steps, length) / length
    return peak * ((1 - FIRST_RATE) * (1 + math.cos(turn)) / 2 + FIRST_RATE)
