"""The drifting field as plain loops in float64, and samples for it."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drifting_policy.drift import Field


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def samples(b: int = 3, g: int = 5, p: int = 4, n: int = 2, f: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return normal(b, g, f, seed=seed), normal(b, p, f, seed=seed + 100) + 0.5, normal(b, n, f, seed=seed + 200) - 0.5


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def grouped_mean(values: np.ndarray, grouping: str) -> np.ndarray:
    """The mean per condition "b": of the condition, or of everything."""
    own = values.reshape(len(values), -1).mean(1)
    return own if grouping == "condition" else np.full(len(values), own.mean())


def loop_field(x: np.ndarray, pos: np.ndarray, neg: np.ndarray, weights: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    """The field of `drift`, one sample and one target at a time. `weights` "b m" in the order x, neg, pos."""
    (b, g, f), targets = x.shape, np.concatenate([x, neg, pos], axis=1)
    m, negatives = targets.shape[1], g + neg.shape[1]
    distance = np.array([[[max(math.dist(u, v), 1e-4) for v in targets[c]] for u in x[c]] for c in range(b)])
    scale = grouped_mean(distance * weights[:, None], options["scale"]) / grouped_mean(weights, options["scale"])
    unit = np.ones(b) if options["scale"] == "none" else np.maximum(scale / math.sqrt(f), 1e-3)
    length = np.ones(b) if options["scale"] == "none" else np.maximum(scale, 1e-3)
    velocity, rms = np.zeros(x.shape), []
    for temperature in options["temperatures"]:
        force = np.zeros(x.shape)
        for c in range(b):
            ratio = distance[c] / length[c] + (100 * np.eye(g, m) if options["self_mask"] else 0)
            logits = -ratio / temperature if options["kernel"] == "laplace" else -((ratio / temperature) ** 2) / 2
            rows = np.array([softmax(list(row)) for row in logits])
            columns = np.array([softmax(list(column)) for column in logits.T]).T
            affinity = {"row_column": np.sqrt(rows * columns), "row": rows, "none": np.exp(logits)}[options["coupling"]]
            affinity = np.maximum(affinity, math.sqrt(options["affinity_floor"])) * weights[c]
            for i, k, j in itertools.product(range(g), range(negatives), range(negatives, m)):
                step = options["attraction"] * (targets[c, j] - x[c, i]) - options["repulsion"] * (targets[c, k] - x[c, i])
                force[c, i] += affinity[i, k] * affinity[i, j] * step / unit[c]
        mean_square = grouped_mean(force**2, options["force"])
        norm = np.ones(b) if options["force"] == "none" else np.sqrt(np.maximum(mean_square, 1e-8))
        velocity += force / norm[:, None, None]
        rms.append(np.sqrt(mean_square).mean())
    return {"velocity": velocity, "scale": scale, "unit": unit, "rms": np.array(rms)}


def compare(field: Field, expected: dict[str, Any]) -> None:
    """Every number of the field."""
    for name, value in expected.items():
        actual = getattr(field, name).numpy()
        if name in ("scale", "unit"):
            actual = np.broadcast_to(actual.reshape(-1), value.shape)
        np.testing.assert_allclose(actual, value, rtol=1e-8, atol=1e-9, err_msg=name)
