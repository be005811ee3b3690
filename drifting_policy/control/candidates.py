"""Candidates: several chunks drawn for one observation, one of which is chosen, and what their spread tells. NumPy only."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, final, runtime_checkable

import numpy as np

from drifting_policy.types import ConfigError, ObservationError, Policy, PolicySpec, check_obs, check_prefix

RULES = ("first", "medoid", "closest", "within_limits")


@runtime_checkable
class Bounds(Protocol):
    """Largest commands and differences of commands, arrays "d"; infinite where there is no limit."""

    position_low: np.ndarray
    position_high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray


def choose(
    chunks: np.ndarray,
    *,
    rule: str,
    prefix: np.ndarray | None = None,
    limits: Bounds | None = None,
    control_hz: float = 1.0,
    scale: float | np.ndarray = 1.0,
) -> int:
    """The index of the candidate among `chunks` "k t d", commands from now on in raw units, that is to be executed.

    `first` is the first one. `medoid` is the one with the smallest mean distance to all (the most typical one: unlike their
    mean it was drawn, so it goes one way round an obstacle or the other). `closest` is the one whose first commands are
    nearest to the committed ones `prefix` "j d" (backward coherence of Bidirectional Decoding, Liu et al. 2024, arXiv
    2408.17355); without any, the first. `within_limits` is the first one that keeps the `limits` or, if none does, the one
    that exceeds them least; where there is a prefix, it is continued from there. Distances are Euclidean, per step, and divided
    by `scale`, a number or "d". Of equals, the first is chosen.

    Raises:
        ConfigError: an unknown rule, or `within_limits` without limits.
        ValueError: chunks that are not finite and of shape (k, t, d), or a prefix of another shape or longer than they are.
    """
    drawn = _checked(chunks)
    if rule not in RULES:
        raise ConfigError(f"Unknown rule '{rule}' for choosing among candidates; choose one of {list(RULES)}.")
    if rule == "within_limits" and limits is None:
        raise ConfigError("rule=within_limits needs limits; give them, or choose another rule.")
    if prefix is not None and (np.ndim(prefix) != 2 or len(prefix) > drawn.shape[1] or np.shape(prefix)[1] != drawn.shape[2]):
        raise ValueError(f"The prefix must hold at most {drawn.shape[1]} commands of {drawn.shape[2]}; got {np.shape(prefix)}.")
    if rule == "medoid":
        return int(distances(drawn, scale=scale).mean(axis=1).argmin())
    if rule == "closest" and prefix is not None and len(prefix):
        apart = np.linalg.norm((drawn[:, : len(prefix)] - prefix) / scale, axis=-1).mean(axis=1)
        return int(apart.argmin())
    if rule == "within_limits" and limits is not None:
        if prefix is not None:
            drawn[:, : len(prefix)] = prefix
        return int(excess(drawn, limits, control_hz=control_hz).argmin())
    return 0


def distances(chunks: np.ndarray, *, scale: float | np.ndarray = 1.0) -> np.ndarray:
    """Mean Euclidean distances per step "k k" between every two of the `chunks` "k t d", in units of `scale`."""
    drawn = _checked(chunks) / scale
    return np.asarray(np.linalg.norm(drawn[:, None] - drawn[None], axis=-1).mean(axis=-1))


def spread(chunks: np.ndarray, *, scale: float | np.ndarray = 1.0) -> float:
    """Mean distance of the `chunks` "k t d" to their medoid, in units of `scale`, which is a number or "d" in raw units.

    The policy's own doubt: 0 where all candidates agree, large between two ways of doing the task, and larger than usual where
    the observation is unlike those of the training.
    """
    return float(distances(chunks, scale=scale).mean(axis=1).min())


def excess(chunks: np.ndarray, limits: Bounds, *, control_hz: float) -> np.ndarray:
    """By how much each of the `chunks` "k t d" exceeds the `limits` at most, "k": 0 within them, else a multiple of the limit.

    Beyond a limit of the position, which has no length to be compared with, it is counted in raw units. Velocity, acceleration
    and jerk are finite differences of successive commands at `control_hz`.
    """
    drawn = _checked(chunks)
    outside = np.maximum(limits.position_low - drawn, drawn - limits.position_high)
    worst = np.maximum(outside, 0).max(axis=(1, 2), initial=0.0)
    for order, bound in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        moved = np.abs(np.diff(drawn, n=order, axis=1)) * control_hz**order
        worst = np.maximum(worst, np.maximum(moved / bound - 1, 0).max(axis=(1, 2), initial=0.0))
    return worst


def tile(obs: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Every observation of `obs` "b ..." `count` times in a row, "b*count ...", for one call of `act`."""
    return {key: np.repeat(np.asarray(value), count, axis=0) for key, value in obs.items()}


def candidate_noise(noise: np.ndarray, count: int) -> np.ndarray:
    """Noise "b k t d" for `count` candidates of each row: `noise` "b t d" itself, and standard normal noise from its bytes.

    So whoever draws candidates needs no randomness of his own, and a row depends on no other.
    """
    draws = np.empty((len(noise), count, *noise.shape[1:]), np.float32)
    for row, drawn in zip(np.asarray(noise, np.float32) + 0.0, draws, strict=True):  # -0.0 becomes 0.0
        key = int.from_bytes(hashlib.blake2b(row.astype("<f4").tobytes(), digest_size=16).digest(), "little")
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=drawn)
        drawn[:1] = row
    return draws


@final
class CandidatePolicy:
    """A policy that draws `candidates` chunks for every observation, in one call of another policy, and answers with one.

    With the rule `closest` it takes prefixes even if that policy does not: of what was drawn freely it chooses what fits best.
    Otherwise it hands prefixes on. Either way they are repeated exactly in the answer.
    """

    def __init__(
        self, policy: Policy, *, candidates: int, rule: str, limits: Bounds | None = None, scale: float | np.ndarray = 1.0
    ) -> None:
        """Choose by `rule`, see `choose`.

        Raises:
            ConfigError: an unknown rule, missing limits, or no candidates.
        """
        if candidates < 1:
            raise ConfigError(f"candidates must be at least 1; got {candidates}.")
        self.policy, self.candidates = policy, candidates
        self._options: dict[str, Any] = {"rule": rule, "limits": limits, "scale": scale}
        self._options["control_hz"] = policy.spec.control_hz
        choose(np.zeros((1, *policy.spec.sample_shape)), **self._options)  # it knows its rules: refuse others now

    @property
    def spec(self) -> PolicySpec:
        """That of the policy."""
        return self.policy.spec

    @property
    def max_prefix(self) -> int:
        """That of the policy, or whatever leaves a step to be planned."""
        if self.policy.max_prefix or self._options["rule"] != "closest":
            return self.policy.max_prefix
        return self.spec.pred_horizon - self.spec.first_executed - 1

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """The chosen chunks "b t d" in raw units; `noise` "b t d" picks all candidates, and the first is the one it stands for.

        Raises:
            ObservationError: as the policy does, or a prefix that it cannot continue.
        """
        batch, shape, first = check_obs(self.spec, obs), self.spec.sample_shape, self.spec.first_executed
        given = np.zeros((batch, *shape), np.float32) if noise is None else np.asarray(noise)
        if given.shape != (batch, *shape):
            raise ObservationError(f"The noise must have shape {(batch, *shape)}; got {given.shape}.")
        options: dict[str, Any] = {}
        if prefix is not None:
            check_prefix(self.spec, prefix, batch=batch, longest=self.max_prefix)
            if self.policy.max_prefix:
                options["prefix"] = np.repeat(prefix, self.candidates, axis=0)
        draws = candidate_noise(given, self.candidates).reshape(batch * self.candidates, *shape)
        chunks = np.asarray(self.policy.act(tile(obs, self.candidates), noise=draws, **options))
        chunks = chunks.reshape(batch, self.candidates, *shape)
        answer = np.empty((batch, *shape), chunks.dtype)
        for row, drawn in enumerate(chunks):
            committed = None if prefix is None else np.asarray(prefix[row])
            answer[row] = drawn[choose(drawn[:, first:], prefix=committed, **self._options)]
            if committed is not None:
                answer[row, first : first + len(committed)] = committed
        return answer


def _checked(chunks: np.ndarray) -> np.ndarray:
    """A copy in float64."""
    drawn = np.array(chunks, np.float64)
    if drawn.ndim != 3 or not len(drawn) or not np.isfinite(drawn).all():
        raise ValueError(f"Candidates must be finite chunks of shape (k, t, d), at least one; got shape {drawn.shape}.")
    return drawn
