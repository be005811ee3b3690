"""The schema of every YAML in configs/imagenet/, as plain dataclasses."""

import math
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from drifting_policy.types import ConfigError


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


COMMANDS: dict[str, type] = {
    "convert": ConvertConfig,
    "sample": SampleConfig,
}


def register() -> None:
    """Tell Hydra the schemas of the entry points."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"imagenet_{name}_schema", node=node)
