"""`python benchmarks/data.py`: how fast are batches of image chunks served from the image cache?

Made-up demonstrations (an image of 96 x 96 px, two numbers and two actions per step) are written to the image cache. Two ways
to get the batch of a training step take turns in one run: `batches`, what training calls, which shuffles, looks up the steps of
each chunk and copies images, numbers, actions and the mask of padding; `gather`, NumPy's own indexing of the memory-mapped file
and the other arrays with steps that are known before, which copies equally many bytes. The ratio is the speed of `batches` over
that of `gather`. The file was just written, so that both find it in memory.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, interleaved, record, spread

from drifting_policy import cli
from drifting_policy.config import TaskConfig
from drifting_policy.data.chunks import chunk_index
from drifting_policy.data.image_cache import cached_images
from drifting_policy.training.batches import Batches

BAR = 0.8  # smallest ratio
BATCH_SIZE = 64
REPETITIONS = 300
WARMUP = 20
EPISODES, LENGTH = 40, 100


def made_up_images(shape: tuple[int, int, int, int], folder: Path) -> np.ndarray:
    """Noise in the image cache."""
    rng, source = np.random.default_rng(0), folder / "source"
    source.write_text("noise")

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(EPISODES):
            yield rng.integers(0, 256, (shape[0] // EPISODES, *shape[1:]), dtype=np.uint8)

    return cached_images(source=source, key="noise", shape=shape, blocks=blocks, folder=folder / "cache")


def prepare(task: TaskConfig, batch_size: int, folder: Path) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Calls that give the arrays of the next batch.

    They are half an epoch apart: who comes second would find the images of the first in the caches of the processor.
    """
    rng, steps = np.random.default_rng(1), EPISODES * LENGTH
    height, width, channels = task.observations["image"].shape
    images = made_up_images((steps, height, width, channels), folder)
    numbers = rng.standard_normal((steps, *task.observations["agent_pos"].shape), dtype=np.float32)
    action = rng.standard_normal((steps, *task.action.shape), dtype=np.float32)
    horizons = {name: getattr(task, name) for name in ("obs_horizon", "pred_horizon", "exec_horizon")}
    index = chunk_index(LENGTH * np.arange(1, EPISODES + 1), **horizons)
    batches = Batches(
        {"image": images, "agent_pos": numbers},
        action,
        index,
        obs_horizon=task.obs_horizon,
        batch_size=batch_size,
        seed=0,
        device=torch.device("cpu"),
    )
    order = [batches.order(step).numpy() for step in range(len(batches))]
    turns = {"batches": 0, "gather": len(batches) // 2}

    def turn(name: str) -> int:
        turns[name] += 1
        return (turns[name] - 1) % len(batches)

    def served() -> dict[str, np.ndarray]:
        batch = batches.batch(turn("batches"))
        tensors = {**batch.obs, "action": batch.action, "valid": batch.valid}
        return {key: value.numpy() for key, value in tensors.items()}

    def gather() -> dict[str, np.ndarray]:
        rows = order[turn("gather")]
        chunks = index.steps[rows]
        seen = chunks[:, : task.obs_horizon]
        return {"image": images[seen], "agent_pos": numbers[seen], "action": action[chunks], "valid": index.valid[rows]}

    return {"batches": served, "gather": gather}


def measure(task: TaskConfig, *, batch_size: int, repetitions: int) -> dict[str, Any]:
    """The row of one batch size."""
    with tempfile.TemporaryDirectory() as folder:
        calls = prepare(task, batch_size, Path(folder))
        size = sum(value.nbytes for value in calls["gather"]().values())
        if size != sum(value.nbytes for value in calls["batches"]().values()):
            raise RuntimeError("Both ways must give equally many bytes.")
        times = interleaved(calls, repetitions=repetitions, warmup=WARMUP)
    rows = {name: spread(taken) for name, taken in times.items()}
    speed = {f"{name}_samples_per_s": 1000 * batch_size / row["p50"] for name, row in rows.items()}
    row = {"task": task.name, "ratio": speed["batches_samples_per_s"] / speed["gather_samples_per_s"], "bar": BAR, **speed}
    row |= {"batch_size": batch_size, "batch_bytes": size, "repetitions": repetitions}
    return row | {f"{name}_spread_ms": row for name, row in rows.items()}


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description="The speed of batches of images over that of a bare copy by NumPy.")
    parser.add_argument("--batch", type=int, default=BATCH_SIZE, help="chunks per batch")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--out", type=Path, default=RESULTS / "data.json")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    task = cli.compose("train", ["task=push_t_image"]).task
    row = measure(task, batch_size=given.batch, repetitions=given.repetitions)
    print(f"{'task':<14} {'batches':>18} {'gather':>18} {'ratio':>7}")
    speeds = " ".join(f"{row[f'{name}_samples_per_s']:9.0f} sample/s" for name in ("batches", "gather"))
    print(f"{task.name:<14} {speeds} {row['ratio']:7.3f}")
    missed = [f"batches reach {row['ratio']:.2f} of the speed of a bare copy, below {BAR}."] if row["ratio"] < BAR else []
    return record(given.out, rows=[row], missed=missed, benchmark="data", bar=f"ratio >= {BAR}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
