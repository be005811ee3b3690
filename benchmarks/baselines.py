"""One-step drifting against its controls on one task: same head, data, steps, batches and seeds.

Every run is trained by the command that users type, and its last checkpoints play the same episodes. Finished runs are kept,
interrupted ones are resumed, and what a checkpoint played is kept beside it: the script can be stopped and started again.

`python benchmarks/baselines.py TASK/NAME` writes results/TASK/NAME.json; the tables stand in suites.py.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suites import SUITES, Arm, Suite
from timing import interleaved, random_walks

from drifting_policy import cli
from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints, load_policy
from drifting_policy.config import arguments
from drifting_policy.eval import load_task
from drifting_policy.objectives import OBJECTIVES
from drifting_policy.policy import DriftingPolicy
from drifting_policy.rollout.statistics import cluster_bootstrap_mean
from drifting_policy.rows import result_row
from drifting_policy.train import build_batches, build_state
from drifting_policy.training.trainer import Trainer
from drifting_policy.trial import Trial, last_steps, play_trial

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train what is not trained yet, evaluate, time, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--runs", type=Path, help="where the runs are kept; default: runs/benchmarks/TASK/NAME")
    parser.add_argument("--seeds", type=int, help="training seeds")
    parser.add_argument("--checkpoints", type=int, help="last checkpoints of each run that are judged")
    parser.add_argument("--episodes", type=int, help="episodes that judge")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, help="default: results/TASK/NAME.json")
    parser.add_argument(
        "overrides", nargs="*", help="settings of drifting_policy.train for all runs, such as trainer.steps=100"
    )
    given = parser.parse_intermixed_args()
    changes = {name: getattr(given, name) for name in ("seeds", "checkpoints", "episodes") if getattr(given, name)}
    suite = replace(SUITES[given.suite], **changes)
    suite = replace(suite, overrides=(*suite.overrides, *given.overrides))
    home = given.runs or Path(f"runs/benchmarks/{given.suite}")
    out = given.out or ROOT / f"results/{given.suite}.json"

    runs = {(arm.run, seed): arm for arm in suite.arms.values() for seed in range(suite.seeds)}
    with ThreadPoolExecutor(given.jobs) as threads:
        jobs = [threads.submit(train, suite, arm, n, folder(home, arm, n)) for (_, n), arm in runs.items()]
        for job in jobs:
            job.result()
    cases = [(arm, folder(home, arm, seed)) for arm in suite.arms.values() for seed in range(suite.seeds)]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as processes:
        played = list(processes.map(partial(judge, suite=suite), *zip(*cases, strict=True)))
    trials = {name: played[i * suite.seeds : (i + 1) * suite.seeds] for i, name in enumerate(suite.arms)}
    rows = make_rows(trials, timings(suite, home))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, rows)
    for row in rows:
        print(f"{row['objective']:<40} {row['metric']:<12} {row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")


def folder(home: Path, arm: Arm, seed: int) -> Path:
    """Where a run of an arm is kept."""
    return home / f"{arm.run}_seed{seed}"


def train(suite: Suite, arm: Arm, seed: int, run_dir: Path) -> None:
    """Train one run, unless it is finished; the log lies beside it."""
    if (run_dir / "report.json").exists():
        return
    begun = str(bool(list_checkpoints(run_dir))).lower()
    settings = [f"task={suite.task}", f"data={suite.data}", f"seed={seed}", f"run_dir={run_dir}", "threads=1"]
    settings += ["trainer.eval_videos=0", f"resume={begun}", "overwrite=true", *arm.overrides, *suite.overrides]
    command = [sys.executable, "-m", "drifting_policy.train", *settings]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
        if subprocess.run(command, stdout=log, stderr=log, env=os.environ, check=False).returncode:
            sys.exit(f"{run_dir} could not be trained; see {log.name}.")


def judge(arm: Arm, run_dir: Path, *, suite: Suite) -> Trial:
    """The last checkpoints of a run on the first episodes of the split."""
    torch.set_num_threads(1)
    steps = last_steps(run_dir, arm.checkpoints or suite.checkpoints)
    options: dict[str, Any] = {name: getattr(suite, name) for name in ("split", "episodes", "num_envs", "inference_batch")}
    return play_trial(run_dir, load_task(suite.task), steps=steps, sampler=arm.sampler, **options)


def timings(suite: Suite, home: Path) -> dict[str, dict[str, Any]]:
    """For each arm the planning time for one observation, and the time of a training step; all arms take turns in one run."""
    torch.set_num_threads(1)
    plans, steps = {}, {}
    for name, arm in suite.arms.items():
        policy = load_policy(list_checkpoints(folder(home, arm, 0))[-1])
        policy.resample(**arm.sampler)
        plans[name] = partial(policy.act, *one_observation(policy))
        steps[name] = one_step([f"task={suite.task}", *arm.overrides, *suite.overrides])
    planned = interleaved(plans, repetitions=100, warmup=5)
    stepped = interleaved(steps, repetitions=20, warmup=3)
    reference = np.median(stepped["regression"])
    return {
        name: {
            "latency_ms": {"p50": float(np.percentile(planned[name], 50)), "p99": float(np.percentile(planned[name], 99))},
            "train_step_ms": round(float(np.median(stepped[name])), 2),
            "train_step_ratio": round(float(np.median(stepped[name]) / reference), 2),
        }
        for name in suite.arms
    }


def one_observation(policy: DriftingPolicy) -> tuple[dict[str, np.ndarray]]:
    """Arguments for `act`: the middle of every range, one row."""
    spec = policy.spec
    zeros = {key: torch.zeros((1, spec.obs_horizon, *array.shape)) for key, array in spec.observations.items()}
    raw = {key: policy.normalizer.unnormalize(key, value).numpy() for key, value in zeros.items()}
    return ({key: value.astype(np.uint8) if spec.observations[key].is_image else value for key, value in raw.items()},)


def one_step(overrides: Sequence[str]) -> Any:
    """A call that makes one more training step of a fresh run."""
    config = cli.compose("train", overrides)
    demonstrations = random_walks(config.task, episodes=40)
    objective = OBJECTIVES[config.objective.name](**arguments(config.objective))
    state = build_state(config, demonstrations, objective, torch.device("cpu"))
    batches, _ = build_batches(config, demonstrations, torch.device("cpu"))
    loop = Trainer(
        state,
        objective,
        batches,
        seed=0,
        schedule=lambda step: 1.0,
        learning_rate=config.trainer.learning_rate,
        clip_norm=config.trainer.clip_norm,
        bf16=False,
        observation_noise=0.0,
        hooks=[],
    )
    return lambda: loop.run(until=state.step + 1)


def make_rows(trials: Mapping[str, list[Trial]], timing: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm and metric, then the differences, paired by training seed (equal batches) and episode.

    They are those of every variant of drift from each arm that is none, and of the variants from drift itself.
    """
    rows = []
    for name, runs in trials.items():
        for metric in runs[0].tables:
            interval = cluster_bootstrap_mean([run.tables[metric] for run in runs])
            means = [round(float(run.tables[metric].mean()), 4) for run in runs]
            rows.append(result_row(name, metric, interval, runs, per_training_seed=means, **timing[name]))
    variants = [name for name in trials if name == "drift" or name.startswith("drift,")]
    for ours, theirs in itertools.product(variants, trials):
        if theirs in variants and (theirs != "drift" or ours == "drift"):
            continue
        for metric in trials[theirs][0].tables:
            pairs = zip(trials[ours], trials[theirs], strict=True)
            interval = cluster_bootstrap_mean(
                [one.tables[metric].mean(0) - other.tables[metric].mean(0) for one, other in pairs]
            )
            about: dict[str, Any] = {"latency_ms": None, "minus_n_checkpoints": len(trials[theirs][0].steps)}
            rows.append(result_row(f"{ours} - {theirs}", metric, interval, trials[ours], **about))
    return rows


if __name__ == "__main__":
    main()
