"""Drift against regression on the human Push-T demonstrations: same head, data, budget and seeds.

Every run is trained by the command that users type, and judged on the same episodes at its last checkpoints. Runs that are
finished are kept, interrupted ones are resumed, so the script can be stopped and started again.

Without options it writes results/push_t/human_mlp.json: test episodes, three training seeds. With --study it compares options
of the objectives on validation episodes, with one training seed: results/push_t/human_mlp_options.json. Defaults answer to that
study, never to test episodes.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints, load_policy, read_config
from drifting_policy.eval import load_task
from drifting_policy.evaluation import make_env
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import Interval, cluster_bootstrap_mean, latency_summary
from drifting_policy.versions import versions

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"drift": ["objective=drift"], "regression": ["objective=regression"]}
STUDY = ARMS | {
    "drift, zero noise in use": ["objective=drift", "objective.noise_scale=0"],
    "drift, 1 sample": ["objective=drift", "objective.samples=1"],
    "drift, 2 samples": ["objective=drift", "objective.samples=2"],
    "drift, grouping step": ["objective=drift", "objective.grouping=step"],
    "drift, grouping dim": ["objective=drift", "objective.grouping=dim"],
    "drift, scale and force per condition": ["objective=drift", "objective.scale=condition", "objective.force=condition"],
    "regression, 2.5 times the steps": ["objective=regression", "trainer.steps=30000"],
}
METRICS = {"max_score": "max score", "final_score": "final score", "success": "success"}


def main() -> None:
    """Train what is not trained yet, evaluate, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_push_t"), help="where the runs are kept")
    parser.add_argument("--study", action="store_true", help="compare options on validation episodes, one training seed")
    parser.add_argument("--checkpoints", type=int, default=5, help="last checkpoints of each run that are judged")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, help="default: results/push_t/human_mlp[_options].json")
    parser.add_argument(
        "overrides", nargs="*", help="settings of drifting_policy.train for all runs, such as trainer.steps=100"
    )
    options = parser.parse_args()
    arms, seeds = (STUDY, range(1)) if options.study else (ARMS, range(3))
    split, count = ("validation", 100) if options.study else ("test", 50)
    out = options.out or ROOT / f"results/push_t/human_mlp{'_options' if options.study else ''}.json"
    runs = {
        (name, seed): options.runs / f"{name.replace(',', '').replace(' ', '_')}_seed{seed}" for name in arms for seed in seeds
    }

    with ThreadPoolExecutor(options.jobs) as threads:
        for job in [threads.submit(train, [*arms[name], *options.overrides], seed, runs[name, seed]) for name, seed in runs]:
            job.result()
    judge = partial(score, split=split, episodes=count, checkpoints=options.checkpoints)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as processes:
        scores = dict(zip(runs, processes.map(judge, runs.values()), strict=True))
    by_name = {name: [scores[name, seed] for seed in seeds] for name in arms}
    rows = [row for name, runs_of in by_name.items() for row in rows_of(name, runs_of)]
    rows += [difference(metric, by_name) for metric in METRICS]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, rows)
    for row in rows:
        print(f"{row['objective']:<40} {row['metric']:<12} {row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")


@dataclasses.dataclass(frozen=True)
class Scores:
    """One run on the episodes of a split: each metric as "checkpoints episodes", and where it comes from."""

    tables: dict[str, np.ndarray]
    split: str
    seeds: list[int]
    latency: dict[str, float]
    config: dict[str, Any]
    nfe: int
    train_seconds: float


def train(overrides: Sequence[str], seed: int, run_dir: Path) -> None:
    """Train one run, unless it is finished; the log lies beside it."""
    if (run_dir / "report.json").exists():
        return
    begun = str(bool(list_checkpoints(run_dir))).lower()
    settings = ["task=push_t", "data=human", f"seed={seed}", f"run_dir={run_dir}", "threads=1", "trainer.eval_videos=0"]
    command = [sys.executable, "-m", "drifting_policy.train", *settings, f"resume={begun}", "overwrite=true", *overrides]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
        if subprocess.run(command, stdout=log, stderr=log, env=os.environ, check=False).returncode:
            sys.exit(f"{run_dir} could not be trained; see {log.name}.")


def score(run_dir: Path, *, split: str, episodes: int, checkpoints: int) -> Scores:
    """The last checkpoints of a run on the first episodes of a split."""
    paths = list_checkpoints(run_dir)[-checkpoints:]
    if len(paths) < checkpoints:
        sys.exit(f"{run_dir} has {len(paths)} checkpoints, not {checkpoints}.")
    torch.set_num_threads(1)
    config = read_config(paths[-1])
    task, seeds = load_task(config["task"]), episode_seeds(split, episodes)
    policies = [load_policy(path) for path in paths]
    results = [evaluate(policy, lambda: make_env(task), seeds, num_envs=10, max_steps=task.max_steps) for policy in policies]
    tables = {name: np.array([[getattr(e, name) for e in result.episodes] for result in results], float) for name in METRICS}
    latency = latency_summary([seconds for result in results for seconds in result.plan_seconds])
    seconds = json.loads((run_dir / "report.json").read_text())["train_seconds"]
    return Scores(
        tables, split, seeds, {"p50": latency.p50_ms, "p99": latency.p99_ms}, config, policies[-1].evaluations, seconds
    )


def rows_of(name: str, runs: list[Scores]) -> list[dict[str, Any]]:
    """One row for each metric of an objective."""
    return [
        describe(name, metric, cluster_bootstrap_mean([run.tables[metric] for run in runs]), runs)
        | {"per_training_seed": [round(float(run.tables[metric].mean()), 4) for run in runs]}
        for metric in METRICS
    ]


def difference(metric: str, runs: dict[str, list[Scores]]) -> dict[str, Any]:
    """Drift minus regression, paired by training seed (the same batches) and test episode."""
    pairs = zip(runs["drift"], runs["regression"], strict=True)
    tables = [drift.tables[metric].mean(0) - regression.tables[metric].mean(0) for drift, regression in pairs]
    return describe("drift - regression", metric, cluster_bootstrap_mean(tables), runs["drift"])


def describe(name: str, metric: str, interval: Interval, runs: list[Scores]) -> dict[str, Any]:
    """A result row: who, what, the interval, n, and what decided the number."""
    config = runs[0].config
    recipe = {key: config[key] for key in ("objective", "generator", "trainer", "data")}
    checkpoints, episodes = runs[0].tables[metric].shape
    return {
        "task": config["task"],
        "data": config["data"],
        "objective": name,
        "head": config["generator"]["name"],
        "nfe": runs[0].nfe,
        "metric": metric,
        "value": round(interval.value, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "confidence": interval.confidence,
        "method": interval.method,
        "split": runs[0].split,
        "n_episodes": episodes,
        "n_checkpoints": checkpoints,
        "n_training_seeds": len(runs),
        "seeds_hash": hashlib.sha256(json.dumps(runs[0].seeds).encode()).hexdigest()[:16],
        "config": recipe,
        "config_hash": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16],
        "latency_ms": {key: round(float(np.median([run.latency[key] for run in runs])), 3) for key in ("p50", "p99")},
        "train_seconds": round(float(np.mean([run.train_seconds for run in runs]))),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
