"""The picture at the top of the README: test episodes of a policy, side by side, as a GIF."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from drifting_policy.checkpoint import load_policy
from drifting_policy.demonstrations import bundled
from drifting_policy.eval import load_task
from drifting_policy.evaluation import make_env
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.rollout.seeds import episode_seeds
from drifting_policy.rollout.video import tile_episodes

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Roll out the first test episodes, unselected, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, default=bundled("push_t"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/push_t.gif")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--every", type=int, default=3, help="show one step in so many")
    options = parser.parse_args()
    task = load_task("push_t")
    task = dataclasses.replace(task, env_options={**task.env_options, "render_size": 192})
    seeds = episode_seeds("test", options.episodes)
    result = evaluate(load_policy(options.policy), lambda: make_env(task), seeds, max_steps=task.max_steps, video_seeds=seeds)
    film = tile_episodes(
        result.frames,
        columns=options.columns,
        captions={episode.seed: f"{episode.seed}: {episode.max_score:.2f}" for episode in result.episodes},
        success={episode.seed: episode.success for episode in result.episodes},
    )[:: options.every]
    palette = Image.fromarray(np.concatenate(film[:: max(1, len(film) // 8)])).quantize(48)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in film]
    duration = round(1000 * options.every / task.control_hz / 2)  # twice as fast as it happened
    images[0].save(options.out, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True)
    print(f"{options.out}: {len(images)} frames, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
