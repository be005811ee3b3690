"""docs/on-the-robot.md: its program runs as it stands, its example at least parses."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from drifting_policy.checkpoint import save_policy
from drifting_policy.control.status import Status
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import ArraySpec, PolicySpec

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "on-the-robot.md").read_text()
BLOCK = re.compile(r"<!-- (run|example) -->\n```python\n(.*?)```", re.DOTALL)
SPEC = PolicySpec(
    {"position": ArraySpec((2,))}, ArraySpec((2,)), obs_horizon=2, pred_horizon=16, exec_horizon=4, control_hz=100.0
)


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    """With a policy of its contract, and shorter."""
    (program,) = (text for kind, text in BLOCK.findall(PAGE) if kind == "run")
    policy = DriftingPolicy(
        SPEC, encoder={"name": "state", "embed_dim": 8}, generator={"name": "mlp", "width": 8, "depth": 1}, noise_scale=0.0
    )
    assert len(program.splitlines()) <= 66
    checkpoint = re.findall(r'CHECKPOINT = "(.*)"', program)[0]
    save_policy(tmp_path / checkpoint, policy, metadata={}, stats={})
    changed = program.replace("seconds=2.0", "seconds=0.3").replace("max_jump=0.05", "max_jump=5.0")
    changed = changed.replace("pinned([0])", f"pinned([{min(os.sched_getaffinity(0))}])")
    (tmp_path / "loop.py").write_text(changed)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "misses" in done.stdout
    assert "action() took at most" in done.stdout


def test_the_examples_parse() -> None:
    recording, node = (ast.parse(text).body for kind, text in BLOCK.findall(PAGE) if kind == "example")
    assert isinstance(recording[-1], ast.With)
    assert isinstance(node[-1], ast.ClassDef)


def test_the_table_tells_every_status() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == [status.name for status in Status]
