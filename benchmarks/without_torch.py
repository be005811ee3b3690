"""`python benchmarks/without_torch.py`: does an exported policy command the same without PyTorch?

Exports the bundled policy, makes a virtual environment with NumPy and ONNX Runtime 1.23.2 alone for each Python, installs this
package there with --no-deps, runs `robot.py` in it, and compares its commands with those of PyTorch for equal observations.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, record

from drifting_policy import cli, export
from drifting_policy.checkpoint import load_policy
from drifting_policy.chunking import ChunkExecutor
from drifting_policy.demonstrations import bundled, load_demonstrations
from drifting_policy.parity import TOLERANCE

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("drifting_policy", "configs", "envs", "datasets", "pyproject.toml", "README.md", "LICENSE")
RUNTIME = ("numpy", "onnxruntime==1.23.2")
STEPS = 200


def prepare(folder: Path) -> np.ndarray:
    """The commands "steps d" of PyTorch for recorded observations; those and the exported policy are left in `folder`."""
    export.run(cli.compose("export", ["ckpt=bundled", f"out={folder / 'policy'}"]))
    task = cli.compose("train", ["task=push_t"]).task
    observations = {key: value[:STEPS] for key, value in load_demonstrations(task, "bundled").observations.items()}
    np.savez(folder / "recording.npz", **observations)
    executor = ChunkExecutor(load_policy(bundled("push_t")))
    executor.reset(seeds=[0])
    return np.stack(
        [executor.step({key: value[step, None] for key, value in observations.items()})[0] for step in range(STEPS)]
    )


def source(folder: Path) -> Path:
    """A copy of the package's source: a build leaves files behind."""
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            links = [path.name for path in (ROOT / name).iterdir() if path.is_symlink()]
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", *links))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def measure(python: str, *, folder: Path, wheel: Path, expected: np.ndarray, span: np.ndarray) -> dict[str, Any]:
    """The row of one interpreter."""
    home = folder / "venv"
    shutil.rmtree(home, ignore_errors=True)
    call(python, "-m", "venv", str(home))
    pip = (str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    call(*pip, *RUNTIME)
    # What the package needs for training asks for Python 3.11; control does not.
    call(*pip, "--no-deps", "--ignore-requires-python", str(wheel))
    row: dict[str, Any] = json.loads(call(str(home / "bin" / "python"), str(ROOT / "benchmarks" / "robot.py"), str(folder)))
    gap = np.abs(np.load(folder / "commands.npy") - expected)
    return row | {"largest_px": float(gap.max()), "largest_of_range": float((gap / span).max())}


def call(*command: str) -> str:
    """What a program prints, run away from the checkout and from PYTHONPATH."""
    quiet = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(command, cwd="/", env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record; 1 where a command differs or something heavy was loaded."""
    parser = argparse.ArgumentParser(description="An exported policy without PyTorch, compared with PyTorch.")
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], help="interpreters, such as python3.11 python3.10")
    parser.add_argument("--out", type=Path, default=RESULTS / "without_torch.json")
    given = parser.parse_args(argv)
    rows, missed = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = prepare(folder)
        stats = json.loads((bundled("push_t") / "stats.json").read_text())["action"]
        span = np.subtract(stats["max"], stats["min"])
        call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(source(folder)))
        (wheel,) = folder.glob("*.whl")
        for python in given.pythons:
            row = measure(python, folder=folder, wheel=wheel, expected=expected, span=span)
            print(json.dumps(row))
            rows.append(row)
            if not row["largest_of_range"] <= TOLERANCE or row["loaded"]:
                missed.append(f"Python {row['python']} differs by {row['largest_of_range']:.1e}, and loaded {row['loaded']}.")
    return record(given.out, rows=rows, missed=missed, benchmark="without_torch", bar=f"<= {TOLERANCE} of the range, no torch")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
