"""`python -m drifting_policy.eval ckpt=DIR`: scores with intervals, per-episode results, latency and a video."""

from pathlib import Path

from drifting_policy import cli
from drifting_policy.checkpoint import load_policy, read_config, resolve
from drifting_policy.config import EvalConfig, TaskConfig
from drifting_policy.demonstrations import bundled
from drifting_policy.evaluation import evaluate_policy, print_scores
from drifting_policy.train import choose_device, use_threads
from drifting_policy.types import CheckpointError, ConfigError

BUNDLED_POLICY = "push_t"


def run(config: EvalConfig) -> None:
    """Evaluate one checkpoint."""
    if not config.ckpt:
        raise ConfigError("Say what to evaluate: ckpt=RUN_OR_CHECKPOINT_DIRECTORY, or ckpt=bundled.")
    use_threads(config.threads)
    is_bundled = config.ckpt == "bundled"
    checkpoint = resolve(bundled(BUNDLED_POLICY) if is_bundled else config.ckpt)
    policy = load_policy(checkpoint, device=choose_device(config.device))
    policy.resample(**config.sampler.changes)
    stored = read_config(checkpoint)
    task = config.task or load_task(str(stored.get("task")))
    out = Path(config.out) if config.out else (Path("runs/bundled_eval") if is_bundled else checkpoint / _folder(config))
    scores = evaluate_policy(
        policy,
        task,
        split=config.split,
        episodes=config.episodes,
        num_envs=config.num_envs,
        inference_batch=config.inference_batch,
        videos=min(config.videos, config.episodes),
        out=out,
        about={
            "checkpoint": str(config.ckpt),
            "step": stored.get("step"),
            "objective": stored.get("objective"),
            "sampler": policy.recipe["sampler"],
        },
    )
    print_scores(scores, out)


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


def _folder(config: EvalConfig) -> str:
    """Another sampler must not overwrite the results of the policy's own."""
    return "_".join(["eval", *(str(value) for value in config.sampler.changes.values())])


if __name__ == "__main__":
    cli.main("eval", run)
