"""`python -m drifting_policy.datasets.block_push`: demonstrations of BlockPush by a scripted expert, in four equally frequent modes.

Each begins elsewhere; a demonstration that fails to put both blocks into their targets is played again from another beginning.
The same seed gives the same bytes, with any number of workers.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from drifting_policy.data.replay_buffer import concatenate
from drifting_policy.datasets.card import write_with_card
from drifting_policy.envs.block_push import COMMAND, MODES, WORKSPACE, BlockPushEnv
from drifting_policy.envs.experts.block_push import Expert
from drifting_policy.types import ConfigError, UserError

MAX_STEPS = 350
NAMES = [f"block{(block + 1) if block else ''} into target{(target + 1) if target else ''}" for block, target in MODES]


@dataclass(frozen=True)
class Demonstration:
    """The arrays `obs` "steps 16", `action` and `action_abs` "steps 2" of a success, and how many times it was tried."""

    arrays: dict[str, np.ndarray]
    tries: int


def main(arguments: Sequence[str]) -> int:
    """Write the data set and its card; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.block_push", description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that play")
    parser.add_argument("--out", default="block_push_scripted.zarr.zip", help="the data set; its card lies beside it")
    options = parser.parse_args(arguments)
    try:
        for name, least in {"episodes": 1, "seed": 0, "workers": 1}.items():
            if (given := getattr(options, name)) < least:
                raise ConfigError(f"--{name} must be at least {least}; got {given}.")
        modes = balanced_modes(options.episodes, seed=options.seed)
        played = list(tqdm(demonstrations(modes, seed=options.seed, workers=options.workers), total=len(modes)))
        arrays, ends = concatenate(demonstration.arrays for demonstration in played)
        lengths = np.diff(ends, prepend=0)
        out = write_with_card(
            options.out,
            arrays,
            ends,
            origin="a scripted expert of this project, which takes each of four modes equally often",
            command=shlex.join(["python", "-m", "drifting_policy.datasets.block_push", *arguments]),
            modes={name: modes.count(mode) for mode, name in enumerate(NAMES)},
            failures=sum(demonstration.tries - 1 for demonstration in played),
            episode_steps={"least": int(lengths.min()), "median": float(np.median(lengths)), "most": int(lengths.max())},
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(ends)} demonstrations, {ends[-1]} steps: {out}")
    return 0


def balanced_modes(count: int, *, seed: int) -> list[int]:
    """`count` modes in random order, each as often as the others, or once more."""
    modes = np.arange(count) % len(MODES)
    return [int(mode) for mode in np.random.default_rng(seed).permutation(modes)]


def demonstrations(modes: Sequence[int], *, seed: int, workers: int) -> Iterator[Demonstration]:
    """One demonstration in each of `modes`, in their order."""
    tasks = [(seed, number, mode) for number, mode in enumerate(modes)]
    if workers == 1:
        yield from map(partial(demonstrate, BlockPushEnv(action="absolute")), tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_demonstrate_afresh, tasks, chunksize=8)


def demonstrate(env: BlockPushEnv, task: tuple[int, int, int]) -> Demonstration:
    """The first success of demonstration (seed of the data set, number, mode)."""
    seed, number, mode = task
    tries = 0
    while True:
        rng = np.random.default_rng([seed, number, tries])
        tries += 1
        if arrays := play(env, Expert(rng, mode), seed=int(rng.integers(2**62))):
            return Demonstration(arrays, tries)


def play(env: BlockPushEnv, expert: Expert, *, seed: int) -> dict[str, np.ndarray]:
    """The arrays of one episode, or none if it did not succeed.

    The absolute action, rounded to float32, is what was executed: played again it gives the same episode, bit for bit.
    """
    obs = env.reset(seed=seed)[0]["obs"]
    rows: dict[str, list[np.ndarray]] = {"obs": [], "action": [], "action_abs": []}
    for _ in range(MAX_STEPS):
        command = obs[COMMAND : COMMAND + 2].astype(np.float64)
        target = (command + expert.act(obs)).clip(*WORKSPACE).astype(np.float32)
        for values, value in zip(rows.values(), (obs, (target - command).astype(np.float32), target), strict=True):
            values.append(value)
        observation, _, success, _, _ = env.step(target)
        if success:
            return {name: np.stack(values) for name, values in rows.items()}
        obs = observation["obs"]
    return {}


def _demonstrate_afresh(task: tuple[int, int, int]) -> Demonstration:
    return demonstrate(BlockPushEnv(action="absolute"), task)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
