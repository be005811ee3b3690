"""Images of a data set, decoded once: memory-mapped uint8 arrays that are whole or absent."""

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drifting_policy.types import DatasetError

LAYOUT = 1  # of the cached files; another one never reads as this
READ_BYTES = 1 << 22
STALE_SECONDS = 86400.0  # a draft that nothing was written to for so long was left by a process that died


def cached_images(
    *,
    source: Path,
    key: str,
    shape: tuple[int, int, int, int],
    blocks: Callable[[], Iterator[np.ndarray]],
    folder: Path | None = None,
) -> np.ndarray:
    """The images `key` of the data set `source` as a read-only memory map "n h w c", uint8.

    The file behind it is built at the first call, and again where the content of `source`, the key or the shape is another. It
    is written beside its place and renamed into it, so an interruption leaves none; of several processes that build at the same
    time the last one wins, with equal bytes.

    Args:
        source: file or folder that the images come from; its content is half of the name of the cached file.
        key: which of its images; the other half.
        shape: (n, h, w, c) of all images.
        blocks: begins anew to yield consecutive images as uint8 arrays "k h w c"; called when the file must be built.
        folder: where cached files lie; default: `cache_folder()`.

    Raises:
        DatasetError: there is no such source, the blocks are not what `shape` says, or the file cannot be written.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise DatasetError(f"{source}: images '{key}' must be 'n h w c' and no axis empty; their shape is {tuple(shape)}.")
    place = cache_folder() if folder is None else folder
    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
    name = _digest(LAYOUT, _content_of(source, place), key, list(shape))
    target = place / f"{re.sub(r'[^A-Za-z0-9_]+', '_', key)[:40]}-{name}.npy"
    found = _opened(target, shape)
    if found is not None:
        return found
    _build(target, shape, blocks, told=f"{source}: images '{key}'", label=key)
    built = _opened(target, shape)
    if built is None:
        raise DatasetError(f"The cached images {target} were removed or damaged as soon as they were written; try again.")
    return built


def cache_folder() -> Path:
    """Where cached images lie: DRIFTING_POLICY_CACHE, or drifting_policy/images in the user's cache (XDG_CACHE_HOME)."""
    if given := os.environ.get("DRIFTING_POLICY_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drifting_policy" / "images"


def _opened(target: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The memory map of a whole cached file; None where there is none, or what is there was cut off or overwritten."""
    try:
        images: np.ndarray = np.load(target, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous else None


def _build(
    target: Path, shape: tuple[int, int, int, int], blocks: Callable[[], Iterator[np.ndarray]], *, told: str, label: str
) -> None:
    """Write all blocks to a draft, which takes the place of `target` when it is whole.

    The draft is written rather than mapped: a full disk is then an error, and not the end of the process.
    """
    _remove_stale(target)
    draft = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}.draft")
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)  # type: ignore[no-untyped-call]
    images = 0
    try:
        with _writing(target):
            file = draft.open("wb", buffering=0)  # else closing it could fail once more
        with file, tqdm(total=shape[0], unit="image", desc=f"caching {label}") as bar:
            _write(file, header.getbuffer(), target)
            for block in blocks():
                _check(block, shape, first=images, told=told)
                _write(file, np.ascontiguousarray(block).data.cast("B"), target)
                images += len(block)
                bar.update(len(block))
            if images < shape[0]:
                raise DatasetError(f"{told} end after {images} of {shape[0]} images.")
            with _writing(target):
                os.fsync(file.fileno())
        with _writing(target):
            draft.replace(target)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _write(file: io.FileIO, data: memoryview, target: Path) -> None:
    with _writing(target):
        while len(data):
            data = data[file.write(data) :]


def _check(block: np.ndarray, shape: tuple[int, ...], *, first: int, told: str) -> None:
    if block.dtype != np.uint8:
        raise DatasetError(f"{told} must be uint8; the block that begins with image {first} is {block.dtype}.")
    if block.ndim != 4 or block.shape[1:] != shape[1:]:
        raise DatasetError(f"{told} must be {shape[1:]} each; the block that begins with image {first} is {block.shape}.")
    if first + len(block) > shape[0]:
        raise DatasetError(f"{told} should be {shape[0]} images; there are at least {first + len(block)}.")


def _content_of(source: Path, place: Path) -> str:
    """Hash of all bytes of a file, or of all files of a folder and their names.

    It is remembered in `place` under what the file system says of each file (path, size, time of change), for to read a large
    data set takes a while.
    """
    try:
        files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        facts = [(str(path.resolve()), (fact := path.stat()).st_size, fact.st_mtime_ns) for path in files]
        note = place / f"content-{_digest(str(source.resolve()), facts)}.txt"
        if note.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := note.read_text()):
            return known
        content = hashlib.sha256()
        for path in files:
            content.update(json.dumps(path.relative_to(source).as_posix() if source.is_dir() else "").encode())
            with path.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    except (OSError, ValueError) as error:
        raise DatasetError(f"The data set {source} cannot be read ({error}).") from error
    draft = note.with_name(f".{note.name}.{os.getpid()}.{time.monotonic_ns()}.draft")
    with _writing(place):
        draft.write_text(content.hexdigest())
        draft.replace(note)
    return content.hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _remove_stale(target: Path) -> None:
    """Remove what builders of the same file left that were killed; one that is at work has written to its draft lately."""
    for draft in target.parent.glob(f".{target.name}.*.draft"):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                draft.unlink()


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence that names `place`."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"The image cache {place} cannot be written ({error}); free some space, or set DRIFTING_POLICY_CACHE to a folder "
            "that has it."
        ) from error
