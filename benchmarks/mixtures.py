"""Drifting on mixtures in the plane, as in figures 1 to 4 of the paper: a small head, `drift_loss`, and nothing else.

Each training begins with all samples at one point: far away from the data, between the modes, or on one mode. What is watched:

    loss       the drifting loss of a step, which normalised forces keep nearly constant
    energy     the energy distance of samples and data (Szekely, Rizzo 2013), 0 only where the distributions are equal
    found      the share of the modes that get at least half of the samples that they should
    astray     the share of the samples that lie in no mode

Affinities have no floor, as in the paper's Algorithm 2. One case has the floor of the released code, which is the default of
`drift_loss`: among so many samples it pulls all of them to the mean of the data and holds them there.

The script writes results/toy/mixtures.json, docs/toy_mixtures.png, docs/toy_mixtures_curves.png and docs/toy_mixtures.gif.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from drifting_policy.atomic import write_json
from drifting_policy.drift import drift_loss
from drifting_policy.models.mlp import MlpGenerator
from drifting_policy.versions import versions

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 128  # per step, and as many points of the data
JUDGED = 1000  # samples and data that are compared
RATE, WIDTH, DEPTH = 6e-3, 128, 3
FILM_OF = "ring"
FLOOR = 1e-6
FLOORED = f"between, floor {FLOOR:g}"
COLORS = {"far away": "#1f6fb4", "between": "#d9541e", "on one mode": "#2f9e5b", FLOORED: "#555555"}
STARTS = [name for name in COLORS if name != FLOORED]


@dataclass(frozen=True)
class Mixture:
    """A distribution in the plane: `draw(n, rng)` gives points "n 2", `mode_of` their modes "n", -1 for a point in none."""

    modes: int
    draw: Callable[[int, np.random.Generator], np.ndarray]
    mode_of: Callable[[np.ndarray], np.ndarray]
    starts: dict[str, tuple[float, float]]


def clusters(centres: np.ndarray, *, deviation: float) -> Mixture:
    """Equally likely normal clusters; a point within three deviations of a centre belongs to it."""

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(centres[rng.integers(len(centres), size=count)] + deviation * rng.standard_normal((count, 2)))

    def mode_of(points: np.ndarray) -> np.ndarray:
        distances = np.linalg.norm(points[:, None] - centres, axis=-1)
        return np.where(distances.min(axis=1) <= 3 * deviation, distances.argmin(axis=1), -1)

    x, y = centres[0].tolist()
    return Mixture(len(centres), draw, mode_of, {"far away": (2.0, 2.0), "between": (0.0, 0.0), "on one mode": (x, y)})


def checkerboard() -> Mixture:
    """The eight dark squares of a board of four by four squares that fills [-1, 1]^2."""
    squares = np.array([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0])
    numbers = np.full((4, 4), -1)
    numbers[squares[:, 0], squares[:, 1]] = np.arange(len(squares))

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        return np.asarray((squares[rng.integers(len(squares), size=count)] + rng.random((count, 2))) / 2 - 1)

    def mode_of(points: np.ndarray) -> np.ndarray:
        places = np.floor(2 * (points + 1)).astype(int)
        inside = ((places >= 0) & (places < 4)).all(axis=1)
        column, row = places.clip(0, 3).T
        return np.where(inside, numbers[column, row], -1)

    return Mixture(len(squares), draw, mode_of, {"far away": (2.0, 2.0), "between": (0.0, 0.0), "on one mode": (-0.75, -0.75)})


def ring(count: int) -> np.ndarray:
    """Centres "n 2" on a circle of radius 0.7."""
    angles = 2 * np.pi * np.arange(count) / count
    return 0.7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


MIXTURES = {
    "two clusters": clusters(ring(2), deviation=0.1),
    "ring": clusters(ring(8), deviation=0.05),
    "checkerboard": checkerboard(),
}


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| for samples "n 2" and "m 2": zero on average where they have one distribution.

    A point is not paired with itself, which keeps the estimate free of bias, so that it can also be a little below zero.
    """
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


@dataclass
class Course:
    """What was watched in one training, every so many steps."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    astray: list[float] = field(default_factory=list)
    samples: list[np.ndarray] = field(default_factory=list)


def learn(mixture: Mixture, start: tuple[float, float], *, floor: float, steps: int, every: int, seed: int) -> Course:
    """Train a head whose samples all begin near `start`; the whole batch is one condition, and there is nothing to observe."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = MlpGenerator(sample_shape=(1, 2), tokens=1, embed_dim=1, width=WIDTH, depth=DEPTH)
    head.output.bias.data = torch.tensor(start)
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    judged = torch.randn(1, JUDGED, 1, 2, generator=torch.Generator().manual_seed(1))
    data = torch.as_tensor(mixture.draw(JUDGED, np.random.default_rng(1)), dtype=torch.float32)
    nothing, course, losses = torch.zeros(1, 1, 1), Course(), []
    for step in range(steps + 1):
        positives = torch.as_tensor(mixture.draw(SAMPLES, rng), dtype=torch.float32)
        x = head(torch.randn(1, SAMPLES, 1, 2, generator=noise), nothing).flatten(2)
        loss = drift_loss(x, positives[None], affinity_floor=floor)[0].mean()
        losses.append(float(loss.detach()))
        if step % every == 0:
            with torch.no_grad():
                points = head(judged, nothing)[0, :, 0]
            watch(course, step, float(np.mean(losses)), points, data, mixture)
            losses = []
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return course


def watch(course: Course, step: int, loss: float, points: torch.Tensor, data: torch.Tensor, mixture: Mixture) -> None:
    """Append what can be seen of the samples `points` "n 2"."""
    found, astray = modes_found(mixture.mode_of(points.numpy().astype(np.float64)), mixture.modes)
    course.steps.append(step)
    course.loss.append(loss)
    course.energy.append(energy_distance(points, data))
    course.found.append(found)
    course.astray.append(astray)
    course.samples.append(points.numpy())


def modes_found(modes: np.ndarray, count: int) -> tuple[float, float]:
    """The share of the `count` modes with at least half of their fair share of the samples, and the share in no mode (-1)."""
    held = np.bincount(modes[modes >= 0], minlength=count) / len(modes)
    return float((held >= 0.5 / count).mean()), float((modes < 0).mean())


def main(arguments: Sequence[str]) -> None:
    """Train every mixture from every start, write the rows, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps between two looks")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with results/ and docs/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = [(name, start) for name in MIXTURES for start in STARTS] + [(FILM_OF, FLOORED)]
    courses: dict[tuple[str, str], list[Course]] = {}
    for name, start in cases:
        place, floor = MIXTURES[name].starts[start.partition(",")[0]], FLOOR if start == FLOORED else 0.0
        courses[name, start] = [
            learn(MIXTURES[name], place, floor=floor, steps=options.steps, every=options.every, seed=seed)
            for seed in range(options.seeds)
        ]
        ends = [f"{run.energy[-1]:.4f} {run.found[-1]:.2f} {run.astray[-1]:.3f}" for run in courses[name, start]]
        print(f"{name}, {start}: energy, found, astray {ends}", flush=True)
    for folder in ("results/toy", "docs"):
        (options.root / folder).mkdir(parents=True, exist_ok=True)
    rows = [describe(name, start, runs, options.steps) for (name, start), runs in courses.items()]
    write_json(options.root / "results/toy/mixtures.json", rows)
    draw_samples(courses, options.root / "docs/toy_mixtures.png")
    draw_curves(courses, options.root / "docs/toy_mixtures_curves.png")
    draw_film(courses, options.root / "docs/toy_mixtures.gif")


def describe(name: str, start: str, runs: list[Course], steps: int) -> dict[str, Any]:
    """A result row: means over the seeds, at the beginning and at the end, and every seed's end."""
    mixture = MIXTURES[name]
    pairs = [[mixture.draw(JUDGED, np.random.default_rng([seed, i])) for i in range(2)] for seed in range(10)]
    same = [energy_distance(*(torch.as_tensor(points) for points in pair)) for pair in pairs]
    row: dict[str, Any] = {"mixture": name, "start": start, "n_training_seeds": len(runs), "steps": steps}
    row["affinity_floor"] = FLOOR if start == FLOORED else 0.0
    for quantity in ("loss", "energy", "found", "astray"):
        ends = [getattr(run, quantity)[-1] for run in runs]
        row |= {f"{quantity}_at_first": round(float(np.mean([getattr(run, quantity)[0] for run in runs])), 4)}
        row |= {quantity: round(float(np.mean(ends)), 4), f"{quantity}_per_seed": [round(end, 4) for end in ends]}
    row["energy_of_data"] = round(float(np.abs(same).mean()), 4)
    head = {"name": "mlp", "width": WIDTH, "depth": DEPTH}
    recipe = {
        "samples": SAMPLES,
        "positives": SAMPLES,
        "learning_rate": RATE,
        "head": head,
        "drift": "defaults of drift_loss, but for the floor",
    }
    return row | {"n_judged": JUDGED, "config": recipe, "versions": versions()}


def draw_samples(courses: dict[tuple[str, str], list[Course]], path: Path) -> None:
    """The last samples of the first seed: a row for each mixture, a column for each start."""
    figure = Figure(figsize=(8.4, 8.8), layout="constrained")
    grid = figure.subplots(len(MIXTURES), len(STARTS))
    for row, (name, mixture) in zip(grid, MIXTURES.items(), strict=True):
        data = mixture.draw(1000, np.random.default_rng(2))
        for axes, start in zip(row, STARTS, strict=True):
            scatter(axes, data, courses[name, start][0].samples[-1][:1000], color=COLORS[start])
            if start != "far away":  # which lies beyond the window
                axes.plot(*mixture.starts[start], marker="*", color="black", markersize=9)
            axes.set_title(f"{name}, start {start}", fontsize=10)
    figure.savefig(path, dpi=100)


def scatter(axes: Any, data: np.ndarray, samples: np.ndarray, *, color: str) -> None:
    """Data in grey below samples in colour, in a fixed window without ticks."""
    axes.scatter(*data.T, s=5, color="#c8c8c8", linewidths=0)
    axes.scatter(*samples.T, s=5, color=color, linewidths=0)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")


def draw_curves(courses: dict[tuple[str, str], list[Course]], path: Path) -> None:
    """Loss, energy distance and modes found over the steps: mean over the seeds, and their range."""
    panels = {"loss": "drifting loss", "energy": "energy distance", "found": "share of the modes found"}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.subplots(len(panels), len(MIXTURES), sharex=True, sharey="row")
    for row, (quantity, label) in zip(grid, panels.items(), strict=True):
        for axes, name in zip(row, MIXTURES, strict=True):
            for start in (start for start in COLORS if (name, start) in courses):
                color = COLORS[start]
                table = np.array([getattr(run, quantity) for run in courses[name, start]])
                if quantity == "energy":
                    axes.set_yscale("log")
                    table = table.clip(1e-4)  # the estimate can be below zero
                steps = courses[name, start][0].steps
                axes.fill_between(steps, table.min(0), table.max(0), color=color, alpha=0.2, linewidth=0)
                axes.plot(steps, table.mean(0), color=color, label=f"start {start}")
            axes.grid(alpha=0.3)
        row[0].set_ylabel(label)
    grid[0][0].set_ylim(0, 10)
    for axes, name in zip(grid[0], MIXTURES, strict=True):
        axes.set_title(name)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    grid[0][0].legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=90)


def draw_film(courses: dict[tuple[str, str], list[Course]], path: Path) -> None:
    """The samples of one mixture during training, from all starts side by side."""
    mixture, frames = MIXTURES[FILM_OF], []
    data = mixture.draw(600, np.random.default_rng(2))
    looks = courses[FILM_OF, "between"][0].steps
    for look, step in enumerate(looks):
        figure = Figure(figsize=(8.8, 2.7), dpi=80, layout="constrained")
        for axes, (start, color) in zip(figure.subplots(1, len(COLORS)), COLORS.items(), strict=True):
            scatter(axes, data, courses[FILM_OF, start][0].samples[look][:400], color=color)
            axes.set(xlim=(-1.3, 2.3), ylim=(-1.3, 2.3))
            axes.set_title(f"start {start}", fontsize=10)
        figure.suptitle(f"step {step}", fontsize=10)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        frames.append(np.asarray(Image.open(picture).convert("RGB")))
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 6)])).quantize(32)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [120] * (len(images) - 1) + [2000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
