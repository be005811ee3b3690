"""ProcessInference: the policy in a process of its own, which shares no interpreter lock with the loop and may die."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, final

from drifting_policy.control.inference import Inference
from drifting_policy.control.planner import Planner, warm_up
from drifting_policy.types import ConfigError, Policy, PolicySpec, UserError

START_SECONDS = 120.0  # for the policy to load, warm-up included
GRACE_SECONDS = 2.0


@final
class ProcessInference(Inference):
    """Runs the policy in a spawned process; observations and chunks go through shared memory, signals through semaphores.

    A program that uses it needs `if __name__ == "__main__":` around what it runs, as with every spawned process. A process
    that dies is not started again: the loop says so, and brings the robot to rest.

    Args:
        make_policy: makes the policy in the process, and must be importable there: a function at the top of a module, or a
            functools.partial of one, such as partial(load_policy, "runs/push_t/...").
        cores: the cores that the process may run on; None leaves it to the system. With a core of its own the loop keeps the
            others.

    Raises:
        ConfigError: the process cannot make the policy; says why.
    """

    def __init__(self, make_policy: Callable[[], Policy], *, cores: set[int] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._go, self._done = context.Semaphore(0), context.Semaphore(0)
        self._connection, theirs = context.Pipe()
        arguments = (theirs, make_policy, self._go, self._done, cores)
        self._process = context.Process(target=_work, args=arguments, name="inference", daemon=True)
        self._closed = False
        try:
            self._process.start()
        finally:
            theirs.close()  # so that the end of the process is the end of the pipe
        values, self._max_prefix = self._receive()
        self._spec = PolicySpec.from_dict(values)

    @property
    def spec(self) -> PolicySpec:
        """What the policy sees and commands."""
        return self._spec

    @property
    def max_prefix(self) -> int:
        """The longest prefix that it takes, 0 for none."""
        return self._max_prefix

    @property
    def pid(self) -> int | None:
        """The process, for whoever sets its priority."""
        return self._process.pid

    @property
    def ended(self) -> str | None:
        """How the process ended, or None while it lives."""
        if self._closed:
            return "The inference process was closed."
        code = self._process.exitcode
        if code is None:
            return None
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"The inference process has ended ({cause})."

    def start(self, planner: Planner, clock: Callable[[], float]) -> None:
        """Share the memory and wait for the first plan; times are those of time.monotonic, which processes share."""
        self.exchange = planner.exchange(self._spec, max_prefix=self._max_prefix, shared=True)
        self._connection.send((planner, self.exchange.name))
        self._receive()
        self.exchange.unlink()

    def _receive(self) -> Any:
        """What the process sends, which is an error if it cannot go on."""
        try:
            if not self._connection.poll(START_SECONDS):
                raise ConfigError(f"The inference process was not ready within {START_SECONDS:g} s; see what it waits for.")
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(GRACE_SECONDS)
            ended = self.ended or "The inference process does not answer."
            self.close()
            raise ConfigError(f"{ended} Its policy must be importable, and can be tried in this process.") from error
        except ConfigError:
            self.close()
            raise
        if isinstance(message, Exception):
            self.close()
            raise message
        return message

    def ask(self, now: float) -> None:
        """Wake the process."""
        self._go.release()

    def poll(self, now: float) -> bool:
        """Whether the process is done; said once."""
        return self._done.acquire(block=False)

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self._closed:
            return
        self._closed = True
        self._connection.close()
        self._go.release()
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        if hasattr(self, "exchange"):
            self.exchange.close()


def _work(connection: Connection, make_policy: Callable[[], Policy], go: Any, done: Any, cores: set[int] | None) -> None:
    """The process: make the policy, answer requests until the pipe is closed."""

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores is not None:
        os.sched_setaffinity(0, cores)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            policy = make_policy()
            connection.send((policy.spec.to_dict(), policy.max_prefix))
            planner, name = connection.recv()
            exchange = planner.exchange(policy.spec, max_prefix=policy.max_prefix, name=name)
            warm_up(planner, policy, exchange, time.monotonic)
        except UserError as error:
            connection.send(error)
            return
        except (EOFError, OSError):
            return
        except Exception as error:
            connection.send(ConfigError(f"The inference process cannot make its policy: {type(error).__name__}: {error}"))
            raise
        connection.send(None)
        while go.acquire() and not connection.poll():  # the closed pipe is readable: that is the end
            planner.answer(policy, exchange, time.monotonic)
            done.release()
        exchange.close()


def _end_with_parent() -> None:
    """A policy that never returns must not outlive the parent either."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
