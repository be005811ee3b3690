"""Demonstrations are found where they lie, checked, and brought into the shape that the task declares."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from drifting_policy.cli import compose
from drifting_policy.config import ArrayConfig, DataConfig, KeypointsConfig, TaskConfig
from drifting_policy.data.derive import fit_body_points
from drifting_policy.data.replay_buffer import open_replay, write_replay
from drifting_policy.demonstrations import bundled, is_stored, load_demonstrations
from drifting_policy.types import DatasetError, Stats

PUBLISHED = "pusht/pusht_cchi_v7_replay.zarr.zip"
STATE = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
ENDS = np.array([3, 8])


def task(**data: DataConfig) -> TaskConfig:
    """Sees half of `state` and two corners of a body, whose pose is the other half; commands `state` as a column."""
    return TaskConfig(
        name="toy",
        observations={"corner": ArrayConfig([2, 2], source="body"), "tip": ArrayConfig([2], source="state", start=0)},
        action=ArrayConfig([5], source="command"),
        keypoints={"body": KeypointsConfig(source="state", start=2, points=[[0.0, 0.0], [2.0, 0.0]])},
        data=data,
    )


def store(path: Path, **arrays: np.ndarray) -> Path:
    return write_replay(path, {"state": STATE, "command": STATE[:, :, None], "unused": STATE, **arrays}, ENDS)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFTING_POLICY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")


def test_the_human_demonstrations_of_push_t(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(shared / "data"))
    recorded = open_replay(shared / "data" / PUBLISHED, ["state", "keypoint", "action"])
    push_t = compose("train", ["task=push_t"]).task
    demonstrations = load_demonstrations(push_t, "human")
    assert (recorded.num_episodes, recorded.num_steps) == (206, 25650)
    np.testing.assert_array_equal(demonstrations.episode_ends, recorded.episode_ends)
    np.testing.assert_array_equal(demonstrations.action, recorded.arrays["action"])
    np.testing.assert_array_equal(demonstrations.observations["agent_pos"], recorded.arrays["state"][:, :2])
    # While the block is pushed, the recorded keypoints lag behind the recorded pose by a fraction of a pixel.
    error = np.abs(demonstrations.observations["keypoints"] - recorded.arrays["keypoint"]).max(axis=(1, 2))
    assert np.median(error) < 1e-4
    assert np.quantile(error, 0.99) < 0.05
    assert error.max() < 3
    fitted = fit_body_points(recorded.arrays["state"][:, 2:].astype(np.float64), recorded.arrays["keypoint"])
    np.testing.assert_allclose(push_t.keypoints["keypoint"].points, fitted, atol=1e-3)
    pose = load_demonstrations(compose("train", ["task=push_t_state"]).task, "human")
    assert pose.observations.keys() == {"state"}
    np.testing.assert_array_equal(pose.observations["state"], recorded.arrays["state"])


def test_altered_published_data_are_refused(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = open_replay(shared / "data" / PUBLISHED, ["state", "action"])
    action = published.arrays["action"].copy()
    action[77, 0] += 1
    write_replay(tmp_path / PUBLISHED, {**published.arrays, "action": action}, published.episode_ends)
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="'action' is not the published data"):
        load_demonstrations(compose("train", ["task=push_t"]).task, "human")


@pytest.mark.parametrize("name", ["own.zarr", "own.zarr.zip"])
def test_a_path_serves_as_a_data_set(name: str, tmp_path: Path) -> None:
    demonstrations = load_demonstrations(task(), str(store(tmp_path / name)))
    assert {key: values.shape for key, values in demonstrations.observations.items()} == {"corner": (8, 2, 2), "tip": (8, 2)}
    assert {values.dtype for values in (*demonstrations.observations.values(), demonstrations.action)} == {np.dtype("f4")}
    np.testing.assert_array_equal(demonstrations.action, STATE)
    np.testing.assert_array_equal(demonstrations.observations["tip"], STATE[:, :2])
    x, y, angle = STATE[:, 2:].T
    tip = np.stack([x + 2 * np.cos(angle), y + 2 * np.sin(angle)], -1)
    np.testing.assert_allclose(demonstrations.observations["corner"], np.stack([STATE[:, 2:4], tip], 1), atol=1e-6)
    assert demonstrations.stats.keys() == {"corner", "tip", "action"}
    np.testing.assert_array_equal(demonstrations.stats["action"].max, Stats.of(STATE).max)
    np.testing.assert_allclose(demonstrations.stats["corner"].mean, demonstrations.observations["corner"].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"command": STATE[:, :4]}, r"Key 'action' needs elements 0..4 per step; the data hold \(4,\)"),
        ({"command": np.repeat(STATE, 2, 1)}, "Key 'action' needs elements 0..4"),
        ({"state": STATE[:, :4]}, r"Key 'body' needs elements 2..4 per step; the data hold \(4,\)"),
    ],
)
def test_arrays_of_the_wrong_width_are_named(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=words):
        load_demonstrations(task(), str(store(tmp_path / "own.zarr", **arrays)))


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'humam' is neither a data set of task toy \(human, scripted\) nor a path"):
        load_demonstrations(task(scripted=DataConfig(), human=DataConfig()), "humam")
    with pytest.raises(DatasetError, match=r"absent.zarr' is neither a data set of task toy \(\)"):
        load_demonstrations(task(), str(tmp_path / "absent.zarr"))
    lacking = write_replay(tmp_path / "own.zarr", {"commands": STATE, "state": STATE}, ENDS)
    with pytest.raises(DatasetError, match=r"has no array data/command; .* Did you mean 'commands'\?"):
        load_demonstrations(task(), str(lacking))
    with pytest.raises(DatasetError, match=r"There is no data set at .*nothing.zarr.zip"):
        load_demonstrations(task(x=DataConfig(path="bundled://nothing.zarr.zip")), "x")
    assert bundled("__init__.py").is_file()
    assert is_stored(task(x=DataConfig(path="bundled://anything")), "x")
    assert is_stored(task(), str(lacking))
    assert not is_stored(task(), str(tmp_path / "absent"))


def test_the_folder_of_data_is_told_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = task(x=DataConfig(path="toy/x.zarr.zip"))
    with pytest.raises(DatasetError, match=r"^Set DRIFTING_POLICY_DATA to a folder that holds toy/x.zarr.zip\.$"):
        load_demonstrations(toy, "x")
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"^DRIFTING_POLICY_DATA is .*nowhere, which holds no toy/x.zarr.zip\.$"):
        load_demonstrations(toy, "x")
    assert not is_stored(toy, "x")
    store(tmp_path / "nowhere" / "toy" / "x.zarr.zip")
    assert is_stored(toy, "x")
    np.testing.assert_array_equal(load_demonstrations(toy, "x").action, STATE)


@pytest.mark.parametrize(("variable", "place"), [("cache", "cache"), ("", "home/.cache")])
@pytest.mark.parametrize("member", [None, "inside/x.zarr"])
def test_what_is_downloaded_once_lies_in_the_cache(
    variable: str, place: str, member: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / variable) if variable else "")
    monkeypatch.setenv("DRIFTING_POLICY_DATA", str(tmp_path / "nowhere"))
    if member is None:
        origin = store(tmp_path / "origin.zip")
    else:
        store(tmp_path / "folder" / member)
        origin = Path(shutil.make_archive(str(tmp_path / "origin"), "zip", tmp_path / "folder"))
    toy = task(x=DataConfig(path="toy/x.zarr.zip", url=origin.as_uri(), member=member))
    assert not is_stored(toy, "x")
    np.testing.assert_array_equal(load_demonstrations(toy, "x").action, STATE)
    assert (tmp_path / place / "drifting_policy" / (member or "toy/x.zarr.zip")).exists()
    origin.unlink()
    assert is_stored(toy, "x")
    np.testing.assert_array_equal(load_demonstrations(toy, "x").action, STATE)
    shutil.rmtree(tmp_path / place)
    with pytest.raises(DatasetError, match=r"connect to the network .* DRIFTING_POLICY_DATA to a folder that holds toy/x"):
        load_demonstrations(toy, "x")
