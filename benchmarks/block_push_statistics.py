"""What the demonstrations of BlockPush have in common: those of this project's expert, and the published ones.

Quantiles of each element of the observation, at the first step of an episode and at all steps, of the length of an action, and
of the length of an episode; those of both data sets stand side by side in results/block_push/statistics.json.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.atomic import write_json
from drifting_policy.data.replay_buffer import ReplayBuffer, open_replay
from drifting_policy.datasets.block_push import NAMES
from drifting_policy.envs.block_push import within
from drifting_policy.versions import versions

ROOT = Path(__file__).resolve().parents[1]
POSE = ("x", "y", "yaw")
ELEMENTS = [
    *(f"{body} {part}" for body in ("block", "block2") for part in POSE),
    *(f"{body} {part}" for body in ("effector", "effector target") for part in POSE[:2]),
    *(f"{body} {part}" for body in ("target", "target2") for part in POSE),
]
QUANTILES = {"min": 0.0, "q05": 0.05, "q50": 0.5, "q95": 0.95, "max": 1.0}


def main(arguments: Sequence[str]) -> None:
    """Read both data sets, write the record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripted", type=Path, default=Path("block_push_scripted.zarr.zip"), help="made by the recipe")
    parser.add_argument("--published", type=Path, required=True, help="multimodal_push_seed.zarr, or a zip file of it")
    parser.add_argument("--out", type=Path, default=ROOT / "results/block_push/statistics.json")
    options = parser.parse_args(arguments)
    buffers = {name: open_replay(getattr(options, name), ["obs", "action"]) for name in ("scripted", "published")}
    table = {
        "data": {name: summary(buffer) for name, buffer in buffers.items()},
        "rows": [row for pair in zip(*(rows(name, buffer) for name, buffer in buffers.items()), strict=True) for row in pair],
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, table)
    print(report(table))


def modes(buffer: ReplayBuffer) -> np.ndarray:
    """For each episode the index in MODES of the block and the target that met first, -1 where none did: integers "n"."""
    inside = within(buffer.arrays["obs"].astype(np.float64)).reshape(-1, len(NAMES))
    found = []
    for start, end in zip(buffer.starts, buffer.episode_ends, strict=True):
        met = inside[start:end].any(axis=1)
        found.append(int(inside[start + met.argmax()].argmax()) if met.any() else -1)
    return np.array(found)


def summary(buffer: ReplayBuffer) -> dict[str, Any]:
    """How many episodes and steps there are, and how many episodes of each mode."""
    counts = np.bincount(modes(buffer) + 1, minlength=len(NAMES) + 1).tolist()
    return {
        "episodes": buffer.num_episodes,
        "steps": buffer.num_steps,
        "modes": dict(zip(["none", *NAMES], counts, strict=True)),
    }


def rows(name: str, buffer: ReplayBuffer) -> Iterator[dict[str, Any]]:
    """One row for each quantity: its quantiles over n values."""
    obs, action = buffer.arrays["obs"], buffer.arrays["action"]
    quantities: dict[str, np.ndarray] = {
        "episode length, steps": buffer.lengths,
        "action length, m": np.linalg.norm(action, axis=1),
    }
    for scope, values in {"first": obs[buffer.starts], "any": obs}.items():
        for element, column in zip(ELEMENTS, values.T, strict=True):
            quantities[f"{element}, {scope} step"] = column
    for quantity, values in quantities.items():
        spread = {key: round(float(np.quantile(values, share)), 4) for key, share in QUANTILES.items()}
        yield {"quantity": quantity, "data": name, "n": len(values), **spread}


def report(table: Mapping[str, Any]) -> str:
    """The record for people."""
    lines = [
        f"{name}: {of['episodes']} episodes, {of['steps']} steps, first {of['modes']}" for name, of in table["data"].items()
    ]
    lines.append(f"{'':36}{'':12}" + "".join(f"{key:>9}" for key in QUANTILES))
    for row in table["rows"]:
        lines.append(f"{row['quantity']:36}{row['data']:12}" + "".join(f"{row[key]:9.3f}" for key in QUANTILES))
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
