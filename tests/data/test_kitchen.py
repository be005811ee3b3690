"""Both forms of the relay demonstrations give back what was written; what does not add up is refused."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.data.kitchen import is_kitchen, open_kitchen, read_log
from drifting_policy.types import DatasetError

COUNTS = {"nq": 30, "nv": 29, "nu": 9, "bodies": 1, "sensors": 3, "users": 2}


def write_log(path: Path, rows: np.ndarray, *, name: bytes = b"kitchen\0", cut: int = 0, **counts: int) -> Path:
    """A log of the rows "n k", each one float32 record, minus the last `cut` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack("<7i", *{**COUNTS, **counts}.values(), len(name))
    content = header + name + rows.astype("<f4").tobytes()
    path.write_bytes(content[: len(content) - cut])
    return path


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    """Records "n 81" of noise: time, 30 positions, 29 speeds, 9 commands near the positions, and 12 numbers nobody wants."""
    rows = np.random.default_rng(seed).normal(size=(count, 1 + 30 + 29 + 9 + 7 + 3 + 2)).astype(np.float32)
    rows[:, 0] = 0.002 * np.arange(count)
    return rows


def test_a_log_gives_every_fortieth_record_in_the_order_of_the_environment(tmp_path: Path) -> None:
    rows = rows_of(201)
    episode = read_log(write_log(tmp_path / "a.mjl", rows))
    seen = rows[::40]
    assert {key: values.shape for key, values in episode.items()} == {
        "action": (6, 9),
        "ctrl": (6, 9),
        "qpos": (6, 30),
        "state": (6, 59),
    }
    np.testing.assert_array_equal(episode["qpos"], seen[:, 1:31])
    np.testing.assert_array_equal(episode["ctrl"], seen[:, 60:69])
    robot, robot_speed, objects, object_speed = np.split(episode["state"], [9, 18, 39], axis=1)
    np.testing.assert_array_equal(robot, seen[:, 1:10])
    np.testing.assert_array_equal(robot_speed, seen[:, 31:40])
    np.testing.assert_array_equal(objects, seen[:, 10:31])
    np.testing.assert_array_equal(object_speed, seen[:, 40:60])
    assert all(values.dtype == np.float32 for values in episode.values())


def test_an_action_leads_to_the_command_in_one_step(tmp_path: Path) -> None:
    rows = rows_of(3)
    rows[:, 60:69] = rows[:, 1:10] + np.linspace(-0.159, 0.159, 9)
    episode = read_log(write_log(tmp_path / "a.mjl", rows))
    np.testing.assert_allclose(episode["qpos"][:, :9] + 0.08 * 2 * episode["action"], episode["ctrl"], atol=1e-6)
    rows[:, 60:69] = rows[:, 1:10] + 5
    assert (read_log(write_log(tmp_path / "b.mjl", rows))["action"] == np.float32(0.999)).all()


def test_a_log_agrees_with_the_environment(tmp_path: Path) -> None:
    """The positions of a log are MuJoCo's, and its actions, sent to the environment, become its commands again."""
    kitchen = pytest.importorskip("drifting_policy.envs.kitchen")
    env = kitchen.KitchenEnv()
    env.reset(seed=0)
    robot = env._world.robot_env
    robot.robot_noise_ratio = env._world.object_noise_ratio = 0.0
    rows, sent = [], np.random.default_rng(0).uniform(-0.3, 0.3, (4, 9))
    for action in sent:
        observation = env.step(action)[0]
        command = np.clip(robot._last_robot_qpos + 0.16 * action, *robot.robot_pos_bound[:9].T)
        rows.append(np.concatenate([[0.0], robot.data.qpos, robot.data.qvel, command]))
        last = observation
    log = write_log(tmp_path / "a.mjl", np.repeat(rows, 40, axis=0), bodies=0, sensors=0, users=0)
    episode = read_log(log)
    np.testing.assert_allclose(episode["state"][-1], last["state"], atol=1e-6)
    np.testing.assert_array_equal(episode["qpos"], kitchen.positions_of(episode["state"]))
    np.testing.assert_allclose(episode["action"][:, :7], sent[:, :7], atol=1e-4)  # the fingers meet their stops


def test_a_folder_of_logs_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    lengths = {"monday/b.mjl": 81, "friday/z.mjl": 1, "monday/a.mjl": 40}
    for seed, (name, length) in enumerate(lengths.items()):
        write_log(tmp_path / name, rows_of(length, seed))
    (tmp_path / "monday" / "notes.txt").write_text("no log")
    buffer = open_kitchen(tmp_path)
    assert sorted(buffer.arrays) == ["action", "ctrl", "qpos", "state"]
    assert buffer.lengths.tolist() == [1, 1, 3]
    np.testing.assert_array_equal(buffer.episode(2)["qpos"], rows_of(81, 0)[::40, 1:31])
    assert list(open_kitchen(tmp_path, ["qpos"]).arrays) == ["qpos"]
    assert open_kitchen(tmp_path / "monday" / "b.mjl").num_steps == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cut": 1}, "is cut off"),
        ({"cut": 4}, "is cut off"),
        ({"nq": 29}, "nq=29"),
        ({"nu": 8}, "must be \\[30, 29, 9\\]"),
        ({"bodies": 2}, "is cut off"),
        ({"sensors": -1}, "no MuJoCo log of the Franka Kitchen"),
        ({"cut": 2 * 81 * 4}, "holds no records"),
        ({"cut": 2 * 81 * 4 + 3}, "is cut off"),
        ({"cut": 2 * 81 * 4 + 20}, "fewer than its header"),
    ],
)
def test_logs_that_do_not_add_up_are_refused(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    log = write_log(tmp_path / "a.mjl", rows_of(2), **changes)
    with pytest.raises(DatasetError, match=words) as caught:
        open_kitchen(tmp_path)
    assert str(log) in str(caught.value)


def test_nan_is_refused_by_its_step(tmp_path: Path) -> None:
    rows = rows_of(121)
    rows[80, 5] = np.nan
    write_log(tmp_path / "a.mjl", rows)
    with pytest.raises(DatasetError, match="holds NaN or infinity, first at step 2"):
        open_kitchen(tmp_path, ["qpos"])


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_bytes_lead_to_an_error_of_ours(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.getbasetemp() / "hostile.mjl"
    log.write_bytes(content)
    with pytest.raises(DatasetError):
        read_log(log)


def write_arrays(folder: Path, lengths: list[int], *, time_first: bool, **changes: Any) -> dict[str, np.ndarray]:
    """The published form of episodes of noise; returns what was written, episodes first."""
    rng, longest = np.random.default_rng(0), max(lengths) + 2
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(changes.pop("dtype", np.float64))
    made = {
        "observations_seq": rng.normal(size=(*mask.shape, 60)),
        "actions_seq": rng.normal(size=(*mask.shape, 9)),
        "existence_mask": mask,
    }
    for name, values in (made | changes).items():
        np.save(folder / f"{name}.npy", values.swapaxes(0, 1) if time_first and values.ndim > 1 else values)
    return made


@pytest.mark.parametrize("time_first", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, bool])
@pytest.mark.parametrize("lengths", [[3, 5, 4], [2, 9], [4, 1, 3, 2, 6, 5]])
def test_arrays_lose_their_padding(tmp_path: Path, lengths: list[int], dtype: type, time_first: bool) -> None:
    made = write_arrays(tmp_path, lengths, time_first=time_first, dtype=dtype)
    buffer = open_kitchen(tmp_path)
    assert buffer.lengths.tolist() == lengths
    for number, length in enumerate(lengths):
        episode = buffer.episode(number)
        observed = made["observations_seq"][number, :length].astype(np.float32)
        np.testing.assert_array_equal(np.concatenate([episode["qpos"], episode["goal"]], axis=1), observed)
        np.testing.assert_array_equal(episode["action"], made["actions_seq"][number, :length].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions_seq": np.zeros((2, 6, 8))}, r"must have shapes"),
        ({"existence_mask": np.ones((2, 5))}, r"must have shapes"),
        ({"existence_mask": np.full((2, 6), 0.5)}, "must hold 0 and 1 only"),
        ({"existence_mask": np.ones((2, 6))}, "either axis could be"),
        ({"existence_mask": np.array([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]])}, "along neither axis"),
        ({"observations_seq": np.array(["a", "b"])}, "must hold one array of numbers"),
    ],
)
def test_arrays_that_do_not_add_up_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    write_arrays(tmp_path, [3, 4], time_first=False, **changes)
    with pytest.raises(DatasetError, match=words):
        open_kitchen(tmp_path)


@pytest.mark.parametrize("name", ["actions_seq", "existence_mask"])
def test_missing_and_damaged_arrays_are_named(tmp_path: Path, name: str) -> None:
    write_arrays(tmp_path, [3, 4], time_first=True)
    file = tmp_path / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DatasetError, match=name):
        open_kitchen(tmp_path)
    file.unlink()
    with pytest.raises(DatasetError, match=name):
        open_kitchen(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path, [3, 4], time_first=True)
    np.save(tmp_path / "actions_seq.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="actions_seq"):
        open_kitchen(tmp_path)


def test_a_folder_with_both_is_read_from_its_logs(tmp_path: Path) -> None:
    write_arrays(tmp_path, [3, 4], time_first=True)
    assert is_kitchen(tmp_path)
    with pytest.raises(DatasetError, match="has no 'state'; it has"):
        open_kitchen(tmp_path, ["state"])
    write_log(tmp_path / "monday" / "a.mjl", rows_of(1))
    assert open_kitchen(tmp_path, ["state"]).num_steps == 1


def test_other_places_are_no_kitchen(tmp_path: Path) -> None:
    assert not is_kitchen(tmp_path)
    assert not is_kitchen(tmp_path / "absent.mjl")
    with pytest.raises(DatasetError, match="holds neither"):
        open_kitchen(tmp_path)
    with pytest.raises(DatasetError, match="There is no data set"):
        open_kitchen(tmp_path / "absent")
    write_log(tmp_path / "a.mjl", rows_of(1))
    assert is_kitchen(tmp_path)
    with pytest.raises(DatasetError, match="Did you mean 'action'"):
        open_kitchen(tmp_path, ["actions"])
