"""Evaluation of a checkpoint: rollouts, scores with intervals, latency and a video, as files and as a table."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium

from drifting_policy.atomic import write_json
from drifting_policy.config import TaskConfig
from drifting_policy.demonstrations import Demonstrations
from drifting_policy.exhibits import write_exhibits
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout.environment import open_environment
from drifting_policy.rollout.evaluate import EvalResult, evaluate
from drifting_policy.rollout.metrics import labels, stages_of
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import latency_histogram, latency_summary, summarize
from drifting_policy.rollout.video import tile_episodes, write_video
from drifting_policy.seams import RECEDING, Execution
from drifting_policy.types import CheckpointError, ConfigError

MOTIONS = ("boundary_acceleration", "boundary_jerk")


def env_factory(task: TaskConfig) -> Callable[[], gymnasium.Env[Any, Any]]:
    """Makes fresh environments of the task, in a worker process too.

    Raises:
        ConfigError: the task names none.
    """
    if not task.env_id:
        raise ConfigError(f"Task {task.name} names no environment (env_id), so no policy can be evaluated on it.")
    return functools.partial(open_environment, task.env_id, task.env_options, task=task.name)


def make_env(task: TaskConfig) -> gymnasium.Env[Any, Any]:
    """A fresh environment of the task."""
    return env_factory(task)()


def evaluate_policy(
    policy: DriftingPolicy,
    task: TaskConfig,
    *,
    split: str,
    episodes: int,
    num_envs: int,
    inference_batch: int,
    latency_steps: int = 0,
    execution: Execution = RECEDING,
    videos: int,
    out: Path,
    about: dict[str, Any],
    workers: int = 0,
    step_timeout: float = 60.0,
    demonstrations: Demonstrations | None = None,
) -> dict[str, Any]:
    """The scores, which are also written to `out`: scores.json, latency.json and, with `videos` > 0, episodes.mp4 and exhibits.

    scores.json depends on policy, task, split, number of episodes, simulated latency and `execution` only; what varies from run
    to run, the measured latency, stands in latency.json. `nfe` is the number of network evaluations for one plan.

    Raises:
        CheckpointError: where policy and task do not agree on observations, action, horizons or rate.
        ConfigError: where `out` cannot be written, the latency is too long for the chunks, or the policy cannot do the seam.
    """
    if videos < 0:
        raise ConfigError(f"videos must be at least 0; got {videos}.")
    seeds = episode_seeds(split, episodes)
    how: dict[str, Any] = {"inference_batch": inference_batch, "latency_steps": latency_steps, "execution": execution}
    spread: dict[str, Any] = {"num_envs": num_envs, "workers": workers, "step_timeout": step_timeout}
    result = play(policy, task, seeds, video_seeds=seeds[:videos], out=out, **how, **spread)
    about = about | dataclasses.asdict(execution)
    scores = write_scores(
        result, task=task, split=split, latency_steps=latency_steps, nfe=policy.evaluations, out=out, about=about
    )
    if videos:
        with writing_to(out):
            write_exhibits(
                policy,
                task,
                lambda: make_env(task),
                result.episodes,
                demonstrations=demonstrations,
                out=out,
                **how,
            )
    return scores


def play(
    policy: DriftingPolicy,
    task: TaskConfig,
    seeds: Sequence[int],
    *,
    num_envs: int,
    inference_batch: int,
    latency_steps: int,
    execution: Execution = RECEDING,
    video_seeds: Sequence[int] = (),
    out: Path,
    workers: int = 0,
    step_timeout: float = 60.0,
) -> EvalResult:
    """The episodes of `seeds`; an evaluation whose results could not be kept in `out` does not begin."""
    check_contract(policy, task)
    if inference_batch < 1:
        raise ConfigError(f"inference_batch must be at least 1; got {inference_batch}.")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    return evaluate(
        policy,
        env_factory(task),
        seeds,
        num_envs=num_envs,
        max_steps=task.max_steps,
        inference_batch=inference_batch,
        latency_steps=latency_steps,
        execution=execution,
        video_seeds=video_seeds,
        progress=True,
        workers=workers,
        step_timeout=step_timeout,
    )


def write_scores(
    result: EvalResult, *, task: TaskConfig, split: str, latency_steps: int, nfe: int, out: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """The scores, after they, the measured latency and the film of what was filmed were written to `out`."""
    scores = score_table(result, task=task, split=split) | {"latency_steps": latency_steps, "nfe": nfe} | about
    with writing_to(out):
        write_json(out / "scores.json", scores)
        seconds = list(result.plan_seconds)
        latency = dataclasses.asdict(latency_summary(seconds)) | {"histogram": latency_histogram(seconds)}
        write_json(out / "latency.json", latency)
        if result.frames:
            film(result, out / "episodes.mp4", fps=task.control_hz)
    return scores


def latency_curve(
    policy: DriftingPolicy, task: TaskConfig, *, latencies: Sequence[int], out: Path, **options: Any
) -> list[dict[str, Any]]:
    """One flat row of scores for each latency, also written to `out`/scores.json; all files of latency n to `out`/latency_n.

    `options` are those of `evaluate_policy`.

    Raises:
        ConfigError: a latency that is longer than the chunks allow, before the first episode is played.
    """
    execution: Execution = options.get("execution", RECEDING)
    for steps in latencies:
        execution.check(policy, steps)
    rows = []
    for steps in latencies:
        scores = evaluate_policy(policy, task, latency_steps=steps, out=out / f"latency_{steps}", **options)
        told = ("task", "split", "n_episodes", "latency_steps", *dataclasses.asdict(execution), *MOTIONS)
        row = {key: scores[key] for key in told} | options["about"]
        for name, metric in scores["metrics"].items():
            row |= {name: metric["value"], f"{name}_low": metric["low"], f"{name}_high": metric["high"]}
        rows.append(row)
    with writing_to(out):
        write_json(out / "scores.json", {"rows": rows})
    return rows


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence that names `out`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"The results cannot be written to {out} ({error}); choose another out=DIR.") from error


def check_contract(policy: DriftingPolicy, task: TaskConfig) -> None:
    """Refuse a policy whose contract is not the task's."""
    ours, theirs = policy.spec.to_dict(), task.spec.to_dict()
    for name in ours:
        if ours[name] != theirs[name]:
            raise CheckpointError(
                f"The checkpoint does not fit task {task.name}: its {name} is {ours[name]}, the task's is {theirs[name]}."
            )


def score_table(result: EvalResult, *, task: TaskConfig, split: str) -> dict[str, Any]:
    """Aggregates with intervals, means over episodes of what is largest at the boundaries of chunks, and every episode."""
    metrics = summarize(result.episodes, stages=task.stages)
    motions = {name: [value for e in result.episodes if (value := getattr(e, name)) is not None] for name in MOTIONS}
    return {
        "task": task.name,
        "split": split,
        "n_episodes": len(result.episodes),
        "metrics": {name: dataclasses.asdict(interval) for name, interval in metrics.items()},
        **{name: sum(values) / len(values) if values else None for name, values in motions.items()},
        "episodes": [dataclasses.asdict(episode) for episode in result.episodes],
    }


def film(result: EvalResult, path: Path, *, fps: float) -> None:
    """A grid of the filmed episodes, green where they succeeded."""
    filmed = {episode.seed: episode for episode in result.episodes if episode.seed in result.frames}
    columns = max(1, round(len(filmed) ** 0.5))
    frames = tile_episodes(
        result.frames,
        columns=columns,
        captions={seed: f"{seed}: {episode.max_score:.2f}" for seed, episode in filmed.items()},
        success={seed: episode.success for seed, episode in filmed.items()},
    )
    write_video(path, frames, fps=fps)


def print_scores(scores: dict[str, Any], out: Path) -> None:
    """The table for people."""
    latency = json.loads((out / "latency.json").read_text())
    nfe = f"{scores['nfe']} network evaluation{'s' if scores['nfe'] > 1 else ''} each"
    print(f"\n{scores['task']}, {scores['n_episodes']} {scores['split']} episodes")
    for name, label in labels(stages_of(scores["metrics"])).items():
        metric = scores["metrics"][name]
        interval = f"[{metric['low']:.3f}, {metric['high']:.3f}]"
        print(f"  {label:<12} {metric['value']:.3f}   {100 * metric['confidence']:.0f} % {interval}   {metric['method']}")
    print(f"  one plan     {latency['p50_ms']:.2f} ms median, {latency['p99_ms']:.2f} ms p99 ({latency['n']} plans, {nfe})")
    print(f"  files        {out}")


def print_curve(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """The table of scores over latency for people."""
    first = rows[0]
    print(f"\n{first['task']}, {first['n_episodes']} {first['split']} episodes for each latency, seam {first['seam']}")
    shown = labels(stages_of(first))
    print("  latency   " + "".join(f"{label:<24}" for label in shown.values()))
    for row in rows:
        cells = [f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" for name in shown]
        print(f"  {row['latency_steps']:>3} steps " + "".join(f"{cell:<24}" for cell in cells).rstrip())
    print(f"  files     {out}")
