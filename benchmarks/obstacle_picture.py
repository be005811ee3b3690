"""The picture of docs/toys.md: what each objective draws for the first test observations, from the runs of obstacle.py."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from obstacle import ARMS, ROOT, SAMPLES, folder, observe

from drifting_policy.checkpoint import list_checkpoints, load_policy
from drifting_policy.envs.obstacle import GOAL_RADIUS, HIT, LEFT, RADIUS, RIGHT, follow, passage
from drifting_policy.rollout.coverage import draw
from drifting_policy.rollout.seeds import episode_seeds

COLORS = {LEFT: "#1f6fb4", RIGHT: "#2f9e5b", HIT: "#d9541e"}
COLUMNS = {"regression": "regression", "drift": "drift", "flow": "flow, 10 steps", "diffusion": "diffusion, 100 steps"}


def main(arguments: Sequence[str]) -> None:
    """Draw 64 chunks for each objective and observation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_obstacle"), help="where obstacle.py kept its runs")
    parser.add_argument("--observations", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/toy_obstacle.png")
    options = parser.parse_args(arguments)
    figure = Figure(figsize=(2.6 * len(COLUMNS), 2.7 * options.observations + 0.3), layout="constrained")
    grid = figure.subplots(options.observations, len(COLUMNS), squeeze=False)
    for column, (name, title) in zip(grid.T, COLUMNS.items(), strict=True):
        arm = ARMS[name]
        policy = load_policy(list_checkpoints(options.runs / "test" / f"{folder(arm)}_seed0")[-1])
        if arm.noise_scale is not None:
            policy.noise_scale = arm.noise_scale
        obs = observe(policy, episode_seeds("test", options.observations))
        chunks = draw(policy, {key: values[:, None] for key, values in obs.items()}, samples=SAMPLES, seed=0)
        paths = follow(obs["agent_pos"][:, None], chunks)
        classes = passage(paths, obs["goal"][:, None], obs["obstacle"][:, None])
        column[0].set_title(title)
        for axes, *seen in zip(column, paths, classes, obs["goal"], obs["obstacle"], strict=True):
            draw_world(axes, *seen)
    figure.savefig(options.out, dpi=100)


def draw_world(axes: Any, paths: np.ndarray, classes: np.ndarray, goal: np.ndarray, obstacle: np.ndarray) -> None:
    """Obstacle, goal, and the paths "n k 2" in the colours of their classes, hits on top."""
    axes.add_patch(Circle((obstacle[0], obstacle[1]), RADIUS, color="#c8c8c8", linewidth=0))
    axes.add_patch(Circle((goal[0], goal[1]), GOAL_RADIUS, color="#9fd8a4", linewidth=0))
    for side in (LEFT, RIGHT, HIT):
        for path in paths[classes == side]:
            axes.plot(*path.T, color=COLORS[side], linewidth=0.7, alpha=0.7)
    axes.plot(*paths[0, 0], marker="o", color="black", markersize=5)
    left, right, hit = (int((classes == side).sum()) for side in (LEFT, RIGHT, HIT))
    axes.set_xlabel(f"left {left}, right {right}, hit {hit}", fontsize=9)
    axes.set(xlim=(-0.7, 0.7), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")


if __name__ == "__main__":
    main(sys.argv[1:])
