"""What keeps a loop on time: its pace, the garbage collector, cores and priorities. Linux."""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator

from drifting_policy.types import ConfigError


def pace(
    control_hz: float,
    *,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[float]:
    """The times at which the control steps of `seconds` begin, in seconds of `clock`; sleeps in between.

    Step k is due at start + k / control_hz, so that delays do not add up; steps whose whole period has passed are left out.

    Raises:
        ConfigError: a rate that is not positive and finite.
    """
    if not 0 < control_hz < float("inf"):
        raise ConfigError(f"control_hz must be positive and finite; got {control_hz}.")
    start, step = clock(), 0
    while step / control_hz < seconds:
        wait = start + step / control_hz - clock()
        if wait > 0:
            sleep(wait)
        yield clock()
        step = max(step + 1, int((clock() - start) * control_hz))


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection meanwhile: it would halt the loop for milliseconds at any time.

    What is there is collected first and then left out of later collections (`gc.freeze`). Reference counts still free
    everything but cycles, and the loop makes none; other code in the process may, and its memory grows until the end.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """The calling thread runs on `cores` only, and back on those of before afterwards; threads that it starts inherit them.

    Raises:
        ConfigError: cores that the machine, or the container, does not have.
    """
    wanted, before = set(cores), os.sched_getaffinity(0)
    if not wanted or not wanted <= before:
        raise ConfigError(f"The thread may run on the cores {sorted(before)}; it cannot be pinned to {sorted(wanted)}.")
    os.sched_setaffinity(0, wanted)  # 0 is the calling thread, not the process
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def urgent(priority: int = 50) -> Iterator[None]:
    """The calling thread runs before every normal one (SCHED_FIFO, 1..99), as before afterwards.

    Raises:
        ConfigError: a priority out of range, or one that the system does not allow this user.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (PermissionError, OSError) as error:
        raise ConfigError(
            f"The priority {priority} is not allowed ({error}): choose 1..99, and allow it with `rtprio` in "
            "/etc/security/limits.conf, or CAP_SYS_NICE."
        ) from error
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
