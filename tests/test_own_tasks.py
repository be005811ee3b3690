"""A task of one's own: a YAML in a folder, any data set, and an environment or none; no file of the package is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy.cli import compose
from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.types import ConfigError

Program = Callable[..., Any]
YAML = """
defaults: [schema, _self_]
name: arm
{env}
max_steps: 5
control_hz: 20
observations:
  joints: {{shape: [3], source: observation.state}}
action: {{shape: [2], source: action}}
data:
  mine: {{path: {path}}}
"""
TINY = ("task=arm", "trainer=debug", "generator.width=16", "generator.depth=1", "run_dir=run")


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The YAML of a task without an environment, beside its data; the current folder is empty."""
    rng = np.random.default_rng(0)
    arrays = {
        "observation.state": rng.normal(size=(90, 3)).astype(np.float32),
        "action": rng.normal(size=(90, 2)).astype(np.float32),
    }
    path = write_replay(tmp_path / "data.zarr", arrays, np.array([30, 60, 90]))
    file = tmp_path / "own" / "task" / "arm.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(YAML.format(env="", path=path))
    monkeypatch.setenv("DRIFTING_POLICY_CONFIGS", str(tmp_path / "own"))
    monkeypatch.setenv("DRIFTING_POLICY_DATA", "/")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return file


def test_a_task_without_an_environment_trains(arm: Path, program: Program) -> None:
    result = program("train", *TINY)
    assert result.code == 0, result.err
    assert "names no environment" in result.out
    assert {"report.json", "report.html", "checkpoints"} <= {path.name for path in Path("run").iterdir()}
    assert "Task arm names no environment (env_id)" in program("eval", "ckpt=run").error
    assert compose("train", ["task=arm"]).data_set == "mine"
    assert "push_t" in program("train", "task=leg").error
    assert "arm" in program("train", "task=leg").error


def test_a_task_with_an_environment_is_evaluated_under_its_name(arm: Path, program: Program) -> None:
    own = arm.parents[2] / "arm_world.py"
    own.write_text(WORLD)
    import sys

    sys.path.insert(0, str(own.parent))
    try:
        arm.write_text(arm.read_text().replace("name: arm\n", "name: arm\nenv_id: arm_world:Arm-v0\n"))
        result = program("train", *TINY, "trainer.eval_videos=0")
        assert result.code == 0, result.err
        again = program("eval", "ckpt=run", "episodes=2", "videos=0", "workers=0")
        assert again.code == 0, again.err
        assert "arm, 2 test episodes" in again.out
    finally:
        sys.path.remove(str(own.parent))


def test_a_sweep_knows_the_task(arm: Path, program: Program) -> None:
    result = program("train", "-m", *TINY[:-1], "seed=0,1")
    assert result.code == 0, result.err
    assert len(list(Path("runs/arm").iterdir())) == 2


def test_a_folder_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_CONFIGS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="DRIFTING_POLICY_CONFIGS must be a folder"):
        compose("train", [])


def test_a_task_without_data_asks_for_them(arm: Path, program: Program) -> None:
    arm.write_text(arm.read_text().partition("data:")[0])
    assert "Task arm names no data set; say which to use: data=PATH." in program("train", *TINY).error


WORLD = """
import gymnasium
import numpy as np


class Arm(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({"joints": gymnasium.spaces.Box(-9, 9, (3,), np.float32)})
    action_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"joints": np.zeros(3, np.float32)}, {}

    def step(self, action):
        return {"joints": np.ones(3, np.float32)}, 0.5, False, False, {"success": False}


gymnasium.register(id="Arm-v0", entry_point="arm_world:Arm")
"""
