"""The schema of every YAML in configs/imagenet/, as plain dataclasses."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from drifting_policy.types import ConfigError

LATENT_TYPES = ("float32", "float16")


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


COMMANDS: dict[str, type] = {"cache": CacheConfig}


def register() -> None:
    """Tell Hydra the schemas of the entry points."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"imagenet_{name}_schema", node=node)
