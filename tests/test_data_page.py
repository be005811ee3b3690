"""docs/data.md, followed literally in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from drifting_policy.data.replay_buffer import open_replay
from drifting_policy.data.sources import SOURCES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
BLOCK = re.compile(r"<!-- (file|run)(?: (\S+))? -->\n```(\w+)\n(.*?)```", re.DOTALL)


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    """Only the number of training steps is cut."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTING_POLICY_")}
    environment |= {"DRIFTING_POLICY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    printed = ""
    for kind, name, language, text in BLOCK.findall(PAGE):
        if kind == "file":
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text(text)
            continue
        text = text.replace("trainer=toy", "trainer=debug trainer.steps=2 generator.width=16 generator.depth=1")
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    shown = PAGE.split("\n```\ndemos.zarr.zip: ")[1].split("```")[0].splitlines()[1:]
    assert [line for line in shown if line and line != "..." and line not in printed.splitlines()] == []
    assert open_replay(tmp_path / "copy.zarr").arrays.keys() == {"action", "observation.state", "observation.image"}
    assert open_replay(tmp_path / "state_only.zarr.zip").arrays.keys() == {"action", "observation.state"}
    assert np.asarray(Image.open(tmp_path / "demos.png")).shape[0] == 4 * 150 + 142  # images of four episodes, and curves
    runs = {str(path.parent.relative_to(tmp_path / "runs")) for path in (tmp_path / "runs").rglob("report.json")}
    assert {"arm/recorded_drift_mlp_seed0", "by_path"} <= runs


def test_every_format_is_told() -> None:
    words = {
        "zarr": "zarr v2, v3",
        "robomimic": "robomimic",
        "lerobot": "LeRobot v3.0",
        "minari": "Minari",
        "kitchen": "Relay Policy",
    }
    assert words.keys() == SOURCES.keys()
    assert all(f"\n| {word}" in PAGE for word in words.values())
