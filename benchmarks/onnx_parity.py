"""`python benchmarks/onnx_parity.py`: is an exported policy the same policy, for the architecture of every task?

Every task's policy as `train` makes it, with the encoder that the task names and the default head, and Push-T's with the other
heads too. Weights are fresh and then disturbed, so that no layer is zero. Each is exported to ONNX and held against PyTorch on
random observations, with noise and without. The bar is on the largest difference in network units.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, record

from drifting_policy import cli
from drifting_policy.config import options
from drifting_policy.control.onnx_policy import OnnxPolicy
from drifting_policy.exporting import FILES, write_graph
from drifting_policy.normalize import Normalizer
from drifting_policy.parity import TOLERANCE, compare
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import Stats

OTHER_HEADS = (("push_t", "unet"), ("push_t", "transformer"))


def cases() -> list[tuple[str, str]]:
    """Every task with the default head, and one with the others."""
    found = (
        Path(str(file)).stem for file in (files("drifting_policy.configs") / "task").iterdir() if str(file).endswith(".yaml")
    )
    return [*((name, "mlp") for name in sorted(found) if not name.endswith("_base")), *OTHER_HEADS]


def build(task: str, head: str) -> DriftingPolicy:
    """A policy of the size that a training makes; its observations and actions lie around 3, 20 wide."""
    config = cli.compose("train", [f"task={task}", f"generator={head}"])
    spec, rng = config.task.spec, np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        policy = DriftingPolicy(spec, encoder=options(config.encoder), generator=options(config.generator), noise_scale=0.5)
    arrays = {key: array for key, array in spec.observations.items() if not array.is_image} | {"action": spec.action}
    stats = {key: Stats.of(rng.normal(3, 20, (50, *array.shape))) for key, array in arrays.items()}
    stats |= {key: Stats.of_images() for key in set(spec.observations) - set(arrays)}
    policy.normalizer = Normalizer.fit(stats, dict.fromkeys(stats, "range"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy.requires_grad_(False).eval()


def measure(task: str, head: str) -> dict[str, Any]:
    """One row."""
    policy = build(task, head)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILES["onnx"]
        write_graph(policy, file, form="onnx", about={})
        action = policy.spec.action.shape[0]
        parity = compare(policy, OnnxPolicy(file), span=np.full(action, 80.0), demonstrations=None)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    row: dict[str, Any] = {"task": task, "head": head, "encoder": policy.recipe["encoder"]["name"]}
    row |= {"parameters": parameters, "difference": parity.largest["network"], "chunks": parity.to_dict()["chunks"]}
    print(f"{task:<16} {head:<12} {parameters:>12,} parameters   {row['difference']:.1e}", flush=True)
    return row


def main(argv: Sequence[str]) -> int:
    """Export and compare all, print the table, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS / "onnx_parity.json")
    given = parser.parse_args(argv)
    rows = [measure(task, head) for task, head in cases() if task in (given.tasks or [task])]
    worst = [row for row in rows if not row["difference"] <= TOLERANCE]
    missed = [f"the {row['head']} of {row['task']} differs by {row['difference']:.1e}, above {TOLERANCE:.0e}." for row in worst]
    return record(given.out, rows=rows, missed=missed, benchmark="onnx_parity", bar=f"difference <= {TOLERANCE:.0e}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
