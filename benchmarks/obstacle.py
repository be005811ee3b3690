"""Mode coverage on the obstacle task: drift, regression, diffusion and flow with the same head, data, steps and seeds.

Every run is trained by what `python -m drifting_policy.train` runs, and judged at its last checkpoint on the first observations
of held-out episodes: 64 chunks are drawn for each, the path of each is followed, and it passes left, passes right, or hits.

    covered      share of the observations where either side has at least 10 % of the chunks and at most 20 % hit
    rarer_side   share of the chunks on the side that has fewer of them; 0 where a policy knows one side only
    hits         share of the chunks that touch the obstacle or never get past it
    success      of the same episodes, played in closed loop; without --study

Noise has deviation 1 in use, as in training, unless the name of a row says otherwise; regression has none. Without options the
script writes results/toy/obstacle.json: test episodes, five training seeds. With --study it compares options of the drifting
objective on validation episodes with a smaller head and fewer steps: results/toy/obstacle_options.json. Runs and judgements
that are finished are kept, so the script can be stopped and started again.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy import cli, train
from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints, load_policy, read_config
from drifting_policy.config import TaskConfig
from drifting_policy.envs.obstacle import LEFT, RIGHT, follow, passage
from drifting_policy.eval import load_task
from drifting_policy.evaluation import make_env
from drifting_policy.rollout.coverage import covered, draw, shares
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import cluster_bootstrap_mean
from drifting_policy.types import Policy, UserError
from drifting_policy.versions import versions

ROOT = Path(__file__).resolve().parents[1]
TASK, SAMPLES = "toy_obstacle", 64
COMMON = ["trainer=toy", "trainer.eval_episodes=0", "threads=1", "device=cpu", "overwrite=true"]


@dataclasses.dataclass(frozen=True)
class Arm:
    """Settings of the training, and the deviation of the noise in use; None leaves it as the objective says.

    A `baseline` may be trained with fewer seeds than the others.
    """

    settings: Sequence[str]
    noise_scale: float | None = None
    baseline: bool = False


def drift(*settings: str) -> Arm:
    """The drifting objective with other settings than its defaults, and unit noise in use."""
    return Arm([f"objective.{setting}" for setting in settings], 1.0)


CONDITION = ("scale=condition", "force=condition")
ARMS = {
    "drift": drift(),
    "drift, noise 0.5 in use": Arm([], 0.5),
    "regression": Arm(["objective=regression"]),
    "diffusion": Arm(["objective=diffusion"], baseline=True),
    "flow": Arm(["objective=flow"], baseline=True),
}
STUDY = {
    "drift": drift(),
    "drift, scale and force per condition": drift(*CONDITION),
    "drift, floor 0": drift("affinity_floor=0"),
    "drift, floor 0, scale and force per condition": drift("affinity_floor=0", *CONDITION),
    **{f"drift, {n} samples": drift(f"samples={n}") for n in (16, 8, 2, 1)},
    **{f"drift, floor 0, {n} samples": drift("affinity_floor=0", f"samples={n}") for n in (16, 8, 2, 1)},
    "drift, gaussian kernel": drift("kernel=gaussian"),
    **{f"drift, temperature {t}": drift(f"temperatures=[{t}]") for t in (0.02, 0.05, 0.2)},
    "drift, scale per condition": drift("scale=condition"),
    "drift, force per condition": drift("force=condition"),
    **{f"drift, repulsion {factor}": drift(f"repulsion={factor}") for factor in (0.9, 0.75, 0.5, 0.0)},
}
HEADS = {False: ["generator.width=128", "generator.depth=2"], True: ["generator.width=64", "generator.depth=2"]}
STUDY_STEPS = ["trainer.steps=1200"]


def main(arguments: Sequence[str]) -> None:
    """Train what is not trained yet, judge what is not judged yet, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_obstacle"), help="where the runs are kept")
    parser.add_argument("--study", action="store_true", help="compare options on validation episodes")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *STUDY], help="these alone; write them elsewhere by --out")
    parser.add_argument("--seeds", type=int, help="training seeds; default: 5, with --study 2")
    parser.add_argument("--baseline-seeds", type=int, default=2, help="training seeds of diffusion and flow, at most --seeds")
    parser.add_argument("--observations", type=int, default=100, help="held-out episodes")
    parser.add_argument("--out", type=Path, help="default: results/toy/obstacle[_options].json")
    parser.add_argument(
        "overrides", nargs="*", help="settings of drifting_policy.train for all runs, such as trainer.steps=100"
    )
    options = parser.parse_intermixed_args(arguments)
    arms, count = (STUDY, options.seeds or 2) if options.study else (ARMS, options.seeds or 5)
    arms = {name: arm for name, arm in arms.items() if name in (options.arms or arms)}
    shared = [*COMMON, *HEADS[options.study], *(STUDY_STEPS if options.study else []), *options.overrides]
    split = "validation" if options.study else "test"
    runs: dict[str, list[Scores]] = {name: [] for name in arms}
    for seed, name in plan(arms, seeds=count, baseline_seeds=options.baseline_seeds):
        print(name, seed, flush=True)
        arm, kind = arms[name], "study" if options.study else "test"
        run_dir = options.runs / kind / f"{folder(arm)}_seed{seed}"
        learn([*shared, *arm.settings], seed, run_dir)
        runs[name].append(judge(run_dir, arm, split=split, count=options.observations, play=not options.study))
    rows = [row for name in arms for row in rows_of(name, runs[name], split=split)]
    if {"drift", "regression"} <= set(arms):
        rows += differences(runs, split=split)
    out = options.out or ROOT / f"results/toy/obstacle{'_options' if options.study else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, rows)
    for row in rows:
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['objective']:<46} {row['metric']:<12} {row['value']:+.3f} {interval}  {row['per_training_seed']}")


@dataclasses.dataclass(frozen=True)
class Scores:
    """One run: each metric for each held-out observation, and where the numbers come from."""

    tables: dict[str, list[float]]
    config: dict[str, Any]
    nfe: int
    noise_scale: float


def plan(arms: Mapping[str, Arm], *, seeds: int, baseline_seeds: int) -> list[tuple[int, str]]:
    """What is to be done: all arms of one seed before the next, so that what is cut short is the same study, but smaller."""
    return [(seed, name) for seed in range(seeds) for name, arm in arms.items() if not arm.baseline or seed < baseline_seeds]


def folder(arm: Arm) -> str:
    """The name of the run; arms that differ in use only share it."""
    return (
        "_".join(re.sub(r"[^\w.]+", "_", setting.removeprefix("objective.")).strip("_") for setting in arm.settings) or "drift"
    )


def learn(settings: Sequence[str], seed: int, run_dir: Path) -> None:
    """Train one run, unless it is finished; what it prints goes to a log beside it."""
    config = cli.compose("train", [f"task={TASK}", f"seed={seed}", f"run_dir={run_dir}", *settings])
    done = list_checkpoints(run_dir)
    if done and read_config(done[-1])["step"] == config.trainer.steps:
        return
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = (run_dir.parent / f"{run_dir.name}.log").open("w")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        code = train.run(config)
    if code:
        sys.exit(code)  # interrupted


def judge(run_dir: Path, arm: Arm, *, split: str, count: int, play: bool) -> Scores:
    """The last checkpoint of a run on the first episodes of a split; kept beside the run."""
    kept = run_dir / f"coverage_{split}_{count}_{arm.noise_scale}_{'play' if play else 'draw'}.json"
    if kept.exists():
        return Scores(**json.loads(kept.read_text()))
    checkpoint = list_checkpoints(run_dir)[-1]
    policy, seeds = load_policy(checkpoint), episode_seeds(split, count)
    if arm.noise_scale is not None:
        policy.noise_scale = arm.noise_scale
    tables = coverage(policy, seeds)
    if play:
        task = task_config()
        result = evaluate(policy, lambda: make_env(task), seeds, num_envs=10, max_steps=task.max_steps)
        tables |= {"success": np.array([episode.success for episode in result.episodes], float)}
    lists = {name: values.tolist() for name, values in tables.items()}
    scores = Scores(lists, read_config(checkpoint), policy.evaluations, policy.noise_scale)
    write_json(kept, dataclasses.asdict(scores))
    return scores


@functools.cache
def task_config() -> TaskConfig:
    """The task, composed once."""
    return load_task(TASK)


@functools.cache
def provenance() -> dict[str, str]:
    """The versions of everything, asked for once."""
    return versions()


def coverage(policy: Policy, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Each metric of the module's docstring, but success, for the first observation of each episode: "n"."""
    obs = observe(policy, seeds)
    chunks = draw(policy, {key: values[:, None] for key, values in obs.items()}, samples=SAMPLES, seed=0)
    paths = follow(obs["agent_pos"][:, None], chunks)
    classes = passage(paths, obs["goal"][:, None], obs["obstacle"][:, None])
    sides = shares(classes, (LEFT, RIGHT))
    return {
        "covered": covered(classes, (LEFT, RIGHT)).astype(float),
        "rarer_side": sides.min(axis=1),
        "hits": 1 - sides.sum(axis=1),
    }


def observe(policy: Policy, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """The first observation of each episode, "n ..." for each key that the policy sees."""
    env = make_env(task_config())
    observed = [env.reset(seed=seed)[0] for seed in seeds]
    env.close()
    return {key: np.stack([each[key] for each in observed]) for key in policy.spec.observations}


def rows_of(name: str, runs: list[Scores], *, split: str) -> list[dict[str, Any]]:
    """One row for each metric of an arm."""
    return [describe(name, metric, [run.tables[metric] for run in runs], runs[0], split=split) for metric in runs[0].tables]


def differences(runs: dict[str, list[Scores]], *, split: str) -> list[dict[str, Any]]:
    """Drift minus regression in every metric, paired by training seed and observation."""
    pairs, rows = list(zip(runs["drift"], runs["regression"], strict=True)), []
    for metric in runs["drift"][0].tables:
        tables = [(np.array(a.tables[metric]) - np.array(b.tables[metric])).tolist() for a, b in pairs]
        rows.append(describe("drift - regression", metric, tables, runs["drift"][0], split=split))
    return rows


def describe(name: str, metric: str, tables: list[list[float]], run: Scores, *, split: str) -> dict[str, Any]:
    """A result row: who, what, the interval, n, and what decided the number; `tables` holds one list per training seed."""
    interval = cluster_bootstrap_mean(tables)
    return {
        "task": run.config["task"],
        "data": run.config["data"],
        "objective": name,
        "head": run.config["generator"]["name"],
        "nfe": run.nfe,
        "noise_scale": run.noise_scale,
        "metric": metric,
        "value": round(interval.value, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "n": interval.n,
        "confidence": interval.confidence,
        "method": interval.method,
        "split": split,
        "n_episodes": len(tables[0]),
        "n_samples": SAMPLES,
        "n_checkpoints": 1,
        "n_training_seeds": len(tables),
        "per_training_seed": [round(float(np.mean(table)), 4) for table in tables],
        "config": {key: run.config[key] for key in ("objective", "generator", "trainer", "data")},
        "versions": provenance(),
    }


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
