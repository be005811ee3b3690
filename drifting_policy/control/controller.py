"""Controller: from observations and a policy to commands on time, whatever happens to either."""

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import final

import numpy as np

from drifting_policy.control.fallback import Fallback
from drifting_policy.control.inference import Inference, ThreadInference
from drifting_policy.control.latency import Histogram
from drifting_policy.control.limiter import Limiter
from drifting_policy.control.limits import Limits
from drifting_policy.control.log import Recorder
from drifting_policy.control.observation_ring import ObservationRing
from drifting_policy.control.planner import Planner
from drifting_policy.control.planning import Planning
from drifting_policy.control.report import Faults, Report
from drifting_policy.control.schedule import Grid, Schedule
from drifting_policy.control.settings import Settings
from drifting_policy.control.status import Status
from drifting_policy.control.watchdog import Watchdog
from drifting_policy.types import ConfigError, Policy

LONG_STEP = 10  # a control step of so many periods is told as a fault


@final
class Controller:
    """Runs a policy on a robot: one `submit` and one `action` per control step, from one thread; neither waits nor raises.

        with Controller(policy, exec_steps=4, deadline=0.02, limits=Limits(velocity=1.0)) as controller:
            for now in pace(control_hz):
                controller.submit(robot.observe(), now)
                action, status = controller.action(now)
                robot.command(action)

    A plan begins every `exec_steps` control steps with the newest observations and runs elsewhere (see `Inference`). Step i of
    its chunk is due at t_obs + (i - first_executed) / control_hz, on the loop's own grid of steps; what is late when the chunk
    arrives is dropped. Until then the chunk before goes on. When no step is due, or the data are too old, the fallback moves.

    With the seam `snap` a new chunk takes over at once; `fade` leads over linearly during `fade_steps`; `prefix` tells the
    policy the commands that will be given while it plans, which its chunk then continues; `prefix_fade` does both.

    Args:
        policy: the policy, which then runs in a thread, or an `Inference`.
        exec_steps: control steps from one plan to the next.
        deadline: seconds after its observation by which a plan must be there; later is a miss.
        control_hz: steps per second; by default the rate of the demonstrations.
        limits: of every command; see `Limiter`.
        seam: snap, fade, prefix or prefix_fade.
        fade_steps: length of a fade.
        watchdog: ages at which the robot waits or stops; by default `Watchdog.suited`.
        fallback: hold, decelerate or stop; see `Fallback`.
        rest_seconds: until rest, of `decelerate`.
        noise: zero, held or fresh; see `Planner`.
        seed: of the first episode's noise.
        candidates: chunks that are drawn for every plan, of which `rule` chooses one.
        rule: see `candidates.choose`.
        max_spread: the robot stops where `candidates.spread` is larger: the policy does not know what to do.
        measured: observation key of the position that commands set, in the same units. The robot then starts from it.
        max_jump: largest difference between it and the first command, a number or one per dimension; beyond, the robot stops.
        contract: `PolicySpec.contract_hash` that the robot was set up for.
        latency: seconds from an observation to its plan, for the prefix; by default as measured.
        clock: seconds, monotonic; read by the loop when no time is given, and to time inference and `action`.
        recorder: is told what happens.

    Raises:
        ConfigError: settings that do not fit the policy or each other.
        CheckpointError: the policy belongs to another contract.
    """

    def __init__(
        self,
        policy: Policy | Inference,
        *,
        exec_steps: int,
        deadline: float,
        control_hz: float | None = None,
        limits: Limits | None = None,
        seam: str = "snap",
        fade_steps: int = 4,
        watchdog: Watchdog | None = None,
        fallback: str = "hold",
        rest_seconds: float = 0.5,
        noise: str = "held",
        seed: int = 0,
        candidates: int = 1,
        rule: str = "medoid",
        max_spread: float = math.inf,
        measured: str | None = None,
        max_jump: float | np.ndarray = math.inf,
        contract: str | None = None,
        latency: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        recorder: Recorder | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "policy", "clock", "recorder")}
        self._inference = policy if isinstance(policy, Inference) else ThreadInference(policy)
        spec = self._inference.spec
        hz, d = spec.control_hz if control_hz is None else control_hz, spec.action.shape[0]
        ahead = spec.pred_horizon - spec.first_executed
        limits = limits or Limits()
        self.settings = Settings(
            control_hz=hz,
            exec_steps=exec_steps,
            deadline=deadline,
            limits=limits,
            seam=seam,
            fade_steps=fade_steps,
            measured=measured,
            max_jump=np.asarray(max_jump, np.float64),
            max_spread=max_spread,
            latency=latency,
        )
        self.settings.check(self._inference, contract=contract)
        self._watchdog = watchdog or Watchdog.suited(period=1 / hz, chunk_seconds=ahead / hz)
        self._planner = Planner(noise=noise, candidates=candidates, rule=rule, limits=limits, control_hz=hz)
        self._limiter = Limiter(limits, control_hz=hz, dimensions=d)
        self._fallback = Fallback(fallback, self._limiter, rest_steps=round(rest_seconds * hz))
        self._clock, self._recorder = clock, recorder
        self._action = np.full(d, np.nan)
        self._make_parts(ahead, d)
        if recorder is not None:
            recorder.attached(spec, options, max_prefix=self._inference.max_prefix)
        self.reset(seed)

    def _make_parts(self, ahead: int, dimensions: int) -> None:
        self._history, self._grid = ObservationRing(self._inference.spec), Grid(self.settings.control_hz)
        self._schedule, self._faults = Schedule(steps=ahead, dimensions=dimensions), Faults()
        self._planning = Planning(
            self._inference,
            self.settings,
            history=self._history,
            grid=self._grid,
            schedule=self._schedule,
            faults=self._faults,
            planned=lambda *about: self._tell(lambda recorder: recorder.planned(*about)),
        )
        self._ages, self._jitter, self._durations = Histogram(), Histogram(), Histogram()
        self._counts, self._refused = [0] * len(Status), 0
        self._started = False

    def __enter__(self) -> "Controller":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the inference and warm it up; the loop may begin.

        Raises:
            ConfigError: the policy cannot plan at all.
        """
        self._inference.start(self._planner, self._clock)
        self._started = True

    def close(self) -> None:
        """End the inference; the robot keeps the last command."""
        self._started = False
        self._inference.close()

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: forget observations, plans and a stop; `seed` in [0, 2^64) picks the noise. Counts go on.

        Raises:
            ConfigError: a seed out of range.
        """
        if not 0 <= seed < 2**64:
            raise ConfigError(f"The seed must lie in [0, 2^64); got {seed}.")
        self._history.reset()
        self._planning.reset(seed)
        self._stopped = self._moving = self._falling = False
        self._last: float | None = None
        self._faults.newest = None
        self._action.fill(math.nan)
        self._forget_times()
        self._tell(lambda recorder: recorder.began(seed))

    def _forget_times(self) -> None:
        self._grid.reset()
        self._t_obs = self._t_chunk = self._anchor = math.nan

    def submit(self, obs: Mapping[str, np.ndarray], t_obs: float) -> bool:
        """Take the observation of time `t_obs`, one step per key; once per control step, before `action`.

        Returns whether it was accepted. Why not is told in the report: wrong keys, shapes or dtypes, NaN, infinity, or a time
        that is not after that of the observation before. The watchdog sees to it that the robot does not go on without.
        """
        try:
            sentence = (
                None if not t_obs <= self._t_obs else f"The observation of time {t_obs} is not newer than the one before."
            )
            if not math.isfinite(t_obs):
                sentence = f"The time of an observation must be finite; got {t_obs}."
            sentence = sentence or self._history.append(obs)
        except Exception as error:  # noqa: BLE001 - the loop goes on; the watchdog judges how long it may
            sentence = f"The observation cannot be read: {type(error).__name__}: {error}"
        if sentence is not None:
            self._refused += 1
            self._faults.tell(sentence)
            return False
        self._t_obs = t_obs
        self._tell(lambda recorder: recorder.observed(t_obs, obs))
        return True

    def action(self, t_now: float | None = None) -> tuple[np.ndarray, Status]:
        """The command "d" (float64, overwritten by the next call) for the control step at `t_now`, and its status.

        Before the first plan it is the measured position, if `measured` names one, or NaN: then command nothing.
        """
        begin = self._clock()
        now = begin if t_now is None else t_now
        try:
            status = self._advance(now)
            if self._moving:
                np.copyto(self._action, self._limiter.position)
            elif self.settings.measured is not None and not self._history.empty:
                np.copyto(self._action, self._history.newest(self.settings.measured))
        except Exception as error:  # noqa: BLE001 - a loop that ends here would leave the robot moving
            status = self._stop(f"The controller failed: {type(error).__name__}: {error}")
        self._counts[status] += 1
        if self._recorder is not None:
            self._tell(lambda recorder: recorder.acted(now, self._action, status))
        self._durations.record(self._clock() - begin)
        return self._action, status

    def _advance(self, now: float) -> Status:
        """One control step: what arrived, what is to be planned, what is due, and the limits."""
        tick = self._tick(now)
        if self._stopped:
            return self._rest(Status.STOP)
        if not self._started:
            self._faults.tell_once("The controller was not started: use it in a with statement.")
            return self._rest(Status.HOLD)
        self._planning.advance(now, tick, t_obs=self._t_obs)
        if self._planning.doubt is not None:
            self._stop(self._planning.doubt)
        command = self._schedule.command(tick)
        if command is not None:
            self._t_chunk = self._schedule.source(tick)
        verdict = self._judge(now)
        if self._stopped or verdict is Status.STOP:
            self._stopped = True
            return self._rest(Status.STOP)
        if command is None or verdict is Status.HOLD:
            return self._rest(Status.HOLD)
        if not self._moving and not self._begin(command):
            return Status.STOP
        self._falling = False
        self._ages.record(now - self._t_chunk)
        changed = self._limiter.step(command)
        return Status.LATE if self._planning.overdue else Status.LIMITED if changed else Status.OK

    def _tick(self, now: float) -> int:
        """The number of this control step; a clock that went backwards makes all times worthless."""
        if self._last is not None:
            step = now - self._last
            if step < 0:
                self._planning.forget()
                self._forget_times()
                self._faults.tell(f"The clock went backwards by {-step:.4g} s; the robot waits for a new observation and plan.")
            else:
                self._jitter.record(abs(step - self.settings.period))
                if step > LONG_STEP * self.settings.period:
                    self._faults.tell(f"{step:.4g} s passed between two control steps.")
        self._last = now
        if math.isnan(self._anchor):
            self._anchor = now
        return self._grid.advance(now)

    def _judge(self, now: float) -> Status:
        """What the watchdog says; ages count from the first step while there is no observation or command."""
        observed = self._anchor if math.isnan(self._t_obs) else self._t_obs
        planned = self._anchor if math.isnan(self._t_chunk) else self._t_chunk
        verdict = self._watchdog.judge(abs(now - observed), now - planned)  # an observation from the future is no better
        if verdict is Status.STOP or (verdict is Status.HOLD and not self._falling):
            self._faults.tell(
                f"Stale data: the newest observation is {now - observed:.4g} s old, that of the command {now - planned:.4g} s."
            )
        return verdict

    def _begin(self, command: np.ndarray) -> bool:
        """Begin to move, from where the robot is; whether that is safe."""
        start = np.clip(command, self._limiter.limits.position_low, self._limiter.limits.position_high)
        if self.settings.measured is not None:
            start = self._history.newest(self.settings.measured)
            if not (np.abs(command - start) <= self.settings.max_jump).all():
                self._stop(f"The first command {command} is further than max_jump from the measured position {start}.")
                return False
        if not self._limiter.reset(start):
            self._stop(f"The measured position {start} lies outside the position limits; move the robot inside first.")
            return False
        self._moving = True
        return True

    def _rest(self, status: Status) -> Status:
        """Come to rest, or stay there."""
        if not self._falling:
            self._falling = True
            if self._moving:
                self._fallback.begin()
                if self._fallback.latches and status is Status.HOLD:
                    status = self._stop("No planned command was due.")
        if self._moving:
            self._limiter.brake() if status is Status.STOP else self._fallback.advance()
        return status

    def _stop(self, sentence: str) -> Status:
        self._stopped = True
        self._faults.tell(sentence)
        return Status.STOP

    def _tell(self, what: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            what(self._recorder)
        except Exception as error:  # noqa: BLE001 - a full disk must not stop the robot in an unplanned way
            self._recorder = None
            self._faults.tell(f"The recorder failed and records no more: {type(error).__name__}: {error}")

    def report(self) -> Report:
        """What has happened since the controller was made."""
        planning = self._planning
        return Report(
            statuses={status.name: self._counts[status] for status in Status},
            plans=planning.plans,
            misses=planning.misses,
            failures=planning.failures,
            dropped=planning.dropped,
            refused=self._refused,
            fault=self._faults.newest,
            faults=self._faults.count,
            inference=planning.times,
            age=self._ages,
            jitter=self._jitter,
            action=self._durations,
        )
