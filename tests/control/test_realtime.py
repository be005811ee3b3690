"""What keeps a loop on time, on a virtual clock and with settings that are put back."""

import ast
import gc
import os
from pathlib import Path

import pytest

import drifting_policy.control
from drifting_policy.control.realtime import pace, pinned, quiet_collector, urgent
from drifting_policy.types import ConfigError


class Clock:
    """Time that passes in sleep, and in what the loop does."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Wait."""
        assert seconds > 0
        self.now += seconds


def test_delays_do_not_add_up() -> None:
    clock, times = Clock(), []
    for now in pace(10.0, seconds=1.0, clock=clock, sleep=clock.pass_by):
        times.append(now - 5.0)
        clock.now += 0.04
    assert times == pytest.approx([0.1 * k for k in range(10)])


def test_steps_whose_time_has_passed_are_left_out() -> None:
    clock, times = Clock(), []
    for now in pace(10.0, seconds=1.0, clock=clock, sleep=clock.pass_by):
        times.append(now - 5.0)
        clock.now += 0.34 if len(times) == 3 else 0.01
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.54, 0.6, 0.7, 0.8, 0.9])


def test_the_collector_is_quiet_and_comes_back() -> None:
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with quiet_collector():
        assert not gc.isenabled()
        assert gc.get_freeze_count() > frozen
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_thread_is_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    for cores in ([], [10_000]):
        with pytest.raises(ConfigError, match="pinned"), pinned(cores):
            pass


def test_a_priority_that_is_not_allowed_is_refused() -> None:
    before = os.sched_getscheduler(0)  # whatever started the tests may have a priority of its own
    with pytest.raises(ConfigError, match="rtprio"), urgent(1000):
        pass
    assert os.sched_getscheduler(0) == before
    with pytest.raises(ConfigError, match="positive"):
        next(pace(0.0))


def test_the_code_is_that_of_python_3_10_too() -> None:
    """The syntax, and no name of the library that came later: robots' systems are older than laptops."""
    later = {"ExceptionGroup", "StrEnum", "Self", "tomllib", "TaskGroup", "LiteralString", "assert_never", "UTC", "batched"}
    for path in Path(drifting_policy.control.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
        }
        assert not names & later, path
