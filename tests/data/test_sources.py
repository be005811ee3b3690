"""The format of a path is found by its content; what is unknown or ambiguous leads to the list of what is understood."""

import importlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from drifting_policy.config import ArrayConfig, TaskConfig
from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.data.sources import SOURCES, find_source, open_source
from drifting_policy.demonstrations import load_demonstrations
from drifting_policy.types import DatasetError, MissingPackage

LENGTHS = (3, 5)
ENDS = np.cumsum(LENGTHS)
STATE = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
ACTION = STATE[:, :2] * 2


def write_zarr(path: Path) -> Path:
    return write_replay(path, {"state": STATE, "action": ACTION}, ENDS, attributes={"control_hz": 20})


def write_robomimic(path: Path, rate: object = 20) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": rate}})
        for number, (end, length) in enumerate(zip(ENDS, LENGTHS, strict=True)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"], demo["obs/state"] = ACTION[end - length : end], STATE[end - length : end]
    return path


def write_minari(path: Path) -> Path:
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for number, (end, length) in enumerate(zip(ENDS, LENGTHS, strict=True)):
            group = file.create_group(f"episode_{number}")
            group["observations"] = np.concatenate([STATE[end - length : end], np.zeros((1, 4), np.float32)])
            group["actions"], group["rewards"] = ACTION[end - length : end], np.zeros(length)
    return path


def write_lerobot(path: Path) -> Path:
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    pq = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    features = {"observation.state": {"dtype": "float32", "shape": [4]}, "action": {"dtype": "float32", "shape": [2]}}
    (path / "meta").mkdir(parents=True)
    (path / "data").mkdir()
    template = "data/{episode_index:02d}.parquet"
    info = {"codebase_version": "v2.1", "fps": 20, "features": features, "data_path": template, "chunks_size": 1000}
    info |= {"total_episodes": 2, "total_frames": 8}
    (path / "meta" / "info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": number, "length": length}) for number, length in enumerate(LENGTHS)]
    (path / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    for number, (end, length) in enumerate(zip(ENDS, LENGTHS, strict=True)):
        columns = {"observation.state": STATE[end - length : end].tolist(), "action": ACTION[end - length : end].tolist()}
        columns |= {"episode_index": [number] * length, "frame_index": list(range(length))}
        pq.write_table(pa.table(columns), path / f"data/{number:02d}.parquet")
    return path


# Names tell nothing on purpose.
FORMS: dict[str, tuple[str, Callable[[Path], Path], str, str, float | None]] = {
    "zarr folder": ("zarr", write_zarr, "state", "action", 20),
    "zarr zip": ("zarr", lambda path: write_zarr(path.with_suffix(".zip")).rename(path), "state", "action", 20),
    "robomimic": ("robomimic", write_robomimic, "state", "actions", 20),
    "minari folder": ("minari", write_minari, "observations", "actions", None),
    "minari file": (
        "minari",
        lambda path: (write_minari(path.with_suffix(".x")) / "data/main_data.hdf5").rename(path),
        "observations",
        "actions",
        None,
    ),
    "lerobot": ("lerobot", write_lerobot, "observation.state", "action", 20),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_found_and_trains(form: str, tmp_path: Path) -> None:
    name, write, state, action, rate = FORMS[form]
    path = write(tmp_path / "thing")
    found, source = find_source(path)
    assert (found, source.control_hz(path)) == (name, rate)
    assert [other for other in SOURCES if SOURCES[other].detect(path)] == [name]
    assert {state, action} <= open_source(path).arrays.keys()
    task = TaskConfig(
        name="own",
        observations={"tip": ArrayConfig([2], source=state, start=2)},
        action=ArrayConfig([2], source=action),
    )
    demonstrations = load_demonstrations(task, str(path))
    np.testing.assert_array_equal(demonstrations.observations["tip"], STATE[:, 2:])
    np.testing.assert_array_equal(demonstrations.action, ACTION)
    assert demonstrations.episode_ends.tolist() == ENDS.tolist()
    task.action.source = f"{action}x"
    with pytest.raises(DatasetError, match=rf"{action}x.*{action}.*Did you mean '{action}'\?"):
        load_demonstrations(task, str(path))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.write_text("actions, states"),
        lambda path: path.write_bytes(b""),
        lambda path: zipfile.ZipFile(path, "w").writestr("notes.txt", "none"),
        lambda path: np.savez(path.open("wb"), action=ACTION),
        lambda path: (path.mkdir(), write_zarr(path / "inner.zarr")),
        lambda path: (path.mkdir(), (path / "data").mkdir()),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_unknown_things_lead_to_the_list(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "thing")
    with pytest.raises(DatasetError, match="thing is no data set that is understood") as caught:
        open_source(tmp_path / "thing")
    assert all(f"{name}: " in str(caught.value) for name in SOURCES)
    assert "\n" not in str(caught.value)


def test_ambiguous_and_absent_things_are_told(tmp_path: Path) -> None:
    both = write_zarr(tmp_path / "both")
    shutil.copy(write_minari(tmp_path / "minari") / "data" / "main_data.hdf5", both / "main_data.hdf5")
    with pytest.raises(DatasetError, match=r"both could be zarr or minari; take away"):
        open_source(both)
    with pytest.raises(DatasetError, match=r"There is no data set at .*absent"):
        open_source(tmp_path / "absent")


@pytest.mark.parametrize("size", [9, 400, 1500])
@pytest.mark.parametrize("form", ["zarr zip", "robomimic", "minari file"])
def test_what_is_cut_off_still_has_a_format(form: str, size: int, tmp_path: Path) -> None:
    path = FORMS[form][1](tmp_path / "thing")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DatasetError, match="not a readable"):
        open_source(path)


@pytest.mark.parametrize("rate", ["fast", -1, None, True, [20]])
def test_an_odd_rate_is_no_rate(rate: object, tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "thing", rate)
    assert find_source(path)[1].control_hz(path) is None


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_robomimic(tmp_path / "thing")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackage, match=r"needs h5py: pip install 'drifting-policy\[formats\]'"):
        open_source(path)
    lerobot = write_lerobot(tmp_path / "set")
    original = importlib.import_module

    def lacking(name: str) -> object:
        if name.startswith("pyarrow"):
            raise ImportError("pyarrow requires NumPy 2.0 or newer")
        return original(name)

    monkeypatch.setattr(importlib, "import_module", lacking)
    with pytest.raises(MissingPackage, match=r"'drifting-policy\[formats\]' \(pyarrow requires NumPy 2.0 or newer\)"):
        open_source(lerobot)
