"""`python -m drifting_policy.datasets.push_t ckpt=DIR`: Push-T demonstrations, made by keeping the successes of a policy.

The bundled data set was made by this command. Fresh episode seeds are played until enough of them succeeded; the states and
actions of these episodes, up to the step of the success, are stored beside a card that tells how they came about.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from omegaconf import OmegaConf

from drifting_policy import cli
from drifting_policy.atomic import write_text
from drifting_policy.checkpoint import load_policy, read_config, resolve
from drifting_policy.commands import RolloutConfig
from drifting_policy.config import TaskConfig
from drifting_policy.data.download import array_sha256
from drifting_policy.data.replay_buffer import concatenate, write_replay
from drifting_policy.datasets.card import quantiles
from drifting_policy.eval import load_task
from drifting_policy.evaluation import check_contract, make_env
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import summarize
from drifting_policy.types import ArraySpec, ConfigError, PolicySpec
from drifting_policy.versions import versions

BATCH = 100  # episodes played between two looks at how many succeeded
STATE = ArraySpec((5,))


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Every episode played, and the arrays "steps ..." of `state` and `action` of each one that succeeded."""

    played: list[Episode]
    kept: list[Mapping[str, np.ndarray]]


@final
class StateRecorder:
    """The same policy, but it also looks at `state`, which the evaluation then records."""

    def __init__(self, policy: DriftingPolicy) -> None:
        """Act as `policy` does."""
        self.policy = policy
        observations = {**policy.spec.observations, "state": STATE}
        self.spec: PolicySpec = dataclasses.replace(policy.spec, observations=observations)

    @property
    def max_prefix(self) -> int:
        """That of the policy."""
        return self.policy.max_prefix

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Chunks "b t d" of the policy, which sees its own keys only."""
        return self.policy.act({key: obs[key] for key in self.policy.spec.observations}, noise=noise, prefix=prefix)


def run(config: RolloutConfig) -> None:
    """Play, keep, store, and tell."""
    if not config.ckpt:
        raise ConfigError("Say whose rollouts to keep: ckpt=RUN_OR_CHECKPOINT_DIRECTORY.")
    if not config.out.endswith(".zarr.zip"):
        raise ConfigError(f"The data set is one file: out must end in .zarr.zip; got {config.out}.")
    checkpoint = resolve(config.ckpt)
    stored = read_config(checkpoint)
    rollouts = play(load_policy(checkpoint), load_task(str(stored["task"])), config)
    arrays, ends = concatenate(rollouts.kept)
    out = write_replay(config.out, arrays, ends)
    card = describe(rollouts, out, arrays, ends, origin=stored, command=command_line(config))
    card_file = out.with_name(out.name.removesuffix(".zarr.zip") + ".yaml")
    write_text(card_file, OmegaConf.to_yaml(card))
    print(f"Kept {len(rollouts.kept)} of {len(rollouts.played)} episodes, {ends[-1]} steps: {out}, card {card_file}")


def play(policy: DriftingPolicy, task: TaskConfig, config: RolloutConfig) -> Rollouts:
    """At least `config.episodes` successes, found among at most `config.most` episodes of the rollout seeds.

    Raises:
        ConfigError: where `config.most` episodes did not suffice.
    """
    check_contract(policy, task)
    rollouts = Rollouts([], [])
    while len(rollouts.kept) < config.episodes:
        count = min(BATCH, config.most - len(rollouts.played))
        if count < 1:
            raise ConfigError(
                f"Only {len(rollouts.kept)} of {config.most} episodes succeeded; {config.episodes} were wanted. "
                "Train the policy longer, or raise most or max_steps."
            )
        result = evaluate(
            StateRecorder(policy),
            lambda: make_env(task),
            episode_seeds("rollout", count, skip=len(rollouts.played)),
            num_envs=10,
            max_steps=config.max_steps,
            keep_trajectories=True,
            progress=True,
        )
        rollouts.played.extend(result.episodes)
        successes = [result.trajectories[episode.seed] for episode in result.episodes if episode.success]
        rollouts.kept.extend({key: steps[key] for key in ("state", "action")} for steps in successes)
    return rollouts


def describe(
    rollouts: Rollouts,
    file: Path,
    arrays: Mapping[str, np.ndarray],
    episode_ends: np.ndarray,
    *,
    origin: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """The card: what the file holds, by which command it was made, whose rollouts these are, and how all of them scored."""
    scores = [episode.max_score for episode in rollouts.played]
    return {
        "file": file.name,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "MIT",
        "origin": "successful simulator rollouts of a policy trained by this project",
        "command": command,
        "policy": {key: origin[key] for key in ("task", "data", "objective", "generator", "seed", "step")},
        "arrays": {key: {"shape": list(values.shape), "dtype": str(values.dtype)} for key, values in arrays.items()},
        "array_sha256": {key: array_sha256(values) for key, values in {**arrays, "episode_ends": episode_ends}.items()},
        "episodes": len(episode_ends),
        "episode_steps": quantiles(np.diff(episode_ends, prepend=0)),
        "played": {
            "episodes": len(rollouts.played),
            "seeds": f"{rollouts.played[0].seed} to {rollouts.played[-1].seed}",
            "max_score": quantiles(scores),
            "metrics": {name: dataclasses.asdict(interval) for name, interval in summarize(rollouts.played).items()},
        },
        "versions": versions(),
    }


def command_line(config: RolloutConfig) -> str:
    """The command that makes this data set again."""
    settings = " ".join(f"{key}={value}" for key, value in dataclasses.asdict(config).items())
    return f"python -m drifting_policy.datasets.push_t {settings}"


if __name__ == "__main__":
    cli.main("rollout", run)
