"""Mode coverage: does a policy draw from every way of doing a task, observation by observation, or from one, or their mean?"""

from collections.abc import Collection, Mapping

import numpy as np

from drifting_policy.types import Policy, UserError

LEAST = 0.10  # share of the samples that every mode must have
MOST_ASTRAY = 0.20  # share of the samples that may be in no mode


def shares(classes: np.ndarray, modes: Collection[int]) -> np.ndarray:
    """Shares "n k" of the samples of each of n observations in each of k modes, for the classes "n m" of m samples each.

    Raises:
        UserError: no observations, no samples, or no modes.
    """
    if classes.ndim != 2 or classes.size == 0 or not modes:
        raise UserError(f"Coverage needs classes (observations, samples) and modes; got {classes.shape} and {len(modes)}.")
    return np.stack([(classes == mode).mean(axis=1) for mode in modes], axis=1)


def covered(
    classes: np.ndarray, modes: Collection[int], *, least: float = LEAST, most_astray: float = MOST_ASTRAY
) -> np.ndarray:
    """Whether the samples of each observation, classes "n m", cover all modes: booleans "n".

    They do where every mode has at least the share `least` of them, and at most the share `most_astray` is in no mode.

    Raises:
        UserError: as `shares`.
    """
    found = shares(classes, modes)
    return np.asarray((found.min(axis=1) >= least) & (1 - found.sum(axis=1) <= most_astray + 1e-9))


def draw(policy: Policy, obs: Mapping[str, np.ndarray], *, samples: int, seed: int) -> np.ndarray:
    """Chunks "n m t d": `samples` for each of the observations "n to ...", from noise that depends on `seed` alone."""
    count = len(next(iter(obs.values())))
    rng = np.random.default_rng(seed)
    chunks = []
    for _ in range(samples):
        noise = rng.standard_normal((count, *policy.spec.sample_shape), dtype=np.float32)
        chunks.append(policy.act(obs, noise=noise))
    return np.stack(chunks, axis=1)
