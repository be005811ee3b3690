"""Fault drills: whatever dies, hangs, lies or falls silent, the loop goes on in its safe state and says why."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from robots import HZ, SPEC, Gate, Walker, broken_walker, drive, dying_walker, walker

from drifting_policy.control.controller import Controller
from drifting_policy.control.inference import Inference, InlineInference, ThreadInference
from drifting_policy.control.limits import Limits
from drifting_policy.control.process import ProcessInference
from drifting_policy.control.status import Status
from drifting_policy.control.watchdog import Watchdog
from drifting_policy.types import ConfigError

OK, LIMITED, LATE, HOLD, STOP = Status
WATCHDOG = Watchdog(observation_hold=0.05, observation_stop=0.2, chunk_hold=0.15, chunk_stop=0.3)


def controller(inference: Inference | Walker, **options: object) -> Controller:
    """One on virtual time, whose loop takes no plan before step 4 and then one every 4 steps."""
    given = {"exec_steps": 4, "deadline": 0.05, "watchdog": WATCHDOG, "clock": lambda: 0.0} | options
    return Controller(inference, limits=Limits(velocity=5.0), noise="zero", **given)  # type: ignore[arg-type]


def waiting_for(controller: Controller) -> Callable[[], None]:
    """Waits after a control step until the thread has answered or ended, so that a test does not depend on its speed."""
    inference = controller._inference

    def settle() -> None:
        tries = threading.Event()
        for _ in range(6000):
            if not controller._planning._pending or inference._done or inference.ended:  # type: ignore[attr-defined]
                return
            tries.wait(0.01)
        raise AssertionError("the thread does not answer")

    return settle


def fails(call: int, chunk: np.ndarray) -> np.ndarray:
    """The third plan is an error; the first call is the warm-up."""
    if call == 4:
        raise RuntimeError("out of memory")
    return chunk


def leaves(call: int, chunk: np.ndarray) -> np.ndarray:
    """The third plan ends the thread."""
    if call == 4:
        raise SystemExit(3)
    return chunk


@pytest.mark.parametrize(
    ("misbehave", "sentence"),
    [
        (fails, "RuntimeError: out of memory"),
        (lambda call, chunk: chunk * (np.nan if call == 4 else 1), "NaN or infinity"),
        (lambda call, chunk: chunk[:, : 3 if call == 4 else None], r"returned \(1, 3, 2\)"),
        (lambda call, chunk: None if call == 4 else chunk, "returned"),
    ],
)
def test_a_plan_that_fails_is_a_miss_and_is_tried_again(misbehave: Callable[..., object], sentence: str) -> None:
    with controller(Walker(misbehave)) as ours:
        _, statuses = drive(ours, 30, settle=waiting_for(ours))
        report = ours.report()
    assert set(statuses[1:8]) == {OK}
    assert LATE in statuses[8:11]  # an answer is there at once or a step later
    assert statuses[11:] == [OK] * 19
    assert (report.misses, report.failures, report.faults) == (1, 1, 1)
    assert report.fault is not None
    assert re.search(sentence, report.fault)


def test_a_thread_that_ends_leads_to_rest_and_stop() -> None:
    with controller(Walker(leaves)) as ours:
        actions, statuses = drive(ours, 60, settle=waiting_for(ours))
        fault = ours.report().fault
        assert "SystemExit: 3" in str(ours._inference.ended)
    assert statuses[9:15] == [LATE] * 6  # the chunk of step 4 ends with step 14
    assert set(statuses[15:40]) == {HOLD, STOP}
    assert statuses[-1] is STOP
    assert np.isfinite(actions[1:]).all()
    assert np.array_equal(actions[-1], actions[-10])
    assert fault is not None
    assert "Stale data" in fault


def test_a_thread_that_hangs_is_late_then_at_rest_then_stopped() -> None:
    gate = Gate(call=4)
    with controller(Walker(gate)) as ours:
        settle = waiting_for(ours)
        _, first = drive(ours, 8, settle=settle)
        assert first[1:] == [OK] * 7
        _, then = drive(ours, 40, start=8, position=np.full(2, 0.01))
        assert gate.reached.wait(60)
        report = ours.report()
        assert then[0] is OK
        assert LATE in then
        assert then.index(HOLD) > then.index(LATE)
        assert then[-1] is STOP
        assert (report.misses, report.failures) == (1, 0)
        gate.opened.set()
        settle()
        ours.reset()
        _, after = drive(ours, 8, start=50, settle=settle)
        assert after[-1] is OK


def test_a_reset_does_not_take_the_plan_of_the_episode_before() -> None:
    policy = Walker()
    with controller(InlineInference(policy, 0.03), watchdog=Watchdog()) as ours:
        drive(ours, 2, position=np.full(2, 5.0))
        ours.reset()
        actions, statuses = drive(ours, 12, start=2)
    assert statuses.index(OK) == 4  # at step 3 the old plan is there, and thrown away; the new one takes three more
    assert np.abs(actions[4:]).max() < 0.1


def test_observations_that_stop_lead_to_hold_and_stop() -> None:
    with controller(InlineInference(Walker())) as ours:
        _, statuses = drive(ours, 50, observe=lambda step: step <= 10)
        assert "Stale data" in str(ours.report().fault)
    assert set(statuses[:16]) == {OK}
    assert statuses[16:] == [HOLD] * 15 + [STOP] * 19


def test_observations_that_come_back_in_time_end_the_hold() -> None:
    with controller(InlineInference(Walker())) as ours:
        _, statuses = drive(ours, 40, observe=lambda step: step <= 10 or step > 25)
    assert statuses[16:26] == [HOLD] * 10
    assert statuses[26:] == [OK] * 14


def test_a_clock_that_goes_backwards_makes_the_robot_wait_for_a_new_plan() -> None:
    with controller(InlineInference(Walker(), 0.02)) as ours:
        _, statuses = drive(ours, 40, clock=lambda step: (step if step < 20 else step - 1000) / HZ)
        fault = str(ours.report().fault)
    assert set(statuses[2:20]) == {OK}
    assert statuses[20] is HOLD
    assert set(statuses[25:]) == {OK}
    assert "The clock went backwards" in fault


def test_a_clock_that_jumps_forwards_makes_all_data_old() -> None:
    with controller(InlineInference(Walker())) as ours:
        _, statuses = drive(ours, 30, clock=lambda step: (step if step < 20 else step + 15) / HZ)
        assert "passed between two control steps" in str(ours.report().fault) or HOLD in statuses
    assert set(statuses[:20]) == {OK}
    assert statuses[-1] is OK
    with controller(InlineInference(Walker(), 0.01)) as ours:
        actions, statuses = drive(ours, 30, clock=lambda step: (step if step < 20 else step + 100000) / HZ)
    assert statuses[20:] == [STOP] * 10
    assert np.isfinite(actions[20:]).all()


@pytest.mark.parametrize("now", [np.nan, np.inf, -np.inf])
def test_a_time_that_is_none_stops_the_robot(now: float) -> None:
    with controller(InlineInference(Walker())) as ours:
        actions, _ = drive(ours, 5)
        action, status = ours.action(now)
        assert status is STOP
        assert action == pytest.approx(actions[-1], abs=0.01)


@pytest.mark.parametrize(
    ("obs", "sentence"),
    [
        ({}, "exactly the keys"),
        ({"positions": np.zeros(2)}, "exactly the keys"),
        ({"position": np.zeros(3)}, "must have shape"),
        ({"position": np.array([0.0, np.nan])}, "NaN"),
        ({"position": np.array([0.0, 1e300])}, "NaN"),
        ({"position": np.zeros(2, complex)}, "dtype"),
        ({"position": np.array(["a", "b"])}, "dtype"),
    ],
)
def test_an_observation_that_cannot_be_used_is_refused(obs: object, sentence: str) -> None:
    with controller(InlineInference(Walker())) as ours:
        assert ours.submit({"position": np.zeros(2)}, 0.0)
        assert ours.submit(obs, 0.01) is False  # type: ignore[arg-type]
        assert sentence in str(ours.report().fault)
        assert ours.submit({"position": np.zeros(2)}, 0.0) is False
        assert ours.submit({"position": np.zeros(2)}, np.nan) is False
        assert ours.report().refused == 3
        assert ours.submit({"position": np.zeros(2)}, 0.01)
        assert ours.action(0.01)[1] is OK


def test_an_observation_from_the_future_is_not_planned_from() -> None:
    with controller(InlineInference(Walker())) as ours:
        ours.submit({"position": np.zeros(2)}, 100.0)
        assert ours.action(0.0)[1] is STOP


class Breaking:
    """A recorder whose disk is full after a while."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def attached(self, *about: object, **more: object) -> None:
        """Fine."""

    def began(self, *about: object) -> None:
        """Fine."""

    def observed(self, *about: object) -> None:
        """Fine."""
        self.told.append("observed")

    def planned(self, *about: object) -> None:
        """Fine."""
        self.told.append("planned")

    def acted(self, *about: object) -> None:
        """Breaks at the third step."""
        self.told.append("acted")
        if self.told.count("acted") == 3:
            raise OSError("no space left")


def test_a_recorder_that_fails_is_left_behind() -> None:
    recorder = Breaking()
    with controller(InlineInference(Walker()), recorder=recorder) as ours:
        _, statuses = drive(ours, 10)
        assert "no space left" in str(ours.report().fault)
    assert statuses == [OK] * 10
    assert recorder.told == ["observed", "planned", "acted", "observed", "acted", "observed", "acted"]


def test_a_loop_without_start_holds() -> None:
    ours = controller(InlineInference(Walker()))
    assert drive(ours, 2)[1] == [HOLD] * 2
    assert "not started" in str(ours.report().fault)


def test_a_policy_that_cannot_plan_at_all_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="cannot plan"):
        controller(Walker(lambda call, chunk: chunk * np.nan)).start()


@pytest.fixture
def started() -> Iterator[list[ProcessInference]]:
    """Processes to be ended whatever happens."""
    made: list[ProcessInference] = []
    yield made
    for inference in made:
        inference.close()


def process_settle(ours: Controller, inference: ProcessInference) -> Callable[[], None]:
    """Waits after a control step until the process has answered or ended."""

    def settle() -> None:
        if ours._planning._pending and inference.ended is None:
            for _ in range(6000):
                if inference._done.acquire(timeout=0.01):
                    inference._done.release()
                    return
                if inference.ended is not None:
                    return
            raise AssertionError("the process does not answer")

    return settle


def test_a_process_plans_as_the_loop_itself_does(started: list[ProcessInference]) -> None:
    inference = ProcessInference(walker, cores=os.sched_getaffinity(0))
    started.append(inference)
    assert inference.spec == SPEC
    with controller(inference) as ours, controller(InlineInference(Walker(), 0.01)) as same:
        actions, statuses = drive(ours, 20, settle=process_settle(ours, inference))
        expected, _ = drive(same, 20)  # answers are there a step later; those of the process perhaps at once
        assert statuses[1:] == [OK] * 19
        assert actions[1:] == pytest.approx(expected[1:], abs=0.0021)
        # The same process is killed.
        assert inference.pid is not None
        os.kill(inference.pid, signal.SIGKILL)
        inference._process.join(60)
        actions, statuses = drive(ours, 60, start=20, position=actions[-1])
        fault, report = str(inference.ended), ours.report()
    assert "SIGKILL" in fault
    assert LATE in statuses
    assert HOLD in statuses
    assert statuses[-1] is STOP
    assert np.isfinite(actions).all()
    assert report.faults >= 1


def test_a_process_that_ends_itself_is_told(started: list[ProcessInference]) -> None:
    inference = ProcessInference(dying_walker)
    started.append(inference)
    with controller(inference) as ours:
        _, statuses = drive(ours, 15, settle=process_settle(ours, inference))
        assert "exit code 7" in str(ours.report().fault)
        assert ours.report().misses == 1
    assert LATE in statuses


def test_a_process_that_cannot_make_its_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="no weights here"):
        ProcessInference(broken_walker)


def test_a_thread_is_started_once() -> None:
    inference = ThreadInference(Walker())
    with controller(inference):
        pass
    with pytest.raises(ConfigError, match="started once"):
        controller(inference).start()
