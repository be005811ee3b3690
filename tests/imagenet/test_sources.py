"""Folders and zip files of images: every layout, the crop against its definition, and bytes that mean no good."""

import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from drifting_policy.imagenet import images as image_sets
from drifting_policy.imagenet import sources
from drifting_policy.imagenet.images import open_images
from drifting_policy.imagenet.pixels import BrokenImage, center_crop, read_picture
from drifting_policy.imagenet.sources import arrange, open_sources
from drifting_policy.types import DatasetError


def noise(seed: int, height: int = 6, width: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def encoded(values: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(file, form, **options)
    return file.getvalue()


def lay_out(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tree(prefix: str = "", per_class: int = 4) -> dict[str, bytes]:
    """PNG files of three classes, named so that neither classes nor files are written in order."""
    pairs = itertools.product(("cat", "ant", "bee"), range(per_class))
    return {f"{prefix}{name}/{9 - i}.png": encoded(noise(10 * k + i)) for k, (name, i) in enumerate(pairs)}


@pytest.mark.parametrize("around", ["", "flowers/"])
@pytest.mark.parametrize("store", [lay_out, lambda root, files: pack(root / "images.zip", files)], ids=["folder", "zip"])
def test_folders_and_zip_files_hold_the_same(tmp_path: Path, store: Callable[..., Path], around: str) -> None:
    files = {f"{around}train/{name}": data for name, data in tree().items()}
    files |= {f"{around}val/{name}": data for name, data in tree(per_class=2).items()}
    place = store(tmp_path, files | {f"{around}README.md": b"no image", f"{around}train/cat/.hidden.png": b"none"})
    for folder, split in (("train", "train"), ("val", "test")):
        found = open_images(place, split=split)
        expected = sorted(name for name in files if f"{folder}/" in name)
        assert found.class_names == ("ant", "bee", "cat")
        assert [found.class_names[label] for label in found.labels] == [name.split("/")[-2] for name in expected]
        assert all(
            np.array_equal(found.images[i], np.asarray(Image.open(io.BytesIO(files[n])))) for i, n in enumerate(expected)
        )


def test_the_digest_tells_one_source_from_another(tmp_path: Path) -> None:
    def digest(name: str, files: dict[str, bytes]) -> str:
        with open_sources(pack(tmp_path / name, files)) as found:
            return found["train"].digest

    files = tree()
    assert digest("a.zip", files) == digest("b.zip", dict(reversed(files.items())))
    first = next(iter(files))
    others = [files | {first: encoded(noise(99))}, {k: v for k, v in files.items() if k != first}, files | {"cat/new.png": b""}]
    assert len({digest(f"{i}.zip", other) for i, other in enumerate([files, *others])}) == 4


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b/1.jpg", "a/2.JPEG"], {"train": ["a", "b"]}),
        (["train/1.jpg", "test/2.jpg"], {"train": ["test", "train"]}),  # classes that are called so
        (["x/b/1.webp", "x/a/2.bmp"], {"train": ["a", "b"]}),
        (["x/y/b/1.jpg", "x/y/a/1.jpg"], {"train": ["a", "b"]}),
        (["train/a/1.jpg", "val/a/1.jpg"], {"train": ["a"], "test": ["a"]}),
        (["train/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg"], {"train": ["a"], "test": ["a"]}),
        (["x/test/a/1.jpg"], {"test": ["a"]}),
    ],
)
def test_layouts(names: list[str], expected: dict[str, list[str]]) -> None:
    assert {split: [group for group, _ in members] for split, members in arrange(names, "here").items()} == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no images"),
        (["a/notes.txt"], "holds no images"),
        (["1.jpg"], "these lie otherwise: '1.jpg'"),
        (["a/1.jpg", "1.jpg"], "these lie otherwise: '1.jpg'"),
        (["a/1.jpg", "b/c/1.jpg"], "these lie otherwise: 'b/c/1.jpg'"),
        (["train/a/1.jpg", "rest/a/1.jpg"], "these lie otherwise"),
        ([f"train/a/{i}.jpg" for i in range(9)] + ["test/1.jpg"], "and 6 more"),
    ],
)
def test_other_layouts_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        arrange(names, "here")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no images at .*nowhere"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(DatasetError, match="no zip file"):
        open_images(tmp_path / "file")
    lay_out(tmp_path / "one", {"train/a/1.png": b"", "test/b/1.png": b""})
    with pytest.raises(DatasetError, match=r"'train' has no images of the classes 'b'"):
        open_images(tmp_path / "one")
    lay_out(tmp_path / "two", tree())
    with pytest.raises(DatasetError, match=r"no images of the split 'test', only of \['train'\]"):
        open_images(tmp_path / "two", split="test")


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, tree() | {"ant/zz.png": encoded(noise(0, 8, 8))})
    with pytest.raises(DatasetError, match=r"ant/zz.png is 8 pixels wide, others are 6; give size=N"):
        open_images(tmp_path)
    assert open_images(tmp_path, size=5).image_shape == (3, 5, 5)
    lay_out(tmp_path, {"ant/zz.png": encoded(noise(0, 8, 7))})
    with pytest.raises(DatasetError, match="7x8, not square"):
        open_images(tmp_path)
    monkeypatch.setattr(image_sets, "IN_MEMORY", 13 * 5 * 5 * 3 - 1)
    with pytest.raises(DatasetError, match=r"make a cache first: .* size=5"):
        open_images(tmp_path, size=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 24), st.sampled_from([0, 1, 77, 254, 255]))
def test_a_constant_picture_stays_constant(height: int, width: int, size: int, level: int) -> None:
    picture = Image.new("RGB", (width, height), (level, 0, 255 - level))
    assert np.array_equal(center_crop(picture, size=size, channels=3), np.full((size, size, 3), (level, 0, 255 - level)))


def test_the_crop_is_what_it_says() -> None:
    wide = noise(0, 7, 12)
    assert np.array_equal(center_crop(Image.fromarray(wide), size=7, channels=3), wide[:, 2:9])  # nothing to resize
    tall = noise(1, 30, 20)
    halved = tall.reshape(15, 2, 10, 2, 3).mean((1, 3))  # Pillow rounds after each of its two passes
    assert np.abs(center_crop(Image.fromarray(tall), size=10, channels=3) - halved[2:12]).max() <= 1
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8) * 5, (48, 48))  # resizing keeps a slope straight
    small = center_crop(Image.fromarray(ramp.copy()), size=36, channels=1)[:, 3:-3, 0].astype(float)
    assert np.abs(small - (5 * (np.arange(36) + 0.5) * 48 / 36 - 2.5)[3:-3]).max() <= 1
    assert np.array_equal(small, np.broadcast_to(small[0], small.shape))


def test_a_mirrored_picture_gives_a_mirrored_crop() -> None:
    picture = Image.fromarray(noise(3, 44, 44))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ours, theirs = (center_crop(each, size=13, channels=3).astype(int) for each in (picture, mirrored))
    assert np.abs(ours - theirs[:, ::-1]).max() <= 1


def test_every_mode_of_8_bits_becomes_rgb() -> None:
    picture = Image.new("RGB", (9, 9), (200, 40, 90))
    palette = picture.quantize(16)
    palette.info["transparency"] = bytes(range(16))
    forms = {"JPEG": picture.convert("CMYK"), "PNG": palette, "WEBP": picture.convert("RGBA"), "BMP": picture.convert("L")}
    for form, each in forms.items():
        crop = center_crop(read_picture(encoded(each, form), name="it"), size=9, channels=3)
        color = (92, 92, 92) if form == "BMP" else (200, 40, 90)
        assert np.abs(crop.astype(int) - color).max() <= 2, form
    deep = Image.fromarray(np.full((4, 4), 1000, np.uint16))
    with pytest.raises(BrokenImage, match="mode I;16"):
        read_picture(encoded(deep), name="it")


def test_broken_images_are_named_counted_and_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = tree(per_class=9)
    (whole := open_images(lay_out(tmp_path / "whole", files)))
    lay_out(tmp_path / "holes", files | {"ant/9.png": files["ant/9.png"][:-30], "cat/5.png": b"\x89PNG"})
    capfd.readouterr()
    found = open_images(tmp_path / "holes")
    printed = capfd.readouterr().err
    assert found.skipped == ("ant/9.png", "cat/5.png")
    assert "broken image ant/9.png: " in printed
    assert "broken image cat/5.png: cannot identify image file" in printed
    assert "2 of 27 images are broken and were left out" in printed
    kept = [row for row in range(27) if row not in (8, 22)]
    assert np.array_equal(found.images[:], whole.images[kept])
    assert np.array_equal(found.labels, whole.labels[kept])


def test_too_many_broken_images_are_refused(tmp_path: Path) -> None:
    files = tree(per_class=9)
    lay_out(tmp_path / "tenth", files | {f"bee/{9 - i}.png": b"" for i in range(3)})
    with pytest.raises(DatasetError, match=r"3 of 27 images are broken already \(the last one found is bee/9.png"):
        open_images(tmp_path / "tenth")
    lay_out(tmp_path / "class", files | {"lost/1.png": b"", "lost/2.png": b"GIF89a"})
    with pytest.raises(DatasetError, match="no image of the class 'lost' can be read"):
        open_images(tmp_path / "class")


@pytest.mark.parametrize("name", ["../a/1.png", "/a/1.png", "a/../../1.png", "C:/a/1.png", "a\\1.png", "../notes.txt"])
def test_names_that_lead_out_of_a_zip_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="leads out of it"):
        open_images(pack(tmp_path / "images.zip", tree() | {name: encoded(noise(0))}))


def test_a_zip_file_with_two_meanings_or_a_password_is_refused(tmp_path: Path) -> None:
    place = pack(tmp_path / "images.zip", tree())
    locked = bytearray(place.read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DatasetError, match="encrypted"):
        open_images(tmp_path / "locked.zip")
    with zipfile.ZipFile(place, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("cat/9.png", b"")
    with pytest.raises(DatasetError, match="twice"):
        open_images(place)


def announcing(width: int, height: int) -> bytes:
    """A tiny PNG file that says it is larger."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (1, 2**27)])
def test_images_that_announce_too_many_pixels_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(DatasetError, match=r"cat/bomb.png announces .* pixels"):
        open_images(pack(tmp_path / "images.zip", tree() | {"cat/bomb.png": announcing(*size)}), size=8)


def test_files_that_would_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILE_LIMIT", 1 << 20)
    with pytest.raises(DatasetError, match=r"'cat/bomb.png' would take more than 1 MiB"):
        open_images(pack(tmp_path / "images.zip", tree() | {"cat/bomb.png": bytes(1 << 21)}))


SAMPLES = [encoded(noise(7, 24, 31), form) for form in ("JPEG", "PNG", "WEBP", "BMP")]
SAMPLES += [encoded(Image.fromarray(noise(8, 9, 9)).quantize(8)), encoded(noise(7, 24, 31), "JPEG", progressive=True)]


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A file that was cut off, or has a few other bytes, or both."""
    data = bytearray(draw(whole))
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8)):
        data[place] = value
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of some oddities that it can cope with
@settings(max_examples=400, deadline=None)
@given(damaged(st.sampled_from(SAMPLES)))
def test_whatever_the_bytes_the_answer_is_a_crop_or_a_sentence(data: bytes) -> None:
    with suppress(DatasetError):
        assert center_crop(read_picture(data, name="it"), size=8, channels=3).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_zip_file_the_answer_is_a_set_or_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    whole = pack(tmp_path / "whole.zip", tree()).read_bytes()
    place = tmp_path / "damaged.zip"
    place.write_bytes(data.draw(damaged(st.just(whole))))
    with suppress(DatasetError):  # checksums do not let a damaged image pass; a damaged name may be that of no image
        found = open_images(place)
        assert {image.tobytes() for image in found.images} <= {noise(10 * k + i).tobytes() for k in range(12) for i in range(4)}
        assert 0 < len(found) + len(found.skipped) <= 12
