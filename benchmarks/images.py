"""The image generator against its controls: what the feature space, the balance of the forces and many positives are worth.

`python benchmarks/images.py digits` trains the encoder once and then every arm by the commands that users type, with the same
data, batches, steps and seeds, draws samples, and judges them by a classifier that no generator has seen. Finished runs are
kept, interrupted ones are resumed: the script can be stopped and started again. It writes results/images/DATA.json and
docs/images_DATA.png.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import t as student

from drifting_policy.atomic import write_json
from drifting_policy.checkpoint import list_checkpoints
from drifting_policy.imagenet.classifier import ClassifierOptions, classifier_accuracy, save_classifier, train_classifier
from drifting_policy.imagenet.images import open_images
from drifting_policy.versions import versions

ROOT = Path(__file__).resolve().parents[1]
FULL, CONTROL, LONGER = "drift", "without features", "without features, longer"
NOISY, NOISY_CONTROL = "with noise", "without features, with noise"
METRICS = {  # of imagenet.evaluate, as they are called in the rows
    "class_accuracy": "of_their_class",
    "classification_accuracy_score": "taught",
    "frechet_distance": "feature_distance",
    "coverage": "coverage",
    "recall": "recall",
    "precision": "precision",
}
ARMS: dict[str, tuple[str, ...]] = {
    FULL: (),
    CONTROL: ("task.encoder=none",),
    LONGER: ("task.encoder=none", "task.trainer.steps=2500"),  # a step without features takes less time; `step_seconds` tells
    "attraction alone": ("task.drift.repulsion=0",),
    "attraction x 1.5": ("task.drift.attraction=1.5",),
    "attraction x 2": ("task.drift.attraction=2",),
    "repulsion x 1.5": ("task.drift.repulsion=1.5",),
    "repulsion x 2": ("task.drift.repulsion=2",),
    "1 positive": ("task.batch.positives=1",),
    "4 positives": ("task.batch.positives=4",),
}


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        data: Name of the data, of the task of the generator, and after `mae_` of that of the encoder.
        arms: Settings of each arm.
        seeds: Training seeds of every arm.
        samples: How many samples of each run are judged.
        overrides: Settings of all generators.
        judge: The classifier that judges them; None for the default one of the data.
    """

    data: str
    arms: Mapping[str, tuple[str, ...]]
    seeds: int
    samples: int
    overrides: tuple[str, ...] = ()
    judge: ClassifierOptions | None = None


STUDIES = {
    "digits": Study("digits", ARMS, seeds=3, samples=2000),
    "cifar10": Study(
        "cifar10",
        {
            **ARMS,
            LONGER: ("task.encoder=none", "task.trainer.steps=4500"),
            NOISY: ("task.generator.noise_scale=1",),
            NOISY_CONTROL: ("task.encoder=none", "task.generator.noise_scale=1"),
        },
        seeds=3,
        samples=5000,
        judge=ClassifierOptions(width=32, epochs=8),  # a tenth of the work of the default, for a CPU
    ),
}


def main() -> None:
    """Train what is not trained yet, judge it, write rows and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--runs", type=Path, help="where the runs are kept; default: runs/images/STUDY")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=[*ARMS, NOISY, NOISY_CONTROL],
        help=f"default: all of the study; {FULL} is always among them",
    )
    parser.add_argument("--seeds", type=int, help="training seeds")
    parser.add_argument("--samples", type=int, help="samples of each run that are judged")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, help="default: results/images/STUDY.json")
    parser.add_argument("--picture", type=Path, help="default: docs/images_STUDY.png")
    parser.add_argument("overrides", nargs="*", help="settings of all generators, such as task.trainer.steps=100")
    given = parser.parse_intermixed_args()
    changes = {name: getattr(given, name) for name in ("seeds", "samples") if getattr(given, name)}
    study = replace(STUDIES[given.study], **changes)
    chosen = {name: arm for name, arm in study.arms.items() if name == FULL or name in (given.arms or study.arms)}
    study = replace(study, arms=chosen, overrides=(*study.overrides, *given.overrides))
    home = given.runs or Path(f"runs/images/{given.study}")
    out = given.out or ROOT / f"results/images/{given.study}.json"

    encoder = home / "encoder"
    train(encoder, f"mae_{study.data}", seed=0, overrides=())
    extractor = train_judge(study, home / "judge")
    cases = [(name, seed) for seed in range(study.seeds) for name in study.arms]
    with ThreadPoolExecutor(given.jobs) as threads:
        found = list(threads.map(lambda case: measure(study, *case, home=home, encoder=encoder, extractor=extractor), cases))
    runs = {name: [result for (arm, _), result in zip(cases, found, strict=True) if arm == name] for name in study.arms}
    rows = make_rows(study, runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, rows)
    draw(study, home, given.picture or ROOT / f"docs/images_{given.study}.png")
    for row in rows:
        print(f"{row['arm']:<32}", *(f"{name} {row[name]}" for name in METRICS.values()), sep="   ")


def folder(home: Path, name: str, seed: int) -> Path:
    """Where a run of an arm is kept."""
    return home / f"{name.replace(',', '').replace(' ', '_')}_seed{seed}"


def train_judge(study: Study, place: Path) -> str:
    """The `extractor` of the study's evaluations, trained if it is not there."""
    if study.judge is None:
        return "classifier"
    if not place.is_dir():
        training, unseen = (open_images(study.data, split=split) for split in ("train", "test"))
        model = train_classifier(training, study.judge, device=torch.device("cpu"))
        accuracy = classifier_accuracy(model, unseen)
        print(f"the judge tells {accuracy:.3f} of the test images right")
        save_classifier(place, model, options=study.judge, accuracy=accuracy, count=len(unseen))
    return f"classifier:{place}"


def measure(study: Study, name: str, seed: int, *, home: Path, encoder: Path, extractor: str) -> dict[str, Any]:
    """What the evaluation of one run found."""
    run_dir = folder(home, name, seed)
    settings = [f"task.encoder={encoder}", *study.overrides, *study.arms[name]]
    train(run_dir, study.data, seed=seed, overrides=settings)
    judged = run_dir / f"judged_{study.samples}"
    if not (result := judgement(judged)):
        command = [f"ckpt={run_dir}", f"data={study.data}", f"n={study.samples}", f"out={judged}", f"extractor={extractor}"]
        execute("evaluate", [*command, "cas=true", "threads=1"], log=run_dir.parent / f"{run_dir.name}.log")
        result = judgement(judged)
    rates = [json.loads(line)["steps_per_second"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return result | {"step_seconds": float(np.median([1 / rate for rate in rates]))}


def judgement(folder: Path) -> dict[str, Any]:
    """What an evaluation wrote; empty if it is not there, or lacks a metric."""
    results: list[dict[str, Any]] = [json.loads(file.read_text()) for file in folder.glob("results_*.json")]
    return results[0] if len(results) == 1 and METRICS.keys() <= results[0]["metrics"].keys() else {}


def train(run_dir: Path, task: str, *, seed: int, overrides: Sequence[str]) -> None:
    """Train one run, unless it is finished; the log lies beside it."""
    done = run_dir / "finished"
    if done.exists():
        return
    begun = str(bool(list_checkpoints(run_dir))).lower()
    settings = [f"task={task}", f"seed={seed}", f"run_dir={run_dir}", "threads=1", f"resume={begun}", "overwrite=true"]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    execute("train", [*settings, *overrides], log=run_dir.parent / f"{run_dir.name}.log")
    done.touch()


def execute(command: str, settings: Sequence[str], *, log: Path) -> None:
    """Run a command of the image generator."""
    with log.open("a") as file:
        line = [sys.executable, "-m", f"drifting_policy.imagenet.{command}", *settings]
        if subprocess.run(line, stdout=file, stderr=file, env=os.environ, check=False).returncode:
            sys.exit(f"{' '.join(line[2:])} failed; see {log}.")


def make_rows(study: Study, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each arm, the mean over training seeds with Student's interval, then one for each difference from the full one.

    Differences are paired by training seed.
    """
    about = {
        "data": study.data,
        "n_training_seeds": study.seeds,
        "n_samples": study.samples,
        "network_evaluations": 1,
        "extractor": runs[FULL][0]["extractor"],
        "confidence": 0.95,
        "method": "Student's t over training seeds",
        "settings": list(study.overrides),
        "versions": versions(),
    }
    values = {
        name: {new: np.array([result["metrics"][old]["value"] for result in found]) for old, new in METRICS.items()}
        for name, found in runs.items()
    }
    rows = []
    for name, found in runs.items():
        seconds = float(np.median([result["step_seconds"] for result in found]))
        rows.append(row(name, values[name]) | {"step_seconds": seconds} | about)
    for name in [name for name in runs if name != FULL]:
        gaps = {metric: values[FULL][metric] - values[name][metric] for metric in values[name]}
        rows.append(row(f"{FULL} - {name}", gaps) | about)
    seen = runs[FULL][0]["metrics"]["frechet_distance"].get("between_training_and_unseen_images")
    return [each | {"feature_distance_of_training_images": seen} for each in rows]


def row(name: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Every metric as people read it, and its numbers."""
    numbers = {metric: interval(found) for metric, found in values.items()}
    form = "{:.3f}" if len(next(iter(values.values()))) == 1 else "{:.3f} [{:.3f}, {:.3f}]"  # one seed tells no interval
    shown = {metric: form.format(*found) for metric, found in numbers.items()}
    seeds = {metric: [round(float(value), 4) for value in found] for metric, found in values.items()}
    return {"arm": name, **shown, "intervals": numbers, "per_training_seed": seeds}


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and where it lies with 95 % confidence; the same number three times for a single value."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def draw(study: Study, home: Path, file: Path) -> None:
    """The first samples of every arm side by side, all of the same noise: a class in each column."""
    columns = min(2, len(study.arms))
    lines = -(-len(study.arms) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for place in places:
        place.axis("off")
    for place, name in zip(places, study.arms, strict=False):
        sheet = np.asarray(Image.open(folder(home, name, 0) / f"judged_{study.samples}" / "samples.png"))
        place.imshow(by_class(sheet), cmap="gray")
        place.set_title(name, fontsize=9)
    figure.savefig(file, dpi=110)


def by_class(sheet: np.ndarray, *, shown: int = 8, gap: int = 2, classes: int = 10) -> np.ndarray:
    """A sheet of `shown` by `shown` samples, whose classes take turns, with each class in a column of its own."""
    pitch = (sheet.shape[0] + gap) // shown
    framed = np.full((pitch * shown, pitch * shown, *sheet.shape[2:]), 255, sheet.dtype)
    framed[: sheet.shape[0], : sheet.shape[1]] = sheet
    samples = [framed[i * pitch :, j * pitch :][:pitch, :pitch] for i in range(shown) for j in range(shown)]
    rows = [np.concatenate(samples[i : i + classes], axis=1) for i in range(0, len(samples) - classes + 1, classes)]
    return np.concatenate(rows)[:-gap, :-gap]


if __name__ == "__main__":
    main()
