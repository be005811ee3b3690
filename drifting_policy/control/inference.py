"""Inference: where the policy runs, so that the control loop never waits for it."""

import abc
import math
import threading
from collections.abc import Callable
from typing import final

from drifting_policy.control.exchange import Exchange
from drifting_policy.control.planner import Planner, warm_up
from drifting_policy.types import ConfigError, Policy, PolicySpec

JOIN_SECONDS = 2.0


class Inference(abc.ABC):
    """Answers one request at a time, through `exchange`, which belongs to the loop unless a request is under way.

    Attributes:
        exchange: the request and the answer; there after `start`.
    """

    exchange: Exchange

    @property
    @abc.abstractmethod
    def spec(self) -> PolicySpec:
        """What the policy sees and commands."""

    @property
    @abc.abstractmethod
    def max_prefix(self) -> int:
        """The longest prefix that it takes, 0 for none."""

    @property
    @abc.abstractmethod
    def ended(self) -> str | None:
        """Why no answer can come any more, as a sentence; None as long as one can."""

    @abc.abstractmethod
    def start(self, planner: Planner, clock: Callable[[], float]) -> None:
        """Make everything ready, and run the policy once to warm it up.

        Raises:
            ConfigError: the policy fails already here.
        """

    @abc.abstractmethod
    def ask(self, now: float) -> None:
        """Hand over the request; returns at once."""

    @abc.abstractmethod
    def poll(self, now: float) -> bool:
        """Whether the answer is there, which is said once; returns at once."""

    @abc.abstractmethod
    def close(self) -> None:
        """End what runs and free what is held."""


@final
class InlineInference(Inference):
    """Runs the policy within the loop, and withholds the answer for a given time: for simulators and tests.

    Nothing depends on the machine: with a virtual clock, equal observations lead to equal commands.

    Args:
        policy: what plans.
        latency: seconds until an answer is there; a number, or a function of the number of the plan. Infinity: it never comes.
    """

    def __init__(self, policy: Policy, latency: float | Callable[[int], float] = 0.0) -> None:
        self._policy = policy
        self._latency = latency if callable(latency) else lambda plan: latency
        self._due = math.inf
        self._planner = Planner()

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and commands."""
        return self._policy.spec

    @property
    def max_prefix(self) -> int:
        """The longest prefix that it takes, 0 for none."""
        return self._policy.max_prefix

    @property
    def ended(self) -> str | None:
        """None: it runs as long as the loop does."""
        return None

    def start(self, planner: Planner, clock: Callable[[], float]) -> None:
        """Make the memory; there is nothing to warm up."""
        self._planner = planner
        self.exchange = planner.exchange(self.spec, max_prefix=self.max_prefix)

    def ask(self, now: float) -> None:
        """Run the policy; its answer is there after the latency."""
        self._planner.answer(self._policy, self.exchange, lambda: now)
        self._due = now + self._latency(int(self.exchange.numbers[0]))
        self.exchange.times[1] = self._due

    def poll(self, now: float) -> bool:
        """Whether the latency is over, up to rounding; said once."""
        if now < self._due - 1e-9:
            return False
        self._due = math.inf
        return True

    def close(self) -> None:
        """Nothing runs."""


@final
class ThreadInference(Inference):
    """Runs the policy in a thread of this process.

    The interpreter's lock is shared with the loop: what the policy does in Python, and not in a library that releases the
    lock, delays the loop by up to `sys.getswitchinterval()`. `ProcessInference` does not have this problem.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._go = threading.Semaphore(0)
        self._ready = threading.Event()
        self._done = False
        self._closing = False
        self._ended: str | None = None
        self._failed_start: ConfigError | None = None
        self._thread: threading.Thread | None = None

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and commands."""
        return self._policy.spec

    @property
    def max_prefix(self) -> int:
        """The longest prefix that it takes, 0 for none."""
        return self._policy.max_prefix

    @property
    def ended(self) -> str | None:
        """Why the thread has ended, or None."""
        return self._ended

    def start(self, planner: Planner, clock: Callable[[], float]) -> None:
        """Start the thread and wait for its first plan."""
        if self._thread is not None:
            raise ConfigError("An inference thread is started once; make a new one for a new controller.")
        self.exchange = planner.exchange(self.spec, max_prefix=self.max_prefix)
        self._thread = threading.Thread(target=self._work, args=(planner, clock), name="inference", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed_start is not None:
            raise self._failed_start

    def _work(self, planner: Planner, clock: Callable[[], float]) -> None:
        try:
            warm_up(planner, self._policy, self.exchange, clock)
            self._ready.set()
            while self._go.acquire() and not self._closing:
                planner.answer(self._policy, self.exchange, clock)
                self._done = True
        except ConfigError as error:
            self._failed_start = error
        except BaseException as error:  # noqa: BLE001 - the loop must hear of the end of its thread, whatever ended it
            self._ended = f"The inference thread has ended: {type(error).__name__}: {error}"
        finally:
            self._ready.set()

    def ask(self, now: float) -> None:
        """Wake the thread."""
        self._done = False
        self._go.release()

    def poll(self, now: float) -> bool:
        """Whether the thread is done; said once."""
        if not self._done:
            return False
        self._done = False
        return True

    def close(self) -> None:
        """End the thread; one that hangs is left behind and ends with the process."""
        self._closing = True
        self._go.release()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
