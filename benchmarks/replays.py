"""results/benchmarks/replays.json: do the demonstrations of the tasks still work in the simulators that judge policies?

Every data set that lies on this machine is replayed by the command that users type; what was replayed before is kept.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import RESULTS, record

from drifting_policy.demonstrations import is_stored
from drifting_policy.eval import load_task

DATA_SETS = (
    ("push_t", "bundled"),
    ("push_t", "human"),
    ("lift", "scripted"),
    ("can", "scripted"),
    ("square", "scripted"),
    ("tool_hang", "scripted"),
    ("transport", "scripted"),
    ("kitchen", "human"),
    ("block_push", "scripted"),
    ("block_push", "published"),
    ("conveyor", "bundled"),
    ("toy_obstacle", "bundled"),
)


def main() -> int:
    """Replay what is not replayed yet, and write one row for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/replays"), help="where the replays are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "replays.json")
    given = parser.parse_args()
    rows, missed = [], []
    for task, data in DATA_SETS:
        if not is_stored(load_task(task), data):
            print(f"{task} {data}: not on this machine")
            continue
        out = given.runs / f"{task}_{data}"
        if not (out / "replay.json").exists():
            command = [sys.executable, "-m", "drifting_policy.replay", f"task={task}", f"data={data}", f"out={out}"]
            if subprocess.run(command, check=False).returncode > 1:
                return 1
        required = load_task(task).data[data].replay_score
        rows.append(row(json.loads((out / "replay.json").read_text()), required=required))
        print("  ".join(f"{value}" for value in rows[-1].values()))
        if rows[-1]["required"] is not None and rows[-1]["max_score"] < rows[-1]["required"]:
            missed.append(f"{task} {data} reaches {rows[-1]['max_score']}, not {rows[-1]['required']}.")
    return record(given.out, rows=rows, missed=missed, benchmark="replays")


def row(replayed: dict[str, Any], *, required: float | None) -> dict[str, Any]:
    """What a table shows of a replay."""
    metrics = {name: metric["value"] for name, metric in replayed["metrics"].items()}
    stages = [f"{metrics[name]:.3f}" for name in metrics if name[0] == "p" and name[1:].isdigit()]
    return {
        "task": replayed["task"],
        "data": replayed["data"],
        "demonstrations": replayed["n_episodes"],
        "max_score": round(metrics["max_score"], 4),
        "success": round(metrics["success"], 4),
        "stages": " / ".join(stages),
        "required": required,
        "versions": replayed["versions"],
    }


if __name__ == "__main__":
    sys.exit(main())
