"""The statistics of two data sets stand side by side, and a mode is what a plain loop finds."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from drifting_policy.data.replay_buffer import ReplayBuffer, open_replay, write_replay
from drifting_policy.envs.block_push import MODES, TOLERANCE

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
LENGTHS = [30, 12, 25]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("block_push_statistics")


def made_up(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    obs = rng.uniform(-0.15, 0.15, (sum(LENGTHS), 16)).astype(np.float32)
    obs[LENGTHS[0] : sum(LENGTHS[:2]), :6] = 9.0  # blocks that never arrive
    action = rng.normal(size=(sum(LENGTHS), 2)).astype(np.float32)
    return write_replay(path, {"obs": obs, "action": action}, np.cumsum(LENGTHS))


def first_met(buffer: ReplayBuffer, number: int) -> int:
    for row in buffer.episode(number)["obs"].astype(np.float64):
        for mode, (block, target) in enumerate(MODES):
            if np.hypot(*(row[3 * block : 3 * block + 2] - row[10 + 3 * target : 12 + 3 * target])) < TOLERANCE:
                return mode
    return -1


def test_both_data_sets_are_described(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: made_up(tmp_path / f"{name}.zarr.zip", seed) for seed, name in enumerate(("scripted", "published"))}
    out = tmp_path / "new" / "statistics.json"
    script.main([*(f"--{name}={file}" for name, file in files.items()), f"--out={out}"])
    table = json.loads(out.read_text())
    assert len(table["rows"]) == 2 * (2 + 2 * 16)
    for name, file in files.items():
        buffer = open_replay(file, ["obs", "action"])
        found = script.modes(buffer)
        assert found.tolist() == [first_met(buffer, number) for number in range(3)]
        assert found[1] == -1
        assert table["data"][name]["modes"] == {
            each: int((found == i - 1).sum()) for i, each in enumerate(["none", *script.NAMES])
        }
        rows = {row["quantity"]: row for row in table["rows"] if row["data"] == name}
        assert (rows["episode length, steps"]["min"], rows["episode length, steps"]["n"]) == (12, 3)
        assert rows["target2 yaw, any step"]["max"] == pytest.approx(buffer.arrays["obs"][:, 15].max(), abs=1e-4)
        assert rows["effector y, first step"]["q50"] == pytest.approx(np.median(buffer.arrays["obs"][[0, 30, 42], 7]), abs=1e-4)
    assert capsys.readouterr().out.count("\n") == 3 + len(table["rows"])
