"""A recorded run: a data set of its steps, and a log from which the run is repeated bit for bit."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from robots import HZ, SPEC, Gate, Walker, drive

from drifting_policy import cli, load_policy
from drifting_policy.control.controller import Controller
from drifting_policy.control.inference import InlineInference, ThreadInference
from drifting_policy.control.limits import Limits
from drifting_policy.control.status import Status
from drifting_policy.control.watchdog import Watchdog
from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.demonstrations import bundled, load_demonstrations
from drifting_policy.playback import repeat_commands, repeat_plans
from drifting_policy.recorder import RunRecorder, draft_of, finish
from drifting_policy.run_log import open_log
from drifting_policy.types import ConfigError, DatasetError

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "late": {"delay": 0.03, "noise": "fresh"},
    "fade": {"delay": 0.02, "seam": "fade", "noise": "zero"},
    "prefix": {"delay": 0.02, "seam": "prefix", "max_prefix": 4, "latency": 0.02},
    "prefix and fade": {"delay": 0.02, "seam": "prefix_fade", "max_prefix": 4, "latency": 0.02, "noise": "fresh"},
    "measured prefix": {"delay": 0.02, "seam": "prefix", "max_prefix": 4},
    "candidates": {"candidates": 3, "noise": "fresh", "rule": "closest"},
    "limits": {"limits": Limits(velocity=0.5, acceleration=20.0, jerk=4000.0), "fallback": "decelerate", "delay": 0.04},
    "doubt": {"candidates": 3, "noise": "fresh", "max_spread": 1e-6},
    "watchdog": {"watchdog": Watchdog(0.05, 0.2, 0.1, 0.3), "observe": lambda step: not 20 <= step < 28},
    "failures": {"misbehave": lambda call, chunk: chunk * (np.nan if call in (3, 4) else 1)},
    "clock": {"clock_of": lambda step: step / HZ - (0.5 if step >= 20 else 0)},
}


def record(path: Path, *, episodes: int = 2, **options: Any) -> tuple[list[np.ndarray], list[list[Status]], Walker]:
    """Run a controller with these options; its commands and statuses."""
    walker_options = {name: options.pop(name) for name in ("max_prefix",) if name in options}
    walk = options.pop("misbehave", lambda call, chunk: chunk)
    loop = {"observe": options.pop("observe", lambda step: True), "clock": options.pop("clock_of", lambda step: step / HZ)}
    policy = Walker(walk, scale=0.01, **walker_options)
    delay = options.pop("delay", 0.0)
    given = {"exec_steps": 4, "deadline": 0.05, "clock": lambda: 0.0, "seed": 3} | options
    actions, statuses = [], []
    with RunRecorder(path) as recorder, Controller(InlineInference(policy, delay), recorder=recorder, **given) as controller:
        for episode in range(episodes):
            if episode:
                controller.reset(seed=episode)
            done = drive(controller, 40, **loop)  # type: ignore[arg-type]
            actions.append(done[0])
            statuses.append(done[1])
    return actions, statuses, Walker(scale=0.01, **walker_options)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_run_is_repeated_bit_for_bit(name: str, tmp_path: Path) -> None:
    actions, statuses, policy = record(tmp_path / "run.zarr", **VARIANTS[name])
    log = open_log(tmp_path / "run.zarr")
    acted = log.streams["acted"]
    assert np.array_equal(acted["action"], np.concatenate(actions), equal_nan=True)
    assert acted["status"].tolist() == [status for episode in statuses for status in episode]
    commands, plans = repeat_commands(log), repeat_plans(log, policy)
    assert (commands.count, commands.different) == (80, [])
    assert plans.count > (1 if name == "doubt" else 5)
    if name == "doubt":  # the robot never moved: nothing to learn from
        with pytest.raises(DatasetError, match="data"):
            open_replay(tmp_path / "run.zarr")
    assert plans.different == []


def test_another_policy_is_noticed(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr")
    other = Walker(lambda call, chunk: np.nextafter(chunk, 9) if call == 5 else chunk, scale=0.01)
    plans = repeat_plans(open_log(tmp_path / "run.zarr"), other)
    assert plans.different == [4]
    assert 0 < plans.largest < 1e-15
    assert "number 4" in plans.sentence("plans")


def test_another_command_is_noticed(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr")
    log = open_log(tmp_path / "run.zarr")
    log.streams["acted"]["action"][7, 0] += 1e-12
    log.streams["acted"]["status"][9] = Status.STOP
    assert repeat_commands(log).different == [7, 9]


def test_the_steps_are_a_data_set(tmp_path: Path) -> None:
    """Each command stands beside the newest observation; what came before the first command is left out."""
    actions, statuses, _ = record(tmp_path / "run.zarr", delay=0.03)
    moving = [np.array(statuses[i]) != Status.HOLD for i in range(2)]
    buffer = open_replay(tmp_path / "run.zarr", ["position", "action"])
    assert buffer.num_episodes == 2
    for episode in range(2):
        stored, kept = buffer.episode(episode), actions[episode][moving[episode]]
        assert np.array_equal(stored["action"], kept.astype(np.float32))
        assert np.array_equal(stored["position"][1:], kept[:-1].astype(np.float32)), "the robot is where it was told to be"


def test_an_episode_ends_where_the_robot_stops(tmp_path: Path) -> None:
    _, statuses, _ = record(tmp_path / "run.zarr", episodes=1, watchdog=Watchdog(0.05, 0.1), observe=lambda step: step < 10)
    assert statuses[0][-1] is Status.STOP
    assert open_replay(tmp_path / "run.zarr").num_steps == sum(status is not Status.STOP for status in statuses[0])


def test_a_thread_that_plans_is_recorded_too(tmp_path: Path) -> None:
    """On the wall clock plans come when they come; the log knows when."""
    gate = Gate(call=4)
    policy = Walker(gate, scale=0.01)
    with (
        RunRecorder(tmp_path / "run.zarr") as recorder,
        Controller(ThreadInference(policy), exec_steps=4, deadline=0.05, recorder=recorder) as controller,
    ):
        drive(controller, 30)
        gate.opened.set()
        controller.reset(seed=5)  # while a plan may be under way
        drive(controller, 30)
    log = open_log(tmp_path / "run.zarr")
    assert repeat_commands(log).different == []
    assert repeat_plans(log, Walker(scale=0.01)).different == []


def test_pages_are_written_while_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drifting_policy.recorder.PAGE_ROWS", 7)
    monkeypatch.setattr("drifting_policy.recorder.PAGES", 40)
    record(tmp_path / "small.zarr")
    monkeypatch.undo()
    record(tmp_path / "large.zarr")
    small, large = (open_log(tmp_path / f"{name}.zarr").streams for name in ("small", "large"))
    assert all(small[name].tobytes() == large[name].tobytes() for name in large)


def test_a_disk_that_is_too_slow_ends_the_recording_not_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drifting_policy.recorder.PAGE_ROWS", 5)
    monkeypatch.setattr("drifting_policy.recorder.PAGES", 2)
    monkeypatch.setattr("drifting_policy.recorder.Stream._write", lambda self: None)
    recorder = RunRecorder(tmp_path / "run.zarr")
    inference = InlineInference(Walker())
    with Controller(inference, exec_steps=4, deadline=0.05, clock=lambda: 0.0, recorder=recorder) as controller:
        _, statuses = drive(controller, 40)
        assert "disk is too slow" in str(controller.report().fault)
    assert statuses == [Status.OK] * 40
    for stream in recorder._streams.values():
        stream._file.close()


def test_a_crash_loses_no_page_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drifting_policy.recorder.PAGE_ROWS", 5)
    monkeypatch.setattr("drifting_policy.recorder.PAGES", 40)
    path = tmp_path / "run.zarr"
    recorder = RunRecorder(path)
    with Controller(InlineInference(Walker()), exec_steps=4, deadline=0.05, clock=lambda: 0.0, recorder=recorder) as controller:
        drive(controller, 43)
    for stream in recorder._streams.values():  # the process dies: what is on the disk stays, the last record is cut
        stream._closing = True
        stream._wake.release()
        stream._thread.join()
        stream._file.write(b"cut")
        stream._file.close()
    assert not path.exists()
    with (draft_of(path) / "began").open("ab") as file:
        file.write(np.zeros(1, [("order", np.int64), ("seed", np.uint64)]).tobytes())
    assert finish(draft_of(path)) == path
    assert not draft_of(path).exists()
    assert 30 <= len(open_log(path).streams["acted"]) <= 43


def finish_empty(recorder: RunRecorder) -> Path:
    recorder.close()
    return recorder.path


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path)
    with pytest.raises(DatasetError, match="is there already"):
        record(path)
    used = RunRecorder(tmp_path / "used.zarr")
    used.attached(SPEC, {"candidates": 1}, max_prefix=0)
    with pytest.raises(ConfigError, match="one controller"):
        used.attached(SPEC, {"candidates": 1}, max_prefix=0)
    with pytest.raises(DatasetError, match="'log'"):
        open_log(finish_empty(used))
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be recorded"):
        record(tmp_path / "file" / "run.zarr")
    (tmp_path / ".empty.draft").mkdir()
    with pytest.raises(DatasetError, match="not a recording"):
        finish(tmp_path / ".empty.draft")
    about = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps({"run": about["run"] | {"format": "other"}}))
    with pytest.raises(DatasetError, match="not the recording"):
        open_log(path)
    RunRecorder(tmp_path / "unused.zarr").close()
    assert not (tmp_path / "unused.zarr").exists()


def test_the_contract_is_that_of_the_robot(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr")
    stranger = Walker()
    stranger.spec = type(SPEC)(SPEC.observations, SPEC.action, 1, 12, 4, HZ)
    with pytest.raises(ConfigError, match="contract"):
        repeat_plans(open_log(tmp_path / "run.zarr"), stranger)


def test_a_run_can_be_trained_on(tmp_path: Path) -> None:
    """In a simulator on virtual time: what the controller recorded is a data set of the task, in the policy's own form."""
    env, policy = gymnasium.make("drifting_policy.envs:drifting/PushT-v0"), load_policy(bundled("push_t"))
    spec = policy.spec
    given: dict[str, Any] = {"exec_steps": 4, "deadline": 0.3, "clock": lambda: 0.0}
    with (
        RunRecorder(tmp_path / "run.zarr") as recorder,
        Controller(InlineInference(policy, 0.1), recorder=recorder, **given) as controller,
    ):
        for episode in range(2):
            controller.reset(seed=episode)
            obs, _ = env.reset(seed=episode)
            for step in range(30):
                controller.submit({key: obs[key] for key in spec.observations}, step / spec.control_hz)
                action, _ = controller.action(step / spec.control_hz)
                if np.isfinite(action).all():
                    obs = env.step(action.astype(np.float32))[0]
    env.close()
    task = cli.compose("train", ["task=push_t"]).task
    demonstrations = load_demonstrations(task, str(tmp_path / "run.zarr"))
    log = open_log(tmp_path / "run.zarr")
    assert demonstrations.episode_ends.tolist() == [29, 58]
    assert np.array_equal(demonstrations.observations["keypoints"][0], log.streams["observed"]["obs keypoints"][1])
    moved = np.isfinite(log.streams["acted"]["action"]).all(axis=1)
    assert np.array_equal(demonstrations.action, log.streams["acted"]["action"][moved].astype(np.float32))
    assert repeat_plans(log, policy).different == []
    assert repeat_commands(log).different == []
