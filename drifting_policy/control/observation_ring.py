"""ObservationRing: the newest observations of one robot, copied into fixed memory."""

from collections.abc import Mapping
from typing import final

import numpy as np

from drifting_policy.types import PolicySpec


@final
class ObservationRing:
    """The last `obs_horizon` observations; the first one of an episode is repeated to fill them.

    An observation is written into a spare slot and counts only when all its keys are sound.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._slots = spec.obs_horizon + 1
        self._rings = {key: np.zeros((self._slots, *array.shape), array.dtype) for key, array in spec.observations.items()}
        self._finite = {key: np.empty(ring.shape[1:], bool) for key, ring in self._rings.items() if ring.dtype.kind == "f"}
        self._spare = 0  # the slot that is written next; the newest observation lies before it
        self._count = 0

    def reset(self) -> None:
        """A new episode begins: forget everything."""
        self._count = 0

    @property
    def empty(self) -> bool:
        """Whether there is no observation yet."""
        return self._count == 0

    def append(self, obs: Mapping[str, np.ndarray]) -> str | None:
        """Take one step per key, or say in a sentence why not: a wrong key, shape or dtype, NaN or infinity."""
        if len(obs) != len(self._rings) or any(key not in obs for key in self._rings):
            return f"The observation must have exactly the keys {sorted(self._rings)}; got {sorted(obs)}."
        for key, ring in self._rings.items():
            if (sentence := self._write(key, ring[self._spare], obs[key])) is not None:
                return sentence
        self._spare = (self._spare + 1) % self._slots
        self._count += 1
        return None

    def _write(self, key: str, slot: np.ndarray, given: np.ndarray) -> str | None:
        value = np.asarray(given)
        if value.shape != slot.shape:
            return f"Observation '{key}' must have shape {slot.shape}; got {value.shape}."
        if self._spec.observations[key].is_image and value.dtype != np.uint8:
            return f"Observation '{key}' is an image and must be uint8; got {value.dtype}."
        if not np.can_cast(value.dtype, slot.dtype, casting="same_kind"):
            return f"Observation '{key}' must fit into dtype {slot.dtype}; got {value.dtype}."
        with np.errstate(over="ignore"):  # a value too large for the dtype becomes infinity, which is refused here
            np.copyto(slot, value, casting="same_kind")
        if key in self._finite and not np.isfinite(slot, out=self._finite[key]).all():
            return f"Observation '{key}' holds NaN or infinity."
        return None

    def newest(self, key: str) -> np.ndarray:
        """The newest observation of `key`."""
        return self._rings[key][self._spare - 1]

    def fill(self, windows: Mapping[str, np.ndarray]) -> None:
        """Writes the window of every key into each row of its array "k to ..."."""
        horizon = self._spec.obs_horizon
        for key, ring in self._rings.items():
            for place in range(horizon):
                back = min(horizon - place, self._count)
                windows[key][:, place] = ring[(self._spare - back) % self._slots]
