"""The controller on virtual time: timestamped chunks, seams, deadlines, ages, and no allocation in the loop."""

import gc
import sys
import tracemalloc

import numpy as np
import pytest
from robots import HZ, SPEC, Walker, drive

from drifting_policy.chunking import ChunkExecutor, plan_noise
from drifting_policy.control.controller import Controller
from drifting_policy.control.inference import InlineInference
from drifting_policy.control.limits import Limits
from drifting_policy.control.schedule import Grid, Schedule
from drifting_policy.control.status import Status
from drifting_policy.control.watchdog import Watchdog
from drifting_policy.types import CheckpointError, ConfigError

OK, LIMITED, LATE, HOLD, STOP = Status


def controller(policy: Walker, delay: object = 0.0, /, **options: object) -> Controller:
    """One that runs its policy inline; nothing reads a clock."""
    given = {"exec_steps": 4, "deadline": 0.05, "clock": lambda: 0.0} | options
    return Controller(InlineInference(policy, delay), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("noise", ["fresh", "zero"])
def test_it_commands_what_the_executor_commands(steps: int, noise: str) -> None:
    """The executor waits for its first plan; from then on both are the same, noise and latency included."""
    executor = ChunkExecutor(Walker(scale=0.1), latency_steps=steps)
    executor.reset(seeds=[3] if noise == "fresh" else None)
    rng, seen = np.random.default_rng(0), []
    with controller(Walker(scale=0.1), steps / HZ, noise=noise, seed=3) as ours:
        for step in range(40):
            where = rng.normal(size=2).astype(np.float32)
            ours.submit({"position": where}, step / HZ)
            action, status = ours.action(step / HZ)
            expected = executor.step({"position": where[None]})[0]
            if step >= steps:
                assert np.array_equal(action.astype(np.float32), expected), step
                assert status is OK
            else:
                assert status is HOLD
                assert np.isnan(action).all()
            seen.append(expected)
    assert len({tuple(action) for action in seen}) == 40


def test_held_noise_is_that_of_the_first_plan() -> None:
    policies = {noise: Walker() for noise in ("held", "fresh", "zero")}
    for noise, policy in policies.items():
        with controller(policy, noise=noise, seed=9) as ours:
            drive(ours, 9)
    shape = (1, *SPEC.sample_shape)
    assert all(np.array_equal(call["noise"], plan_noise(9, 0, shape)) for call in policies["held"].calls)
    fresh = [plan_noise(9, plan, shape) for plan in range(3)]
    assert np.array_equal([call["noise"] for call in policies["fresh"].calls], fresh)
    assert [call["noise"] for call in policies["zero"].calls] == [None] * 3


def test_a_window_is_the_last_observations() -> None:
    policy = Walker()
    with controller(policy, noise="zero", exec_steps=3) as ours:
        for step in range(7):
            ours.submit({"position": np.full(2, step, np.float32)}, step / HZ)
            ours.action(step / HZ)
    windows = [call["obs"]["position"][0, :, 0].tolist() for call in policy.calls]
    assert windows == [[0, 0], [2, 3], [5, 6]]


def test_steps_that_are_late_are_dropped() -> None:
    """The command at any time is that of its own due time, whenever the plan arrived."""
    with controller(Walker(), 0.03, noise="zero") as ours:
        for step in range(12):
            ours.submit({"position": np.zeros(2, np.float32)}, step / HZ)
            action, _ = ours.action(step / HZ)
            if step >= 3:
                made = 4 * ((step - 3) // 4)  # the newest plan that is there; it counts from its own observation
                assert action == pytest.approx(np.full(2, 0.001 * (step - made)), abs=1e-7)
    assert ours.report().dropped == 3 * 3


def test_the_first_steps_of_a_faded_chunk_are_mixtures() -> None:
    schedule = Schedule(steps=6, dimensions=1)
    assert schedule.install(np.zeros((6, 1)), first_tick=0, now_tick=0, t_obs=0.0) == 0
    assert schedule.install(np.ones((6, 1)), first_tick=2, now_tick=3, t_obs=0.02, fade_steps=3) == 1
    mixed = [float(command[0]) for tick in range(8) if (command := schedule.command(tick)) is not None]
    assert mixed == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert schedule.source(2) == 0.0
    assert schedule.source(3) == 0.02
    assert schedule.command(8) is None
    assert schedule.ahead(6, np.empty((5, 1))) == 2


def test_a_fade_softens_the_seam() -> None:
    largest: dict[str, float] = {}
    for seam in ("snap", "fade", "prefix_fade"):
        policy = Walker(lambda call, chunk: chunk + 0.1 * (-1) ** call, max_prefix=3)
        with controller(policy, 0.01, noise="zero", seam=seam, fade_steps=3) as ours:
            actions = []
            for step in range(40):
                ours.submit({"position": np.zeros(2, np.float32)}, step / HZ)
                actions.append(ours.action(step / HZ)[0].copy())
            largest[seam] = np.abs(np.diff(actions[1:], axis=0)).max()
    assert largest["snap"] > 0.19
    assert max(largest["fade"], largest["prefix_fade"]) < 0.3 * largest["snap"]


@pytest.mark.parametrize("seam", ["prefix", "prefix_fade"])
def test_a_prefix_is_what_will_be_commanded_meanwhile(seam: str) -> None:
    policy = Walker(lambda call, chunk: chunk + 0.1 * call, max_prefix=3)
    with controller(policy, 0.02, noise="zero", seam=seam) as ours:
        actions, statuses = drive(ours, 20)
    assert statuses[2:] == [OK] * 18
    assert policy.calls[0]["prefix"] is None
    for plan, call in enumerate(policy.calls[1:], start=1):
        assert call["prefix"].shape == (1, 2, 2)
        assert np.array_equal(call["prefix"][0], actions[4 * plan : 4 * plan + 2])


def test_the_prefix_is_no_longer_than_the_policy_takes() -> None:
    policy = Walker(max_prefix=1)
    with controller(policy, 0.03, noise="zero", seam="prefix") as ours:
        drive(ours, 12)
    assert {call["prefix"].shape[1] for call in policy.calls[1:]} == {1}


def test_a_miss_is_counted_and_answered() -> None:
    """The second plan takes 60 ms instead of 20: its deadline passes, the chunk before goes on until it is used up."""
    with controller(Walker(), lambda plan: 0.09 if plan == 1 else 0.02, noise="zero", deadline=0.05) as ours:
        _, statuses = drive(ours, 24)
        report = ours.report()
    # Plan 1 is of step 4 and due by step 9; the chunk of plan 0 lasts until step 10, plan 1 arrives at step 13.
    assert statuses[2:] == [OK] * 8 + [LATE] + [HOLD] * 2 + [OK] * 11
    assert (report.misses, report.failures) == (1, 0)
    assert report.fault is not None
    assert "Plan 1 was not there" in report.fault


@pytest.mark.parametrize(("fallback", "last"), [("hold", HOLD), ("decelerate", HOLD), ("stop", STOP)])
def test_the_fallback_moves_when_no_step_is_due(fallback: str, last: Status) -> None:
    limits = Limits(velocity=1.0, acceleration=20.0)
    endless = Watchdog()
    with controller(
        Walker(), lambda plan: np.inf if plan else 0.0, fallback=fallback, limits=limits, rest_seconds=0.2, watchdog=endless
    ) as ours:
        actions, statuses = drive(ours, 60)
        assert ours.submit({"position": np.zeros(2)}, 1.0)
    steps = np.diff(actions[:, 0])
    assert statuses[11:] == [last] * 49
    assert np.abs(steps[-5:]).max() < 1e-12
    gentle = steps[11:31]
    if fallback == "decelerate":
        assert gentle[1:] == pytest.approx(0.001 * np.arange(17, -2, -1).clip(0) / 20, abs=1e-6)
    else:
        assert np.abs(gentle[6:]).max() < 1e-12  # 0.1 m/s at 2 m/s^2: five steps


def test_a_stop_lasts_until_reset() -> None:
    with controller(Walker(), watchdog=Watchdog(0.03, 0.06)) as ours:
        _, statuses = drive(ours, 30, observe=lambda step: step < 10)
        assert statuses[13:] == [HOLD] * 3 + [STOP] * 14
        assert drive(ours, 5, start=30)[1] == [STOP] * 5
        ours.reset()
        assert ours.report().fault is None
        assert drive(ours, 5, start=35)[1] == [OK] * 5


def test_a_robot_starts_from_where_it_is() -> None:
    """Its position is commanded before the first plan, and the way from there to the first command keeps the limits."""
    policy = Walker(lambda call, chunk: chunk + 0.05)
    with controller(policy, 0.02, measured="position", max_jump=0.1, limits=Limits(velocity=0.5)) as ours:
        actions, statuses = drive(ours, 12, position=np.array([0.3, -0.2]))
    assert statuses[:3] == [HOLD, HOLD, LIMITED]
    assert actions[1] == pytest.approx([0.3, -0.2])
    assert np.abs(np.diff(actions, axis=0)).max() <= 0.5 / HZ + 1e-12


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_jump": 0.01}, "further than max_jump"),
        ({"limits": Limits(position_low=0.0)}, "outside the position limits"),
    ],
)
def test_a_start_that_is_not_safe_is_a_stop(options: dict[str, object], sentence: str) -> None:
    with controller(Walker(lambda call, chunk: chunk + 0.05), measured="position", **options) as ours:
        actions, statuses = drive(ours, 4, position=np.array([0.3, -0.2]))
        assert sentence in str(ours.report().fault)
    assert statuses == [STOP] * 4
    assert actions[-1] == pytest.approx([0.3, -0.2])


def test_a_loop_between_two_steps_repeats_and_skips_nothing() -> None:
    """Calls that jitter by 0.4 periods, at a rate that is off by a percent, get numbers in order."""
    grid, rng = Grid(HZ), np.random.default_rng(0)
    ticks = [grid.advance((1.0 + 0.01 * 0.05) * k / HZ + rng.uniform(0, 0.4) / HZ) for k in range(2000)]
    assert set(np.diff(ticks)) == {1}
    assert grid.advance(2005 * 1.0005 / HZ) == ticks[-1] + 6


def test_two_runs_are_equal() -> None:
    runs = []
    for _ in range(2):
        with controller(Walker(scale=0.01), 0.02, noise="fresh", limits=Limits(velocity=0.2, acceleration=3.0)) as ours:
            runs.append(drive(ours, 50))
    assert np.array_equal(runs[0][0], runs[1][0], equal_nan=True)
    assert runs[0][1] == runs[1][1]
    assert set(runs[0][1]) == {HOLD, OK, LIMITED} or LIMITED in runs[0][1]


def test_the_loop_keeps_no_memory_and_makes_no_arrays() -> None:
    limits = Limits(position_low=-1.0, position_high=1.0, velocity=0.5, acceleration=3.0, jerk=60.0)
    where = np.zeros(2, np.float32)
    with controller(Walker(), 0.01, noise="zero", limits=limits, measured="position", watchdog=Watchdog()) as ours:

        def loop(first: int, steps: int) -> None:
            for step in range(first, first + steps):
                ours.submit({"position": where}, step / HZ)
                ours.action(step / HZ)

        loop(0, 100)
        ours._planning._next = np.inf  # no more plans: what follows is the loop alone, first on the chunk, then on hold
        gc.collect()
        before = sys.getallocatedblocks()
        loop(100, 2000)
        assert sys.getallocatedblocks() - before < 300  # constant, far less than one for each step
        ours.reset()
        loop(4000, 3)
        ours._planning._next = np.inf
        tracemalloc.start()
        try:
            start, _ = tracemalloc.get_traced_memory()
            for step in range(4003, 4300):
                ours.action(step / HZ)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - start < 12_000  # small objects and NumPy's own buffers, whatever the number of calls


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"contract": "0" * 16}, CheckpointError, "contract"),
        ({"exec_steps": 0}, ConfigError, "exec_steps"),
        ({"exec_steps": 12}, ConfigError, "exec_steps"),
        ({"deadline": 0.0}, ConfigError, "deadline"),
        ({"deadline": 0.071}, ConfigError, "at most 0.07 s"),
        ({"seam": "glue"}, ConfigError, "snap"),
        ({"seam": "prefix"}, ConfigError, "max_prefix is 0"),
        ({"noise": "pink"}, ConfigError, "held"),
        ({"fallback": "hope"}, ConfigError, "decelerate"),
        ({"candidates": 3, "noise": "zero"}, ConfigError, "noise"),
        ({"measured": "camera"}, ConfigError, "measured"),
        ({"max_jump": 0.1}, ConfigError, "measured"),
        ({"max_jump": np.ones(3), "measured": "position"}, ConfigError, "one per dimension"),
        ({"max_jump": 0.0, "measured": "position"}, ConfigError, "positive"),
        ({"rule": "best"}, ConfigError, "medoid"),
        ({"control_hz": 0.0}, ConfigError, "control_hz"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"latency": -0.1}, ConfigError, "latency"),
        ({"fade_steps": 0}, ConfigError, "fade_steps"),
        ({"rest_seconds": 0.0}, ConfigError, "rest_seconds"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        controller(Walker(), **options)


def test_the_right_contract_is_accepted() -> None:
    assert controller(Walker(), contract=SPEC.contract_hash, deadline=0.07).settings.deadline == 0.07
    with pytest.raises(ConfigError, match="hold age"):
        Watchdog(observation_hold=2.0, observation_stop=1.0)


def test_the_most_typical_candidate_is_executed() -> None:
    """Of three candidates, two agree; the third is the odd one out, and its spread stops the robot if it must not be."""
    policy = Walker(lambda call, chunk: chunk + np.array([1.0, 0.0, 0.01])[:, None, None])
    with controller(policy, candidates=3, noise="fresh", seed=2) as ours:
        ours.submit({"position": np.zeros(2, np.float32)}, 0.0)
        assert ours.action(0.0)[0] == pytest.approx(np.full(2, 0.01), abs=1e-6)
    assert np.array_equal(policy.calls[0]["noise"], plan_noise(2, 0, (3, *SPEC.sample_shape)))
    assert {len(value) for value in policy.calls[0]["obs"].values()} == {3}
    for max_spread, expected in ((1.0, OK), (0.1, STOP)):
        with controller(policy, candidates=3, max_spread=max_spread) as ours:
            assert drive(ours, 3)[1] == [expected] * 3
            assert ("max_spread" in str(ours.report().fault)) == (expected is STOP)
