"""Planning: the one plan that is under way, from the request to the schedule, and whether it is on time."""

import math
from collections.abc import Callable
from typing import final

import numpy as np

from drifting_policy.control.inference import Inference
from drifting_policy.control.latency import Histogram
from drifting_policy.control.observation_ring import ObservationRing
from drifting_policy.control.report import Faults
from drifting_policy.control.schedule import Grid, Schedule
from drifting_policy.control.settings import Settings

SLACK = 1e-9  # seconds, or control steps, that rounding may make of nothing
LATENCY_DECAY = 0.98  # per plan, of the largest latency seen


@final
class Planning:
    """Asks for plans when it is time, takes their answers, and puts them on the schedule.

    Args:
        inference: what plans; started by its owner.
        settings: when plans begin, when they must be there, and how they follow each other.
        history, grid, schedule: observations, control steps, commands.
        faults: is told what goes wrong.
        planned: called when a plan has come, with what `Recorder.planned` is told.

    Attributes:
        overdue: whether the newest plan missed its deadline or failed, and no later one has come.
        doubt: why the robot must stop, if the candidates of a plan were too different.
        plans, misses, failures, dropped, times: see `Report`.
    """

    def __init__(
        self,
        inference: Inference,
        settings: Settings,
        *,
        history: ObservationRing,
        grid: Grid,
        schedule: Schedule,
        faults: Faults,
        planned: Callable[..., None],
    ) -> None:
        self._inference, self._settings = inference, settings
        self._history, self._grid, self._schedule = history, grid, schedule
        self._faults, self._planned = faults, planned
        self._first = inference.spec.first_executed
        self._fade = settings.blended
        self.plans = self.misses = self.failures = self.dropped = 0
        self.times = Histogram()
        self._pending = False
        self._latency = settings.latency or 0.0
        self.reset(0)

    def reset(self, seed: int) -> None:
        """An episode with the noise of `seed` begins."""
        self._seed, self._plan = seed, 0
        self.doubt: str | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what carries a time: the schedule and the plan under way."""
        self._schedule.clear()
        self._abandoned, self._missed, self.overdue = self._pending, False, False
        self._t_planned, self._next = math.nan, -math.inf

    def advance(self, now: float, tick: int, *, t_obs: float) -> None:
        """One control step; `t_obs` is the time of the newest observation, NaN if there is none."""
        self._collect(now, tick)
        self._ask(now, tick, t_obs)
        self._collect(now, tick)
        late = self._pending and now > self._t_planned + self._settings.deadline + SLACK
        if late and not self._abandoned and not self._missed:
            self._miss(f"Plan {self._plan - 1} was not there {self._settings.deadline:g} s after its observation.")

    def _ask(self, now: float, tick: int, t_obs: float) -> None:
        """Begin a plan where it is time for one, the one before has ended, and a new observation is there."""
        if self._pending or tick < self._next or not t_obs <= now + self._settings.period or t_obs == self._t_planned:
            return  # an observation from the future is no better than none
        if (ended := self._inference.ended) is not None:
            self.overdue = True
            self._faults.tell_once(ended)
            return
        exchange, obs_tick = self._inference.exchange, self._grid.tick(t_obs)
        self._history.fill(exchange.windows)
        exchange.numbers[0], exchange.seed[0] = self._plan, self._seed
        exchange.numbers[1] = self._prefix(exchange.prefix, obs_tick=obs_tick, tick=tick)
        self._next = tick + self._settings.exec_steps
        self._t_planned, self._planned_tick, self._asked = t_obs, obs_tick, now
        self._pending, self._abandoned, self._missed = True, False, False
        self._plan += 1
        self.plans += 1
        self._inference.ask(now)

    def _prefix(self, out: np.ndarray, *, obs_tick: int, tick: int) -> int:
        """How many commands from the observation on are settled: those that will be given until the plan is there."""
        if not self._settings.continues:
            return 0
        steps = math.ceil(self._latency * self._settings.control_hz - 1e-6) + max(tick - obs_tick, 0)
        return self._schedule.ahead(obs_tick, out[: min(steps, self._inference.max_prefix)])

    def _collect(self, now: float, tick: int) -> None:
        """Take the answer if it is there."""
        if not self._pending:
            return
        if not self._inference.poll(now):
            if (ended := self._inference.ended) is not None:
                self._pending = False
                self._miss(ended)
            return
        self._pending = False
        exchange = self._inference.exchange
        if self._abandoned:  # it belongs to a time or an episode that is over
            self._planned(self._plan - 1, math.nan, math.nan, math.nan, None, None, None, 0.0)
            return
        begin, end, spread = (float(value) for value in exchange.times)
        failed = exchange.error is not None
        noise = exchange.noise if exchange.numbers[2] and not failed else None
        prefix = exchange.prefix[: exchange.numbers[1]] if exchange.numbers[1] else None
        chunk = None if failed else exchange.chunk
        self._planned(self._plan - 1, self._t_planned, begin, end, noise, prefix, chunk, spread)
        if exchange.error is not None:
            self.failures += 1
            self._miss(exchange.error)
            self._next = tick + 1
            return
        self.times.record(end - begin)
        if self._settings.latency is None:
            self._latency = max(now - self._asked, LATENCY_DECAY * self._latency)
        if not spread <= self._settings.max_spread:
            self.doubt = f"The candidates of plan {self._plan - 1} differ by {spread:.4g}, more than max_spread."
            return
        self._install(exchange.chunk, tick)

    def _install(self, chunk: np.ndarray, tick: int) -> None:
        """Put the commands of a plan that has come on the schedule."""
        self.dropped += self._schedule.install(
            chunk[self._first :],
            first_tick=self._planned_tick,
            now_tick=tick,
            t_obs=self._t_planned,
            fade_steps=self._fade,
        )
        self.overdue = False

    def _miss(self, sentence: str) -> None:
        if not self._missed and not self._abandoned:
            self.misses += 1
        self._missed = self.overdue = True
        self._faults.tell(sentence)
