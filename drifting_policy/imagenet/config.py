"""The schema of every YAML in configs/imagenet/, as plain dataclasses."""

import math
from dataclasses import dataclass
from functools import cache

from hydra.core.config_store import ConfigStore

from drifting_policy.imagenet.tasks import TASKS, ImageTrainConfig
from drifting_policy.types import ConfigError

LATENT_TYPES = ("float32", "float16")
LABELS = ("balanced", "data")  # of samples: classes take turns, or are as frequent as among training images


@dataclass
class CacheConfig:
    """Everything that `python -m drifting_policy.imagenet.cache` accepts."""

    src: str = ""
    dst: str = ""
    size: int | None = None
    vae: str | None = None
    flips: bool = True
    dtype: str = "float32"
    batch_size: int = 32
    chunk: int = 256
    seed: int = 0
    device: str = "cpu"
    verify: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel; got {self.size}.")
        if self.dtype not in LATENT_TYPES:
            raise ConfigError(f"dtype must be one of {LATENT_TYPES}; got '{self.dtype}'.")


@dataclass
class ConvertConfig:
    """Everything that `python -m drifting_policy.imagenet.convert` accepts."""

    src: str = ""
    dst: str = ""
    encoder_only: bool = False
    overwrite: bool = False


@dataclass
class SampleConfig:
    """Everything that `python -m drifting_policy.imagenet.sample` accepts."""

    ckpt: str = ""
    classes: list[int] | None = None
    n: int = 16
    cfg: float = 1.0
    seed: int = 0
    batch: int = 16
    vae: str = "stabilityai/sd-vae-ft-mse"
    arrays: bool = False
    device: str = "cpu"
    threads: int = 0
    out: str = "samples.png"

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1:
            raise ConfigError(f"n and batch must be at least 1; got {self.n} and {self.batch}.")
        if not (math.isfinite(self.cfg) and self.cfg > 0):
            raise ConfigError(f"cfg must be positive and finite, and 1 is no guidance; got {self.cfg}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0; got {self.seed}.")
        if not self.out.endswith(".png"):
            raise ConfigError(f"out is a PNG file: its name must end in .png; got '{self.out}'.")
        if self.classes == []:
            raise ConfigError("classes must name at least one class, as in classes=[207,88].")


@dataclass
class EvaluateConfig:
    """Everything that `python -m drifting_policy.imagenet.evaluate` accepts."""

    ckpt: str = ""
    samples: str | None = None
    data: str = ""
    split: str = "test"
    size: int | None = None
    extractor: str = "classifier"
    n: int = 50_000
    labels: str = "balanced"
    cfg: float = 1.0
    vae: str = "stabilityai/sd-vae-ft-mse"
    batch_size: int = 64
    neighbours: int = 10_000
    cas: bool = False
    seed: int = 0
    shard: str | None = None
    device: str = "auto"
    threads: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        for name in ("n", "batch_size", "neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.labels not in LABELS:
            raise ConfigError(f"labels must be one of {LABELS}; got '{self.labels}'.")
        if not (math.isfinite(self.cfg) and self.cfg > 0):
            raise ConfigError(f"cfg must be positive and finite, and 1 is no guidance; got {self.cfg}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0; got {self.seed}.")


COMMANDS: dict[str, type] = {
    "cache": CacheConfig,
    "convert": ConvertConfig,
    "evaluate": EvaluateConfig,
    "sample": SampleConfig,
    "train": ImageTrainConfig,
}


@cache  # the store keeps what it was told
def register() -> None:
    """Tell Hydra the schemas of the entry points, and those of the tasks of training."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"imagenet_{name}_schema", node=node)
    for name, node in TASKS.items():
        ConfigStore.instance().store(group="task", name=f"image_{name}_schema", node=node)
