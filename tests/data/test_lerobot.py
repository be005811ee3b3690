"""What LeRobot wrote reads back as LeRobot reads it; whatever is wrong in a folder is named, and nothing outside it is read."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from drifting_policy.data.lerobot import open_lerobot
from drifting_policy.data.pictures import frames_at
from drifting_policy.types import DatasetError

pa = pytest.importorskip("pyarrow", exc_type=ImportError)  # newer releases refuse NumPy 1
av = pytest.importorskip("av")
pq = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)

LENGTHS = (4, 6, 3)
FPS = 10
SIZES = {"observation.images.top": (32, 48), "observation.images.wrist": (16, 16)}
CODECS = ("libx264", "libsvtav1")


def level(step: int, camera: int) -> int:
    """The grey level of a step as a camera films it; no two steps near each other look alike."""
    return (37 * step + 90 * camera) % 200 + 20


def film(file: Path, levels: list[int], size: tuple[int, int], *, codec: str, fps: int = FPS, container: str = "mp4") -> None:
    """A film whose frames are plain grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", format=container) as written:
        stream = written.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        for grey in levels:
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey, np.uint8), format="rgb24")
            written.mux(stream.encode(frame))
        written.mux(stream.encode())


def picture(step: int) -> np.ndarray:
    """A small picture of noise that belongs to a step."""
    return np.random.default_rng(step).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(first: int, episode: int, length: int) -> dict[str, Any]:
    """The columns of one episode, as LeRobot names them."""
    steps = np.arange(first, first + length)
    state = np.stack([steps, steps**2], -1).astype(np.float32)
    return {
        "observation.state": pa.array(state.tolist(), pa.list_(pa.float32())),
        "action": pa.FixedSizeListArray.from_arrays(pa.array((state + 0.5).ravel()), 2),
        "observation.pose": pa.array([[[step, 1.0], [2.0, step]] for step in steps.tolist()], pa.list_(pa.list_(pa.float64()))),
        "observation.picture": pa.array([{"bytes": png(picture(step)), "path": "x.png"} for step in steps.tolist()]),
        "next.done": pa.array([False] * (length - 1) + [True]),
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(steps),
        "task_index": pa.array(np.full(length, episode % 2)),
        "language_instruction": pa.array(["push"] * length),
    }


def features() -> dict[str, Any]:
    films = {
        key: {"dtype": "video", "shape": [3, *size], "names": ["channels", "height", "width"]} for key, size in SIZES.items()
    }
    numbers = {
        "timestamp": "float32",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }
    return {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "action": {"dtype": "float32", "shape": [2]},
        "observation.pose": {"dtype": "float64", "shape": [2, 2]},
        "observation.picture": {"dtype": "image", "shape": [8, 12, 3]},
        "next.done": {"dtype": "bool", "shape": [1]},
        "language_instruction": {"dtype": "string", "shape": [1]},
        "observation.depth": {"dtype": "video", "shape": [8, 8, 1], "info": {"video.is_depth_map": True}},
        **films,
        **{key: {"dtype": dtype, "shape": [1]} for key, dtype in numbers.items()},
    }


def write_info(place: Path, **values: Any) -> None:
    (place / "meta").mkdir(parents=True, exist_ok=True)
    known = {"fps": FPS, "total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "features": features()}
    (place / "meta" / "info.json").write_text(json.dumps({**known, "chunks_size": 2, **values}))


def write_v2(place: Path, *, codec: str = "libx264", version: str = "v2.1") -> Path:
    """A data set of LeRobot 2.1: two episodes to a chunk."""
    names = "episode_{episode_index:06d}"
    paths = {
        "data_path": f"data/chunk-{{episode_chunk:03d}}/{names}.parquet",
        "video_path": f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/{names}.mp4",
    }
    write_info(place, codebase_version=version, **paths)
    lines, first = [], 0
    for episode, length in enumerate(LENGTHS):
        file = place / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows(first, episode, length)), file)
        for camera, (key, size) in enumerate(SIZES.items()):
            levels = [level(step, camera) for step in range(first, first + length)]
            film(place / f"videos/chunk-{episode // 2:03d}/{key}/episode_{episode:06d}.mp4", levels, size, codec=codec)
        lines.append(json.dumps({"episode_index": episode, "tasks": ["push"], "length": length}))
        first += length
    (place / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return place


def write_v3(place: Path, *, codec: str = "libx264", episodes: Mapping[str, Any] | None = None) -> Path:
    """A data set of LeRobot 3.0: episodes 0 and 1 in one file and one film, episode 2 in the next ones."""
    names = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    paths = {"data_path": f"data/{names}.parquet", "video_path": f"videos/{{video_key}}/{names}.mp4"}
    write_info(place, codebase_version="v3.0", **paths)
    starts = np.cumsum((0, *LENGTHS))[:-1].tolist()
    tables = [pa.table(rows(first, episode, LENGTHS[episode])) for episode, first in enumerate(starts)]
    (place / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables[:2]), place / "data/chunk-000/file-000.parquet")
    pq.write_table(tables[2], place / "data/chunk-000/file-001.parquet")
    table: dict[str, Any] = {
        "episode_index": [0, 1, 2],
        "length": list(LENGTHS),
        "dataset_from_index": starts,
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
    }
    for camera, (key, size) in enumerate(SIZES.items()):
        for number, (first, last) in enumerate([(0, sum(LENGTHS[:2])), (sum(LENGTHS[:2]), sum(LENGTHS))]):
            levels = [level(step, camera) for step in range(first, last)]
            film(place / f"videos/{key}/chunk-000/file-{number:03d}.mp4", levels, size, codec=codec)
        table |= {f"videos/{key}/chunk_index": [0, 0, 0], f"videos/{key}/file_index": [0, 0, 1]}
        table |= {f"videos/{key}/from_timestamp": [0.0, LENGTHS[0] / FPS, 0.0]}
    (place / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table({**table, **(episodes or {})}), place / "meta/episodes/chunk-000/file-000.parquet")
    return place


@pytest.mark.parametrize("kind", ["state", "image", "video"])
def test_files_of_lerobot_itself_read_as_it_reads_them(kind: str, shared: Path) -> None:
    folder = shared / "data" / "formats"
    expected = np.load(folder / f"expected_lerobot_v3_{kind}.npz")
    buffer = open_lerobot(folder / f"lerobot_v3_{kind}")
    assert buffer.lengths.tolist() == [7, 6, 7]
    images = {"image": "image", "video": "image_pyav"}
    numbers = ["observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index"]
    assert buffer.arrays.keys() == {*numbers, *(["observation.image"] if kind in images else [])}
    for key, values in buffer.arrays.items():
        wanted = expected[key if key in numbers else images[kind]]
        assert values.dtype == wanted.dtype
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_every_step_has_its_own_frames(write: Callable[..., Path], codec: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec}")
    buffer = open_lerobot(write(tmp_path / "set", codec=codec))
    steps = np.arange(sum(LENGTHS))
    assert buffer.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(buffer.arrays["observation.state"], np.stack([steps, steps**2], -1))
    np.testing.assert_array_equal(buffer.arrays["action"], buffer.arrays["observation.state"] + 0.5)
    assert buffer.arrays["observation.pose"].shape == (13, 2, 2)
    np.testing.assert_array_equal(buffer.arrays["observation.pose"][:, 1, 1], steps)
    np.testing.assert_array_equal(buffer.arrays["observation.picture"], [picture(step) for step in steps.tolist()])
    assert buffer.arrays["next.done"].sum() == 3
    assert buffer.arrays["task_index"].tolist() == [0] * 4 + [1] * 6 + [0] * 3
    assert not {"language_instruction", "observation.depth"} & buffer.arrays.keys()
    for camera, (key, size) in enumerate(SIZES.items()):
        frames = buffer.arrays[key]
        assert (frames.shape, frames.dtype) == ((13, *size, 3), np.uint8)
        wanted = np.array([level(step, camera) for step in steps.tolist()])
        assert np.abs(frames.mean((1, 2, 3)) - wanted).max() < 6  # of lossy coding; the levels of neighbours differ by 37


def test_films_of_another_rate_are_matched_by_time(tmp_path: Path) -> None:
    film(tmp_path / "fast.mp4", list(range(20, 140, 2)), (16, 16), codec="libx264", fps=30)
    seen = [frame.mean() for frame in frames_at(tmp_path / "fast.mp4", [0.0, 0.1, 0.2, 1.0], tolerance=0.01)]
    np.testing.assert_allclose(seen, [20, 26, 32, 80], atol=3)
    with pytest.raises(DatasetError, match=r"has no frame at 5.0000 s; the nearest lies at 1.9667 s"):
        list(frames_at(tmp_path / "fast.mp4", [5.0], tolerance=0.01))


def test_a_playlist_is_no_film(tmp_path: Path) -> None:
    film(tmp_path / "other.ts", [100] * 5, (16, 16), codec="libx264", container="mpegts")
    (tmp_path / "film.mp4").write_text("ffconcat version 1.0\nfile other.ts\n")
    with av.open(str(tmp_path / "film.mp4")) as opened:  # it would be played
        assert len(list(opened.decode(video=0))) == 5
    with pytest.raises(DatasetError, match=r"film.mp4 is no readable film"):
        list(frames_at(tmp_path / "film.mp4", [0.0], tolerance=1.0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole data set of each layout."""
    folder = tmp_path_factory.mktemp("whole")
    return {"v2": write_v2(folder / "v2"), "v3": write_v3(folder / "v3")}


def copied(place: Path, target: Path) -> Path:
    return Path(shutil.copytree(place, target, dirs_exist_ok=True))


def test_keys_that_are_not_there_are_named(whole: dict[str, Path]) -> None:
    for place in whole.values():
        assert open_lerobot(place, ["action"]).arrays.keys() == {"action"}
        with pytest.raises(
            DatasetError, match=r"has no array observation.stat; it has \['action', .*Did you mean 'observation.s"
        ):
            open_lerobot(place, ["observation.stat"])


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("v3", {"codebase_version": "v4.0"}, "of version 'v4.0'; v2.0, v2.1 and v3.0 can be read"),
        ("v2", {"codebase_version": None}, "of version None"),
        ("v2", {"fps": 0}, "fps in meta/info.json must be a positive number"),
        ("v3", {"fps": "ten"}, "fps in meta/info.json must be a positive number"),
        ("v2", {"total_frames": 12}, "says 12 steps, and there are 13"),
        ("v3", {"total_frames": 10**15}, "says 1000000000000000 steps, and there are 13"),
        ("v3", {"total_frames": True}, "total_frames must be a whole number"),
        ("v2", {"total_episodes": 4}, "says 4 episodes, and there are 3"),
        ("v3", {"total_episodes": 10**12}, "says 1000000000000 episodes, and there are 3"),
        ("v2", {"chunks_size": 0}, "chunks_size must be a whole number of at least 1"),
        ("v2", {"features": ["action"]}, "describes no features"),
        ("v2", {"data_path": "../../x"}, "names a file outside its own folder"),
        ("v3", {"data_path": "/etc/passwd"}, "names a file outside its own folder"),
        ("v3", {"video_path": "videos/../../{video_key}.mp4"}, "names a file outside its own folder"),
        ("v3", {"data_path": "data/{chunk_index.__class__}"}, "is missing"),
        ("v3", {"data_path": "data/{chunk_index:0999999999d}"}, "is missing"),
        ("v3", {"data_path": "data/{secret}"}, "holds the unknown field {secret}"),
        ("v2", {"features": {"gone": {"dtype": "float32", "shape": [1]}}}, "must have one column gone; it has 0"),
        ("v2", {"features": {"action": {"dtype": "float32", "shape": [3]}}}, r"action must have shape \(3,\) per step"),
        ("v2", {"features": {"action": {"dtype": "float32", "shape": ["x"]}}}, r"action must have shape"),
        (
            "v2",
            {"features": {"language_instruction": {"dtype": "float32", "shape": [1]}}},
            "must hold numbers; it holds string",
        ),
        ("v3", {"features": {"observation.picture": {"dtype": "image", "shape": [9, 9, 3]}}}, "must be pictures of"),
        ("v3", {"features": {"action": {"dtype": "image", "shape": [8, 12, 3]}}}, "must be the bytes of a picture"),
        ("v3", {"fps": 13}, "has no frame at"),
    ],
)
def test_wrong_descriptions_are_refused(
    layout: str, changes: dict[str, Any], words: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    place = copied(whole[layout], tmp_path / "set")
    file = place / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DatasetError, match=words) as caught:
        open_lerobot(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ({"length": [4, 7, 2]}, "dataset_from_index of episode 2 must be 11; it is 10"),
        ({"length": [4, 0, 9]}, "episode 1 is empty"),
        ({"episode_index": [0, 1, 3]}, "episode_index of episode 2 must be 2; it is 3"),
        ({"data/file_index": [0, 1, 1]}, None),
        ({"data/file_index": [1, 1, 0]}, "episode_index of row 0 must be 0; it is 2"),
        ({"data/file_index": [0, 0, 7]}, "file-007.parquet is missing"),
        ({"videos/observation.images.top/from_timestamp": [0.4, 0.0, 0.0]}, "must follow each other"),
        ({"videos/observation.images.top/from_timestamp": [0.0, 60.0, 0.0]}, "has no frame at 60.0000 s"),
        ({"videos/observation.images.top/from_timestamp": [0.0, float("nan"), 0.0]}, "must follow each other"),
    ],
)
def test_episodes_that_contradict_the_files_are_refused(episodes: dict[str, Any], words: str | None, tmp_path: Path) -> None:
    place = write_v3(tmp_path / "set", episodes=episodes)
    if words is None:  # the files are still read in order
        assert open_lerobot(place, ["action"]).num_steps == 13
        return
    with pytest.raises(DatasetError, match=words):
        open_lerobot(place)


def test_absurd_numbers_of_rows_are_not_read(tmp_path: Path, whole: dict[str, Path]) -> None:
    place = copied(whole["v3"], tmp_path / "set")
    file = place / "data/chunk-000/file-001.parquet"
    pq.write_table(pa.table({"episode_index": pa.array(np.zeros(3_000_000, np.int64))}), file)
    with pytest.raises(DatasetError, match="claims 3000000 rows, which cannot be in"):
        open_lerobot(place)


FILES = ("meta/info.json", "data/chunk-000/file-000.parquet", "videos/observation.images.wrist/chunk-000/file-000.mp4")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from((*FILES, "meta/episodes/chunk-000/file-000.parquet")),
    place=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
    tear=st.booleans(),
)
def test_damaged_files_lead_to_one_sentence(
    name: str, place: float, change: int, tear: bool, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(whole["v3"], tmp_path / "set")
    content = bytearray((folder / name).read_bytes())
    at = int(place * len(content))
    content[at] ^= change
    (folder / name).write_bytes(content[:at] if tear else content)
    try:
        buffer = open_lerobot(folder, ["action", "observation.images.wrist"])
    except DatasetError as error:
        buffer, message = None, str(error)
    if buffer is None:
        assert "\n" not in message
    else:
        assert buffer.num_steps == 13
        assert not (tear and name.endswith(("json", "parquet")))
