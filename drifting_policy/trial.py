"""Trial: one training run whose checkpoints all played the same episodes. What was played is kept beside the checkpoint."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import WEIGHTS, list_checkpoints, load_policy, read_config
from drifting_policy.config import TaskConfig
from drifting_policy.evaluation import play, writing_to
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout.evaluate import EvalResult
from drifting_policy.rollout.metrics import episode_metrics, labels
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import summarize
from drifting_policy.seams import RECEDING, Execution
from drifting_policy.shards import pack, shard_key, unpack
from drifting_policy.types import CheckpointError


@dataclass(frozen=True)
class Trial:
    """The results of `steps`' checkpoints of one run on the episodes of `seeds`.

    `tables` maps each metric to an array "c e" over checkpoints and episodes; `config` is that of the newest checkpoint, `nfe`
    the network evaluations of one plan.
    """

    run: Path
    steps: tuple[int, ...]
    split: str
    seeds: tuple[int, ...]
    results: tuple[EvalResult, ...]
    config: Mapping[str, Any]
    sampler: Mapping[str, Any]
    nfe: int
    stages: int = 0

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """Each metric as an array "c e"."""
        return {
            name: np.array([[episode_metrics(e, self.stages)[name] for e in result.episodes] for result in self.results])
            for name in labels(self.stages)
        }

    def lower_bounds(self, metric: str) -> list[float]:
        """The lower end of the 95 % interval of each checkpoint over the episodes."""
        return [summarize(result.episodes, stages=self.stages)[metric].low for result in self.results]


def last_steps(run: Path, count: int) -> list[int]:
    """The steps of the last `count` checkpoints, oldest first.

    Raises:
        CheckpointError: where the run has fewer.
    """
    paths = list_checkpoints(run)
    if len(paths) < count:
        raise CheckpointError(
            f"{run} has {len(paths)} checkpoints, fewer than {count}: train with a smaller trainer.checkpoint_every and "
            "a larger trainer.keep_checkpoints, or ask for fewer."
        )
    return [int(read_config(path)["step"]) for path in paths[-count:]]


def play_trial(
    run: Path,
    task: TaskConfig,
    *,
    steps: Sequence[int],
    split: str,
    episodes: int,
    sampler: Mapping[str, Any] | None = None,
    latency_steps: int = 0,
    execution: Execution = RECEDING,
    num_envs: int = 10,
    inference_batch: int = 1,
    workers: int = 0,
    step_timeout: float = 60.0,
) -> Trial:
    """The episodes of the checkpoints of `steps`; those that were played before, under equal conditions, are read.

    Raises:
        CheckpointError: where a checkpoint is missing or damaged.
        ConfigError: on settings that the sampler does not have.
    """
    seeds = episode_seeds(split, episodes)
    # What is not the default alone, so that what was played before there was a choice is found again.
    delayed = execution.changes | ({"latency_steps": latency_steps} if latency_steps else {})
    paths = {int(read_config(path)["step"]): path for path in list_checkpoints(run)}
    if missing := sorted(set(steps) - set(paths)):
        raise CheckpointError(f"{run} has no checkpoint of step {missing}; it has {sorted(paths)}.")
    spread: dict[str, Any] = {"num_envs": num_envs, "workers": workers, "step_timeout": step_timeout}
    results = []
    for step in steps:
        policy = load_policy(paths[step])
        drawn = policy.resample(**(sampler or {}))
        stored = read_config(paths[step])
        key = shard_key(
            task,
            checkpoint=stored["sha256"][WEIGHTS],
            split=split,
            episodes=episodes,
            sampler=drawn,
            inference_batch=inference_batch,
            **delayed,
        )
        execution.check(policy, latency_steps)
        how = {"latency_steps": latency_steps, "execution": execution}
        results.append(_once(policy, task, key, seeds, folder=paths[step] / "trials", **how, **spread))
    return Trial(run, tuple(steps), split, tuple(seeds), tuple(results), stored, drawn, policy.evaluations, task.stages)


def _once(
    policy: DriftingPolicy, task: TaskConfig, key: dict[str, Any], seeds: Sequence[int], *, folder: Path, **options: Any
) -> EvalResult:
    """The result under `key`, from the folder or played now; those of the `options` that change it are in the key."""
    key = json.loads(json.dumps(key))
    file = folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    kept = unpack(file)
    if kept is not None and kept[0] == key and [episode.seed for episode in kept[1].episodes] == sorted(seeds):
        return kept[1]
    result = play(policy, task, seeds, inference_batch=key["inference_batch"], out=folder, **options)
    with writing_to(folder):
        write_json(file, pack(result, key))
    return result
