"""Plays episodes in worker processes: whichever is ready is served, and one that dies or hangs is replaced."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from types import ModuleType, TracebackType
from typing import Any, final

import numpy as np
from tqdm import tqdm

from drifting_policy.chunking import ChunkExecutor
from drifting_policy.rollout.episode import Record
from drifting_policy.rollout.memory import IDLE, WorkerMemory
from drifting_policy.rollout.worker import Attached, Crash, Job, Order, work
from drifting_policy.types import ConfigError, UserError

ATTEMPTS = 3  # deaths in one episode, or of one worker without any, that end the evaluation
START_SECONDS = 120.0  # to import, and to make the environments
GRACE_SECONDS = 5.0  # to close the environments and end
EPISODES_PER_WORKER = 10  # at least, by default: a worker starts in the time of one or two


def choose_workers(given: int | None, *, episodes: int, num_envs: int) -> int:
    """The number of worker processes: as `given`, or one per CPU, each for at least an environment and ten episodes.

    Where that would be a single one, it is 0: the main process.
    """
    if given is not None:
        return given
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cpus, num_envs, episodes // EPISODES_PER_WORKER)
    return count if count > 1 else 0


@final
class WorkerPool:
    """Processes that step the slots of `executor`, slot i in process i modulo `workers`; a context, which ends them.

    A whole chunk of commands is executed between two messages. Observations and commands lie in shared memory, whose name is
    taken away as soon as the worker holds it, so that none can be left behind. What an episode leaves comes through the pipe
    when it is over. The parent plans for all slots that are ready, while the workers step the others, and sleeps otherwise.

    Args:
        job: what the episodes have in common.
        executor: plans for all slots; their number is its `num_envs`.
        workers: number of processes, at most the number of slots.
        step_timeout: seconds of one simulator step or reset after which a worker counts as hanging; it is ended at the latest
            after half as much again.

    Raises:
        ConfigError: `job.make_env` cannot be sent to another process.
    """

    def __init__(self, job: Job, executor: ChunkExecutor, *, workers: int, step_timeout: float) -> None:
        self._job = job
        self._executor = executor
        self._step_timeout = step_timeout
        self._interval = min(step_timeout / 4, 3600)  # seconds between two looks at the pulses
        self._needs_script = _refers_to_script(job)
        slots = range(executor.num_envs)
        self._places = [slots[number::workers] for number in range(workers)]
        self._workers: dict[int, _Worker] = {}
        self._due: set[int] = set()  # slots that need a plan
        self._strikes: Counter[int] = Counter()  # by seed
        self._failures: Counter[int] = Counter()  # by worker: deaths outside of episodes since its last episode
        self._checked = time.monotonic()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers.values():
            worker.dismiss()
        for worker in self._workers.values():
            worker.end()
        self._workers = {}

    def play(self, seeds: Sequence[int], *, noise_seed: int, bar: "tqdm[Any]") -> list[Record]:
        """The records of all seeds in the order in which their episodes ended.

        Raises:
            UserError: what a worker raised, or that an episode ends its worker again and again.
        """
        waiting = list(reversed(seeds))
        records: list[Record] = []
        for number in set(range(len(self._places))) - set(self._workers):
            self._start(number)
        while len(records) < len(seeds):
            self._begin(waiting, noise_seed)
            self._plan()
            for worker in self._workers.values():
                worker.send()
            for worker, message in self._messages():
                if message is None:
                    self._replace(worker, waiting)
                else:
                    ended = self._take(worker, message)
                    records += ended
                    if ended:
                        bar.update(len(ended))
            self._end_hanging()
        return records

    def _start(self, number: int) -> None:
        with contextlib.nullcontext() if self._needs_script else _script_hidden():
            self._workers[number] = _Worker(self._job, number=number, slots=self._places[number])

    def _begin(self, waiting: list[int], noise_seed: int) -> None:
        if not waiting:
            return
        free = {slot: worker for worker in self._workers.values() for slot in worker.slots if slot not in worker.seeds}
        for slot in sorted(free)[: len(waiting)]:
            seed = waiting.pop()
            free[slot].begin(slot, seed)
            mask = np.arange(self._executor.num_envs) == slot
            self._executor.reset(mask, seeds=[seed ^ (noise_seed << 32)])

    def _plan(self) -> None:
        if not self._due:
            return
        due = {slot: self._workers[slot % len(self._places)] for slot in sorted(self._due)}
        windows = {
            key: np.stack([worker.window(key, slot) for slot, worker in due.items()]) for key in self._job.spec.observations
        }
        for (slot, worker), commands in zip(due.items(), self._executor.plan(windows, list(due)), strict=True):
            worker.command(slot, commands)
        self._due.clear()

    def _messages(self) -> Iterator[tuple["_Worker", Any]]:
        """What the workers have to tell, at the latest after a quarter of the timeout; None at the end of one."""
        workers = {worker.connection: worker for worker in self._workers.values()}
        for ready in wait(list(workers), timeout=self._interval):
            worker = workers[ready]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                message = None
            yield worker, message

    def _take(self, worker: "_Worker", message: Any) -> list[Record]:
        """The records of the episodes that the message tells the end of; slots that are ready for a plan are due."""
        if isinstance(message, UserError):
            raise message
        records = []
        if isinstance(message, Attached):
            worker.memory.unlink()
        elif isinstance(message, Crash):
            worker.cause = message.cause
        else:
            worker.pending -= len(message)
            for index, record in message:
                slot = worker.slots[index]
                if record is None:
                    self._due.add(slot)
                else:
                    del worker.seeds[slot]
                    self._failures[worker.number] = 0
                    records.append(record)
        return records

    def _replace(self, worker: "_Worker", waiting: list[int]) -> None:
        """A fresh worker for one that ended, whose unfinished episodes come next, from their beginning."""
        del self._workers[worker.number]
        now = worker.memory.now
        cause = worker.end()
        lost = list(worker.seeds.values())
        guilty = None if now == IDLE else worker.seeds.get(worker.slots[now])
        self._due -= set(worker.slots)
        waiting += reversed(lost)
        if guilty is not None:
            self._strikes[guilty] += 1
            if self._strikes[guilty] >= ATTEMPTS:
                raise UserError(
                    f"Episode {guilty} ended its worker process {ATTEMPTS} times, last by {cause}; "
                    "workers=0 plays it in the main process, which shows where it fails."
                )
        else:
            self._failures[worker.number] += 1
            if self._failures[worker.number] >= ATTEMPTS:
                raise UserError(
                    f"A worker process ended {ATTEMPTS} times outside of its episodes, last by {cause}; "
                    "workers=0 plays them in the main process."
                )
        place = "between its episodes" if guilty is None else f"in episode {guilty}"
        told = f"Worker {worker.number} ended {place} ({cause}); {len(lost)} unfinished episodes begin again."
        tqdm.write(told, file=sys.stderr)
        if waiting:
            self._start(worker.number)

    def _end_hanging(self) -> None:
        """Look at all pulses now and then.

        What counts are the looks without a change, not the time: all processes may have been stopped for hours.
        """
        if time.monotonic() - self._checked < self._interval:
            return
        self._checked = time.monotonic()
        for worker in self._workers.values():
            limit = max(START_SECONDS, self._step_timeout) if worker.memory.beat == 0 else self._step_timeout
            if worker.looks_without_change() * self._interval > limit:
                worker.kill(f"no simulator step within {limit:g} s")


@final
class _Worker:
    """One process with its pipe and memory, and the seeds of the unfinished episodes in its slots."""

    def __init__(self, job: Job, *, number: int, slots: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.slots = slots
        self.seeds: dict[int, int] = {}
        self.pending = 0  # orders without answer
        self.cause: str | None = None  # of its end, if it is known
        self._orders: list[Order] = []
        self._beat, self._looks = 0, 0
        self.connection, theirs = context.Pipe()
        self.memory = WorkerMemory(job.spec, slots=len(slots))
        options = {"slots": len(slots), "memory_name": self.memory.name}
        self._process = context.Process(target=work, args=(theirs, job), kwargs=options, name=f"worker-{number}", daemon=True)
        try:
            self._process.start()
        except BaseException:
            self.connection.close()
            self.memory.close()
            raise
        finally:
            theirs.close()  # so that the end of the process is the end of the pipe

    def begin(self, slot: int, seed: int) -> None:
        """Order the episode of `seed`."""
        self.seeds[slot] = seed
        self._orders.append((self.slots.index(slot), seed))

    def window(self, key: str, slot: int) -> np.ndarray:
        """The newest observations "to ..." of a slot that needs a plan."""
        return self.memory.windows[key][self.slots.index(slot)]

    def command(self, slot: int, commands: np.ndarray) -> None:
        """Order to execute `commands` "ta d"."""
        index = self.slots.index(slot)
        self.memory.commands[index] = commands
        self._orders.append((index, None))

    def send(self) -> None:
        """Send the orders; that a worker is gone is seen when its answer is read."""
        if self._orders:
            with contextlib.suppress(OSError):
                self.connection.send(self._orders)
            self.pending += len(self._orders)
            self._orders = []

    def looks_without_change(self) -> int:
        """How often in a row it was found at work on the same step, this time included."""
        beat = self.memory.beat
        self._looks = self._looks + 1 if beat == self._beat and self.pending else 0
        self._beat = beat
        return self._looks

    def kill(self, cause: str) -> None:
        """End it at once; it will be found dead, for this cause."""
        self.cause = cause
        self._process.kill()

    def dismiss(self) -> None:
        """Let it close its environments and end by itself."""
        self.connection.close()

    def end(self) -> str:
        """See it end, soon or by force, free what it held, and tell the cause."""
        self.connection.close()
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        self.memory.close()
        return self.cause or (signal.Signals(-code).name if code < 0 else f"exit code {code}")


def _refers_to_script(job: Job) -> bool:
    """Whether the environment is defined in the script that runs, so that a worker has to run it too."""
    try:
        return b"__main__" in pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"The environment cannot be made in worker processes ({error}); give a function at the top of a module, or a "
            "functools.partial of one, or workers=0."
        ) from error


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """A process that is spawned meanwhile does not run the script of this one again: an entry point would load PyTorch."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
