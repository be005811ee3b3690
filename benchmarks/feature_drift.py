"""`python benchmarks/feature_drift.py`: the drifting core over all features of the image generator and its own matrix products.

The features are those of the ablation setting: the encoder of width 256 on 32 x 32 latents, 64 generated images, 64 positives
and 16 unconditional ones for each label; their values are random, for times do not depend on them. The core is the loss of
one feature and its gradient down to the generated vectors. Its matrix products are what no implementation can do without:
one for the distances, and for each temperature one of positives and one of negatives. Both find memory where they write, as in
a training on a CPU. Core and products take turns in one run; the bar is on all features of a step, in one call. On a CPU there
is one label at a time instead of 64.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, interleaved, record, spread, wait
from torch import Tensor

from drifting_policy.drift import drift_loss_features
from drifting_policy.drift.workspace import Workspace
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.objective import extract

BAR = 1.5  # largest ratio of the core and its matrix products
GENERATED, POSITIVES, NEGATIVES, TEMPERATURES = 64, 64, 16, (0.2, 0.05, 0.02)


def feature_shapes() -> dict[tuple[int, int], int]:
    """How many features have so many positions of so many numbers, for one 32 x 32 latent."""
    with torch.device("meta"):
        encoder = ImageEncoder(in_channels=4, width=256, layers=[3, 4, 6, 3])
        features = extract(encoder.features, torch.empty(1, 4, 32, 32))
    counts: dict[tuple[int, int], int] = {}
    for vectors in features.values():
        positions, numbers = vectors.shape[1:]
        counts[positions, numbers] = counts.get((positions, numbers), 0) + 1
    return counts


def prepare(shapes: Sequence[tuple[int, int]], *, labels: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """The core over features of these shapes in one call, and their matrix products."""
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(count: int, shape: tuple[int, int]) -> Tensor:
        return torch.randn(labels, count, *shape, generator=generator, device=device)

    triples = {
        f"{i}": (draw(GENERATED, shape), draw(POSITIVES, shape), draw(NEGATIVES, shape)) for i, shape in enumerate(shapes)
    }
    made = [triple[0].requires_grad_() for triple in triples.values()]
    weight = torch.full((labels, NEGATIVES), 0.5, device=device)
    factors = {shape: draw_factors(shape, labels=labels, generator=generator, device=device) for shape in set(shapes)}
    workspace, memory = Workspace() if device.type == "cpu" else None, Workspace()

    def core() -> Tensor:
        losses, _ = drift_loss_features(triples, temperatures=TEMPERATURES, neg_weight=weight, workspace=workspace)
        return wait(torch.autograd.grad(losses.mean(), made)[-1])

    def products() -> Tensor:
        for shape in shapes:
            rows, targets, affinity = factors[shape]
            repel, attract = targets[:, : GENERATED + NEGATIVES], targets[:, GENERATED + NEGATIVES :]
            force = memory.empty("force", tuple(rows.shape), rows, rows.dtype)
            torch.bmm(rows, targets.mT, out=memory.empty("distance", tuple(affinity.shape), rows, rows.dtype))
            for _ in TEMPERATURES:
                torch.bmm(affinity[:, :, : repel.shape[1]], repel, out=force)
                torch.bmm(affinity[:, :, repel.shape[1] :], attract, out=force)
        return wait(force)

    return {"core": core, "products": products}


def draw_factors(
    shape: tuple[int, int], *, labels: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Generated samples, all samples and affinities of every position, ready to be multiplied."""
    conditions, targets = labels * shape[0], GENERATED + NEGATIVES + POSITIVES
    every = torch.randn(conditions, targets, shape[1], generator=generator, device=device)
    affinity = torch.rand(conditions, GENERATED, targets, generator=generator, device=device)
    return every[:, :GENERATED].contiguous(), every, affinity


def measure(*, labels: int, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """One row for each shape of features, and one for all features of a step in one call."""
    rows, counts = [], feature_shapes()
    groups = {f"{shape[0]} x {shape[1]}": [shape] for shape in sorted(counts, reverse=True)}
    groups["all"] = [shape for shape in sorted(counts, reverse=True) for _ in range(counts[shape])]
    for name, shapes in groups.items():
        times = interleaved(prepare(shapes, labels=labels, device=device), repetitions=repetitions, warmup=1)
        features = counts[shapes[0]] if name != "all" else len(shapes)
        rows.append(row(name, features, {each: spread(taken)["p50"] for each, taken in times.items()}, repetitions))
        print(tell(rows[-1]), flush=True)
    return rows


def row(shape: str, count: int, times: dict[str, float], repetitions: int) -> dict[str, Any]:
    """Times in milliseconds and their ratio."""
    return {
        "positions x numbers": shape,
        "features": count,
        "ratio": times["core"] / times["products"],
        "core_ms": times["core"],
        "products_ms": times["products"],
        "repetitions": repetitions,
    }


def tell(row: dict[str, Any]) -> str:
    """The row for people."""
    times = f"core {row['core_ms']:9.2f} ms   products {row['products_ms']:9.2f} ms"
    return f"{row['positions x numbers']:>12}   {row['features']:3} features   {times}   {row['ratio']:.2f}"


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--labels", type=int, help="default: 64 on a GPU, 1 on a CPU")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "feature_drift.json")
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    labels = given.labels or (64 if device.type == "cuda" else 1)
    rows = measure(labels=labels, repetitions=given.repetitions, device=device)
    missed = (
        [f"the core takes {rows[-1]['ratio']:.2f} times as long as its matrix products."] if rows[-1]["ratio"] > BAR else []
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    about = {"benchmark": "feature_drift", "bar": f"ratio <= {BAR}", "labels": labels, "device": name}
    return record(given.out, rows=rows, missed=missed, **about)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
