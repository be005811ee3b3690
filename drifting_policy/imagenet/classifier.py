"""ImageClassifier: a small convolutional network whose features judge images of small data sets, and its training."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from drifting_policy.checkpoint import WEIGHTS, first_line, read_config, ready, verify, write_checkpoint
from drifting_policy.imagenet.images import ImageSet
from drifting_policy.training.batches import mix
from drifting_policy.training.optim import learning_rate_factor, make_optimizer
from drifting_policy.types import CheckpointError, ConfigError

KIND = "classifier"  # under which a checkpoint keeps the recipe
LARGEST = 64  # pixels in height or width; larger images need an extractor that was trained on many
BATCH = 128  # images of one evaluation; features must not depend on what is evaluated together


@final
class ImageClassifier(nn.Module):
    """Convolutions at three widths, a mean over all places, and one linear layer.

    Args:
        class_names: What the logits stand for, in their order.
        image_shape: (c, h, w) of the images.
        width: Channels of the first convolutions; those of the last, which are the features, are four times as many.
    """

    def __init__(self, *, class_names: Sequence[str], image_shape: Sequence[int], width: int) -> None:
        """Fresh weights from PyTorch's generator.

        Raises:
            ConfigError: images too large for so small a network, or no classes to tell apart.
        """
        super().__init__()
        channels, height, size = image_shape
        if max(height, size) > LARGEST or len(class_names) < 2 or width < 1:
            raise ConfigError(
                f"The own classifier tells at least 2 classes apart, of images up to {LARGEST} pixels; got {len(class_names)} "
                f"classes of {height}x{size} pixels and width {width}. Choose extractor=inception or extractor=dinov2."
            )
        self.recipe = {"class_names": list(class_names), "image_shape": list(image_shape), "width": width}
        self.class_names, self.image_shape, self.feature_dim = tuple(class_names), tuple(image_shape), 4 * width
        coarse = max(height, size) >= 16
        stem = _convolution(channels, width, kernel=4, stride=2) if coarse else _convolution(channels, width)
        self.stages = nn.Sequential(
            stem,
            _convolution(width, width),
            _convolution(width, 2 * width, stride=2),
            _convolution(2 * width, 2 * width),
            _convolution(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, len(class_names))

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """What the last layer sees of images in [-1, 1].

        Raises:
            ConfigError: images of another shape than the classifier was made for.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise ConfigError(f"This classifier judges images of (c, h, w) {self.image_shape}; got {tuple(images.shape[1:])}.")
        maps: Tensor = self.stages(images.contiguous(memory_format=torch.channels_last))
        return maps.mean((2, 3))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits of the classes."""
        logits: Tensor = self.head(self.features(images))
        return logits


@dataclass(frozen=True)
class ClassifierOptions:
    """How a classifier is trained.

    Attributes:
        width: Of the network.
        epochs: Times that each training image is seen.
        batch_size: Images of one step.
        learning_rate: The largest one; it warms up over a tenth of all steps and goes to zero along a cosine.
        weight_decay: Of the matrices.
        shift: Pixels by which an image is moved at most, in either direction; its border is mirrored.
        flips: Whether half of the images are turned left to right.
        seed: Of the weights, the order of the images, and how they are moved.
    """

    width: int = 64
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    shift: int = 4
    flips: bool = True
    seed: int = 0


# Glyphs are not to be mirrored, and there are few of them.
OPTIONS = {"digits": ClassifierOptions(width=32, epochs=60, batch_size=64, shift=1, flips=False)}


def default_options(name: str) -> ClassifierOptions:
    """The options for data of that name."""
    return OPTIONS.get(name, ClassifierOptions())


def train_classifier(images: ImageSet, options: ClassifierOptions, *, device: torch.device) -> ImageClassifier:
    """A classifier of `images`; a function of images and options alone (on one device, with one number of threads).

    Raises:
        ConfigError: latents, or images that the classifier is not made for.
    """
    if images.kind != "pixels":
        raise ConfigError("The own classifier is trained on pixels; give it the images that the latents were made of.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix(options.seed, 0))
        model = ImageClassifier(class_names=images.class_names, image_shape=images.image_shape, width=options.width)
    model = model.to(device).train()
    optimizer = make_optimizer(
        model.parameters(), learning_rate=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay
    )
    batches = -(-len(images) // options.batch_size)
    steps = options.epochs * batches
    for step in tqdm(range(steps), unit="step", desc="training the classifier", disable=None):
        factor = learning_rate_factor(step, steps=steps, warmup_steps=max(1, steps // 10), final_factor=0.0)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        epoch, place = divmod(step, batches)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mix(options.seed, epoch)))
        pixels, labels = moved_batch(images, order[place::batches], options, step=step)
        loss = functional.cross_entropy(model(pixels.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.requires_grad_(False).eval()


def moved_batch(images: ImageSet, rows: Tensor, options: ClassifierOptions, *, step: int) -> tuple[Tensor, Tensor]:
    """The images at `rows`, each flipped and moved by a draw of its own, and their labels."""
    generator = torch.Generator().manual_seed(mix(options.seed + 1, step))
    flip = torch.rand(len(rows), generator=generator) < 0.5 * options.flips
    pixels, labels = images.batch(rows, flip=flip)
    if options.shift:
        height, width = pixels.shape[2:]
        moves = torch.randint(2 * options.shift + 1, (len(rows), 2), generator=generator)
        padded = functional.pad(pixels, [options.shift] * 4, mode="reflect")
        pixels = torch.stack(
            [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, moves.tolist(), strict=True)]
        )
    return pixels, labels


def right_answers(model: ImageClassifier, images: ImageSet) -> Bool[Tensor, " n"]:
    """For which of `images` the classifier finds the class."""
    device, found = next(model.parameters()).device, []
    for first in range(0, len(images), BATCH):
        pixels, labels = images.batch(range(first, min(first + BATCH, len(images))))
        with torch.no_grad():
            found.append(model(pixels.to(device)).argmax(1).cpu() == labels)
    return torch.cat(found)


def classifier_accuracy(model: ImageClassifier, images: ImageSet) -> float:
    """The share of `images` whose class the classifier finds."""
    return int(right_answers(model, images).sum()) / len(images)


def save_classifier(path: Path, model: ImageClassifier, *, options: ClassifierOptions, accuracy: float, count: int) -> Path:
    """The folder `path` with weights and what they are: recipe, options, and accuracy on `count` test images.

    Raises:
        CheckpointError: the file system refuses.
    """
    config = {KIND: model.recipe, "options": asdict(options), "test_accuracy": accuracy, "test_images": count}

    def write(draft: Path) -> None:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, draft / WEIGHTS)

    return write_checkpoint(path, config=config, write=write)


def load_classifier(path: Path, *, device: str | torch.device = "cpu") -> tuple[ImageClassifier, dict[str, Any]]:
    """The classifier in the folder `path`, and what is written about it.

    Raises:
        CheckpointError: it is missing, damaged, or something else.
        ConfigError: PyTorch cannot use the device.
    """
    config = read_config(path)
    if KIND not in config:
        raise CheckpointError(f"{path} holds another network than a classifier.")
    verify(path, config, WEIGHTS)
    try:
        model = ImageClassifier(**config[KIND])
        ClassifierOptions(**config["options"])
        model.load_state_dict(load_file(path / WEIGHTS), strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} does not describe a classifier of this version: {first_line(error)}.") from error
    return ready(model, device=device), config


def cached_classifier(
    training: ImageSet, testing: ImageSet, *, name: str, digest: str, folder: Path, device: torch.device
) -> Path:
    """The classifier of a data set below `folder`, trained at the first call by the options for data of that `name`.

    Raises:
        CheckpointError: `folder` cannot be written.
        ConfigError: images that the classifier is not made for.
    """
    options = default_options(name)
    key = json.dumps([digest, asdict(options)], sort_keys=True)
    place = folder / f"classifier_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not place.is_dir():
        model = train_classifier(training, options, device=device)
        save_classifier(place, model, options=options, accuracy=classifier_accuracy(model, testing), count=len(testing))
    return place


def _convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, a batch norm and a ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())
