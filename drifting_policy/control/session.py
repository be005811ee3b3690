"""What one client asks a policy for: requests read, checked and completed by its history, and the answers to them.

A request is a map of the policy's observation keys and, if wanted, of these options:

    noise     the standard normal noise of the sample, float (t, d)
    seed      a whole number: the noise of plan number `plan` (default 0) of the episode with this seed, as in simulations
    prefix    the first k commands from now on, raw units (k, d), which are committed already; the answer continues them
    reset     true: this observation begins an episode
    sequence  a whole number, which the answer repeats

How many axes an observation has before its own says what it is: none, one control step, which the session joins to those before
it; one, a window "to ..."; two, several windows "b to ...". Single steps have to be consecutive control steps.

The answer to a step or a window has `actions`, float32 (t - first_executed, d), whose row 0 is the command for the newest
observation. The answer to several windows has `chunk` instead, float32 (b, t, d), as the policy's `act` returns it; noise and
prefix are "b ..." there too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from drifting_policy.chunking import plan_noise
from drifting_policy.control.history import History, as_stored
from drifting_policy.control.wire import decode
from drifting_policy.types import ConfigError, ObservationError, PolicySpec, check_obs

OPTIONS = ("noise", "seed", "plan", "prefix", "reset", "sequence")


@dataclass(frozen=True)
class Request:
    """One evaluation of the policy: windows "b to ...", noise "b t d" and prefix "b k d" in raw units."""

    windows: Mapping[str, np.ndarray]
    noise: np.ndarray | None
    prefix: np.ndarray | None
    sequence: int | None
    several: bool

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the policy's `act`."""
        return {"noise": self.noise} | ({} if self.prefix is None else {"prefix": self.prefix})


def check_names(spec: PolicySpec) -> None:
    """Refuse a policy that sees a key with the name of an option.

    Raises:
        ConfigError: names the key.
    """
    if taken := sorted(set(spec.observations) & set(OPTIONS)):
        raise ConfigError(f"A policy that observes {taken} cannot be served, for clients set options by that name; rename it.")


@final
class Session:
    """Reads the requests of one client and keeps the history of its episode."""

    def __init__(self, spec: PolicySpec, *, max_prefix: int, max_batch: int) -> None:
        self._spec = spec
        self._max_prefix = max_prefix
        self._max_batch = max_batch
        self._history = History(spec)

    def read(self, message: bytes | str) -> Request:
        """The request in `message`; one that is refused does not join the history.

        Raises:
            WireError: bytes that are no message.
            ObservationError: an observation or option that does not fit the policy.
        """
        if isinstance(message, str):
            raise ObservationError("A request must be a binary message; this one was text.")
        told = decode(message)
        if not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
            raise ObservationError("A request must be a map from observation keys to arrays.")
        options = {key: value for key, value in told.items() if key in OPTIONS and value is not None}
        obs = {key: value for key, value in told.items() if key not in OPTIONS}
        axes = self._axes(obs)
        steps = () if axes < 2 else (len(np.asarray(next(iter(obs.values())))),)
        if axes == 2 and not 1 <= steps[0] <= self._max_batch:
            raise ObservationError(f"A request must hold 1 to {self._max_batch} windows; got {steps[0]}.")
        sequence, reset = _whole(options, "sequence"), options.get("reset", False)
        if not isinstance(reset, bool):
            raise ObservationError(f"The option reset must be true or false; got {type(reset).__name__}.")
        noise, prefix = self._noise(options, steps), self._prefix(options, steps)
        if reset:
            self._history.reset()
        seen = (*steps, self._spec.obs_horizon)
        windows = as_stored(self._spec, obs, steps=seen) if axes else self._history.push(obs)
        if not steps:
            windows = {key: value[None] for key, value in windows.items()}
        check_obs(self._spec, windows)
        return Request(windows, noise=noise, prefix=prefix, sequence=sequence, several=axes == 2)

    def _axes(self, obs: Mapping[str, Any]) -> int:
        """How many axes stand before those of one step, the same in all of `obs`."""
        if set(obs) != set(self._spec.observations):
            check_obs(self._spec, dict.fromkeys(obs, np.zeros(0)))  # names the keys
        axes = set()
        for key, array in self._spec.observations.items():
            if not isinstance(obs[key], np.ndarray | np.generic | bool | int | float):
                raise ObservationError(f"Observation '{key}' must be an array; got {type(obs[key]).__name__}.")
            axes.add(np.ndim(obs[key]) - len(array.shape))
        if len(axes) != 1 or not axes <= {0, 1, 2}:
            shapes = {key: np.shape(obs[key]) for key in self._spec.observations}
            raise ObservationError(
                f"All observations must be one step, {self._spec.obs_horizon} steps or several windows of those; got {shapes}."
            )
        return axes.pop()

    def _noise(self, options: Mapping[str, Any], steps: tuple[int, ...]) -> np.ndarray | None:
        """Noise "b t d" from the option noise or seed."""
        seed, plan = _whole(options, "seed"), _whole(options, "plan")
        if seed is None and plan is not None:
            raise ObservationError("The option plan needs a seed beside it.")
        if seed is not None and ("noise" in options or steps):
            raise ObservationError("Give either seed or noise, and for several windows noise.")
        if seed is not None:
            return plan_noise(seed, plan or 0, self._spec.sample_shape)[None]
        if "noise" not in options:
            return None
        return _numbers(options, "noise", (*(steps or (1,)), *self._spec.sample_shape), single=not steps)

    def _prefix(self, options: Mapping[str, Any], steps: tuple[int, ...]) -> np.ndarray | None:
        """The prefix "b k d", None where there is none or an empty one."""
        if "prefix" not in options:
            return None
        shape = _array(options, "prefix").shape
        length = shape[-2] if len(shape) >= 2 else 0
        if length > self._max_prefix:
            raise ObservationError(f"This policy takes prefixes of at most {self._max_prefix} commands; got {length}.")
        prefix = _numbers(options, "prefix", (*(steps or (1,)), length, *self._spec.action.shape), single=not steps)
        return prefix if length else None


def answer(spec: PolicySpec, request: Request, chunks: Any, timing: Mapping[str, float]) -> dict[str, Any]:
    """The message that answers `request`, whose arrays all have the chunk as first axis unless it asked for several.

    Raises:
        ValueError: the policy did not return finite chunks "b t d".
    """
    array = np.asarray(chunks, np.float32)
    expected = (len(next(iter(request.windows.values()))), *spec.sample_shape)
    if array.shape != expected or not np.isfinite(array).all():
        raise ValueError(f"The policy must return finite chunks of shape {expected}; it returned {array.shape}.")
    told: dict[str, Any] = {"chunk": array} if request.several else {"actions": array[0, spec.first_executed :]}
    if request.sequence is not None:
        told["sequence"] = request.sequence
    return told | {"server_timing": dict(timing)}


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    """A whole number in [0, 2^64), as noise is drawn from."""
    value = options.get(name)
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and (type(value) is not int or not 0 <= value < 2**64):
        raise ObservationError(f"The option {name} must be a whole number from 0 to 2^64 - 1.")
    return value


def _array(options: Mapping[str, Any], name: str) -> np.ndarray:
    value = options[name]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise ObservationError(f"The option {name} must be an array of numbers; got {type(value).__name__}.")
    return value


def _numbers(options: Mapping[str, Any], name: str, shape: tuple[int, ...], *, single: bool) -> np.ndarray:
    """Finite float32 numbers of `shape`; for a single window they come without its first axis."""
    value, expected = _array(options, name), shape[1:] if single else shape
    if value.shape != expected:
        raise ObservationError(f"The option {name} must have shape {expected}; got {value.shape}.")
    with np.errstate(over="ignore"):
        numbers: np.ndarray = value.astype(np.float32).reshape(shape)
    if not np.isfinite(numbers).all():
        raise ObservationError(f"The option {name} holds NaN or infinity.")
    return numbers
