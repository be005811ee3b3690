"""`python -m drifting_policy.eval ckpt=DIR`: scores with intervals, per-episode results, latency and a video."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drifting_policy import cli
from drifting_policy.checkpoint import WEIGHTS, load_policy, read_config, resolve
from drifting_policy.commands import EvalConfig
from drifting_policy.config import TaskConfig
from drifting_policy.demonstrations import Demonstrations, bundled, is_stored, load_demonstrations
from drifting_policy.evaluation import evaluate_policy, latency_curve, play, print_curve, print_scores, write_scores
from drifting_policy.policy import DriftingPolicy
from drifting_policy.reporting.page import write_page
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.workers import choose_workers
from drifting_policy.shards import Shard, merge_shards, shard_key, write_shard
from drifting_policy.train import choose_device, use_threads
from drifting_policy.types import CheckpointError, ConfigError, DatasetError

BUNDLED, BUNDLED_POLICY = "bundled", "push_t"


@dataclass(frozen=True)
class Candidate:
    """A policy to be judged, its task, directory and checksum of its checkpoint, what a result tells about it, and its data."""

    policy: DriftingPolicy
    task: TaskConfig
    checkpoint: Path
    checksum: str
    about: dict[str, Any]
    data: str = ""


def run(config: EvalConfig) -> None:
    """Evaluate one checkpoint."""
    if not config.ckpt:
        raise ConfigError("Say what to evaluate: ckpt=RUN_OR_CHECKPOINT_DIRECTORY, or ckpt=bundled.")
    use_threads(config.threads)
    candidate = load_candidate(config.ckpt, task=config.task, device=config.device, sampler=config.sampler.changes)
    place = Path(f"runs/bundled_{_folder(config)}") if config.ckpt == BUNDLED else candidate.checkpoint / _folder(config)
    out = Path(config.out) if config.out else place
    if config.out is None and config.latency_steps != 0 and not isinstance(config.latency_steps, list):
        out /= f"latency_{config.latency_steps}"  # where the table puts it; the scores without latency stay
    if config.shard is not None:
        run_shard(config, candidate, out)
        return
    options: dict[str, Any] = {
        "split": config.split,
        "episodes": config.episodes,
        "num_envs": config.num_envs,
        "inference_batch": config.inference_batch,
        "workers": choose_workers(config.workers, episodes=config.episodes, num_envs=config.num_envs),
        "step_timeout": config.step_timeout,
        "execution": config.execution,
        "videos": min(config.videos, config.episodes),
        "out": out,
        "about": candidate.about,
        "demonstrations": stored_demonstrations(candidate) if config.videos else None,
    }
    if isinstance(config.latency_steps, list):
        print_curve(latency_curve(candidate.policy, candidate.task, latencies=config.latency_steps, **options), out)
    else:
        scores = evaluate_policy(candidate.policy, candidate.task, latency_steps=config.latency_steps, **options)
        print_scores(scores, out)
    print(f"  page         {write_page([out])}")


def run_shard(config: EvalConfig, candidate: Candidate, out: Path) -> None:
    """Play one part of an evaluation, or put its parts together."""
    if isinstance(config.latency_steps, list):
        raise ConfigError("A shard has one latency; give latency_steps=N instead of a list.")
    task, seeds = candidate.task, episode_seeds(config.split, config.episodes)
    shard = Shard.parse(str(config.shard), episodes=config.episodes)
    settings = {name: getattr(config, name) for name in ("split", "episodes", "latency_steps", "inference_batch")}
    settings |= asdict(config.execution) | {"sampler": candidate.about["sampler"]}
    key = shard_key(task, checkpoint=candidate.checksum, **settings)
    if shard.index is None:
        result = merge_shards(shard.count, seeds, key, out=out)
        scores = write_scores(
            result,
            task=task,
            split=config.split,
            latency_steps=config.latency_steps,
            nfe=candidate.policy.evaluations,
            out=out,
            about=candidate.about | asdict(config.execution),
        )
        print_scores(scores, out)
        print(f"  page         {write_page([out])}")
        return
    part = shard.of(seeds)
    result = play(
        candidate.policy,
        task,
        part,
        num_envs=config.num_envs,
        inference_batch=config.inference_batch,
        latency_steps=config.latency_steps,
        execution=config.execution,
        out=out,
        workers=choose_workers(config.workers, episodes=len(part), num_envs=config.num_envs),
        step_timeout=config.step_timeout,
    )
    print(f"{len(result.episodes)} episodes: {write_shard(shard, result, key, out=out)}")


def load_candidate(ckpt: str, *, task: TaskConfig | None, device: str, sampler: Mapping[str, Any] | None = None) -> Candidate:
    """The policy of a run, a checkpoint directory, or "bundled"; without `task`, on the task it was trained on.

    `sampler` changes how chunks are drawn, as `DriftingPolicy.resample` does.

    Raises:
        CheckpointError: where there is no such checkpoint, or it is damaged.
        ConfigError: where the device cannot be used, or the sampler has no such settings.
    """
    checkpoint = resolve(bundled(BUNDLED_POLICY) if ckpt == BUNDLED else ckpt)
    policy = load_policy(checkpoint, device=choose_device(device))
    drawn = policy.resample(**(sampler or {}))
    stored = read_config(checkpoint)
    about = {"checkpoint": str(ckpt), "step": stored.get("step"), "objective": stored.get("objective")}
    about["sampler"] = drawn
    task = task or load_task(str(stored.get("task")))
    return Candidate(policy, task, checkpoint, stored["sha256"][WEIGHTS], about, str(stored.get("data", "")))


def load_task(name: str) -> TaskConfig:
    """The task as its YAML declares it.

    Raises:
        CheckpointError: where no such task exists.
    """
    try:
        task: TaskConfig = cli.compose("train", [f"task={name}"]).task
    except ConfigError as error:
        raise CheckpointError(f"The task '{name}' is not known here: {error}") from error
    return task


def stored_demonstrations(candidate: Candidate) -> Demonstrations | None:
    """What the policy learnt from, where it lies on this machine: its exhibits show what was demonstrated nearest."""
    try:
        return load_demonstrations(candidate.task, candidate.data) if is_stored(candidate.task, candidate.data) else None
    except DatasetError:
        return None


def _folder(config: EvalConfig) -> str:
    """Another way to draw chunks or to execute them must not overwrite the results of the policy's own."""
    drawn, changes = config.sampler.changes, config.execution.changes
    noise = [f"noise{drawn.pop('noise_scale'):g}"] if "noise_scale" in drawn else []
    executed = [str(changes.pop("seam"))] if "seam" in changes else []
    executed += [name if value is True else f"{name}{value}" for name, value in changes.items()]
    return "_".join(["eval", *map(str, drawn.values()), *noise, *executed])


if __name__ == "__main__":
    cli.main("eval", run)
