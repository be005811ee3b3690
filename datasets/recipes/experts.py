"""`python -m drifting_policy.datasets.experts`: demonstrations of robosuite's tasks by scripted experts, as robomimic's HDF5.

Every demonstration begins in a state of its own and follows one of two styles with probability 1/2, which nothing in its first
observation tells. Episodes are played in the order of their seeds until enough of them succeeded; the file holds the successes.
"""

import argparse
import multiprocessing
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from drifting_policy.data.download import array_sha256
from drifting_policy.data.robomimic import open_robomimic, write_robomimic
from drifting_policy.datasets.card import quantiles, write_card
from drifting_policy.envs.experts import can, lift, square, tool_hang, transport
from drifting_policy.types import ConfigError, UserError

EXPERTS: dict[str, Any] = {  # modules with STYLES and expert(rng, style)
    "lift": lift,
    "can": can,
    "square": square,
    "tool_hang": tool_hang,
    "transport": transport,
}
MAX_STEPS = {"lift": 400, "can": 400, "square": 400, "tool_hang": 700, "transport": 700}
VALID = 10  # one of so many demonstrations is kept for validation
SPARE = 20  # episodes that may fail, beside as many as were wanted
BLOCK = 10  # episodes played in one world, which takes a second to build
ENDING = ".hdf5"


class Block(NamedTuple):
    """Episodes to play in one world: of which task, under which seed, their numbers, and whether cameras look on."""

    task: str
    seed: int
    numbers: Sequence[int]
    images: bool


def main(arguments: Sequence[str]) -> int:
    """Write the data set and its card; exit code 2 on a mistake."""
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.datasets.experts", description=__doc__)
    parser.add_argument("--task", choices=sorted(EXPERTS), required=True)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate; the data do not depend on it")
    parser.add_argument("--images", action="store_true", help="record what the cameras see (slow without a graphics card)")
    parser.add_argument("--out", help="the data set; default data/robomimic/TASK_scripted.hdf5, its card lies beside it")
    options = parser.parse_args(arguments)
    out = options.out or f"data/robomimic/{options.task}_scripted{ENDING}"
    try:
        if options.episodes < 1 or options.seed < 0 or options.workers < 1:
            raise ConfigError(
                "--episodes and --workers must be at least 1, --seed at least 0; "
                f"got {options.episodes}, {options.workers}, {options.seed}."
            )
        if not out.endswith(ENDING):
            raise ConfigError(f"The data set is one HDF5 file: --out must end in {ENDING}; got {out}.")
        file = make(options, out, command=shlex.join(["python", "-m", "drifting_policy.datasets.experts", *arguments]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.episodes} demonstrations of {options.task}: {file}")
    return 0


def make(options: argparse.Namespace, out: str, *, command: str) -> Path:
    """Play, write the file and its card; the place of the file."""
    styles: list[int] = []
    failed: list[int] = []
    valid = np.random.default_rng(options.seed).permutation(options.episodes)[: options.episodes // VALID]
    masks = {"valid": sorted(valid.tolist()), "train": sorted(set(range(options.episodes)) - set(valid.tolist()))}
    if not masks["valid"]:
        masks["valid"] = masks["train"]  # too few to keep one back
    episodes = successes(options, styles, failed)
    file = write_robomimic(out, episodes, env_args=env_args(options.task, images=options.images), masks=masks)
    buffer = open_robomimic(file)
    names = EXPERTS[options.task].STYLES
    write_card(
        file,
        ending=ENDING,
        origin="a scripted expert of this project, which chooses one of two styles by chance; failures were left out",
        command=command,
        arrays=buffer.arrays,
        sha256={key: array_sha256(values) for key, values in {**buffer.arrays, "episode_ends": buffer.episode_ends}.items()},
        episodes=buffer.num_episodes,
        episode_steps=quantiles(buffer.lengths),
        played={"episodes": len(styles) + len(failed), "failures": len(failed)},
        styles={name: styles.count(style) for style, name in enumerate(names)},
        style_of_episode=styles,
    )
    return file


def successes(options: argparse.Namespace, styles: list[int], failed: list[int]) -> Iterator[dict[str, Any]]:
    """The first `options.episodes` episodes that succeed, in the order of their numbers.

    Their styles are added to `styles`, the numbers of the others to `failed`.

    Raises:
        ConfigError: where too many fail.
    """
    most = 2 * options.episodes + SPARE
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool, tqdm(total=options.episodes, unit="demo") as bar:
        played = 0
        while len(styles) < options.episodes:
            wanted = range(played, min(played + options.episodes - len(styles), most))
            if not wanted:
                raise ConfigError(f"Only {len(styles)} of {most} episodes succeeded; {options.episodes} were wanted.")
            blocks = [
                Block(options.task, options.seed, wanted[start : start + BLOCK], options.images)
                for start in range(0, len(wanted), BLOCK)
            ]
            results = (result for results in pool.imap(play, blocks) for result in results)
            for number, (style, episode) in zip(wanted, results, strict=True):
                if episode is None:
                    failed.append(number)
                    continue
                styles.append(style)
                bar.update()
                yield episode
            played = wanted.stop


def play(block: Block) -> list[tuple[int, dict[str, Any] | None]]:
    """The style of each episode and what was recorded of it, None where it failed; each depends on its number alone."""
    from drifting_policy.datasets.recorder import record
    from drifting_policy.envs.robomimic_tasks import task_named, world_settings
    from drifting_policy.envs.robomimic_world import World

    module, task, played = EXPERTS[block.task], task_named(block.task), []
    world = World(task, world_settings(block.task, absolute=False))
    try:
        for number in block.numbers:
            start, way = (np.random.default_rng([block.seed, number, stream]) for stream in range(2))
            style = int(way.integers(len(module.STYLES)))
            act = module.expert(way, style).act
            played.append((style, record(world, task, act, start, max_steps=MAX_STEPS[block.task], images=block.images)))
    finally:
        world.close()
    return played


def env_args(name: str, *, images: bool) -> dict[str, Any]:
    """What robomimic makes the environment of the task from: with deltas, as its own files."""
    import robosuite

    from drifting_policy.envs.robomimic_tasks import task_named, world_settings

    task = task_named(name)
    cameras = {"camera_names": list(task.cameras), "camera_heights": task.camera_size, "camera_widths": task.camera_size}
    return {
        "env_name": task.world,
        "env_version": robosuite.__version__,
        "type": 1,
        "env_kwargs": {
            **world_settings(name, absolute=False),
            "has_renderer": False,
            "has_offscreen_renderer": images,
            "ignore_done": True,
            "use_object_obs": True,
            "use_camera_obs": images,
            **(cameras if images else {}),
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
