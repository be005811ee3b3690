"""`python -m drifting_policy.protocol runs=[RUN,...]`: the published protocol over training seeds, and an honest selection."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints, read_config
from drifting_policy.commands import ProtocolConfig
from drifting_policy.config import TaskConfig
from drifting_policy.eval import load_task
from drifting_policy.evaluation import writing_to
from drifting_policy.rollout.metrics import labels, stages_of
from drifting_policy.rollout.statistics import cluster_bootstrap_mean
from drifting_policy.rollout.workers import choose_workers
from drifting_policy.rows import result_row
from drifting_policy.train import use_threads
from drifting_policy.trial import Trial, last_steps, play_trial
from drifting_policy.types import CheckpointError, ConfigError

SELECTION_SPLIT = "validation"


def run(config: ProtocolConfig) -> None:
    """Play what was not played yet, print the tables, and write protocol.json."""
    runs = [Path(name) for name in config.runs]
    if not runs or len(set(runs)) != len(runs):
        raise ConfigError("Say which runs belong together, each once: runs=[RUN_SEED0,RUN_SEED1,RUN_SEED2].")
    if not 0 <= config.select <= config.checkpoints:
        raise ConfigError(f"select must lie between 0 and checkpoints={config.checkpoints}; got {config.select}.")
    use_threads(config.threads)
    trained_on = load_task(_one_recipe(runs))
    task = config.task or trained_on
    settings: dict[str, Any] = {
        "sampler": config.sampler.changes,
        "num_envs": config.num_envs,
        "inference_batch": config.inference_batch,
        "workers": choose_workers(config.workers, episodes=config.episodes, num_envs=config.num_envs),
        "step_timeout": config.step_timeout,
    }
    steps = {path: last_steps(path, config.checkpoints) for path in runs}
    trials = [
        play_trial(path, task, steps=steps[path], split=config.split, episodes=config.episodes, **settings) for path in runs
    ]
    rows = published(trials)
    if config.select:
        rows += selected(trials, task, keep=config.select, metric=config.select_by, episodes=config.select_episodes, **settings)
    out = Path(config.out)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "protocol.json", rows)
    print(table(rows))
    print(f"  files        {out}")


def published(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Rows of the protocol of Diffusion Policy (Chi et al. 2023, section 5): mean of the last checkpoints, and the best one.

    The best checkpoint of each run is chosen on the very episodes it is judged by, as in the paper, so that row is too high.
    """
    rows, count = [], len(trials[0].steps)
    for metric in labels(trials[0].stages):
        best = [part_of(trial, [trial.steps[int(trial.tables[metric].mean(axis=1).argmax())]]) for trial in trials]
        rows.append(row(f"mean of last {count}", metric, trials))
        rows.append(row(f"best of last {count}, chosen on these episodes", metric, best))
    return rows


def selected(
    trials: Sequence[Trial], task: TaskConfig, *, keep: int, metric: str, episodes: int, **settings: Any
) -> list[dict[str, Any]]:
    """Rows of the `keep` checkpoints of each run with the highest lower confidence bound of `metric` on validation episodes."""
    chosen = []
    for trial in trials:
        judged = play_trial(trial.run, task, steps=trial.steps, split=SELECTION_SPLIT, episodes=episodes, **settings)
        chosen.append(part_of(trial, best_steps(judged, metric, keep)))
    name = f"best {keep} of last {len(trials[0].steps)}, chosen on {episodes} {SELECTION_SPLIT} episodes by {labels()[metric]}"
    return [row(name, each, chosen) for each in labels(trials[0].stages)]


def best_steps(trial: Trial, metric: str, keep: int) -> list[int]:
    """The `keep` steps with the highest lower bound; among equals the later ones."""
    ranked = sorted(zip(trial.lower_bounds(metric), trial.steps, strict=True), reverse=True)
    return sorted(step for _, step in ranked[:keep])


def part_of(trial: Trial, steps: Sequence[int]) -> Trial:
    """The trial of some of its checkpoints."""
    results = tuple(trial.results[trial.steps.index(step)] for step in steps)
    return replace(trial, steps=tuple(steps), results=results)


def row(name: str, metric: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """A result row of one protocol, with the mean and the steps of each training run."""
    interval = cluster_bootstrap_mean([trial.tables[metric] for trial in trials])
    means = [round(float(np.mean(trial.tables[metric])), 4) for trial in trials]
    steps = {str(trial.run): list(trial.steps) for trial in trials}
    objective = str(trials[0].config["objective"]["name"])
    about = {"protocol": name, "per_training_seed": means, "steps": steps}
    return result_row(objective, metric, interval, trials, latency_ms=None, **about)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    first, shown = rows[0], labels(stages_of({row["metric"] for row in rows}))
    lines = [
        f"\n{first['task']}, {first['objective']}, head {first['head']}, {first['nfe']} network evaluations per plan: "
        f"{first['n_training_seeds']} runs, {first['n_episodes']} {first['split']} episodes"
    ]
    for name in dict.fromkeys(row["protocol"] for row in rows):
        lines.append(f"  {name}")
        for found in (row for row in rows if row["protocol"] == name):
            interval = f"95 % [{found['low']:.3f}, {found['high']:.3f}]"
            seeds = " ".join(f"{value:.3f}" for value in found["per_training_seed"])
            lines.append(f"    {shown[found['metric']]:<12} {found['value']:.3f}   {interval}   runs {seeds}")
    return "\n".join(lines)


def _one_recipe(runs: Sequence[Path]) -> str:
    """The name of the task of the runs, which may differ in their seed alone."""
    configs = []
    for path in runs:
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise CheckpointError(f"{path} is no run: it has no checkpoints/step_*.")
        configs.append(read_config(checkpoints[-1]))
    for name in ("task", "data", "objective", "generator", "trainer"):
        for path, config in zip(runs, configs, strict=True):
            if config[name] != configs[0][name]:
                raise ConfigError(
                    f"{path} does not belong to {runs[0]}: its {name} is {config[name]}, not {configs[0][name]}. "
                    "Only the seeds of the runs may differ."
                )
    if len({config["seed"] for config in configs}) != len(configs):
        raise ConfigError(f"The runs must have different training seeds; got {[config['seed'] for config in configs]}.")
    return str(configs[0]["task"])


if __name__ == "__main__":
    cli.main("protocol", run)
