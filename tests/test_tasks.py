"""Every task of configs/task goes the whole way: two training steps with a resumption between them, and an episode."""

import json
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from drifting_policy import eval as evaluation
from drifting_policy import train
from drifting_policy.checkpoint import list_checkpoints, read_config
from drifting_policy.cli import compose
from drifting_policy.config import TaskConfig
from drifting_policy.data.replay_buffer import write_replay

FOLDER = Path(str(files("drifting_policy.configs"))) / "task"
TASKS = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_base"))
STEPS, ENDS = 60, np.array([20, 40, 60])
SMALL = ("generator.width=16", "generator.depth=1", "trainer.batch_size=4", "trainer.validation_chunks=4", "threads=1")


def made_up(task: TaskConfig, path: Path) -> str:
    """A data set of noise that holds everything the task asks for."""
    rng, sizes, arrays = np.random.default_rng(0), dict[str, int](), dict[str, np.ndarray]()
    for config in (*task.observations.values(), task.action):
        if config.dtype == "uint8":
            arrays[config.source] = rng.integers(0, 255, (STEPS, *config.shape), dtype=np.uint8)
        elif config.source not in task.keypoints:
            sizes[config.source] = max(sizes.get(config.source, 0), (config.start or 0) + math.prod(config.shape))
    for body in task.keypoints.values():
        sizes[body.source] = max(sizes.get(body.source, 0), body.start + 3)
    arrays |= {source: rng.normal(size=(STEPS, size)).astype(np.float32) for source, size in sizes.items()}
    return str(write_replay(path, arrays, ENDS))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_the_whole_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTING_POLICY_CACHE", str(tmp_path / "cache"))
    task = compose("train", [f"task={name}"]).task
    images = any(config.dtype == "uint8" for config in task.observations.values())
    small = [*SMALL, *(["encoder=image_small"] if images else [])]
    settings = [f"task={name}", f"data={made_up(task, tmp_path / 'data.zarr')}", f"run_dir={tmp_path / 'run'}", *small]
    short = ["trainer=debug", "trainer.steps=2", "trainer.eval_episodes=1", "trainer.eval_videos=0", "task.max_steps=9"]
    config = compose("train", [*settings, *short, "trainer.checkpoint_every=1"])
    assert config.trainer.rehearse_resume
    assert train.run(config) == 0
    first, last = list_checkpoints(tmp_path / "run")
    assert [read_config(path)["step"] for path in (first, last)] == [1, 2]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["task"] == name
    metrics = {"max_score", "final_score", "success", *(f"p{k}" for k in range(1, task.stages + 1))}
    assert set(report["metrics"]) == metrics
    candidate = evaluation.load_candidate(str(tmp_path / "run"), task=None, device="cpu")
    assert candidate.task == task
    assert candidate.policy.spec == task.spec
