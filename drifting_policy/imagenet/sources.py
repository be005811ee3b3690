"""Where labelled images come from: folders of classes, zip files of them, CIFAR-10, scikit-learn's digits."""

import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import final

import numpy as np
from jaxtyping import Int64
from PIL import Image

from drifting_policy.imagenet.pixels import SUFFIXES, BrokenImage, center_crop, read_picture
from drifting_policy.types import DatasetError, MissingPackage

SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test"}
LAYOUT = "CLASS/FILE, or train/CLASS/FILE with test/CLASS/FILE or val/CLASS/FILE"
DEEPEST = 4  # folders and file in the longest path that is understood: any/train/CLASS/FILE
FILE_LIMIT = 1 << 28  # bytes of one image file, packed or not
CIFAR10 = "cifar10/cifar10_jpeg_20k_10k.zip"  # below DRIFTING_POLICY_DATA
DIGITS_TEST = 500  # of the 1,797 digits
NATIVE_SIZES = {"cifar10": 32, "digits": 8}  # pixels
# What a damaged, encrypted or exotic zip file raises.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError, struct.error, OverflowError)


@final
@dataclass(frozen=True)
class ImageSource:
    """The images of one split, none of them decoded yet.

    Attributes:
        place: What the user called it, for messages.
        names: Of the images, unique, in the order of their rows.
        labels: Their classes, indices of `class_names`.
        class_names: Of all splits alike, sorted.
        channels: 3 for colour, 1 for grey.
        digest: Checksum of what tells these images from others: of files, names and sizes, and in a zip file their checksums.
        read: The picture at a position; raises BrokenImage.
    """

    place: str
    names: Sequence[str]
    labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    channels: int
    digest: str
    read: Callable[[int], Image.Image]

    def pixels(self, position: int, size: int | None) -> np.ndarray:
        """The image at `position` as uint8 "h w c", cropped and resized to `size`; without `size` as it is, if square.

        Raises:
            BrokenImage: with the reason.
            DatasetError: the image announces too many pixels, or is not square although no `size` was given.
        """
        picture = self.read(position)
        if size is None and picture.width != picture.height:
            raise DatasetError(
                f"{self.place}: {self.names[position]} is {picture.width}x{picture.height}, not square; give size=N."
            )
        return center_crop(picture, size=size or picture.width, channels=self.channels)


@contextmanager
def open_sources(place: str | Path) -> Iterator[Mapping[str, ImageSource]]:
    """The splits "train" and "test", or one of them, of the images at `place`; they can be read inside the context.

    Args:
        place: "cifar10", "digits", a folder of images in LAYOUT, or a zip file of one, with or without a folder around it.
            A folder of images that has one of the two names is written ./cifar10.

    Raises:
        DatasetError: there is nothing, it is laid out otherwise, or a zip file is damaged or not to be trusted.
        MissingPackage: the digits need scikit-learn.
    """
    if str(place) == "digits":
        yield digits()
        return
    path = cifar10_path() if str(place) == "cifar10" else Path(place)
    if path.is_dir():
        sizes = dict(_folder_files(path, depth=1))
        yield class_sources(
            {name: (size,) for name, size in sizes.items()}, lambda name: (path / name).read_bytes(), str(place)
        )
        return
    if not path.is_file():
        raise DatasetError(f"There are no images at {path}; give a folder or a zip file of {LAYOUT}, cifar10 or digits.")
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise DatasetError(
            f"{path} is no zip file that can be read ({error}); images come as a folder or a zip file."
        ) from error
    with archive:
        entries = {name: (entry.file_size, entry.CRC) for name, entry in _zip_entries(archive, path).items()}
        yield class_sources(entries, archive.read, str(place))


def cifar10_path() -> Path:
    """Where CIFAR-10 lies.

    Raises:
        DatasetError: DRIFTING_POLICY_DATA is not set, or there is no such file below it.
    """
    root = os.environ.get("DRIFTING_POLICY_DATA")
    if root is None or not (path := Path(root) / CIFAR10).is_file():
        where = f"which is {root}" if root else "which is not set"
        raise DatasetError(
            f"CIFAR-10 is looked for in {CIFAR10} below DRIFTING_POLICY_DATA ({where}); set it to the folder that holds it."
        )
    return path


def digits() -> dict[str, ImageSource]:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey: their levels 0..16 become 0..255.

    The test split is fixed: of the digits in the order of their classes, 500 at equal distances. So every class has its share
    of both splits to within one image. Rows keep the order of scikit-learn.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackage("The digits come with scikit-learn: pip install 'drifting-policy[imagenet]'.") from error
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    labels = labels.astype(np.int64)
    by_class, count = np.argsort(labels, kind="stable"), len(labels)
    steps = np.arange(count + 1) * DIGITS_TEST // count
    tested = np.zeros(count, bool)
    tested[by_class[steps[1:] > steps[:-1]]] = True
    return {split: _digits_source(images, labels, rows) for split, rows in (("train", ~tested), ("test", tested))}


def _digits_source(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> ImageSource:
    rows = np.flatnonzero(chosen)
    return ImageSource(
        place="digits",
        names=[f"{row:04d}" for row in rows],
        labels=labels[rows],
        class_names=tuple(map(str, range(10))),
        channels=1,
        digest=hashlib.sha256(images[rows].tobytes() + labels[rows].tobytes()).hexdigest(),
        read=lambda position: Image.fromarray(images[rows[position]]),
    )


def class_sources(files: Mapping[str, tuple[int, ...]], read: Callable[[str], bytes], place: str) -> dict[str, ImageSource]:
    """The splits of a tree of image files.

    Args:
        files: For each path below the root what tells its content: its size first.
        read: The bytes of a file.
        place: What the user called the tree.

    Raises:
        DatasetError: no images, another layout than LAYOUT, classes that differ between the splits, or a file too large.
    """
    splits = arrange(files, place)
    classes = {split: {group for group, _ in members} for split, members in splits.items()}
    class_names = tuple(sorted(set().union(*classes.values())))
    for split, present in classes.items():
        if missing := [name for name in class_names if name not in present]:
            raise DatasetError(
                f"{place}: the split '{split}' has no images of the classes {_few(missing)}; all splits must have the same."
            )
    if huge := [name for name, about in files.items() if about[0] > FILE_LIMIT]:
        raise DatasetError(
            f"{place}: {_few(huge)} would take more than {FILE_LIMIT >> 20} MiB each; take them out of the data set."
        )
    index = {name: label for label, name in enumerate(class_names)}
    return {
        split: _tree_source(
            [name for _, name in members],
            np.array([index[group] for group, _ in members], np.int64),
            class_names,
            digest=_digest([[name, *files[name]] for _, name in members]),
            read=read,
            place=place,
        )
        for split, members in splits.items()
    }


def arrange(names: Iterable[str], place: str) -> dict[str, list[tuple[str, str]]]:
    """For each split the (class, path) of its images, sorted; a folder around everything is looked through.

    Raises:
        DatasetError: no images, or another layout than LAYOUT.
    """
    paths = {tuple(name.split("/")): name for name in names if name.lower().endswith(SUFFIXES)}
    if not paths:
        raise DatasetError(f"{place} holds no images ({', '.join(SUFFIXES)}) in folders of classes.")
    around = 0
    while len({path[around] for path in paths}) == 1 and all(len(path) > around + 2 for path in paths):
        if next(iter(paths))[around] in SPLIT_FOLDERS:
            break
        around += 1
    inner = sorted((path[around:], name) for path, name in paths.items())
    if not all(len(path) == 3 and path[0] in SPLIT_FOLDERS for path, _ in inner):
        if odd := [name for path, name in inner if len(path) != 2]:
            raise DatasetError(f"{place} should hold images as {LAYOUT}; these lie otherwise: {_few(odd)}.")
        return {"train": [(path[0], name) for path, name in inner]}
    folders = {path[0] for path, _ in inner}
    if {"test", "val"} <= folders:
        folders.remove("val")  # the test split is what the results are about
    return {
        split: [(path[1], name) for path, name in inner if path[0] == folder]
        for folder, split in SPLIT_FOLDERS.items()
        if folder in folders
    }


def _tree_source(
    names: list[str],
    labels: np.ndarray,
    class_names: tuple[str, ...],
    *,
    digest: str,
    read: Callable[[str], bytes],
    place: str,
) -> ImageSource:
    def picture(position: int) -> Image.Image:
        name = names[position]
        try:
            data = read(name)
        except UNREADABLE as error:
            raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from error
        return read_picture(data, name=f"{place}: {name}")

    return ImageSource(place, names, labels, class_names, 3, digest, picture)


def _folder_files(folder: Path, *, depth: int, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Path and size of the files below `folder`, links followed, hidden ones left out; what lies deeper than DEEPEST too."""
    try:
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            about = entry.stat()
            if stat.S_ISDIR(about.st_mode) and depth < DEEPEST:
                yield from _folder_files(folder / entry.name, depth=depth + 1, prefix=f"{prefix}{entry.name}/")
            elif stat.S_ISREG(about.st_mode):
                yield f"{prefix}{entry.name}", about.st_size
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({error}).") from error


def _zip_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip archive by name.

    Raises:
        DatasetError: a name that leads outside or is there twice, or a password.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name, path_inside = entry.filename, PureWindowsPath(entry.filename)
        if path_inside.anchor or ".." in path_inside.parts or "\\" in name:
            raise DatasetError(f"{path} holds the name {name!r}, which leads out of it; such a file is not read.")
        if entry.is_dir() or name.startswith("__MACOSX/") or any(part.startswith(".") for part in path_inside.parts):
            continue
        if name in entries:
            raise DatasetError(f"{path} holds {name!r} twice, and which one is meant would be a guess; pack it again.")
        if entry.flag_bits & 1:
            raise DatasetError(f"{path} is encrypted; unpack it and give the folder.")
        entries[name] = entry
    return entries


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
