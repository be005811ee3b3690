"""`python -m drifting_policy.datasets.conveyor`: demonstrations of the conveyor task by its scripted expert.

Each demonstration begins elsewhere, on a belt of another speed, and goes round the post left or right with probability 1/2;
what the expert failed at is left out. The card also tells how the expert fares when it sees the world some steps late.
"""

import argparse
import shlex
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drifting_policy.data.replay_buffer import concatenate
from drifting_policy.datasets.card import write_with_card
from drifting_policy.envs.conveyor import LEFT, RIGHT, ConveyorEnv
from drifting_policy.envs.experts.conveyor import ConveyorExpert
from drifting_policy.types import ConfigError, UserError

MARGIN = (0.10, 0.15)  # uniform range of the way left between the post and the middle of the gripper, m
MAX_STEPS = 120
DELAYS = (0, 1, 2, 4, 8)
DELAYED_EPISODES, FIRST_DELAYED_SEED = 100, 10**6


@dataclass(frozen=True)
class Attempt:
    """One episode of the expert: the arrays `state` "n 11" and `action` "n 4", whether it succeeded, and which way it went."""

    arrays: Mapping[str, np.ndarray]
    success: bool
    side: int


def main(arguments: Sequence[str]) -> int:
    """Write the data set and its card; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.conveyor", description=__doc__)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="datasets/bundled/conveyor.zarr.zip", help="the data set; its card lies beside it")
    options = parser.parse_args(arguments)
    try:
        if options.episodes < 1 or options.seed < 0:
            raise ConfigError(f"--episodes must be at least 1 and --seed at least 0; got {options.episodes}, {options.seed}.")
        attempts = demonstrations(options.episodes, seed=options.seed)
        kept = [attempt for attempt in attempts if attempt.success]
        arrays, ends = concatenate(attempt.arrays for attempt in kept)
        sides = [attempt.side for attempt in kept]
        out = write_with_card(
            options.out,
            arrays,
            ends,
            origin="a scripted expert of this project, which goes left or right by chance",
            command=shlex.join(["python", "-m", "drifting_policy.datasets.conveyor", *arguments]),
            sides={"left": sides.count(LEFT), "right": sides.count(RIGHT)},
            attempts=len(attempts),
            success_of_the_expert_over_observation_delay={
                f"{delay} steps": delayed_success(delay, episodes=DELAYED_EPISODES) for delay in DELAYS
            },
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(ends)} demonstrations of {len(attempts)} attempts, {ends[-1]} steps: {out}")
    return 0


def demonstrations(count: int, *, seed: int) -> list[Attempt]:
    """Attempts until `count` of them succeeded; those that did not are among them."""
    env, rng = ConveyorEnv(), np.random.default_rng(seed)
    attempts: list[Attempt] = []
    while sum(attempt.success for attempt in attempts) < count:
        side, margin = (LEFT, RIGHT)[rng.integers(2)], rng.uniform(*MARGIN)
        attempts.append(attempt_once(env, seed=int(rng.integers(2**31)), side=side, margin=margin))
    return attempts


def delayed_success(delay: int, *, episodes: int) -> float:
    """Share of the episodes in which an expert succeeds that sees the world `delay` control steps late."""
    env = ConveyorEnv()
    outcomes = [
        attempt_once(env, seed=FIRST_DELAYED_SEED + i, side=(LEFT, RIGHT)[i % 2], margin=MARGIN[0], delay=delay).success
        for i in range(episodes)
    ]
    return sum(outcomes) / episodes


def attempt_once(env: ConveyorEnv, *, seed: int, side: int, margin: float, delay: int = 0) -> Attempt:
    """The episode of `seed`, in which the expert sees the observation of `delay` steps ago, in the beginning the first one."""
    expert = ConveyorExpert(side=side, margin=margin)
    observation, info = env.reset(seed=seed)
    late = deque([observation], maxlen=delay + 1)
    states, actions = [], []
    for _ in range(MAX_STEPS):
        states.append(observation["state"])
        actions.append(expert.act(late[0]))
        observation, _, terminated, _, info = env.step(actions[-1])
        late.append(observation)
        if terminated:
            break
    return Attempt({"state": np.stack(states), "action": np.stack(actions)}, info["success"], info["side"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
