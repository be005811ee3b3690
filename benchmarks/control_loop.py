"""`python benchmarks/control_loop.py`: is a 100 Hz loop on time while a training keeps the machine busy?

A made-up robot is at once where it is told. A policy with fresh weights plans for it, in a process or a thread, while a child
process trains. Met when nothing was raised, p99.9 of the duration of `action` is below a millisecond, and at every missed
deadline the fallback, or what was left of the chunk before, gave a finite command.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from act import build_policy
from timing import RESULTS, record

from drifting_policy import load_policy
from drifting_policy.control.controller import Controller
from drifting_policy.control.inference import Inference, ThreadInference
from drifting_policy.control.limits import Limits
from drifting_policy.control.process import ProcessInference
from drifting_policy.control.realtime import pace, pinned, quiet_collector, urgent
from drifting_policy.control.report import Report
from drifting_policy.control.status import Status
from drifting_policy.types import Policy

HZ = 100.0
BAR_MS = 1.0
EXEC_STEPS = 4
DEADLINE = 0.05
LOG_EVERY = 50  # steps of a training between two lines of its metrics, by default
WALL = 16.0  # in the units of the made-up demonstrations: fresh weights command about (4.7, 15.5)


def make_policy(path: str | None, head: str) -> Policy:
    """The policy, on one thread: that of a checkpoint, or one with fresh weights."""
    torch.set_num_threads(1)
    return build_policy(head) if path is None else load_policy(path)


@contextlib.contextmanager
def training(wanted: bool) -> Iterator[Callable[[], int]]:
    """A training on one core beside the loop, for as long as it lasts; how many steps it has made so far."""
    if not wanted:
        yield lambda: 0
        return
    with tempfile.TemporaryDirectory() as folder:
        run, told = Path(folder) / "run", Path(folder) / "told"
        command = [sys.executable, "-m", "drifting_policy.train", f"run_dir={run}", "trainer.eval_episodes=0"]
        command += ["trainer.steps=100000000", "data=bundled"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with told.open("w") as stream:  # a file: a pipe that nobody reads would be full after a minute, and stop it
            child = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        try:
            yield lambda: sum(1 for line in (run / "metrics.jsonl").open() if "loss" in line) * LOG_EVERY
            if child.poll() is not None:
                raise RuntimeError(f"The training ended before the loop did: {told.read_text()[-2000:]}")
        finally:
            child.kill()
            child.wait()


def drive(inference: Inference, *, seconds: float, cores: set[int], priority: int | None) -> tuple[Report, int, int]:
    """The report of a loop of so many seconds, how many misses were not answered, and how many steps raised."""
    spec = inference.spec
    rng = np.random.default_rng(0)
    # Plans of fresh weights for noisy observations jump about: the limits always bind, and the way to rest is worked out.
    limits = Limits(position_low=-WALL, position_high=WALL, velocity=WALL / 2, acceleration=4 * WALL, jerk=40 * WALL)
    noisy = [
        {key: 10 * rng.standard_normal(array.shape).astype(array.dtype) for key, array in spec.observations.items()}
        for _ in range(97)
    ]
    unanswered = raised = misses = 0
    options: dict[str, Any] = {"exec_steps": EXEC_STEPS, "deadline": DEADLINE, "limits": limits}
    controller = Controller(inference, control_hz=HZ, **options)
    prior = urgent(priority) if priority else contextlib.nullcontext()
    with controller, pinned(cores), prior, quiet_collector():  # what the controller starts inherits neither core nor priority
        for step, now in enumerate(pace(HZ, seconds=seconds)):
            try:
                controller.submit(noisy[step % len(noisy)], now)
                action, status = controller.action(now)
            except Exception as error:  # noqa: BLE001 - to be counted: none may happen
                print(f"raised: {error}")
                raised += 1
                continue
            if (count := controller.report().misses) > misses:
                misses = count
                unanswered += not (status >= Status.LATE and (np.isfinite(action).all() or controller.report().plans < 2))
        return controller.report(), unanswered, raised


def main(argv: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=f"A {HZ:g} Hz control loop on the wall clock.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--head", default="mlp", help="action head with fresh weights")
    parser.add_argument("--checkpoint", help="a checkpoint directory instead")
    parser.add_argument("--inference", choices=("process", "thread"), default="process")
    parser.add_argument("--beside", choices=("training", "nothing"), default="training")
    parser.add_argument("--core", type=int, help="pin the loop to this core; default: not pinned")
    parser.add_argument("--priority", type=int, help="SCHED_FIFO priority of the loop, 1..99; default: a normal thread")
    parser.add_argument("--out", type=Path, default=RESULTS / "control_loop.json")
    given = parser.parse_args(argv)
    factory = functools.partial(make_policy, given.checkpoint, given.head)
    cores = {given.core} if given.core is not None else os.sched_getaffinity(0)
    inference: Inference = ProcessInference(factory) if given.inference == "process" else ThreadInference(factory())
    with training(given.beside == "training") as steps:
        report, unanswered, raised = drive(inference, seconds=given.seconds, cores=cores, priority=given.priority)
        trained = steps()
    row = {
        "inference": given.inference,
        "beside": given.beside,
        "training_steps": trained,
        "seconds": given.seconds,
        "control_hz": HZ,
    }
    row |= {"core": given.core, "priority": given.priority}
    row |= {"unanswered": unanswered, "raised": raised, **report.to_dict()}
    for name in ("action", "inference", "age", "jitter"):
        times = row[name] if isinstance(row[name], dict) else {}
        print(f"{name:<10}" + "".join(f" {key} {value:9.3f}" for key, value in times.items() if key.endswith("ms")))
    print(f"{report.statuses}, misses {report.misses}, unanswered {unanswered}, raised {raised}")
    p999 = 1000 * report.action.percentile(99.9)
    missed = [f"p99.9 of action() is {p999:.3f} ms, above {BAR_MS} ms."] if not p999 < BAR_MS else []
    missed += [f"{unanswered} missed deadlines were not answered."] if unanswered else []
    missed += [f"{raised} control steps raised."] if raised else []
    about = {"benchmark": "control_loop", "bar": f"p99.9 of action() < {BAR_MS} ms, 0 raised, every miss answered"}
    return record(given.out, rows=[row], missed=missed, **about, exec_steps=EXEC_STEPS, deadline=DEADLINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
