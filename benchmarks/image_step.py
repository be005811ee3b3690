"""`python benchmarks/image_step.py`: one training step of the image generator at full size, and what it is made of.

The networks are those of the paper, with fresh weights; the images are made up, for times do not depend on them. A step is the
whole update of the trainer: features of real and generated images, the drifting field on every feature, gradients, clipping,
AdamW, averages. Reading images from a disk is not in it. A step has as many labels as the task asks for, halved until it fits
the memory. The model's floating-point operations are those of its matrix products and convolutions, counted for one image and
without what activation checkpointing computes twice; utilisation is their rate over that of a large matrix product in bfloat16,
measured in the same run. Networks compute in bfloat16. On a CPU the step is a reduced one in float32, with one label and few
images, and only its rate and shares are told.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timing import RESULTS, record
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from drifting_policy import cli
from drifting_policy.drift import drift_loss_features
from drifting_policy.imagenet.averages import Averages
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.features import Extractor
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.goal import Goal
from drifting_policy.imagenet.objective import extract, image_loss
from drifting_policy.imagenet.tasks import GeneratorTask
from drifting_policy.imagenet.trainer import ImageState, ImageTrainer, make_optimizer

LAYERS = (3, 4, 6, 3)  # blocks of the encoder's stages, as released
WIDTHS = {"ablation": 256, "latent_b": 640, "latent_l": 640}  # of the encoder that the task compares images by
PRODUCT = 8192  # edge of the matrices by which the rate of the GPU is measured
REDUCED = ["task.batch.generated=4", "task.batch.positives=4", "task.batch.unconditional=1"]  # on a CPU


@dataclass(frozen=True)
class MadeUp(Goal):
    """The loss of the image generator on images that are drawn once."""

    network: ImageGenerator
    extractor: Extractor
    images: dict[str, Tensor]
    options: dict[str, Any]

    def losses(self, step: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """That of any step."""
        losses, _ = image_loss(self.network, self.extractor, **cast("Any", self.images), **self.options)
        yield losses.mean(), {}

    def picture(self, network: nn.Module) -> tuple[Tensor, int]:
        """None is asked for."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing to do."""


def draw_images(task: GeneratorTask, generator: ImageGenerator, *, labels: int, device: torch.device) -> dict[str, Tensor]:
    """The images, noise and classes of one step."""
    source, counts = torch.Generator(device).manual_seed(0), task.batch
    normal = partial(torch.randn, generator=source, device=device)
    style = generator.draw_style(labels * counts.generated, source).view(labels, counts.generated, -1)
    return {
        "labels": torch.randint(generator.classes, (labels,), generator=source, device=device),
        "positives": normal(labels, counts.positives, *generator.image_shape),
        "unconditional": normal(labels, counts.unconditional, *generator.image_shape),
        "scales": 1 + torch.rand(labels, generator=source, device=device),
        "noise": normal(labels, counts.generated, *generator.image_shape),
        "style": style,
    }


def build(task: GeneratorTask, *, width: int, precision: str, chunk: int, labels: int, device: torch.device) -> MadeUp:
    """The networks of a task and the images of its steps; `precision` is the encoder's."""
    with torch.random.fork_rng(devices=[]), device:
        torch.default_generator.manual_seed(0)
        generator = ImageGenerator(**asdict(task.generator))
        encoder = ImageEncoder(in_channels=generator.image_shape[0], width=width, layers=LAYERS, precision=precision)
    nn.init.normal_(generator.output.weight, std=0.02)  # images that are not all zero
    encoder.requires_grad_(False).eval()
    images = draw_images(task, generator, labels=labels, device=device)
    options = {**asdict(task.drift), "temperatures": tuple(task.drift.temperatures), "feature_chunk": chunk}
    return MadeUp(generator, partial(encoder.features, every_block=task.features.every_block), images, options)


def make_trainer(goal: MadeUp, task: GeneratorTask) -> ImageTrainer:
    """The update of the task."""
    settings = task.optimizer
    optimizer = make_optimizer(
        goal.network, learning_rate=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    state = ImageState(goal, Averages(goal.network, task.trainer.averages), optimizer)
    return ImageTrainer(state, learning_rate=lambda _: settings.learning_rate, clip_norm=settings.clip_norm)


def seconds(work: Callable[[], object], *, repetitions: int, device: torch.device) -> float:
    """The median time of some work, after once for warm-up, until the device is idle."""
    taken = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken[1:]))


def core(goal: MadeUp, *, seed: int = 0) -> Callable[[], object]:
    """The drifting field on all features and its gradient down to them, on vectors like those of a step."""
    images, options = goal.images, {name: value for name, value in goal.options.items() if name != "feature_chunk"}
    with torch.no_grad():
        shapes = {name: value[0] for name, value in extract(goal.extractor, images["noise"][0, :1]).items()}
    source = torch.Generator(images["noise"].device).manual_seed(seed)

    def draw(kind: str, like: Tensor) -> Tensor:
        shape = (*images[kind].shape[:2], *like.shape)
        return torch.randn(shape, generator=source, device=like.device, dtype=like.dtype)

    triples = {
        name: (draw("noise", like).requires_grad_(), draw("positives", like), draw("unconditional", like))
        for name, like in shapes.items()
    }
    weight = torch.full(images["unconditional"].shape[:2], 0.5, device=images["noise"].device)

    def work() -> object:
        losses, _ = drift_loss_features(triples, **options, neg_weight=weight)
        return torch.autograd.grad(losses.mean(), [triple[0] for triple in triples.values()])

    return work


def count_operations(task: GeneratorTask, *, width: int) -> dict[str, float]:
    """Floating-point operations for one image: of the generator and the encoder, forward and with the backward pass."""
    device = torch.device("meta")
    with device:
        generator = ImageGenerator(**asdict(task.generator))
        encoder = ImageEncoder(in_channels=generator.image_shape[0], width=width, layers=LAYERS).requires_grad_(False)
        noise = torch.empty(1, *generator.image_shape)
        more = {"labels": torch.zeros(1, dtype=torch.long), "style": torch.zeros(1, generator.style_tokens, dtype=torch.long)}
        scales = torch.ones(1)

    def count(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops())

    def backward(images: Tensor) -> None:
        cast("Any", sum(vectors.float().sum() for vectors in encoder.features(images).values())).backward()

    return {
        "generator": count(lambda: generator(noise, cfg_scale=scales, **more).sum().backward()),
        "features": count(lambda: encoder.features(noise)),
        "features with gradient": count(lambda: backward(noise.clone().requires_grad_())),
    }


def product_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product in bfloat16."""
    left, right = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * PRODUCT**3 / seconds(lambda: left @ right, repetitions=20, device=device)


def measure(name: str, given: argparse.Namespace, *, device: torch.device, rate: float | None) -> dict[str, Any]:
    """The row of one task: with as many labels as fit the memory, from those of the task down by halves."""
    reduced, precision = ([], "bfloat16") if device.type == "cuda" else (REDUCED, "float32")
    settings = [f"task={name}", f"task.generator.precision={precision}", "task.generator.checkpointing=true", *reduced]
    task = cli.compose("imagenet.train", [*settings, *given.overrides]).task
    labels = given.labels or (task.batch.labels if device.type == "cuda" else 1)
    options = {"width": given.width or WIDTHS[name], "precision": precision, "chunk": given.chunk, "device": device}
    while True:
        try:
            found = run(task, labels=labels, options=options, repetitions=given.repetitions)
        except torch.OutOfMemoryError:
            if labels == 1:
                raise
            print(f"{name}: {labels} labels do not fit the memory", flush=True)
        else:
            break
        torch.cuda.empty_cache()  # outside the handler, where nothing holds the step any more
        labels //= 2
    return tell(name, task, found, count_operations(task, width=options["width"]), rate=rate, options=options)


def run(task: GeneratorTask, *, labels: int, options: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Seconds of a step and of the core in it, and the memory of both."""
    device: torch.device = options["device"]
    goal = build(task, labels=labels, **options)
    trainer = make_trainer(goal, task)
    found: dict[str, Any] = {"labels": labels, "parameters": count_parameters(goal.network)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found["step_s"] = seconds(lambda: trainer.run(until=trainer.state.step + 1), repetitions=repetitions, device=device)
    found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    trainer.state.optimizer.zero_grad(set_to_none=True)
    found["core_s"] = seconds(core(goal), repetitions=repetitions, device=device)
    return found


def count_parameters(network: nn.Module) -> int:
    """How many numbers a training changes."""
    return sum(parameter.numel() for parameter in network.parameters())


def tell(
    name: str,
    task: GeneratorTask,
    found: dict[str, Any],
    operations: dict[str, float],
    *,
    rate: float | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The row, printed too."""
    counts, labels, step = task.batch, found["labels"], found["step_s"]
    made, known = counts.generated, counts.positives + counts.unconditional
    total = labels * (made * (operations["generator"] + operations["features with gradient"]) + known * operations["features"])
    row = {
        "task": name,
        "width_of_encoder": options["width"],
        "labels": labels,
        "labels_of_task": counts.labels,
        "images_per_label": {"generated": made, "positives": counts.positives, "unconditional": counts.unconditional},
        "parameters": found["parameters"],
        "precision": task.generator.precision,
        "precision_of_encoder": options["precision"],
        "images_per_second": round(labels * made / step, 3),
        "step_s": step,
        "memory_gib": found["memory_gib"],
        "teraflop_per_step": total / 1e12,
        "utilisation": None if rate is None else round(total / step / rate, 4),
        "teraflop_per_second_of_product": None if rate is None else rate / 1e12,
        "share_of_core": round(found["core_s"] / step, 4),
    }
    utilisation = "" if rate is None else f"{row['utilisation']:7.1%} of a product's rate"
    print(
        f"{name:<10} {labels:4} labels {row['images_per_second']:9.2f} images/s  {step:7.3f} s  "
        f"{found['memory_gib'] or math.nan:6.1f} GiB  core {row['share_of_core']:6.1%}  {utilisation}",
        flush=True,
    )
    return row


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", choices=list(WIDTHS), default=["ablation", "latent_l"], help="default: B/2 and L/2"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--labels", type=int, help="of a step; default: those of the task, halved until they fit; 1 on a CPU")
    parser.add_argument("--width", type=int, help="of the encoder, instead of the one of the task")
    parser.add_argument("--chunk", type=int, default=256, help="images that are encoded at once")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "image_step.json")
    parser.add_argument("overrides", nargs="*", help="settings of the tasks, such as task.batch.generated=8")
    given = parser.parse_intermixed_args(argv)
    register()
    device = torch.device(given.device)
    rate = product_rate(device) if device.type == "cuda" else None
    rows = [measure(name, given, device=device, rate=rate) for name in given.tasks]
    about = {"benchmark": "image_step", "device": torch.cuda.get_device_name(device) if rate else "CPU"}
    return record(given.out, rows=rows, missed=[], **about)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
