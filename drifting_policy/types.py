"""The contract between data, networks, simulators and robots. NumPy only.

Axis letters used in every annotation of this project:

    b   observations or class conditions      t   prediction horizon (steps of an action chunk)
    g   samples generated per condition       to  observation horizon (steps the policy sees)
    p   positives (data) per condition        ta  execution horizon (steps executed per plan)
    n   extra negatives per condition         d   action dimension
    m   targets: g + n + p                    s   tokens        e   embedding
    f   flattened sample or feature           k   temperatures  h w c  image

How the three horizons lie in time (to = 2, t = 8, ta = 3); the chunk starts at the first observed step:

    observed      o o
    predicted     a a a a a a a a
    executed        x x x
    now             ^

Observations and actions are in raw environment units everywhere outside `normalize`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

LARGEST = np.finfo(np.float32).max


class UserError(ValueError):
    """A mistake that its user can mend: entry points print its sentence and exit with code 2."""


class ConfigError(UserError):
    """A setting that is unknown, missing or out of range."""


class MissingPackage(ConfigError):
    """A choice that needs a package which is not installed."""


class DatasetError(UserError):
    """A data set that is missing, damaged or does not fit its task."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or belongs to another contract."""


class ObservationError(UserError):
    """An observation that does not fit the policy's specification."""


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and unit of one array, without batch and time axes."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def is_image(self) -> bool:
        """Whether it is an image "h w c", or another array of bytes: 0..255 in memory, -1..1 to networks."""
        return self.dtype == "uint8"

    def to_dict(self) -> dict[str, Any]:
        """The specification as JSON-ready values."""
        return {"shape": list(self.shape), "dtype": self.dtype, "unit": self.unit}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "ArraySpec":
        """The specification that `to_dict` wrote."""
        return ArraySpec(tuple(int(n) for n in values["shape"]), str(values["dtype"]), str(values["unit"]))


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """What a policy sees, what it commands, and how often.

    `observations` maps each key to its per-step array; `action` is one command of shape (d,). The policy sees `obs_horizon`
    steps, predicts `pred_horizon` steps that begin at the first observed one, and `exec_horizon` of them, from now on, are
    executed before it plans again. `control_hz` is the rate at which the demonstrations were recorded.
    """

    observations: Mapping[str, ArraySpec]
    action: ArraySpec
    obs_horizon: int
    pred_horizon: int
    exec_horizon: int
    control_hz: float

    def __post_init__(self) -> None:
        if not self.observations:
            raise ConfigError("A policy needs at least one observation key; the specification names none.")
        if len(self.action.shape) != 1:
            raise ConfigError(f"An action must be a vector (d,); the specification says {self.action.shape}.")
        for name in ("obs_horizon", "pred_horizon", "exec_horizon"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.control_hz < float("inf"):
            raise ConfigError(f"control_hz must be positive and finite; got {self.control_hz}.")
        if self.obs_horizon - 1 + self.exec_horizon > self.pred_horizon:
            raise ConfigError(
                f"The chunk is too short: obs_horizon - 1 + exec_horizon = {self.obs_horizon - 1 + self.exec_horizon} "
                f"steps must fit into pred_horizon = {self.pred_horizon}."
            )

    @property
    def sample_shape(self) -> tuple[int, int]:
        """Shape (t, d) of one action chunk, and of the noise it is generated from."""
        return self.pred_horizon, self.action.shape[0]

    @property
    def first_executed(self) -> int:
        """Index into the chunk of the command for the newest observed step."""
        return self.obs_horizon - 1

    def to_dict(self) -> dict[str, Any]:
        """The specification as JSON-ready values."""
        return {
            "observations": {key: spec.to_dict() for key, spec in sorted(self.observations.items())},
            "action": self.action.to_dict(),
            "obs_horizon": self.obs_horizon,
            "pred_horizon": self.pred_horizon,
            "exec_horizon": self.exec_horizon,
            "control_hz": float(self.control_hz),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "PolicySpec":
        """The specification that `to_dict` wrote."""
        return PolicySpec(
            observations={key: ArraySpec.from_dict(spec) for key, spec in values["observations"].items()},
            action=ArraySpec.from_dict(values["action"]),
            obs_horizon=int(values["obs_horizon"]),
            pred_horizon=int(values["pred_horizon"]),
            exec_horizon=int(values["exec_horizon"]),
            control_hz=float(values["control_hz"]),
        )

    @property
    def contract_hash(self) -> str:
        """Hash of everything that a robot or simulator must agree on with the policy."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Stats:
    """Per-element statistics of one data key over all steps, each of the key's own shape."""

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @staticmethod
    def of(values: np.ndarray) -> "Stats":
        """The statistics of `values`, whose first axis runs over steps; computed in float64."""
        wide = np.asarray(values, dtype=np.float64)
        return Stats(*(np.asarray(part) for part in (wide.min(0), wide.max(0), wide.mean(0), wide.std(0))))

    @staticmethod
    def of_images() -> "Stats":
        """Those of any image, a single number each: the whole range of a byte. `range` and `standard` map it to -1..1."""
        return Stats(*(np.asarray(value) for value in (0.0, 255.0, 127.5, 127.5)))

    def to_dict(self) -> dict[str, Any]:
        """The statistics as nested lists, for people and JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}


@runtime_checkable
class Policy(Protocol):
    """Anything that turns observations into action chunks. Stateless, and the caller owns the randomness."""

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and commands."""
        ...

    @property
    def max_prefix(self) -> int:
        """How many commands that are committed already it can continue; 0 where it was not trained to."""
        ...

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Action chunks "b t d" in raw units for observations "b to ..."; `noise` "b t d" picks the sample.

        `prefix` "b k d" in raw units, k <= `max_prefix`, are the first k commands from now on, which are committed already:
        the chunks repeat them exactly, from the index `spec.first_executed` on, and continue them.
        """
        ...


def check_obs(spec: PolicySpec, obs: Mapping[str, np.ndarray]) -> int:
    """The batch size of `obs` after a full check against `spec`: keys, shapes "b to ...", numbers, finiteness.

    Raises:
        ObservationError: names the key, what was expected and what came.
    """
    if obs.keys() != spec.observations.keys():
        unknown, missing = sorted(set(obs) - set(spec.observations)), sorted(set(spec.observations) - set(obs))
        raise ObservationError(
            f"The observation must have exactly the keys {sorted(spec.observations)}; missing: {missing}, unknown: {unknown}."
        )
    batch_sizes = {}
    for key, array_spec in spec.observations.items():
        value = np.asarray(obs[key])
        expected = (spec.obs_horizon, *array_spec.shape)
        if value.ndim != 1 + len(expected) or value.shape[1:] != expected:
            raise ObservationError(f"Observation '{key}' must have shape (batch, {_join(expected)}); got {value.shape}.")
        batch_sizes[key] = value.shape[0]
        if array_spec.is_image:
            check_image(key, value)
            continue
        if value.dtype.kind not in "fiub":
            raise ObservationError(f"Observation '{key}' must be numeric; got dtype {value.dtype}.")
        if value.dtype == np.float32 and all_finite(value):
            continue
        finite = np.abs(value) <= LARGEST  # what networks compute in
        if not finite.all():
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise ObservationError(f"Observation '{key}' holds NaN or infinity (in float32), first at index {place}.")
    if len(set(batch_sizes.values())) != 1:
        raise ObservationError(f"All observation keys must share one batch size; got {batch_sizes}.")
    return next(iter(batch_sizes.values()))


def all_finite(values: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity among the numbers: as a rule their squares tell, in half the time."""
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def check_noise(spec: PolicySpec, noise: np.ndarray, *, batch: int) -> None:
    """Refuse noise that is not "b t d" and finite.

    Raises:
        ObservationError: says what was expected and what came.
    """
    shape = (batch, *spec.sample_shape)
    if np.shape(noise) != shape:
        raise ObservationError(f"The noise must have shape {shape}; got {np.shape(noise)}.")
    if not all_finite(np.asarray(noise)):
        raise ObservationError("The noise holds NaN or infinity; draw it from a standard normal distribution.")


def check_prefix(spec: PolicySpec, prefix: np.ndarray, *, batch: int, longest: int) -> int:
    """The number k of commands in `prefix` "b k d" after a full check: shape, numbers, finiteness.

    Raises:
        ObservationError: says what was expected and what came.
    """
    value = np.asarray(prefix)
    size = spec.action.shape[0]
    if value.ndim != 3 or value.shape[0] != batch or value.shape[2] != size:
        raise ObservationError(f"The prefix must have shape ({batch}, k, {size}), k committed commands; got {value.shape}.")
    if value.shape[1] > longest:
        raise ObservationError(
            f"This policy continues at most {longest} committed commands (max_prefix of its training); got {value.shape[1]}."
        )
    if value.dtype.kind not in "fiu":
        raise ObservationError(f"The prefix must be numeric; got dtype {value.dtype}.")
    if not (np.abs(value) <= np.finfo(np.float32).max).all():
        raise ObservationError("The prefix holds NaN or infinity (in float32); give commands that were finite.")
    return value.shape[1]


def check_image(key: str, value: np.ndarray) -> None:
    """Refuse any dtype but uint8: what a float image of 0..1 or 0..255 means would be a guess.

    Raises:
        ObservationError: names the key and the dtype.
    """
    if value.dtype != np.uint8:
        raise ObservationError(
            f"Observation '{key}' is an image and must be uint8, 0..255 as a camera gives it; got dtype {value.dtype}."
        )


def _join(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape)
