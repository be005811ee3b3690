"""Absolute actions for files of demonstrations: the copy replays to what the deltas reached, and mistakes get one sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from published import FLAT, env_args

from drifting_policy import replay
from drifting_policy.cli import compose
from drifting_policy.commands import ReplayConfig
from drifting_policy.data.robomimic import open_robomimic, read_env_args, write_robomimic
from drifting_policy.datasets import robomimic as recipe
from drifting_policy.demonstrations import load_demonstrations
from drifting_policy.envs.robomimic import RobomimicEnv

STEPS = 45


def lift(env: RobomimicEnv, seed: int) -> dict[str, Any]:
    """A demonstration: down to the cube, close, and up."""
    seen, _ = env.reset(seed=seed)
    rows: dict[str, list[Any]] = {key: [] for key in ("actions", "states", "rewards", "obs", "next_obs")}
    model = env.world.model
    for step in range(STEPS):
        way = seen["object"][:3] - seen["robot0_eef_pos"] + [0, 0, 0.0 if step < 28 else 0.2]
        action = np.r_[np.clip(way / 0.05, -1, 1), np.zeros(3), -1.0 if step < 22 else 1.0].astype(np.float64)
        rows["states"].append(env.world.state)
        rows["actions"].append(action)
        rows["obs"].append(seen)
        seen, reward, *_ = env.step(action)
        rows["rewards"].append(reward)
        rows["next_obs"].append(seen)
    observed = {
        group: {key: np.stack([each[key] for each in rows[group]]) for key in seen if key != "states"}
        for group in ("obs", "next_obs")
    }
    arrays = {key: np.array(rows[key]) for key in ("actions", "states", "rewards")}
    return {**arrays, "dones": (arrays["rewards"] > 0).astype(np.int64), **observed, "model_file": model}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of Lift with deltas."""
    env = RobomimicEnv(task="lift", action="delta")
    stored = env_args("Lift", version="1.4.1", config=FLAT)
    episodes = [lift(env, seed) for seed in (0, 1)]
    env.close()
    assert all(each["rewards"].max() == 1 for each in episodes)
    for each in episodes:  # the file says that robosuite 1.4 wrote it
        for group in ("obs", "next_obs"):
            each[group]["object"][:, 7:] *= -1
    return write_robomimic(tmp_path_factory.mktemp("lift") / "demo.hdf5", episodes, env_args=stored)


def test_the_copy_replays_to_what_the_deltas_reached(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "absolute.hdf5"
    assert recipe.main(["absolute", f"src={recorded}", f"dst={out}"]) == 0
    assert f"{out} has what {recorded} has, and actions_abs." in capsys.readouterr().out
    old, new = open_robomimic(recorded), open_robomimic(out)
    assert new.arrays["actions_abs"].shape == (2 * STEPS, 10)
    for key, values in old.arrays.items():
        np.testing.assert_array_equal(values, new.arrays[key])
    assert read_env_args(out) == read_env_args(recorded)
    monkeypatch.chdir(tmp_path)
    task = compose("train", ["task=lift"]).task
    assert replay.run(ReplayConfig(task=task, data=str(out), out="replay")) == 0
    table = json.loads((tmp_path / "replay" / "replay.json").read_text())
    assert table["max_score"]["min"] == 1
    assert table["metrics"]["success"]["value"] == 1
    assert table["deviation"]["states"]["max"] < 0.02  # up to the success, contacts included
    observed = load_demonstrations(task, str(out)).observations
    offset = observed["object"][:, :3] - observed["robot0_eef_pos"]
    np.testing.assert_allclose(observed["object"][:, 7:], offset, atol=1e-5)  # in the order of robosuite 1.5


def test_the_cameras_see_the_recorded_states(recorded: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.hdf5"
    with h5py.File(recorded) as file, h5py.File(few, "w") as copy:
        copy.create_group("data").attrs["env_args"] = file["data"].attrs["env_args"]
        demo = copy["data"].create_group("demo_0")
        demo["obs/object"] = file["data/demo_0/obs/object"][:2]
        for key in ("actions", "states"):
            demo[key] = file[f"data/demo_0/{key}"][[0, 40]]
    out = tmp_path / "images.hdf5"
    assert recipe.main(["images", f"src={few}", f"dst={out}"]) == 0
    with h5py.File(out) as file:
        images = [file[f"data/demo_0/obs/{camera}_image"][()] for camera in ("agentview", "robot0_eye_in_hand")]
    assert [(image.shape, image.dtype) for image in images] == [((2, 84, 84, 3), np.uint8)] * 2
    red = [np.argwhere((frame[..., 0] > 90) & (frame[..., 1:] < 60).all(axis=2)) for frame in images[0]]
    assert min(len(each) for each in red) > 5
    assert red[1][:, 0].mean() < red[0][:, 0].mean() - 2  # the cube was lifted


def test_a_task_without_absolute_actions_says_how_to_make_them(recorded: Path) -> None:
    task = compose("train", ["task=lift"]).task
    with pytest.raises(ValueError, match=r"python -m drifting_policy\.datasets\.robomimic absolute"):
        load_demonstrations(task, str(recorded))
    deltas = dataclasses.replace(task, action=dataclasses.replace(task.action, shape=[7], source="actions"))
    assert load_demonstrations(deltas, str(recorded)).action.shape == (2 * STEPS, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "src=FILE dst=FILE"),
        (["src=a"], "got 'src=a'"),
        (["src=a", "dst=b", "more"], "src=FILE dst=FILE"),
        (["src=nowhere.hdf5", "dst=b.hdf5"], "no data set at nowhere.hdf5"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["absolute", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"env_name": "Door"}, "must name one of the worlds"),
        ({"env_kwargs": {"controller_configs": {**FLAT, "control_delta": False}}}, "takes absolute actions, not deltas"),
        ({"env_kwargs": {"controller_configs": {**FLAT, "type": "JOINT_POSITION"}}}, "got 'JOINT_POSITION'"),
        ({"env_name": "ToolHang"}, "ToolHang has states of 58"),
    ],
)
def test_files_that_are_no_deltas_of_a_task_are_refused(
    recorded: Path, tmp_path: Path, changed: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.hdf5"
    source.write_bytes(recorded.read_bytes())
    with h5py.File(source, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(read_env_args(recorded) | changed)
    assert recipe.main(["absolute", f"src={source}", f"dst={tmp_path / 'out.hdf5'}"]) == 2
    assert words in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["source.hdf5"]
