"""What two runs that must be the same are compared by."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drifting_policy.checkpoint import list_checkpoints, load_state


def assert_same_end(first: Path, second: Path) -> None:
    """Two runs ended with the same weights, averages, optimiser, log and pictures, where they have such."""
    ours, theirs = list_checkpoints(first)[-1], list_checkpoints(second)[-1]
    assert ours.name == theirs.name
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert equal(load_state(ours), load_state(theirs))
    assert metrics(first) == metrics(second)
    for picture in (first / "pictures").glob("*"):
        assert picture.read_bytes() == (second / "pictures" / picture.name).read_bytes()


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The log of a run without its speed."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


def equal(first: Any, second: Any) -> bool:
    """Whether nested values are the same, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)
