"""The unmodified openpi-client plays Push-T with the bundled policy, and must score what the policy scores in this process.

openpi-client is installed from PyPI into an environment of its own, in a temporary folder, together with the versions of the
simulator that are installed here. The noise of every plan is that of the evaluation: the client sends the seed of the episode
and the number of the plan. Every episode must be equal in score, success and length, without any tolerance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, record

from drifting_policy.control.server import PolicyServer
from drifting_policy.eval import BUNDLED, Candidate, load_candidate
from drifting_policy.evaluation import env_factory
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.seeds import episode_seeds

ROOT = Path(__file__).resolve().parents[1]
SIMULATOR = ("numpy", "gymnasium", "gym-pusht", "pymunk")  # what decides a score, in the versions of this process
CLIENT = ("openpi-client", "typing_extensions")  # the first needs the second and does not say so
TOLD = ("openpi-client", "websockets", "msgpack", *SIMULATOR)
MODES = ("windows", "steps")


def isolated(folder: Path) -> Path:
    """The interpreter of a fresh environment with openpi's client and the simulator."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    packages = [*CLIENT, *(f"{name}=={version(name)}" for name in SIMULATOR)]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def installed(python: Path) -> dict[str, str]:
    """The versions in the environment of the client."""
    code = f"import json, importlib.metadata as m; print(json.dumps({{name: m.version(name) for name in {TOLD}}}))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def drive(python: Path, candidate: Candidate, seeds: Sequence[int], *, mode: str, folder: Path) -> list[dict[str, Any]]:
    """The episodes that the client played."""
    task = candidate.task
    job = {"mode": mode, "seeds": list(seeds), "max_steps": task.max_steps, "out": str(folder / f"{mode}.json")}
    job |= {"env_id": task.env_id, "env_options": dict(task.env_options)}
    with PolicyServer(candidate.policy, port=0, about={"name": BUNDLED}) as server:
        path = folder / f"{mode}_job.json"
        # -P: this file must not hide the package whose name it bears.
        path.write_text(json.dumps(job | {"port": server.port}))
        command = [str(python), "-P", str(ROOT / "benchmarks" / "openpi_drive.py"), str(path)]
        subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    episodes: list[dict[str, Any]] = json.loads(Path(str(job["out"])).read_text())
    return episodes


def main(argv: Sequence[str]) -> int:
    """Play in both ways, compare, write the record; 1 where an episode differs."""
    parser = argparse.ArgumentParser(description="Push-T through the unmodified openpi-client, against the policy in process.")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "openpi_client.json")
    parser.add_argument("--python", type=Path, help="an interpreter that has the client already; default: a fresh environment")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    candidate = load_candidate(BUNDLED, task=None, device="cpu")
    task, seeds = candidate.task, sorted(episode_seeds("test", given.episodes))
    here = evaluate(candidate.policy, env_factory(task), seeds, max_steps=task.max_steps)
    expected = [asdict(episode) for episode in here.episodes]
    rows, missed = [], []
    with tempfile.TemporaryDirectory() as name:
        python = given.python or isolated(Path(name) / "venv")
        for mode in MODES:
            begin = time.perf_counter()
            played = drive(python, candidate, seeds, mode=mode, folder=Path(name))
            different = [episode["seed"] for episode, wanted in zip(played, expected, strict=True) if episode != wanted]
            mean = sum(episode["max_score"] for episode in played) / len(played)
            rows.append(
                {"mode": mode, "episodes": played, "different": different, "mean_max_score": mean}
                | {"steps": sum(episode["steps"] for episode in played), "seconds": time.perf_counter() - begin}
            )
            print(f"{mode:<8} {len(played)} episodes, {len(different)} differ, mean max score {mean:.4f}", flush=True)
            if different:
                missed.append(f"asked by {mode}, the episodes of seeds {different} differ from those in this process.")
        about = {"benchmark": "openpi_client", "bar": "every episode equal", "client": installed(python), "expected": expected}
    return record(given.out, rows=rows, missed=missed, **about)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
