"""`python -m drifting_policy.compare a=CKPT b=CKPT`: which of two policies is better, judged on equal episodes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.commands import CompareConfig
from drifting_policy.eval import Candidate, load_candidate
from drifting_policy.evaluation import check_contract, env_factory, writing_to
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.metrics import labels, stages_of
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import Comparison, compare_episodes
from drifting_policy.rollout.workers import choose_workers
from drifting_policy.train import use_threads
from drifting_policy.types import ConfigError
from drifting_policy.versions import versions

FEWEST = 2  # episodes that have a spread


def run(config: CompareConfig) -> None:
    """Play the same episodes with both policies, tell the differences, and write compare.json."""
    if not (config.a and config.b):
        raise ConfigError("Say what to compare: a=CKPT b=CKPT, each a run, a checkpoint directory, or bundled.")
    if config.episodes < FEWEST or config.inference_batch < 1:
        raise ConfigError(
            f"A comparison needs episodes of at least {FEWEST} and an inference_batch of at least 1; "
            f"got {config.episodes} and {config.inference_batch}."
        )
    use_threads(config.threads)
    candidates = {
        name: load_candidate(ckpt, task=config.task, device=config.device) for name, ckpt in (("a", config.a), ("b", config.b))
    }
    _check_one_world(candidates["a"], candidates["b"])
    out = Path(config.out)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    noise_seeds = {"a": config.noise_seed_a, "b": config.noise_seed_b}
    episodes = {name: _play(candidate, config, noise_seeds[name]) for name, candidate in candidates.items()}
    comparisons = compare_episodes(episodes["a"], episodes["b"], stages=candidates["a"].task.stages)
    with writing_to(out):
        write_json(out / "compare.json", _table(config, candidates, noise_seeds, episodes, comparisons))
    print(report(config, comparisons))
    print(f"  files        {out}")


def report(config: CompareConfig, comparisons: dict[str, Comparison]) -> str:
    """The differences and one plain sentence for each metric."""
    lines = [f"\na = {config.a}, b = {config.b}: {config.episodes} {config.split} episodes, a - b"]
    for name, label in labels(stages_of(comparisons)).items():
        found = comparisons[name]
        low, high = f"{found.difference.low:+.3f}", f"{found.difference.high:+.3f}"
        confidence = f"{100 * found.difference.confidence:.0f} %"
        lines.append(
            f"  {label:<12} {found.difference.value:+.3f}   {confidence} [{low}, {high}]   p {found.p:.4f} ({found.test})   "
            + sentence(found)
        )
    return "\n".join(lines)


def sentence(found: Comparison) -> str:
    """What the comparison says, in words."""
    if found.better:
        return f"{found.better} is better"
    return f"no difference at the {100 * (1 - found.difference.confidence):.0f} % level"


def _check_one_world(a: Candidate, b: Candidate) -> None:
    """Refuse pairs whose episodes of equal seed would not be equal; what a policy sees, and how far it plans, may differ."""
    for candidate in (a, b):
        check_contract(candidate.policy, candidate.task)
    for name in ("env_id", "env_options", "max_steps", "control_hz", "stages"):
        first, second = getattr(a.task, name), getattr(b.task, name)
        if first != second:
            raise ConfigError(
                f"a and b cannot be compared: the {name} of task {a.task.name} is {first}, of {b.task.name} {second}."
            )


def _play(candidate: Candidate, config: CompareConfig, noise_seed: int) -> tuple[Episode, ...]:
    return evaluate(
        candidate.policy,
        env_factory(candidate.task),
        episode_seeds(config.split, config.episodes),
        num_envs=config.num_envs,
        max_steps=candidate.task.max_steps,
        inference_batch=config.inference_batch,
        noise_seed=noise_seed,
        progress=True,
        workers=choose_workers(config.workers, episodes=config.episodes, num_envs=config.num_envs),
        step_timeout=config.step_timeout,
    ).episodes


def _table(
    config: CompareConfig,
    candidates: dict[str, Candidate],
    noise_seeds: dict[str, int],
    episodes: dict[str, tuple[Episode, ...]],
    comparisons: dict[str, Comparison],
) -> dict[str, Any]:
    """Everything that compare.json holds."""
    return {
        "split": config.split,
        "n_episodes": config.episodes,
        "metrics": {
            name: asdict(found) | {"better": found.better, "sentence": sentence(found)} for name, found in comparisons.items()
        },
        **{
            name: candidate.about
            | {
                "task": candidate.task.name,
                "noise_seed": noise_seeds[name],
                "episodes": [asdict(episode) for episode in episodes[name]],
            }
            for name, candidate in candidates.items()
        },
        "versions": versions(),
    }


if __name__ == "__main__":
    cli.main("compare", run)
