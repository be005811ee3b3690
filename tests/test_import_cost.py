"""What a robot does not need, it does not load. Each import runs in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "numpy",
    "torch",
    "hydra",
    "omegaconf",
    "gymnasium",
    "zarr",
    "mujoco",
    "tqdm",
    "av",
    "safetensors",
    "msgpack",
    "websockets",
    "diffusers",
    "onnx",
    "onnxruntime",
    "drifting_policy.drift",
]


def loaded_by(statement: str, *, cwd: Path) -> set[str]:
    """Those of the heavy modules that `statement` loads."""
    code = f"import sys\n{statement}\nprint(*({set(HEAVY)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import drifting_policy; dir(drifting_policy); drifting_policy.__version__", set()),
        ("import drifting_policy.types, drifting_policy.seams, drifting_policy.chunking", {"numpy"}),
        ("import drifting_policy.control.candidates", {"numpy"}),
        ("from drifting_policy import ChunkExecutor, Policy, PolicySpec", {"numpy"}),
        ("from drifting_policy import Controller; import drifting_policy.control.process", {"numpy"}),
        ("import drifting_policy.control.realtime, drifting_policy.control.log", {"numpy"}),
        ("import drifting_policy.control.client, drifting_policy.control.server", {"numpy"}),
        ("from drifting_policy import OnnxPolicy", {"numpy"}),
        ("import drifting_policy.rollout.worker, drifting_policy.rollout.environment", {"numpy", "gymnasium"}),
        ("from drifting_policy import load_policy", {"numpy", "torch", "safetensors", "tqdm"}),  # torch brings tqdm
        ("import drifting_policy.imagenet; dir(drifting_policy.imagenet)", set()),
        ("from drifting_policy.imagenet import load_encoder, load_generator", {"numpy", "torch", "safetensors", "tqdm"}),
    ],
)
def test_imports_load_only_what_they_need(statement: str, allowed: set[str], tmp_path: Path) -> None:
    assert loaded_by(statement, cwd=tmp_path) <= allowed


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    assert loaded_by("import tqdm", cwd=tmp_path) == {"tqdm"}
