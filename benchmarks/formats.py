"""`python benchmarks/formats.py`: do our readers read what LeRobot and Minari write, as they read it themselves?

Both libraries write data sets of some hundred steps into a temporary folder, in every storage that they have: films in AV1 and
H.264, pictures, two cameras, several files of each kind; HDF5, Arrow and Parquet with nested observations, images and infos.
Every value that the library gives back is compared with ours. The seconds are those of one pass over the data: by the library's
own access, by our first opening (which decodes images into the cache), and by our second one.

LeRobot and Minari need an environment of their own, with the package beside them:

    pip install lerobot==0.4.4 'minari[hdf5,arrow,create]==0.5.4' -e '.[formats]'
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from timing import RESULTS, record

from drifting_policy.data.replay_buffer import ReplayBuffer
from drifting_policy.data.sources import find_source, open_source

FPS, SIZE = 20, (96, 128)
EPISODES, SHORTEST, LONGEST = 12, 20, 50
CAMERAS = ("observation.images.front", "observation.images.wrist")
LEROBOT = {"film av1": "libsvtav1", "film h264": "h264", "pictures": None}
MINARI = {"hdf5": ("hdf5", True), "hdf5 raw": ("hdf5", False), "arrow": ("arrow", True), "parquet": ("parquet", True)}
Rows = Mapping[str, np.ndarray]


def image(rng: np.random.Generator, step: int) -> np.ndarray:
    """A bright disc before a slope of grey, somewhere else at every step, and a little noise."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    grey = 40 + 80 * x / width + rng.normal(0, 2, SIZE)
    disc = (y - (7 * step) % height) ** 2 + (x - (5 * step) % width) ** 2 < 150
    return np.clip(np.stack([np.where(disc, 230, grey), grey, np.where(disc, 60, 255 - grey)], -1), 0, 255).astype(np.uint8)


def lengths() -> list[int]:
    """Steps of each episode."""
    return [int(n) for n in np.random.default_rng(1).integers(SHORTEST, LONGEST, EPISODES)]


def write_lerobot(root: Path, codec: str | None) -> None:
    """A data set of LeRobot with two cameras, in several files of each kind."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind, names = ("image" if codec is None else "video"), ["height", "width", "channels"]
    numbers = {key: {"dtype": "float32", "shape": (7,), "names": None} for key in ("observation.state", "action")}
    cameras = {key: {"dtype": kind, "shape": (*SIZE, 3), "names": names} for key in CAMERAS}
    written = LeRobotDataset.create(
        "drifting/benchmark", FPS, {**numbers, **cameras}, root=root, use_videos=codec is not None, vcodec=codec or "h264"
    )
    written.meta.update_chunk_settings(chunks_size=2, data_files_size_in_mb=1, video_files_size_in_mb=0.05)
    rng = np.random.default_rng(0)
    for length in lengths():
        for step in range(length):
            frame = {key: rng.normal(size=7).astype(np.float32) for key in numbers} | {key: image(rng, step) for key in cameras}
            written.add_frame({**frame, "task": "reach"})
        written.save_episode()
    written.finalize()


def read_lerobot(root: Path) -> Iterator[Rows]:
    """Every step as LeRobot gives it, images as uint8 "h w c"."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    known = LeRobotDataset("drifting/benchmark", root=root, video_backend="pyav")
    for index in range(len(known)):
        row = {key: np.asarray(value) for key, value in known[index].items() if not isinstance(value, str)}
        yield {
            key: (255 * value).round().astype(np.uint8).transpose(1, 2, 0) if key in CAMERAS else value
            for key, value in row.items()
        }


class Arm(gymnasium.Env[Any, np.ndarray]):
    """Random numbers and images in the shape of an arm's observations."""

    def __init__(self) -> None:
        box = gymnasium.spaces.Box
        camera = box(0, 255, (*SIZE, 3), np.uint8)
        joints = gymnasium.spaces.Tuple((box(-9, 9, (7,), np.float32), box(-9, 9, (2, 3), np.float64)))
        self.observation_space = gymnasium.spaces.Dict(
            {"camera": camera, "joints": joints, "mode": gymnasium.spaces.Discrete(5)}
        )
        self.action_space = box(-1, 1, (7,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observation."""
        super().reset(seed=seed)
        self._step = 0
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next observation; the reward is the sum of the action."""
        self._step += 1
        seen, info = self._observe()
        return seen, float(action.sum()), False, False, info

    def _observe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        rng = self.np_random
        joints = (rng.normal(size=7).clip(-9, 9).astype(np.float32), rng.normal(size=(2, 3)).clip(-9, 9))
        seen = {"camera": image(rng, self._step), "joints": joints, "mode": np.int64(rng.integers(5))}
        return seen, {"force": rng.normal(size=3), "hit": bool(rng.integers(2))}


def write_minari(root: Path, storage: str, *, jpeg: bool) -> None:
    """A data set of Minari with nested observations, images and infos."""
    import minari

    os.environ["MINARI_DATASETS_PATH"] = str(root.parent)
    env = minari.DataCollector(Arm(), record_infos=True, data_format=storage, jpeg_encoding=jpeg)
    rng = np.random.default_rng(0)
    for episode, length in enumerate(lengths()):
        env.reset(seed=episode)
        for _ in range(length):
            env.step(rng.uniform(-1, 1, 7).astype(np.float32))
    env.create_dataset(root.name, algorithm_name="random", author="drifting_policy", description="A benchmark.")
    env.close()


def read_minari(root: Path) -> Iterator[Rows]:
    """Every episode as Minari gives it, without what was seen after the last action."""
    import minari

    os.environ["MINARI_DATASETS_PATH"] = str(root.parent)
    for episode in minari.load_dataset(root.name).iterate_episodes():
        steps = len(episode.rewards)
        values = {key: getattr(episode, key) for key in ("actions", "rewards", "terminations", "truncations")}
        seen = episode.observations
        values |= {"observations/camera": seen["camera"], "observations/mode": seen["mode"]}
        values |= {f"observations/joints/{place}": part for place, part in enumerate(seen["joints"])}
        values |= {f"infos/{key}": part for key, part in episode.infos.items()}
        yield {key: np.asarray(value)[:steps] for key, value in values.items()}


def compare(root: Path, read: Callable[[Path], Iterator[Rows]]) -> dict[str, Any]:
    """Our reading of `root` held against the library's, value by value."""
    begun = time.perf_counter()
    ours = open_source(root)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    open_source(root)
    second = time.perf_counter() - begun
    begun, place, different, keys = time.perf_counter(), 0, dict.fromkeys(ours.arrays, 0), set[str]()
    library = 0.0
    for rows in read(root):
        library += time.perf_counter() - begun
        count = 1 if "frame_index" in rows else len(rows["rewards"])
        for key, values in rows.items():
            keys.add(key)
            mine = ours.arrays[key][place : place + count] if key in ours.arrays else np.empty(0)
            different[key] = different.get(key, 0) + int(not _equal(mine, values))
        place += count
        begun = time.perf_counter()
    return {
        "format": find_source(root)[0],
        "episodes": ours.num_episodes,
        "steps": ours.num_steps,
        "files": sum(path.is_file() for path in root.rglob("*")),
        "arrays": sorted(ours.arrays),
        "different": {key: count for key, count in different.items() if count},
        "only_ours": sorted(set(ours.arrays) - keys),
        "lengths_equal": _lengths_equal(ours) and place == ours.num_steps,
        "seconds": {"library": round(library, 2), "first": round(first, 2), "second": round(second, 2)},
    }


def _equal(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Bit for bit, after doubles were made float32."""
    return mine.size == theirs.size and np.array_equal(mine.ravel(), theirs.astype(mine.dtype).ravel())


def _lengths_equal(ours: ReplayBuffer) -> bool:
    return ours.lengths.tolist() == lengths()


def main() -> int:
    """Write, read and compare everything; 1 where a value differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=RESULTS / "formats.json")
    out = parser.parse_args().out
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DRIFTING_POLICY_CACHE"] = str(Path(folder) / "cache")
        for name, codec in LEROBOT.items():
            write_lerobot(root := Path(folder) / name.replace(" ", "_"), codec)
            rows.append({"name": f"LeRobot v3.0, {name}", **compare(root, read_lerobot)})
        for name, (storage, jpeg) in MINARI.items():
            root = Path(folder) / f"{name.replace(' ', '-')}-v0"
            write_minari(root, storage, jpeg=jpeg)
            rows.append({"name": f"Minari, {name}", **compare(root, read_minari)})
    missed = [
        f"{row['name']} differs in {row['different']}, {row['only_ours']}."
        for row in rows
        if row["different"] or row["only_ours"] or not row["lengths_equal"]
    ]
    packages = {name: version(name) for name in ("lerobot", "minari", "pyarrow", "av", "h5py", "pillow")}
    return record(out, rows=rows, missed=missed, what="equal values, and seconds of one pass", packages=packages)


if __name__ == "__main__":
    sys.exit(main())
