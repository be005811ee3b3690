"""The cache: as the images are, wherever its writing stopped and went on, and never opened when it is not what was written."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drifting_policy import cli
from drifting_policy.imagenet import images as image_sets
from drifting_policy.imagenet.cache import run
from drifting_policy.imagenet.chunked import ChunkedArray
from drifting_policy.imagenet.config import CacheConfig, register
from drifting_policy.imagenet.images import open_images
from drifting_policy.imagenet.manifest import read_manifest
from drifting_policy.types import DatasetError

Program = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("imagenet.cache", "size=6", "chunk=8")
KILLED = """
import os, signal, sys
from drifting_policy.imagenet import cache, chunked
replace = chunked.Path.replace
def until(self, target):
    if str(target).endswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
chunked.Path.replace = until
cache.run(cache.CacheConfig(src=sys.argv[2], dst=sys.argv[3], size=6, chunk=8))
"""


@pytest.fixture(scope="module", autouse=True)
def schemas() -> None:
    register()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of three classes; one image is black, as an empty chunk would be, and two are broken."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("tree")
    for (split, count), group in itertools.product({"train": 11, "test": 3}.items(), ("cat", "ant", "bee")):
        (root / split / group).mkdir(parents=True)
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(file, "PNG")
            (root / split / group / f"{i:02d}.png").write_bytes(file.getvalue())
    Image.new("RGB", (7, 9)).save(root / "train/ant/00.png")
    for name in ("train/ant/03.png", "train/cat/10.png"):
        (root / name).write_bytes((root / name).read_bytes()[:50])
    return root


@pytest.fixture(scope="module")
def cache(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the tree, written without interruption."""
    return build(tree, tmp_path_factory.mktemp("cache") / "whole")


def build(source: Path, place: Path, **changes: Any) -> Path:
    assert run(CacheConfig(**{"src": str(source), "dst": str(place), "size": 6, "chunk": 8} | changes)) == 0
    return place


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_cache_holds_what_the_images_are(
    tree: Path, cache: Path, split: str, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_images(tree, split=split, size=6)
    if not in_memory:
        monkeypatch.setattr(image_sets, "IN_MEMORY", 0)
    found = open_images(cache, split=split, verify=True)
    assert isinstance(found.images, np.ndarray if in_memory else ChunkedArray)
    assert (found.class_names, found.skipped) == (expected.class_names, expected.skipped)
    assert len(found.skipped) == (2 if split == "train" else 0)
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.images[:], expected.images[:])
    rows, flip = np.random.default_rng(1).integers(0, len(found), 20), torch.arange(20) % 3 == 0
    for ours, theirs in zip(found.batch(rows, flip=flip), expected.batch(rows, flip=flip), strict=True):
        assert torch.equal(ours, theirs)


def test_a_cache_is_a_store_that_zarr_reads(cache: Path) -> None:
    root, found = zarr.open_group(cache, mode="r"), open_images(cache)
    assert sorted(name for name, _ in root.groups()) == ["test", "train"]
    assert np.array_equal(root["train/pixels"][:], found.images[:])
    assert np.array_equal(root["train/labels"][:], found.labels)
    names = json.loads((cache / "train/names.json").read_text())
    assert names[:4] == [f"train/ant/{i:02d}.png" for i in (0, 1, 2, 4)]
    assert len(names) == len(found)


def test_the_program_tells_what_it_made_and_leaves_a_complete_cache_alone(
    tree: Path, cache: Path, tmp_path: Path, program: Program
) -> None:
    place = tmp_path / "made"
    for _ in range(2):
        done = program(*COMMAND, f"src={tree}", f"dst={place}")
        assert done.code == 0
        assert "made/train: 31 images, pixels (6, 6, 3), uint8, complete" in done.out
    assert content(place) == content(cache)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (
        "made/test: 9 images, pixels (6, 6, 3), uint8, every checksum is right"
        in program("imagenet.cache", f"dst={place}", "verify=true").out
    )


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "Say where the cache is: dst="),
        ("dst=x", "Say what to cache: src="),
        ("dst=x verify=true", "There is no cache at x"),
        ("src=digits dst=x chunk=0", "chunk must be at least 1; got 0."),
        ("src=digits dst=x size=0", "size must be at least 1 pixel; got 0."),
        ("src=digits dst=x dtype=int8", "dtype must be one of"),
        ("src=digits dst=x sise=8", "Did you mean 'size'?"),
        ("src=TREE dst=x", "Say how large the images are to be, in pixels: size=256."),
        ("src=digits dst=TREE", "exists and is no cache; choose another dst."),
        ("src=digits dst=.", ". exists and is no cache"),
        ("src=nowhere dst=x size=8", "There are no images at nowhere"),
        ("src=TREE dst=CACHE size=5 chunk=8", "built with other settings or other images: size 6 instead of 5, rows"),
        ("src=digits dst=CACHE size=6 chunk=8", "built with other settings or other images: source"),
    ],
)
def test_mistakes_are_one_sentence(
    typed: str, words: str, tree: Path, cache: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = content(cache)
    assert words in program("imagenet.cache", *typed.replace("TREE", str(tree)).replace("CACHE", str(cache)).split()).error
    assert not list(tmp_path.iterdir())
    assert content(cache) == before


def test_file_and_class_have_the_same_settings_and_defaults() -> None:
    written = yaml.safe_load((ROOT / "configs/imagenet/cache.yaml").read_text())
    assert cli.compose("imagenet.cache", []) == CacheConfig()
    assert {key: value for key, value in written.items() if key not in ("defaults", "hydra")} == vars(CacheConfig())


class Interrupter:
    """Interrupts the program at a certain one of the moments when a file takes its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.last, self.replace = 0, -1, Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, target: self.check(path, target))

    def check(self, path: Path, target: Path) -> Path:
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return self.replace(path, target)


def test_wherever_it_is_interrupted_the_cache_becomes_the_same(
    tree: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, interrupter = content(cache), Interrupter(monkeypatch)
    for last in itertools.count(1):
        place = tmp_path / str(last)
        interrupter.calls, interrupter.last = 0, last
        try:
            build(tree, place)
            break
        except KeyboardInterrupt:
            interrupter.last = -1
        assert not place.exists()
        with pytest.raises(DatasetError, match=r"not complete; what there is of it lies in .*partial. Run the command"):
            open_images(place)
        assert content(build(tree, place)) == expected
    assert last > 15
    assert content(place) == expected


def test_a_killed_program_loses_a_chunk_and_nothing_else(tree: Path, cache: Path, tmp_path: Path) -> None:
    place, partial = tmp_path / "killed", tmp_path / "killed.partial"
    arguments = (sys.executable, "-c", KILLED, "train/pixels/2.0.0.0", str(tree), str(place))
    done = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    lines = (partial / "train/progress.jsonl").read_text().splitlines()
    assert [json.loads(line)["next"] for line in lines] == [9, 17]
    assert json.loads(lines[0])["broken"].keys() == {"3"}
    assert not read_manifest(partial / "train").complete
    with pytest.raises(DatasetError, match=r"is not complete. Run the command"):
        open_images(partial)
    written = (partial / "train/pixels/0.0.0.0").stat().st_mtime_ns
    assert content(build(tree, place)) == content(cache)
    assert (place / "train/pixels/0.0.0.0").stat().st_mtime_ns == written


def interrupted(tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch, *, last: int) -> Path:
    """What lies there after an interruption."""
    with monkeypatch.context() as patch:
        Interrupter(patch).last = last
        with pytest.raises(KeyboardInterrupt):
            build(tree, place)
    return place.with_name(f"{place.name}.partial")


@pytest.mark.parametrize(
    "harm", ["torn line", "no line end", "foreign line", "line of another process", "damaged chunk", "lost chunk", "no log"]
)
def test_what_is_damaged_by_then_is_written_again(
    harm: str, tree: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(tree, tmp_path / "made", monkeypatch, last=5)
    log, chunk = partial / "train/progress.jsonl", partial / "train/pixels/1.0.0.0"
    text = log.read_text()
    assert text.count("\n") == 2
    texts = {"torn line": text[:-9], "no line end": text[:-1], "foreign line": text + '{"next": []}\n'}
    texts["line of another process"] = text + text.splitlines(keepends=True)[0]
    if harm == "no log":
        log.unlink()
    elif harm == "lost chunk":
        chunk.unlink()
    elif harm == "damaged chunk":
        chunk.write_bytes(bytes(len(chunk.read_bytes())))
    else:
        log.write_text(texts[harm])
    assert content(build(tree, tmp_path / "made")) == content(cache)


@pytest.mark.parametrize("changes", [{"size": 5}, {"chunk": 4}, {"src": "digits"}])
def test_what_was_begun_otherwise_is_not_continued(
    changes: dict[str, Any], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(tree, tmp_path / "made", monkeypatch, last=5)
    before = content(partial)
    with pytest.raises(DatasetError, match=r"was begun with other settings or other images: .* Give those again, remove"):
        build(tree, tmp_path / "made", **changes)
    assert content(partial) == before


def test_a_full_disk_is_a_sentence_and_costs_nothing(
    tree: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ChunkedArray, "write_chunk", full)
        with pytest.raises(DatasetError, match=r"No space left on device.* run the same command again"):
            build(tree, tmp_path / "made")
    assert content(build(tree, tmp_path / "made")) == content(cache)


@pytest.mark.parametrize("harm", ["changed", "cut off", "longer", "removed"])
def test_harm_to_any_file_is_found(harm: str, cache: Path, tmp_path: Path) -> None:
    names = [name for name in content(cache) if not name.endswith(".zgroup")]
    assert len(names) > 12
    for name in names:
        place = tmp_path / "harmed"
        shutil.copytree(cache, place)
        file, data = place / name, (place / name).read_bytes()
        if harm == "removed":
            file.unlink()
        else:
            changed = data[:20] + bytes([data[20] ^ 1]) + data[21:]
            file.write_bytes({"changed": changed, "cut off": data[:-2], "longer": data + b"x"}[harm])
        with pytest.raises(DatasetError, match=str(place)):
            open_images(place, split=name.split("/")[0], verify=True)
        if harm != "changed" and not name.endswith("names.json"):
            with pytest.raises(DatasetError, match=str(place)):
                open_images(place, split=name.split("/")[0])
        shutil.rmtree(place)


def test_a_cache_of_another_size_split_or_format_is_refused(cache: Path, tree: Path, tmp_path: Path) -> None:
    assert len(open_images(cache, size=6)) == 31
    with pytest.raises(DatasetError, match="was built with size=6; for size=8 build another one"):
        open_images(cache, size=8)
    with pytest.raises(DatasetError, match="holds pixels; expected are latents"):
        open_images(cache, vae="0" * 64)
    with pytest.raises(DatasetError, match="holds no latents; build a cache"):
        open_images(tree, size=6, vae="0" * 64)
    shutil.copytree(cache / "train", tmp_path / "half/train")
    with pytest.raises(DatasetError, match="has no images of the split 'test'"):
        open_images(tmp_path / "half", split="test")
    for text in ("[]", "null", "{}", '{"manifest_sha256": 1}', "[" * 100_000):
        (tmp_path / "half/train/manifest.json").write_text(text)
        with pytest.raises(DatasetError, match="no manifest that can be read"):
            open_images(tmp_path / "half")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 23), chunk=st.integers(1, 9))
def test_rows_on_the_disk_are_those_of_the_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, chunk: int
) -> None:
    values = np.arange(count * 6, dtype=np.float16).reshape(count, 2, 3)
    array = ChunkedArray(tmp_path_factory.mktemp("array"), shape=values.shape, dtype="float16", chunk=chunk)
    for index in range(len(array.chunk_files)):
        array.write_chunk(index, values[index * chunk : (index + 1) * chunk])
    bound = st.one_of(st.none(), st.integers(-count - 2, count + 2))
    rows = data.draw(
        st.one_of(
            st.lists(st.integers(0, count - 1), max_size=30).map(lambda drawn: np.array(drawn, np.int64)),
            st.tuples(bound, bound, st.sampled_from([None, 1, 2, -1, -3])).map(lambda drawn: slice(*drawn)),
            st.integers(0, count - 1),
        )
    )
    assert np.array_equal(array[rows], values[rows])
    assert array[rows].dtype == values.dtype
    for wrong in ([count], [-1], [[0]], [0.5], np.ones(count, bool)):
        with pytest.raises(IndexError):
            array[wrong]
