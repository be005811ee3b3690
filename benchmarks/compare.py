"""`python benchmarks/compare.py`: how often does a comparison see a difference where there is none, and where there is one?

The bundled Push-T policy plays the same validation episodes under several noise seeds. Pairs of noise seeds stand for a policy
that is compared with itself: at most 7 % of them may be declared different at the 5 % level, in each metric. Then the policy
whose commands are disturbed by Gaussian noise is compared with itself undisturbed: every such comparison must see it.
"""

import argparse
import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, record

from drifting_policy.checkpoint import load_policy
from drifting_policy.demonstrations import bundled
from drifting_policy.eval import load_task
from drifting_policy.evaluation import make_env
from drifting_policy.rollout.episode import Episode
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.metrics import labels
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.statistics import compare_episodes, wilson
from drifting_policy.types import Policy, PolicySpec

FALSE_ALARMS = 0.07  # largest share
DISTURBANCE = 30.0  # px, standard deviation of each command
BLOCK = 100  # episodes of one comparison


@dataclass(frozen=True)
class Disturbed:
    """A policy whose commands are disturbed by `deviation` times the noise that picks its sample."""

    policy: Policy
    deviation: float

    @property
    def spec(self) -> PolicySpec:
        """That of the policy."""
        return self.policy.spec

    @property
    def max_prefix(self) -> int:
        """None: a disturbed prefix would be none."""
        return 0

    def act(
        self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """The policy's chunk "b t d" and the disturbance."""
        chunk = self.policy.act(obs, noise=noise)
        return chunk if noise is None else np.asarray(chunk + self.deviation * noise, np.float32)


def play(noise_seed: int, deviation: float, *, blocks: int) -> list[tuple[Episode, ...]]:
    """The blocks of episodes under one noise seed."""
    torch.set_num_threads(1)
    policy, task = load_policy(bundled("push_t")), load_task("push_t")
    seeds = episode_seeds("validation", BLOCK * blocks)
    episodes = evaluate(
        Disturbed(policy, deviation) if deviation else policy,
        lambda: make_env(task),
        seeds,
        num_envs=10,
        max_steps=task.max_steps,
        noise_seed=noise_seed,
    ).episodes
    return [episodes[BLOCK * i : BLOCK * (i + 1)] for i in range(blocks)]


def share(
    name: str, pairs: Sequence[tuple[tuple[Episode, ...], tuple[Episode, ...]]], better: Collection[str]
) -> list[dict[str, Any]]:
    """For each metric how many of the pairs were declared `better`."""
    found = [compare_episodes(a, b) for a, b in pairs]
    rows = []
    for metric in labels():
        declared = sum(comparison[metric].better in better for comparison in found)
        interval = wilson(declared, len(pairs))
        effect = float(np.mean([comparison[metric].difference.value for comparison in found]))
        numbers = {"declared": declared, "comparisons": len(pairs), "share": round(declared / len(pairs), 4)}
        limits = {"low": round(interval.low, 4), "high": round(interval.high, 4), "mean_difference": round(effect, 4)}
        rows.append({"case": name, "metric": metric, "episodes": BLOCK} | numbers | limits)
    return rows


def main(argv: Sequence[str]) -> int:
    """Play, compare, print the table, write the record; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noises", type=int, default=20, help="noise seeds of the policy")
    parser.add_argument("--blocks", type=int, default=2, help=f"blocks of {BLOCK} episodes")
    parser.add_argument("--repetitions", type=int, default=200, help="comparisons of the policy with itself")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "compare.json")
    given = parser.parse_args(argv)
    deviations = [0.0] * given.noises + [DISTURBANCE] * 2
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as processes:
        played = list(processes.map(partial(play, blocks=given.blocks), range(len(deviations)), deviations))
    itself, disturbed = played[: given.noises], played[given.noises :]
    pairs = [(a[i], b[i]) for a, b in itertools.combinations(itself, 2) for i in range(given.blocks)]
    chosen = np.random.default_rng(0).permutation(len(pairs))[: given.repetitions]
    worse = [(a[i], b[i]) for a in itself for b in disturbed for i in range(given.blocks)]
    rows = share("the same policy, other noise", [pairs[i] for i in chosen], {"a", "b"})
    rows += share(f"commands disturbed by {DISTURBANCE:g} px", worse, {"a"})
    for row in rows:
        print(
            f"{row['case']:<34} {row['metric']:<12} {row['declared']:>4} of {row['comparisons']}  {row['mean_difference']:+.3f}"
        )
    missed = [f"{r['metric']}: {r['share']:.1%} false alarms." for r in rows[:3] if r["share"] > FALSE_ALARMS]
    missed += [f"{r['metric']}: the disturbed policy is told apart in {r['share']:.1%}." for r in rows[3:] if r["share"] < 1]
    return record(given.out, rows=rows, missed=missed, benchmark="compare", bar=f"false alarms <= {FALSE_ALARMS}, all found")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
