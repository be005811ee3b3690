"""The schema of training: configs/imagenet/train.yaml and every YAML in configs/imagenet/task/, as plain dataclasses."""

import math
from dataclasses import dataclass, field
from typing import Any

from drifting_policy.types import ConfigError


def check_lowest(group: str, config: Any, **lowest: int) -> None:
    """Refuse settings of `config` that are below their lowest value.

    Raises:
        ConfigError: names the setting.
    """
    for name, low in lowest.items():
        if not getattr(config, name) >= low:
            raise ConfigError(f"{group}.{name} must be at least {low}; got {getattr(config, name)}.")


@dataclass
class ImageDataConfig:
    """What a task trains on: an argument of `open_images`, how many images a step takes, and how they are changed."""

    place: str = ""
    size: int | None = None
    batch_size: int = 64
    flips: bool = False
    smallest_crop: float = 1.0

    def __post_init__(self) -> None:
        check_lowest("task.data", self, batch_size=1)


@dataclass
class OptimizerConfig:
    """AdamW, the learning rate of each step, and the largest norm of a gradient."""

    learning_rate: float = 2e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "constant"
    clip_norm: float = 2.0

    def __post_init__(self) -> None:
        check_lowest("task.optimizer", self, weight_decay=0, warmup_steps=0)
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"task.optimizer.{name} must be a positive number; got {getattr(self, name)}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"task.optimizer.betas must be two numbers in [0, 1); got {self.betas}.")


@dataclass
class ImageTrainerConfig:
    """Length of a training, its averages (the first is the one that checkpoints are made of), and how often what is written."""

    steps: int = 30_000
    averages: list[float] = field(default_factory=lambda: [0.999])
    log_every: int = 50
    picture_every: int = 1000
    checkpoint_every: int = 2000
    keep_checkpoints: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(("steps", "log_every", "picture_every", "checkpoint_every", "keep_checkpoints"), 1)
        check_lowest("task.trainer", self, **lowest)


@dataclass
class ImageTask:
    """What is common to all tasks of the image generator."""

    name: str = ""
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: ImageTrainerConfig = field(default_factory=ImageTrainerConfig)


@dataclass
class GeneratorConfig:
    """Keyword arguments of ImageGenerator."""

    classes: int = 1000
    image_size: int = 32
    in_channels: int = 4
    out_channels: int = 4
    patch: int = 2
    width: int = 768
    depth: int = 12
    heads: int = 12
    cond_dim: int = 768
    mlp_ratio: float = 4.0
    registers: int = 16
    styles: int = 64
    style_tokens: int = 32
    qk_norm: bool = True
    gated: bool = True
    rotary: bool = True
    rms: bool = True
    precision: str = "bfloat16"
    checkpointing: bool = False
    noise_scale: float = 1.0


@dataclass
class BatchConfig:
    """How many images of each kind meet in a step, and in how many parts: keyword arguments of Counts."""

    labels: int = 64
    generated: int = 64
    positives: int = 64
    unconditional: int = 16
    parts: int = 1


@dataclass
class BankConfig:
    """How many real images are remembered, of each class and overall, and how many of them before the first step."""

    per_class: int = 128
    overall: int = 1000
    prefill: int = 0

    def __post_init__(self) -> None:
        check_lowest("task.bank", self, per_class=1, overall=1, prefill=0)


@dataclass
class GuidanceConfig:
    """The distribution of guidance scales in training, keyword arguments of `draw_scales`; `shown` is the scale of pictures."""

    low: float = 1.0
    high: float = 4.0
    power: float = 3.0
    plain_share: float = 0.0
    shown: float = 1.0


@dataclass
class ImageDriftConfig:
    """Options of the drifting field; see `drifting_policy.drift.drift`."""

    temperatures: list[float] = field(default_factory=lambda: [0.2, 0.05, 0.02])
    kernel: str = "laplace"
    coupling: str = "row_column"
    affinity_floor: float = 1e-6
    attraction: float = 1.0
    repulsion: float = 1.0


@dataclass
class FeaturesConfig:
    """Which features are compared, and how many images are encoded at once.

    `left_out` names features of the encoder that are not compared; `convnext` is a ConvNeXt V2 whose features join them, by its
    folder or its name in the cache of Hugging Face.
    """

    every_block: int = 2
    cells: list[int] = field(default_factory=lambda: [2, 4])
    left_out: list[str] = field(default_factory=list)
    convnext: str | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_lowest("task.features", self, every_block=0)
        if self.chunk is not None:
            check_lowest("task.features", self, chunk=1)


@dataclass
class GeneratorTask(ImageTask):
    """A generator that learns by drifting; `encoder` is a run, a checkpoint, or "none" to compare the images alone."""

    encoder: str = ""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    drift: ImageDriftConfig = field(default_factory=ImageDriftConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)


@dataclass
class AutoencoderConfig:
    """Keyword arguments of MaskedAutoencoder."""

    classes: int = 1000
    mask_cell: int = 2
    in_channels: int = 4
    width: int = 256
    layers: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    fold: int = 1
    precision: str = "bfloat16"
    checkpointing: bool = False


@dataclass
class MaskingConfig:
    """The share of an image that is hidden, and how classification joins in during the last steps."""

    low: float = 0.5
    high: float = 0.5
    last_steps: int = 0
    ramp_steps: int = 1000
    highest: float = 0.1


@dataclass
class AutoencoderTask(ImageTask):
    """An encoder that learns as a masked auto-encoder."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)


@dataclass
class ImageTrainConfig:
    """Everything that `python -m drifting_policy.imagenet.train` accepts; `data` replaces the place that the task names."""

    task: ImageTask = field(default_factory=ImageTask)
    data: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    run_dir: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0; got {self.seed}.")

    @property
    def directory(self) -> str:
        """Where the run is written: `run_dir`, or a name made of task and seed."""
        return self.run_dir or f"runs/imagenet/{self.task.name}_seed{self.seed}"

    @property
    def place(self) -> str:
        """Where the images are.

        Raises:
            ConfigError: where neither the command nor the task tells.
        """
        if place := self.data or self.task.data.place:
            return place
        raise ConfigError(f"Say where the images of task {self.task.name} are: data=PATH.")


TASKS: dict[str, type[ImageTask]] = {"generator": GeneratorTask, "autoencoder": AutoencoderTask}
