"""What the benchmarks share: made-up demonstrations, calls timed in turns, and the record of a result."""

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from drifting_policy.atomic import write_json
from drifting_policy.config import ArrayConfig, TaskConfig
from drifting_policy.demonstrations import Demonstrations
from drifting_policy.versions import versions

K = TypeVar("K", bound=Hashable)
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def random_walks(task: TaskConfig, *, episodes: int = 12, length: int = 50) -> Demonstrations:
    """Demonstrations in the shape that the task declares: a benchmark needs no data set, and times do not depend on it."""
    rng = np.random.default_rng(0)

    def walk(shape: Sequence[int]) -> np.ndarray:
        return rng.standard_normal((episodes * length, *shape), dtype=np.float32).cumsum(axis=0)

    def observe(array: ArrayConfig) -> np.ndarray:
        if array.dtype == "uint8":  # pictures, each as good as another
            return rng.integers(256, size=(episodes * length, *array.shape), dtype=np.uint8)
        return walk(array.shape)

    return Demonstrations(
        observations={key: observe(array) for key, array in task.observations.items()},
        action=walk(task.action.shape),
        episode_ends=length * np.arange(1, episodes + 1),
    )


def interleaved(calls: Mapping[K, Callable[[], object]], *, repetitions: int, warmup: int) -> dict[K, list[float]]:
    """Milliseconds that each call took, in every repetition.

    The calls take turns, in the order given, so that a machine that slows down slows all of them alike; the first `warmup`
    rounds are not counted.
    """
    times: dict[K, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: taken[warmup:] for name, taken in times.items()}


def wait(result: Tensor) -> Tensor:
    """`result`, when it is there: a GPU computes on while Python goes on."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result


def spread(times: Sequence[float]) -> dict[str, float]:
    """Smallest and largest time and the percentiles between them, in the unit of `times`."""
    p25, p50, p75, p99 = (float(value) for value in np.percentile(times, [25, 50, 75, 99]))
    return {"min": min(times), "p25": p25, "p50": p50, "p75": p75, "p99": p99, "max": max(times)}


def record(path: Path, *, rows: list[dict[str, Any]], missed: Sequence[str], **about: Any) -> int:
    """Write the rows and what they were measured with, print each sentence of `missed`; the exit code, 1 if there is one."""
    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "load_average": os.getloadavg()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**about, "met": not missed, "rows": rows, "machine": machine, "versions": versions()})
    print(f"written to {path}")
    for sentence in missed:
        print(f"The bar is missed: {sentence}")
    return 1 if missed else 0
