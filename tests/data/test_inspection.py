"""Findings name what is odd and stay silent about what is not; sheets show what was recorded; conversions are equal."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from drifting_policy.data import __main__ as door
from drifting_policy.data.conversion import convert
from drifting_policy.data.inspection import describe, inspect
from drifting_policy.data.replay_buffer import ReplayBuffer, open_replay, read_attributes, write_replay
from drifting_policy.data.sheet import draw_sheet
from drifting_policy.data.suspicions import findings
from drifting_policy.types import ConfigError, DatasetError

ENDS = np.array([60, 150, 200])
RNG = np.random.default_rng(0)
SMOOTH = np.cumsum(RNG.normal(size=(200, 3)), axis=0).astype(np.float32)
IMAGES = np.repeat(np.arange(200, dtype=np.uint8), 16 * 24 * 3).reshape(200, 16, 24, 3)


def found(**arrays: np.ndarray) -> list[str]:
    return list(findings(ReplayBuffer(arrays, ENDS)))


def quaternions() -> np.ndarray:
    """Turns about z that begin at half a turn in the middle, where the sign changes."""
    angle = np.linspace(0, 3, 200)
    turned = np.stack([np.cos(angle / 2), 0.01 * np.ones(200), 0.2 * np.ones(200), np.sin(angle / 2)], -1)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    turned[100:] *= -1
    return np.concatenate([SMOOTH, turned], 1)


def test_clean_recordings_are_silent() -> None:
    assert found(state=SMOOTH, action=RNG.normal(size=(200, 2)).astype("f4"), img=IMAGES, flag=np.arange(200) % 2 == 0) == []


def outlier() -> np.ndarray:
    values = RNG.normal(size=(200, 2))
    values[77, 1] = 1000
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.concatenate([SMOOTH, np.full((200, 1), 2.5)], 1), ["x[3] is constant (2.5)."]),
        (np.full(200, 2.5), ["x is constant (2.5).", None]),
        (outlier(), ["x[1] has 1 value beyond 10 robust deviations from the median, the farthest at step 77 (1000, "]),
        (RNG.permutation(np.arange(200.0) % 3), ["x takes 3 whole values only (0, 1, 2)."]),
        # A ninth jump lies between two episodes.
        ((np.arange(200) * 0.3 + 1) % (2 * np.pi), ["x jumps by 2 pi 8 times: an angle that wraps"]),
        (((np.arange(200) * 17 + 100) % 360.0) - 180, ["x jumps by 360 9 times"]),
        (quaternions(), ["x[3..6] has length 1: a unit quaternion that changes its sign 1 time."]),
        (np.eye(4)[RNG.integers(0, 4, 200)], [*["takes 2 whole values only (0, 1)"] * 4, "x is one-hot: exactly one of 4"]),
        (np.repeat(SMOOTH[:100], 2, axis=0), ["x repeats itself: 51% of the steps"]),
        (np.repeat(IMAGES[:40], 5, axis=0), ["x repeats itself: 81% of the steps"]),
    ],
)
def test_each_finding_is_made(values: np.ndarray, words: list[str | None]) -> None:
    told = found(x=values)
    assert len(told) >= len([word for word in words if word])
    for word in words:
        assert word is None or any(word in sentence for sentence in told), told
    assert all(sentence.startswith("x") and sentence.endswith(".") for sentence in told)


def test_jumps_between_episodes_are_none() -> None:
    angle = np.where(np.arange(200) < 60, 0.1, 2 * np.pi - 0.1) + 0.01 * RNG.normal(size=200)
    assert not [sentence for sentence in found(x=angle) if "jumps" in sentence]
    still = np.concatenate([SMOOTH[:60], SMOOTH[59:149], SMOOTH[148:198]])  # episodes begin where the last one ended
    assert found(x=still) == []


def test_time_must_advance() -> None:
    times = np.concatenate([np.arange(length) / 10 for length in (60, 90, 50)])
    assert found(timestamp=times) == []
    times[5] = times[4]
    times[100:150] += 0.3
    told = found(timestamp=times)
    assert told[0] == "timestamp does not advance at 1 step."
    assert "timestamp has 2 gaps longer than 1.5 usual steps, the longest of 4.0." in told


@pytest.mark.parametrize(
    ("lag", "noise", "words"),
    [
        (0, 0.0, "action equals state[1..2]: it commands what was measured."),
        (3, 0.0, "action equals state[1..2] 3 steps later: it commands what was measured."),
        (2, 0.05, "action is most like state[1..2] 2 steps later ("),
        (0, 9.0, None),
    ],
)
def test_actions_that_are_states_are_told(lag: int, noise: float, words: str | None) -> None:
    action = np.zeros((200, 2))
    for first, end in ((0, 60), (60, 150), (150, 200)):
        rows = np.clip(np.arange(first, end) + lag, None, end - 1)
        action[first:end] = SMOOTH[rows, 1:] + noise * RNG.normal(size=(end - first, 2))
    if lag:
        for end in (60, 150, 200):  # what lies behind the end of an episode is compared with nothing
            action[end - lag : end] += 50
    told = [sentence for sentence in found(state=SMOOTH, action=action) if " state" in sentence]
    assert len(told) == (words is not None)
    assert all(sentence.startswith(words or "") for sentence in told)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small data set with everything in it."""
    arrays = {"state": SMOOTH, "action": SMOOTH[:, :2], "front/img": IMAGES, "observation.flag": np.arange(200) % 2 == 0}
    return write_replay(tmp_path / "demo.zarr", arrays, ENDS, attributes={"control_hz": 10})


def test_an_inspection_says_what_is_there(data: Path) -> None:
    seen = inspect(data)
    text = describe(seen)
    assert (seen.format, seen.control_hz) == ("zarr", 10)
    assert f"{data}: zarr, 3 episodes, 200 steps\n50 / 60 / 90 steps an episode (min / median / max), 10 Hz" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith("state"))
    numbers = [SMOOTH.min(), SMOOTH.max(), SMOOTH.mean(dtype="f8"), SMOOTH.std(dtype="f8")]
    assert row == ["state", "3", "float32", *(f"{number:.5g}" for number in numbers)]
    (row,) = (line.split() for line in text.splitlines() if line.startswith("front/img"))
    assert row == ["front/img", "16x24x3", "uint8", "0", "199", f"{99.5:.5g}", f"{np.arange(200).std():.5g}"]
    assert "look: action equals state[0..1]: it commands what was measured." in text
    assert inspect(data, ["state"]).findings == ()
    assert describe(inspect(data, ["state"])).endswith("Nothing deserves a second look.")


def test_many_findings_of_one_array_are_cut_short(tmp_path: Path) -> None:
    path = write_replay(tmp_path / "demo.zarr", {"x": np.ones((200, 40), np.float32)}, ENDS)
    looks = [line for line in describe(inspect(path)).splitlines() if line.startswith("look: ")]
    assert len(looks) == 13
    assert looks[-1] == "look: x has 28 more of the kind."


def test_a_sheet_shows_the_images_of_some_episodes_and_curves(data: Path, tmp_path: Path) -> None:
    buffer = open_replay(data)
    sheet = np.asarray(Image.open(draw_sheet(buffer, tmp_path / "new" / "sheet.png")))
    assert sheet.shape[0] == 3 * 150 + 142  # three episodes, one row of curves
    for row, (first, last) in enumerate([(0, 59), (60, 149), (150, 199)]):
        for column, step in enumerate((first, (first + last) // 2, last)):
            centre = sheet[row * 150 + 14 + 64, 8 + column * 200 + 96]
            assert np.abs(centre.astype(int) - step).max() <= 1
    blue = (sheet[450:] == (31, 119, 180)).all(-1)
    assert blue.sum() > 100
    alone = np.asarray(Image.open(draw_sheet(ReplayBuffer({"x": SMOOTH[:, 0]}, ENDS), tmp_path / "sheet.png")))
    assert alone.shape == (142, 8 + 328, 3)
    grey = ReplayBuffer({"g": IMAGES[..., :1]}, ENDS)
    assert np.asarray(Image.open(draw_sheet(grey, tmp_path / "sheet.png"))).shape[0] == 450
    with pytest.raises(ConfigError, match=r"its name must end in .png; got .*sheet.jpg"):
        draw_sheet(buffer, tmp_path / "sheet.jpg")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(DatasetError, match=r"taken.png could not be written"):
        draw_sheet(buffer, tmp_path / "taken.png")
    with pytest.raises(DatasetError, match=r"inside.png could not be written"):
        draw_sheet(buffer, tmp_path / "sheet.png" / "inside.png")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["copy.zarr", "copy.zarr.zip"])
def test_a_conversion_is_equal_and_remembers_the_rate(name: str, data: Path, tmp_path: Path) -> None:
    written = convert(data, tmp_path / name)
    first, second = open_replay(data), open_replay(written)
    assert first.arrays.keys() == second.arrays.keys()
    for key, values in first.arrays.items():
        assert values.dtype == second.arrays[key].dtype
        np.testing.assert_array_equal(values, second.arrays[key])
    np.testing.assert_array_equal(first.episode_ends, second.episode_ends)
    assert read_attributes(written) == {"converted_from": "zarr", "control_hz": 10}
    with pytest.raises(ConfigError, match="is there already"):
        convert(data, written)
    assert open_replay(convert(data, tmp_path / "part.zarr", ["state"])).arrays.keys() == {"state"}


@pytest.mark.parametrize("kind", ["lerobot_v3_image", "lerobot_v3_video", "minari_datasets/pusht/tiny-pixels-jpeg-v0"])
def test_data_sets_of_other_libraries_convert(kind: str, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", exc_type=ImportError)
    source = shared / "data" / "formats" / kind
    seen, copy = inspect(source), inspect(convert(source, tmp_path / "copy.zarr.zip"))
    assert seen.buffer.arrays.keys() == copy.buffer.arrays.keys()
    for key, values in seen.buffer.arrays.items():
        np.testing.assert_array_equal(values, copy.buffer.arrays[key])
    assert (seen.control_hz, seen.findings) == (copy.control_hz, copy.findings)
    assert draw_sheet(seen.buffer, tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("name", ["../out", "a/../../out", ".zgroup", "a//b", "/etc/x", "a\\b"])
def test_names_that_lead_elsewhere_are_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be stored under the name"):
        write_replay(tmp_path / "in" / "demo.zarr", {name: SMOOTH}, ENDS)
    with pytest.raises(DatasetError, match="cannot be stored under the name 'x'"):
        write_replay(tmp_path / "in" / "demo.zarr", {"x": SMOOTH, "x/y": SMOOTH}, ENDS)
    assert not list(tmp_path.rglob("*"))


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `python -m drifting_policy.data ARGUMENTS` in this process."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
        capsys.readouterr()
        code = door.main()
        return code, *capsys.readouterr()

    return start


def test_the_commands_print_what_they_did(command: Command, data: Path, tmp_path: Path) -> None:
    code, out, err = command("info", data, "--sheet", tmp_path / "sheet.png")
    assert (code, err) == (0, "")
    assert out == f"{describe(inspect(data))}\nwritten: {tmp_path / 'sheet.png'}\n"
    code, out, _ = command("convert", data, tmp_path / "new.zarr", "--keys", "state", "action")
    assert (code, out) == (0, f"written: {tmp_path / 'new.zarr'}\n")
    assert open_replay(tmp_path / "new.zarr").arrays.keys() == {"state", "action"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: command"),
        (["show", "x"], "invalid choice: 'show'"),
        (["info"], "the following arguments are required: path"),
        (["info", "absent"], "There is no data set at absent."),
        (
            ["info", "DATA", "--keys", "stat"],
            "has no array data/stat; it has ['action', 'front/img', 'observation.flag', 'state']",
        ),
        (["info", "DATA", "--sheet", "sheet.gif"], "its name must end in .png"),
        (["convert", "DATA", "copy.hdf5"], "a folder .zarr or a file .zarr.zip; got copy.hdf5."),
        (["convert", "DATA", "DATA"], "is there already"),
        (["convert", "absent", "copy.zarr"], "There is no data set at absent."),
    ],
)
def test_a_mistake_gets_one_sentence(
    arguments: list[str], words: str, command: Command, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, _, err = command(*[str(data) if argument == "DATA" else argument for argument in arguments])
    assert code == 2
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list(Path().iterdir())


def test_the_module_runs_in_a_process_of_its_own(data: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "drifting_policy.data", "info", data], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 episodes, 200 steps" in done.stdout
    done = subprocess.run([sys.executable, "-m", "drifting_policy.data", "info", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: There is no data set at x.\n")


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), tear=st.booleans(), number=st.integers(0, 10**6))
def test_nothing_is_left_of_a_conversion_that_failed(
    place: float, change: int, tear: bool, number: int, command: Command, data: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(shutil.copytree(data, Path(folder) / "damaged"))
        files = sorted(file for file in damaged.rglob("*") if file.is_file())
        file = files[number % len(files)]
        content: Any = bytearray(file.read_bytes())
        at = int(place * len(content))
        content[at] ^= change
        file.write_bytes(content[:at] if tear else content)
        code, _, err = command("convert", damaged, Path(folder) / "copy.zarr")
        left = {path.name for path in Path(folder).iterdir()}
        errors = [line for line in err.splitlines() if "error: " in line]
        assert (code, left, len(errors)) in ((0, {"damaged", "copy.zarr"}, 0), (2, {"damaged"}, 1))
        assert "Traceback" not in err
