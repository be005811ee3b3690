"""Planner: from a request to a chunk, wherever the policy runs."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import numpy as np

from drifting_policy.chunking import plan_noise
from drifting_policy.control.candidates import RULES, choose, spread
from drifting_policy.control.exchange import Exchange
from drifting_policy.control.limits import Limits
from drifting_policy.types import ConfigError, Policy, PolicySpec

NOISES = ("zero", "held", "fresh")


@final
@dataclasses.dataclass(frozen=True)
class Planner:
    """How a plan is drawn: its noise, how many candidates, and which of them is taken.

    Noise is `zero`, `held` (that of plan 0 of the episode, for all its plans: the policy keeps to one way of doing things) or
    `fresh` (that of each plan's number, as `ChunkExecutor` draws it).
    """

    noise: str = "held"
    candidates: int = 1
    rule: str = "medoid"
    limits: Limits | None = None
    control_hz: float = 1.0

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise ConfigError(f"Unknown noise '{self.noise}'; choose one of {list(NOISES)}.")
        if self.candidates < 1:
            raise ConfigError(f"candidates must be at least 1; got {self.candidates}.")
        if self.rule not in RULES:
            raise ConfigError(f"Unknown rule '{self.rule}' for choosing among candidates; choose one of {list(RULES)}.")
        if self.candidates > 1 and self.noise == "zero":
            raise ConfigError("Several candidates need noise to differ by; choose noise 'held' or 'fresh'.")

    def exchange(self, spec: PolicySpec, *, max_prefix: int, **where: Any) -> Exchange:
        """The memory for its requests."""
        return Exchange(spec, max_prefix=max_prefix, candidates=self.candidates, **where)

    def answer(self, policy: Policy, exchange: Exchange, clock: Callable[[], float]) -> None:
        """Fill in the answer to the request in `exchange`; what the policy does wrong becomes a sentence there."""
        begin = clock()
        exchange.error = None
        try:
            self._draw(policy, exchange)
        except Exception as error:  # noqa: BLE001 - whatever it is, the loop must hear of it and go on
            exchange.error = f"The policy failed: {type(error).__name__}: {error}"
        exchange.times[:2] = begin, clock()

    def _draw(self, policy: Policy, exchange: Exchange) -> None:
        spec, (plan, prefix_steps, _) = policy.spec, (int(number) for number in exchange.numbers)
        shape = (self.candidates, *spec.sample_shape)
        noise = None
        if self.noise != "zero":
            drawn = plan_noise(int(exchange.seed[0]), plan if self.noise == "fresh" else 0, shape)
            exchange.noise[...] = drawn
            noise = exchange.noise
        exchange.numbers[2] = noise is not None
        prefix = exchange.prefix[:prefix_steps] if prefix_steps else None
        committed = None if prefix is None else np.repeat(prefix[None], self.candidates, axis=0)
        chunks = np.asarray(policy.act(exchange.windows, noise=noise, prefix=committed))
        if chunks.shape != shape:
            raise ValueError(f"it must return action chunks of shape {shape}; it returned {chunks.shape}")
        if not np.isfinite(chunks).all():
            raise ValueError("it returned an action chunk with NaN or infinity")
        exchange.times[2], chosen = 0.0, 0
        if self.candidates > 1:
            ahead = chunks[:, spec.first_executed :]
            exchange.times[2] = spread(ahead)
            limits = None if self.limits is None else self.limits.resolve(spec.action.shape[0])
            chosen = choose(ahead, rule=self.rule, prefix=prefix, limits=limits, control_hz=self.control_hz)
        exchange.chunk[...] = chunks[chosen]


def warm_up(planner: Planner, policy: Policy, exchange: Exchange, clock: Callable[[], float]) -> None:
    """A first plan from an observation of zeros, which no statistic counts.

    Raises:
        ConfigError: the policy fails already here.
    """
    exchange.numbers.fill(0)
    planner.answer(policy, exchange, clock)
    if exchange.error is not None:
        raise ConfigError(f"The policy cannot plan, not even from an observation of zeros. {exchange.error}")
