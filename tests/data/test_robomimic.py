"""robomimic's HDF5 files: what is written is read again, by name and number; what is damaged or hostile gets one sentence."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drifting_policy.config import ArrayConfig, DataConfig, RestoreConfig, TaskConfig
from drifting_policy.data.object_order import ORDERS, in_present_order
from drifting_policy.data.robomimic import copy_with_array, open_robomimic, read_env_args, read_model_files, write_robomimic
from drifting_policy.data.sources import open_models, open_source
from drifting_policy.demonstrations import load_demonstrations
from drifting_policy.types import DatasetError

ENV_ARGS = {"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": {"control_freq": 20}}
LENGTHS = [3, 5, 4, 2, 6, 3, 4, 2, 3, 5, 4, 7]


def episode(steps: int, *, seed: int = 0, images: bool = False) -> dict[str, Any]:
    """A demonstration of noise."""
    rng = np.random.default_rng([seed, steps])
    obs: dict[str, np.ndarray] = {"object": rng.normal(size=(steps, 10)), "robot0_eef_pos": rng.normal(size=(steps, 3))}
    if images:
        obs["agentview_image"] = rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8)
    return {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "states": rng.normal(size=(steps, 32)),
        "rewards": np.zeros(steps),
        "dones": np.zeros(steps, np.int64),
        "obs": obs,
        "next_obs": {key: value[::-1] for key, value in obs.items()},
        "model_file": f"<mujoco model='{seed}'/>" + " " * 70_000,
    }


EPISODES = [episode(steps, seed=seed) for seed, steps in enumerate(LENGTHS)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of twelve demonstrations, of which two masks name some."""
    return write_robomimic(tmp_path / "demo.hdf5", EPISODES, env_args=ENV_ARGS, masks={"train": [11, 0, 2], "valid": [1]})


def edit(path: Path, change: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_what_is_written_is_read_in_the_order_of_numbers(path: Path) -> None:
    buffer = open_robomimic(path)
    assert sorted(buffer.arrays) == ["actions", "dones", "object", "rewards", "robot0_eef_pos", "states"]
    assert buffer.lengths.tolist() == LENGTHS  # not demo_0, demo_1, demo_10, demo_11, demo_2
    for key, values in buffer.arrays.items():
        given_values = np.concatenate([each.get(key, each["obs"].get(key)) for each in EPISODES])
        np.testing.assert_array_equal(values, given_values.astype(values.dtype))
    dtypes = {key: str(values.dtype) for key, values in buffer.arrays.items()}
    assert dtypes == {"dones": "int64", "states": "float64"} | dict.fromkeys(
        ["actions", "object", "rewards", "robot0_eef_pos"], "float32"
    )
    assert read_env_args(path) == ENV_ARGS
    assert read_model_files(path) == [each["model_file"] for each in EPISODES]
    np.testing.assert_array_equal(open_source(path).arrays["states"], buffer.arrays["states"])


def test_filter_keys_choose_demonstrations(path: Path) -> None:
    buffer = open_robomimic(path, ["actions"], filter_key="train")
    chosen = [EPISODES[number] for number in (0, 2, 11)]
    assert list(buffer.arrays) == ["actions"]
    np.testing.assert_array_equal(buffer.arrays["actions"], np.concatenate([e["actions"] for e in chosen]).astype(np.float32))
    assert read_model_files(path, filter_key="train") == open_models(path, filter_key="train")
    assert read_model_files(path, filter_key="train") == [each["model_file"] for each in chosen]
    assert open_source(path, ["dones"], filter_key="valid").lengths.tolist() == [5]
    with pytest.raises(DatasetError, match=r"no filter key 'trian'; it has \['train', 'valid'\]. Did you mean 'train'"):
        open_robomimic(path, filter_key="trian")


def test_the_layout_is_the_one_that_robomimic_reads(path: Path) -> None:
    """Every access of SequenceDataset and get_dataset_info of robomimic 0.3."""
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        demos = [name.decode("utf-8") for name in np.array(file["mask/train"][:])]
        assert sorted(demos, key=lambda name: int(name[5:])) == ["demo_0", "demo_2", "demo_11"]
        assert file["data"].attrs["total"] == sum(LENGTHS)
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Lift"
        for name in file["data"]:
            demo = file[f"data/{name}"]
            steps = demo.attrs["num_samples"]
            assert isinstance(demo.attrs["model_file"], str)
            for key in ("actions", "rewards", "dones", "obs/object", "next_obs/object"):
                assert demo[key][()].astype("float32").shape[0] == steps == LENGTHS[int(name[5:])]
            assert np.abs(demo["actions"][()]).max() <= 1


def test_equal_data_give_equal_bytes_and_a_failure_leaves_nothing(path: Path, tmp_path: Path) -> None:
    again = write_robomimic(tmp_path / "again.hdf5", EPISODES, env_args=ENV_ARGS, masks={"train": [11, 0, 2], "valid": [1]})
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()

    def stops() -> Any:
        yield EPISODES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_robomimic(path, stops(), env_args=ENV_ARGS)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.hdf5", "demo.hdf5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"actions": np.full((3, 7), 1.5)}, r"demo_1/actions must lie in \[-1, 1\]"),
        ({"states": np.zeros((2, 32))}, r"demo_1/states must have 3 steps and no empty axis; its shape is \(2, 32\)"),
        ({"rewards": np.array([0, np.nan, 1])}, "demo_1/rewards holds NaN or infinity, first at step 1"),
        ({"actions_abs": np.array([["a"]] * 3)}, "demo_1/actions_abs must be numeric"),
        ({"next_obs": {}}, "same observations in obs and next_obs"),
        ({"obs": {}, "next_obs": {}}, "and at least one"),
        ({"actions": np.zeros((0, 7))}, "demo_1/actions must have 1 steps"),
    ],
)
def test_episodes_that_do_not_fit_are_not_written(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        write_robomimic(tmp_path / "x.hdf5", [episode(2), episode(3) | change], env_args=ENV_ARGS)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="env_args needs env_version"):
        write_robomimic(tmp_path / "x.hdf5", [], env_args={"env_name": "Lift", "type": 1, "env_kwargs": {}})
    with pytest.raises(DatasetError, match="no episode to store"):
        write_robomimic(tmp_path / "x.hdf5", [], env_args=ENV_ARGS)
    given_episode = {key: value for key, value in episode(2).items() if key not in ("states", "model_file")}
    with pytest.raises(DatasetError, match="demo_0 needs states, model_file"):
        write_robomimic(tmp_path / "x.hdf5", [given_episode], env_args=ENV_ARGS)
    with pytest.raises(DatasetError, match="mask 'train' names episodes that do not exist"):
        write_robomimic(tmp_path / "x.hdf5", [episode(2)], env_args=ENV_ARGS, masks={"train": [1]})
    with pytest.raises(DatasetError, match="could not be written"):
        write_robomimic("/dev/null/x.hdf5", [episode(2)], env_args=ENV_ARGS)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["objekt"], "no array 'objekt'; .*Did you mean 'object'"),
        (["obs"], "no array 'obs'"),
        (["actions_abs"], "drifting_policy.datasets.robomimic absolute src=FILE dst=FILE"),
    ],
)
def test_keys_that_are_missing_are_named(path: Path, keys: list[str], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        open_robomimic(path, keys)


def _unwritten(file: h5py.File) -> None:
    del file["data/demo_3/actions"]
    file.create_dataset("data/demo_3/actions", shape=(2, 7), dtype="f8", chunks=(1, 7))


def _huge(file: h5py.File) -> None:
    del file["data/demo_3/rewards"]
    file.create_dataset("data/demo_3/rewards", shape=(2, 10**7, 10**7), dtype="f8", chunks=(1, 1, 10))


def _elsewhere(file: h5py.File) -> None:
    del file["data/demo_3/rewards"]
    file["data/demo_3/rewards"] = h5py.ExternalLink("/etc/passwd", "/data")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("data"), "no group 'data'"),
        (lambda file: file["data"].create_group("episode_x"), "named demo_0, demo_1, ...; there is a 'episode_x'"),
        (lambda file: file["data"].create_dataset("demo_99", data=[1]), "no group data/demo_99"),
        (lambda file: file.__delitem__("data/demo_3/actions"), "demo_3 has no array 'actions', which other"),
        (lambda file: file["data/demo_3"].attrs.__setitem__("num_samples", 9), r"demo_3/actions has shape .*9 steps"),
        (lambda file: file["data/demo_3"].attrs.__setitem__("num_samples", "two"), "demo_3 must say its number of steps"),
        (lambda file: file["data/demo_3/actions"].__setitem__((1, 2), np.inf), "demo_3/actions holds NaN or infinity.*step 1"),
        (lambda file: file["data/demo_3/actions"].__setitem__((1, 2), 1e300), "demo_3/actions holds NaN or infinity"),
        (_unwritten, "demo_3/actions is incomplete"),
        (_huge, "demo_3/rewards has shape"),
        (_elsewhere, "demo_3 has no array 'rewards'"),
    ],
)
def test_damaged_files_get_one_sentence(path: Path, change: Callable[[h5py.File], object], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        open_robomimic(edit(path, change), ["actions", "rewards"])


def test_other_files_get_one_sentence(tmp_path: Path, path: Path) -> None:
    with pytest.raises(DatasetError, match="no data set at"):
        open_robomimic(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(DatasetError, match="not a readable HDF5 file"):
        open_robomimic(tmp_path / "text.hdf5")
    edit(path, lambda file: file["data"].attrs.__setitem__("env_args", "{"))
    with pytest.raises(DatasetError, match="no JSON in the attribute env_args"):
        read_env_args(path)
    edit(path, lambda file: file["data"].attrs.__setitem__("env_args", "[1]"))
    with pytest.raises(DatasetError, match="env_args of data has no env_name, type, env_kwargs"):
        read_env_args(path)
    edit(path, lambda file: file["data/demo_4"].attrs.__delitem__("model_file"))
    with pytest.raises(DatasetError, match="demo_4 has no attribute model_file"):
        read_model_files(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
def test_any_damage_is_a_data_set_or_a_sentence(tmp_path: Path, cut: float, flips: list[tuple[float, int]]) -> None:
    whole = tmp_path / "whole.hdf5"
    if not whole.exists():
        write_robomimic(whole, [episode(4) | {"model_file": "<mujoco/>"}, episode(3)], env_args=ENV_ARGS, masks={"train": [0]})
    content = bytearray(whole.read_bytes())
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(content[: int(cut * len(content))] if cut < 0.9 else content)
    for filter_key in (None, "train"):
        told = ""
        try:
            assert open_robomimic(damaged, filter_key=filter_key).num_steps > 0
        except DatasetError as error:
            told = str(error)
        assert not told or str(damaged) in told


def test_images_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = [episode(steps, seed=seed, images=True) for seed, steps in enumerate([70, 3])]
    path = write_robomimic(tmp_path / "x.hdf5", made, env_args=ENV_ARGS, masks={"few": [1]})
    images = open_robomimic(path, ["agentview_image"]).arrays["agentview_image"]
    np.testing.assert_array_equal(images, np.concatenate([each["obs"]["agentview_image"] for each in made]))
    assert images.dtype == np.uint8
    assert not images.flags.writeable
    few = open_robomimic(path, ["agentview_image"], filter_key="few").arrays["agentview_image"]
    np.testing.assert_array_equal(few, made[1]["obs"]["agentview_image"])


def test_a_copy_has_one_array_more(path: Path, tmp_path: Path) -> None:
    def make(arrays: Any) -> np.ndarray:
        assert arrays["states"].dtype == np.float64
        return 2 * arrays["actions"]

    out = copy_with_array(path, tmp_path / "copy.hdf5", key="actions_abs", make=make)
    old, new = open_robomimic(path), open_robomimic(out)
    np.testing.assert_array_equal(new.arrays["actions_abs"], 2 * old.arrays["actions"])
    assert set(new.arrays) == {*old.arrays, "actions_abs"}
    assert read_model_files(out) == read_model_files(path)
    again = copy_with_array(out, out, key="actions_abs", make=lambda arrays: arrays["actions"])
    np.testing.assert_array_equal(open_robomimic(again).arrays["actions_abs"], old.arrays["actions"])
    with pytest.raises(DatasetError, match="demo_0/actions_abs must have 3 steps"):
        copy_with_array(path, tmp_path / "bad.hdf5", key="actions_abs", make=lambda arrays: np.zeros(1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.hdf5", "demo.hdf5"]


def test_a_task_reads_its_arrays_states_and_models(path: Path) -> None:
    task = TaskConfig(
        name="lift",
        observations={"object": ArrayConfig(shape=[10], source="object")},
        action=ArrayConfig(shape=[7], source="actions"),
        restore={"states": RestoreConfig(source="states", model=True)},
        data={"some": DataConfig(path=str(path), filter_key="train")},
    )
    loaded = load_demonstrations(task, "some", states=True)
    assert loaded.episode_ends.tolist() == [3, 7, 14]
    assert loaded.models == [EPISODES[number]["model_file"] for number in (0, 2, 11)]
    np.testing.assert_array_equal(loaded.states["states"], np.concatenate([EPISODES[n]["states"] for n in (0, 2, 11)]))
    assert load_demonstrations(task, str(path)).models == ()


def test_the_order_of_objects_is_that_of_the_present_version(tmp_path: Path) -> None:
    """The reading of each version, spelled out: names of the parts with their sizes."""
    pose = [("pos", 3), ("quat", 4)]
    relative = [("to_pos", 3), ("to_quat", 4)]
    transport = [("start", 27), ("gripper", 12), ("flags", 2)]
    old = {"PickPlaceCan": pose + relative, "TwoArmTransport": transport, "NutAssemblySquare": pose + relative}
    new = {"PickPlaceCan": relative + pose, "NutAssemblySquare": relative + pose}
    new["TwoArmTransport"] = [("start", 27), ("flags", 2), ("gripper", 12)]
    for part in ("base", "frame", "tool"):
        for layouts, order in ((old, pose + relative), (new, relative + pose)):
            layouts["ToolHang"] = layouts.get("ToolHang", []) + [(f"{part}_{name}", size) for name, size in order]
    for layouts in (old, new):
        layouts["ToolHang"] = layouts["ToolHang"] + [("done", 2)]

    def row(layout: list[tuple[str, int]]) -> np.ndarray:
        return np.concatenate([1000 * sum(map(ord, name)) + np.arange(size) for name, size in layout])[None].astype(float)

    for world, layout in old.items():
        np.testing.assert_array_equal(in_present_order(row(layout), world=world, version="1.4.1"), row(new[world]))
        np.testing.assert_array_equal(in_present_order(row(layout), world=world, version="1.5.0"), row(layout))
        assert sorted(ORDERS[world]) == list(range(row(layout).size))
    lift = np.arange(1.0, 11.0)[None]
    np.testing.assert_array_equal(in_present_order(lift, world="Lift", version="1.2.0")[0], [1, 2, 3, 4, 5, 6, 7, -8, -9, -10])
    assert lift[0, 7] == 8  # what is given is not changed
    for world, version in (("Door", "1.4.1"), ("Lift", "new"), ("PickPlaceCan", "1.2.0")):
        np.testing.assert_array_equal(in_present_order(lift, world=world, version=version), lift)
    path = write_robomimic(tmp_path / "old.hdf5", [episode(3)], env_args=ENV_ARGS | {"env_version": "1.4.1"})
    written = episode(3)["obs"]["object"].astype(np.float32)
    np.testing.assert_array_equal(open_robomimic(path).arrays["object"][:, 7:], -written[:, 7:])
