"""The newest observations of one robot, as the window that a policy sees."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from drifting_policy.types import ObservationError, PolicySpec, check_image, check_obs


@final
class History:
    """Turns the observations of consecutive control steps into windows "to ..."; the first of an episode fills its window."""

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._window: dict[str, np.ndarray] | None = None

    def reset(self) -> None:
        """Forgets the episode."""
        self._window = None

    def push(self, obs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The windows "to ..." that end with `obs` "...", one control step; a refused observation changes nothing.

        Raises:
            ObservationError: a missing or unknown key, a wrong shape or dtype, NaN or infinity.
        """
        step = {key: value[None] for key, value in as_stored(self._spec, obs, steps=()).items()}
        before = step if self._window is None else self._window
        repeats = self._spec.obs_horizon if self._window is None else 1
        window = {key: np.concatenate([before[key][1:], *[value] * repeats]) for key, value in step.items()}
        check_obs(self._spec, {key: value[None] for key, value in window.items()})
        self._window = window
        return window


def as_stored(spec: PolicySpec, obs: Mapping[str, Any], *, steps: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Copies of `obs` in the dtypes of the specification, which is how simulations store what a policy sees.

    Args:
        spec: what the policy sees.
        obs: arrays, or numbers where a key holds one, each of shape (*steps, ...).
        steps: the axes before those of one step.

    Raises:
        ObservationError: a missing or unknown key, a wrong shape, or a dtype that does not fit.
    """
    if set(obs) != set(spec.observations):
        check_obs(spec, dict.fromkeys(obs, np.zeros(0)))  # names the keys
    stored = {}
    for key, array_spec in spec.observations.items():
        value, shape = np.asarray(obs[key]), (*steps, *array_spec.shape)
        if value.shape != shape:
            raise ObservationError(f"Observation '{key}' must have shape {shape}; got {value.shape}.")
        if array_spec.is_image:
            check_image(key, value)
        if not np.can_cast(value.dtype, array_spec.dtype, casting="same_kind"):
            raise ObservationError(f"Observation '{key}' must fit into dtype {array_spec.dtype}; got {value.dtype}.")
        with np.errstate(over="ignore"):  # a value too large for the dtype becomes infinity, which `check_obs` reports
            stored[key] = value.astype(array_spec.dtype)
    return stored
