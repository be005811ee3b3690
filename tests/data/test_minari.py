"""What Minari wrote reads back as Minari reads it, from every storage; nothing outside the data set is read."""

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drifting_policy.data.minari import open_minari
from drifting_policy.types import DatasetError

LENGTHS = (3, 5)
IDS = ["pendulum/tiny-v0", "pusht/tiny-state-v0", "pusht/tiny-pixels-jpeg-v0", "pusht/tiny-pixels-raw-v0"]
BOX = {"type": "Box", "dtype": "float32"}
SPACE = {
    "type": "Dict",
    "subspaces": {
        "arm": {"type": "Tuple", "subspaces": [{**BOX, "shape": [2]}, {**BOX, "shape": [2, 3]}]},
        "camera": {"type": "Box", "dtype": "uint8", "shape": [32, 40, 3]},
        "count": {"type": "Discrete", "n": 9, "start": 0},
    },
}


def jpeg(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="JPEG")
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def episode(number: int) -> dict[str, Any]:
    """One episode as Minari collects it: one observation more than actions."""
    rng, steps = np.random.default_rng(number), LENGTHS[number]
    return {
        "observations": {
            "arm": (rng.normal(size=(steps + 1, 2)).astype("f4"), rng.normal(size=(steps + 1, 2, 3)).astype("f4")),
            "camera": rng.integers(0, 256, (steps + 1, 32, 40, 3), dtype=np.uint8),
            "count": np.arange(steps + 1),
        },
        "actions": rng.uniform(-1, 1, (steps, 2)).astype("f4"),
        "rewards": rng.normal(size=steps),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
        "infos": {"speed": rng.normal(size=steps + 1), "nested": {"hit": np.arange(steps + 1) % 2 == 0}},
    }


def expected() -> dict[str, np.ndarray]:
    """All episodes without their last observations, images as JPEG leaves them."""
    episodes = [episode(number) for number in range(len(LENGTHS))]

    def joined(get: Callable[[dict[str, Any]], Any]) -> np.ndarray:
        return np.concatenate([np.asarray(get(one))[: len(one["rewards"])] for one in episodes])

    return {
        "observations/arm/0": joined(lambda one: one["observations"]["arm"][0]),
        "observations/arm/1": joined(lambda one: one["observations"]["arm"][1]),
        "observations/camera": joined(lambda one: [decoded(jpeg(image)) for image in one["observations"]["camera"]]),
        "observations/count": joined(lambda one: one["observations"]["count"]),
        "infos/speed": joined(lambda one: one["infos"]["speed"]).astype("f4"),
        "infos/nested/hit": joined(lambda one: one["infos"]["nested"]["hit"]),
        "rewards": joined(lambda one: one["rewards"]).astype("f4"),
        **{key: joined(lambda one, key=key: one[key]) for key in ("actions", "terminations", "truncations")},  # type: ignore[misc]
    }


def write_metadata(folder: Path, storage: str, **changes: Any) -> None:
    values = {
        "total_episodes": len(LENGTHS),
        "total_steps": sum(LENGTHS),
        "data_format": storage,
        "jpeg_encoding": True,
        "observation_space": json.dumps(SPACE),
        "action_space": json.dumps({**BOX, "shape": [2]}),
    }
    (folder / "metadata.json").write_text(json.dumps({**values, **changes}))


def write_hdf5(place: Path) -> Path:
    """The layout of Minari's HDF5 storage."""
    folder = place / "data"
    folder.mkdir(parents=True)
    write_metadata(folder, "hdf5")
    with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
        for number in range(len(LENGTHS)):
            one, group = episode(number), file.create_group(f"episode_{number}")
            group.attrs["total_steps"] = LENGTHS[number]
            for key in ("actions", "rewards", "terminations", "truncations"):
                group.create_dataset(key, data=one[key], chunks=True)
            seen = group.create_group("observations")
            for element, values in enumerate(one["observations"]["arm"]):
                seen.create_dataset(f"arm/_index_{element}", data=values)
            seen.create_dataset("count", data=one["observations"]["count"])
            images = seen.create_dataset("camera", (LENGTHS[number] + 1,), h5py.vlen_dtype(np.uint8))
            for row, image in enumerate(one["observations"]["camera"]):
                images[row] = np.frombuffer(jpeg(image), np.uint8)
            group.create_dataset("infos/speed", data=one["infos"]["speed"])
            group.create_dataset("infos/nested/hit", data=one["infos"]["nested"]["hit"])
            group.create_dataset("infos/name", data=["x"] * (LENGTHS[number] + 1), dtype=h5py.string_dtype())
            group.create_dataset("infos/final", data=np.zeros(1))
    return place


def write_arrow(place: Path, storage: str = "arrow") -> Path:
    """The layout of Minari's Arrow and Parquet storage: everything is padded to the number of observations."""
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    dataset = pytest.importorskip("pyarrow.dataset", exc_type=ImportError)
    folder = place / "data"
    folder.mkdir(parents=True)
    write_metadata(folder, storage)

    def fixed(values: np.ndarray, pad: int = 0) -> Any:
        flat = np.pad(values.reshape(len(values), -1), ((0, pad), (0, 0)))
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])

    def struct(**parts: Any) -> Any:
        return pa.StructArray.from_arrays(list(parts.values()), names=list(parts))

    for number in range(len(LENGTHS)):
        one = episode(number)
        seen, infos = one["observations"], one["infos"]
        arm = struct(**{"0": fixed(seen["arm"][0]), "1": fixed(seen["arm"][1])})
        camera = pa.array([jpeg(image) for image in seen["camera"]], pa.binary())
        batch = {
            "episode_id": np.full(LENGTHS[number] + 1, number, np.int32),
            "observations": struct(arm=arm, camera=camera, count=pa.array(seen["count"])),
            "actions": fixed(one["actions"], pad=1),
            **{key: np.pad(one[key], (0, 1)) for key in ("rewards", "terminations", "truncations")},
            "infos": struct(
                speed=pa.array(infos["speed"]),
                nested=struct(hit=pa.array(infos["nested"]["hit"])),
                name=pa.array(["x"] * (LENGTHS[number] + 1)),
            ),
        }
        options = {"partitioning": ["episode_id"], "existing_data_behavior": "overwrite_or_ignore"}
        dataset.write_dataset(pa.RecordBatch.from_pydict(batch), folder, format=storage, **options)
        (folder / str(number) / "metadata.json").write_text(json.dumps({"id": number, "total_steps": LENGTHS[number]}))
    return place


WRITERS: dict[str, Callable[[Path], Path]] = {
    "hdf5": write_hdf5,
    "arrow": write_arrow,
    "parquet": lambda place: write_arrow(place, "parquet"),
}


@pytest.mark.parametrize("name", IDS)
def test_files_of_minari_itself_read_as_it_reads_them(name: str, shared: Path) -> None:
    folder = shared / "data" / "formats"
    known = np.load(folder / f"expected_minari_{name.replace('/', '_')}.npz")
    lengths = known["episode_lengths"].tolist()
    place = folder / "minari_datasets" / name
    buffer = open_minari(place)
    assert buffer.lengths.tolist() == lengths
    assert {f"0/{key}" for key in buffer.arrays} == {key for key in known if key.startswith("0/")}
    for key, values in buffer.arrays.items():
        wanted = np.concatenate([known[f"{number}/{key}"][:length] for number, length in enumerate(lengths)])
        np.testing.assert_array_equal(values, wanted.astype(values.dtype))
        assert values.dtype == (np.float32 if wanted.dtype.kind == "f" else wanted.dtype)
    for other in (place / "data", place / "data" / "main_data.hdf5"):
        assert open_minari(other).arrays.keys() == buffer.arrays.keys()


@pytest.mark.parametrize("storage", WRITERS)
def test_every_storage_reads_the_same(storage: str, tmp_path: Path) -> None:
    buffer = open_minari(WRITERS[storage](tmp_path / "set"))
    assert buffer.lengths.tolist() == list(LENGTHS)
    wanted = expected()
    assert buffer.arrays.keys() == wanted.keys()
    for key, values in wanted.items():
        assert buffer.arrays[key].dtype == values.dtype
        np.testing.assert_array_equal(buffer.arrays[key], values)
    with pytest.raises(DatasetError, match=r"has no array observations; it has .*Did you mean 'observations/"):
        open_minari(tmp_path / "set", ["observations"])


def test_jpeg_pictures_of_one_length_are_a_matrix_of_bytes(tmp_path: Path) -> None:
    place = write_hdf5(tmp_path / "set")
    with h5py.File(place / "data" / "main_data.hdf5", "a") as file:
        for number, steps in enumerate(LENGTHS):
            group = file[f"episode_{number}/observations"]
            del group["camera"]
            image = np.frombuffer(jpeg(np.full((32, 40, 3), 77, np.uint8)), np.uint8)
            group.create_dataset("camera", data=np.stack([image] * (steps + 1)), chunks=True)
    np.testing.assert_array_equal(open_minari(place).arrays["observations/camera"], np.full((8, 32, 40, 3), 77))


def edit(place: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(place / "data" / "main_data.hdf5", "a") as file:
        change(file)


def replace(file: h5py.File, name: str, **dataset: Any) -> None:
    del file[name]
    file.create_dataset(name, **dataset)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.__delitem__("episode_0"), "says 2 episodes, and there are 1|no group episode_0"),
        (lambda f: f.create_group("episode_x"), "and nothing else; there is 'episode_x'"),
        (lambda f: f.create_group("episode_2"), "episode_2 has no array rewards"),
        (lambda f: f.__delitem__("episode_1/rewards"), "episode_1 has no array rewards"),
        (lambda f: replace(f, "episode_1/actions", data=np.ones((4, 2))), "actions of episode 1 has 4 rows for 5 steps"),
        (lambda f: replace(f, "episode_1/actions", data=np.ones((5, 3))), r"actions of episode 1 has shape \(3,\) per step"),
        (lambda f: replace(f, "episode_0/actions", shape=(3, 10**9), chunks=(1, 1000), dtype="f4"), "incomplete"),
        (lambda f: replace(f, "episode_0/actions", data=np.full((3, 2), np.nan)), "holds NaN or infinity"),
        (lambda f: f["episode_0/observations/camera"].__setitem__(0, np.zeros(9, np.uint8)), "no readable PNG or JPEG"),
        (
            lambda f: f["episode_1/observations/camera"].__setitem__(
                2, np.frombuffer(jpeg(np.zeros((64, 64, 3), np.uint8)), np.uint8)
            ),
            "pictures of several shapes",
        ),
        (lambda f: f.__setitem__("episode_0/x", h5py.ExternalLink("/tmp/other.hdf5", "/x")), "is kept in another place"),
        (lambda f: f.__setitem__("episode_0/x", h5py.SoftLink("/episode_1")), "is kept in another place"),
        (lambda f: f.__setitem__("episode_0/x", f["episode_0"]), "is nested too deeply"),
    ],
)
def test_wrong_files_are_refused(change: Callable[[h5py.File], object], words: str, tmp_path: Path) -> None:
    place = write_hdf5(tmp_path / "set")
    edit(place, change)
    with pytest.raises(DatasetError, match=words) as caught:
        open_minari(place)
    assert "\n" not in str(caught.value)


def test_arrays_that_lie_in_other_files_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345678" * 3)
    place = write_hdf5(tmp_path / "set")
    edit(place, lambda f: replace(f, "episode_0/rewards", shape=(3,), dtype="f8", external=[(str(secret), 0, 24)]))
    with pytest.raises(DatasetError, match="keeps its values in another file"):
        open_minari(place)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: write_metadata(data, "arrow", total_episodes=3), "says 3 episodes, and there are 2"),
        (lambda data: write_metadata(data, "pickle"), "must name a data_format, one of hdf5, arrow, parquet"),
        (lambda data: write_metadata(data, "parquet"), r"holds no \*.parquet file"),
        (lambda data: (data / "metadata.json").write_text("{"), "not a readable Minari data set"),
        (lambda data: write_metadata(data, "arrow", action_space='{"type": "Box", "shape": [5]}'), r"must have shape \(5,\)"),
        (lambda data: write_metadata(data, "arrow", observation_space="[1"), "not a readable Minari data set"),
        (lambda data: (data / "1").rename(data / "7"), r"each of the folders 0, 1, ...; there are \[0, 7\]"),
        (lambda data: (data / "1/metadata.json").write_text('{"total_steps": 4}'), "says 4 steps of 5"),
        (lambda data: shutil.copy(data / "0/part-0.arrow", data / "1/part-0.arrow"), "says 5 steps of 3"),
        (lambda data: (data / "0/part-0.arrow").write_bytes(b"ARROW1"), "not a readable Minari data set"),
    ],
)
def test_wrong_folders_are_refused(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    place = write_arrow(tmp_path / "set")
    damage(place / "data")
    with pytest.raises(DatasetError, match=words) as caught:
        open_minari(place)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no Minari data set at"):
        open_minari(tmp_path)


@cache
def whole(storage: str) -> tuple[str, bytes]:
    """The name and the content of the file that is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        place = WRITERS[storage](Path(folder) / "set")
        file = next(file for file in sorted(place.rglob("*")) if file.suffix in (".hdf5", ".arrow", ".parquet"))
        return str(file.relative_to(place)), file.read_bytes()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    storage=st.sampled_from(list(WRITERS)),
    place=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
    tear=st.booleans(),
)
def test_damaged_files_lead_to_one_sentence(storage: str, place: float, change: int, tear: bool) -> None:
    name, data = whole(storage)
    content = bytearray(data)
    at = int(place * len(content))
    content[at] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = WRITERS[storage](Path(folder) / "set")
        (path / name).write_bytes(content[:at] if tear else content)
        try:
            buffer = open_minari(path)
        except DatasetError as error:
            buffer, message = None, str(error)
    if buffer is None:
        assert "\n" not in message
    else:
        assert not tear
        assert buffer.num_steps == sum(LENGTHS)
