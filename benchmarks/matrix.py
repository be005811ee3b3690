"""results/benchmarks/matrix.json: the baselines of all tasks side by side, one row per task and metric."""

import json
import sys
from typing import Any

from timing import RESULTS, record

HOME = RESULTS.parent
ARMS = {"drift": "drift", "regression": "regression", "diffusion, DDIM 10": "ddim_10"}
DIFFERENCES = {f"drift - {name}": f"drift_minus_{label}" for name, label in list(ARMS.items())[1:]}
# What the published tables name: success, or the stages of a task.
METRICS = {
    "push_t/human_unet": ["max_score"],
    "lift/scripted_unet": ["success"],
    "can/scripted_unet": ["success"],
    "square/scripted_unet": ["success"],
    "kitchen/human_unet": ["p3", "p4"],
    "block_push/scripted_unet": ["p1", "p2"],
    "conveyor/bundled_unet": ["success"],
    "push_t_image/human_small": ["max_score"],
}


def main() -> int:
    """Gather what is measured; print and write it."""
    rows = [row(name, metric) for name, metrics in METRICS.items() for metric in metrics if (HOME / f"{name}.json").exists()]
    for each in rows:
        print("  ".join(f"{value}" for value in each.values()))
    return record(RESULTS / "matrix.json", rows=rows, missed=[], benchmark="matrix")


def row(name: str, metric: str) -> dict[str, Any]:
    """One line: the arms and the differences with their intervals, and what they were measured with."""
    found = {each["objective"]: each for each in json.loads((HOME / f"{name}.json").read_text()) if each["metric"] == metric}
    first = found["drift"]
    cells = {"task": first["task"], "data": first["data"], "metric": metric.replace("_", " ")}
    cells |= {label: _interval(found[arm], signed=False) for arm, label in ARMS.items()}
    cells |= {label: _interval(found[difference], signed=True) for difference, label in DIFFERENCES.items()}
    count = first["n_training_seeds"] * first["n_checkpoints"] * first["n_episodes"]
    return cells | {"seeds": first["n_training_seeds"], "episodes": count, "source": f"results/{name}.json"}


def _interval(found: dict[str, Any], *, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{found['value']:{sign}.2f} [{found['low']:{sign}.2f}, {found['high']:{sign}.2f}]"


if __name__ == "__main__":
    sys.exit(main())
