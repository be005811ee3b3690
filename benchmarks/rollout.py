"""`python benchmarks/rollout.py`: how much of the machine do the simulators get, when an evaluation runs in worker processes?

The same Push-T episodes, with the same commands, are played in three ways that take turns in one run: `bare`, one environment
that is stepped in this process by a plain loop; `alone`, the evaluation with one environment in this process; `workers`, the
evaluation with one worker per core, which are started before and stay. The policy costs next to nothing: it sends chunks that
depend on the noise alone. The ratio is the speed of `workers` over that of as many bare loops as there are workers.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, interleaved, record, spread
from tqdm import tqdm

from drifting_policy import cli
from drifting_policy.chunking import ChunkExecutor, plan_noise
from drifting_policy.config import TaskConfig
from drifting_policy.evaluation import env_factory, make_env
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.worker import Job
from drifting_policy.rollout.workers import WorkerPool
from drifting_policy.types import PolicySpec

BAR = 0.85  # smallest ratio
REPETITIONS = 15
WARMUP = 2
SLOTS = 5  # environments per worker, as in an evaluation with the default num_envs on two cores
EPISODES = 5  # per worker and repetition


class Wanderer:
    """Commands random points in the middle of the world, whatever it sees."""

    max_prefix = 0

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Chunks "b t d" in px for the noise "b t d"."""
        return np.asarray(256 + 100 * np.asarray(noise), np.float32)


def commands_of(policy: Wanderer, seed: int, *, steps: int) -> np.ndarray:
    """The commands "steps d" that the evaluation sends in the episode of `seed`."""
    spec = policy.spec
    executed = slice(spec.first_executed, spec.first_executed + spec.exec_horizon)
    plans = range(-(-steps // spec.exec_horizon))
    chunks = [policy.act({}, noise=plan_noise(seed, plan, spec.sample_shape))[executed] for plan in plans]
    return np.concatenate(chunks)[:steps]


def prepare(task: TaskConfig, seeds: Sequence[int], pool: WorkerPool) -> dict[str, Callable[[], int]]:
    """Calls that play all seeds; each gives the number of steps that this took."""
    policy = Wanderer(task.spec)
    commands = {seed: commands_of(policy, seed, steps=task.max_steps) for seed in seeds}
    env = make_env(task)

    def bare() -> int:
        steps = 0
        for seed in seeds:
            env.reset(seed=seed)
            for command in commands[seed]:
                steps += 1
                if env.step(command)[2]:
                    break
        return steps

    def alone() -> int:
        return sum(e.steps for e in evaluate(policy, env_factory(task), seeds, max_steps=task.max_steps).episodes)

    def workers() -> int:
        return sum(each.episode.steps for each in pool.play(seeds, noise_seed=0, bar=tqdm(disable=True)))

    return {"bare": bare, "alone": alone, "workers": workers}


def measure(task: TaskConfig, *, workers: int, episodes: int, repetitions: int) -> dict[str, Any]:
    """The row of one number of workers."""
    seeds = episode_seeds("rollout", workers * episodes)
    executor = ChunkExecutor(Wanderer(task.spec), workers * min(SLOTS, episodes))
    job = Job(env_factory(task), task.spec, max_steps=task.max_steps, film_seeds=frozenset(), keep=False)
    with WorkerPool(job, executor, workers=workers, step_timeout=60.0) as pool:
        calls = prepare(task, seeds, pool)
        steps = {name: call() for name, call in calls.items()}
        if len(set(steps.values())) != 1:
            raise RuntimeError(f"All ways must play the same episodes; they took {steps} steps.")
        times = interleaved(calls, repetitions=repetitions, warmup=WARMUP)
    rows = {name: spread(taken) for name, taken in times.items()}
    speed = {f"{name}_steps_per_s": 1000 * steps[name] / row["p50"] for name, row in rows.items()}
    ratio = speed["workers_steps_per_s"] / (workers * speed["bare_steps_per_s"])
    row = {"task": task.name, "workers": workers, "ratio": ratio, "bar": BAR, **speed}
    row |= {"speedup": speed["workers_steps_per_s"] / speed["alone_steps_per_s"], "repetitions": repetitions}
    row |= {"steps": steps["bare"], "episodes": len(seeds), "num_envs": executor.num_envs}
    return row | {f"{name}_spread_ms": row for name, row in rows.items()}


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description="The speed of worker processes over that of as many bare simulators.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per worker and repetition")
    parser.add_argument("--steps", type=int, help="per episode; default: those of the task")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--out", type=Path, default=RESULTS / "rollout.json")
    given = parser.parse_args(argv)
    task = cli.compose("train", ["task=push_t", *([f"task.max_steps={given.steps}"] if given.steps else [])]).task
    row = measure(task, workers=given.workers, episodes=given.episodes, repetitions=given.repetitions)
    print(f"{'task':<8} {'workers':>8} {'bare':>14} {'alone':>14} {'workers':>14} {'ratio':>7}")
    speeds = " ".join(f"{row[f'{name}_steps_per_s']:8.0f} step/s" for name in ("bare", "alone", "workers"))
    print(f"{task.name:<8} {given.workers:>8} {speeds} {row['ratio']:7.3f}")
    missed = [f"{given.workers} workers reach {row['ratio']:.2f} of as many bare simulators, below {BAR}."]
    missed = missed if row["ratio"] < BAR else []
    return record(given.out, rows=[row], missed=missed, benchmark="rollout", bar=f"ratio >= {BAR}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
