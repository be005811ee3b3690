"""`python -m drifting_policy.datasets.obstacle`: demonstrations of the obstacle task by a scripted expert.

No two demonstrations share an initial state, and each goes left or right with probability 1/2: there is one demonstration per
observation, and nothing in the observation tells its side.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

import numpy as np

from drifting_policy.data.replay_buffer import concatenate
from drifting_policy.datasets.card import write_with_card
from drifting_policy.envs.obstacle import LEFT, RADIUS, RIGHT, follow, initial_state
from drifting_policy.types import ConfigError, UserError

STEPS = 20
MARGIN = (0.06, 0.12)  # uniform range of the gap to the obstacle, m


def main(arguments: Sequence[str]) -> int:
    """Write the data set and its card; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.obstacle", description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="datasets/bundled/obstacle.zarr.zip", help="the data set; its card lies beside it")
    options = parser.parse_args(arguments)
    try:
        if options.episodes < 1 or options.seed < 0:
            raise ConfigError(f"--episodes must be at least 1 and --seed at least 0; got {options.episodes}, {options.seed}.")
        (arrays, ends), sides = demonstrations(options.episodes, seed=options.seed)
        out = write_with_card(
            options.out,
            arrays,
            ends,
            origin="a scripted expert of this project, which goes left or right by chance",
            command=shlex.join(["python", "-m", "drifting_policy.datasets.obstacle", *arguments]),
            sides={"left": sides.count(LEFT), "right": sides.count(RIGHT)},
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(ends)} demonstrations, {ends[-1]} steps: {out}")
    return 0


def demonstrations(count: int, *, seed: int) -> tuple[tuple[dict[str, np.ndarray], np.ndarray], list[int]]:
    """The arrays `state` "steps 6" and `action` "steps 2" of `count` demonstrations with their ends, and the side of each."""
    rng = np.random.default_rng(seed)
    episodes, sides = [], []
    for _ in range(count):
        state, side = initial_state(rng), (LEFT, RIGHT)[rng.integers(2)]
        episodes.append(demonstrate(state, side=side, margin=rng.uniform(*MARGIN)))
        sides.append(side)
    return concatenate(episodes), sides


def demonstrate(state: np.ndarray, *, side: int, margin: float) -> dict[str, np.ndarray]:
    """`state` "20 6" and `action` "20 2" of the demonstration that begins in `state`."""
    targets = detour(state, side=side, margin=margin)
    path = follow(state[:2], targets)[:-1]
    rest = np.broadcast_to(state[2:], (STEPS, 4))
    return {"state": np.concatenate([path, rest], axis=1).astype(np.float32), "action": targets.astype(np.float32)}


def detour(state: np.ndarray, *, side: int, margin: float) -> np.ndarray:
    """Targets "20 2" on the straight line from start to goal, bent to one side by sin^2 leaving a gap of `margin` m."""
    start, goal, obstacle = state[:2], state[2:4], state[4:]
    way = goal - start
    normal = np.array([-way[1], way[0]]) / np.linalg.norm(way)  # to the left
    level = (obstacle - start) @ way / (way @ way)  # where on the line the obstacle lies
    height = ((obstacle - start) @ normal + side * (RADIUS + margin)) / np.sin(np.pi * level) ** 2
    shares = np.arange(1, STEPS + 1)[:, None] / STEPS
    return np.asarray(start + shares * way + height * np.sin(np.pi * shares) ** 2 * normal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
