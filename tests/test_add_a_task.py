"""docs/add-a-task.md, followed literally in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- (file|append|run)(?: (\S+))? -->\n```(\w+)\n(.*?)```", re.DOTALL)
HOMES = {"envs": "envs", "configs": "configs", "datasets/recipes": "datasets", "datasets/bundled": "bundled"}
QUICK = {
    "trainer=toy": "trainer=toy trainer.steps=60 trainer.batch_size=16 trainer.eval_episodes=2",
    "episodes=10": "episodes=2",
}


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    """Only the number of steps and episodes is cut; the files are written where the page says."""
    skip = shutil.ignore_patterns("__pycache__", *HOMES.values())
    package = shutil.copytree(ROOT / "drifting_policy", tmp_path / "drifting_policy", ignore=skip)
    (package / "datasets").mkdir(exist_ok=True)
    for home, name in HOMES.items():
        shutil.copytree(ROOT / home, package / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTING_POLICY_")}
    environment |= {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    blocks = BLOCK.findall((ROOT / "docs" / "add-a-task.md").read_text())
    assert [kind for kind, *_ in blocks] == ["file", "append", "file", "run", "run"]
    for kind, name, language, text in blocks:
        if kind == "run":
            for old, new in QUICK.items():
                text = text.replace(old, new)
            command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
            assert done.returncode == 0, done.stderr
        else:
            before = (package / name).read_text() if kind == "append" else ""
            (package / name).write_text(before + text)
    assert json.loads((tmp_path / "runs/replay/reach_scripted/replay.json").read_text())["metrics"]["success"]["value"] == 1
    scores = json.loads(next(tmp_path.glob("runs/reach/scripted_drift_mlp_seed0/**/eval/scores.json")).read_text())
    assert scores["task"] == "reach"


@pytest.mark.parametrize("name", ["envs/reach.py", "envs/__init__.py", "configs/task/reach.yaml"])
def test_a_task_touches_one_yaml_one_line_and_its_world(name: str) -> None:
    touched = [place for kind, place, *_ in BLOCK.findall((ROOT / "docs" / "add-a-task.md").read_text()) if kind != "run"]
    assert name in touched
    assert len(touched) == 3
