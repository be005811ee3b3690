"""The schema of the commands that act on trained policies and demonstrations, as plain dataclasses.

Where there is a task there is an `encoder`, for a task may name the one of its trainings; these commands do not read it.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

from drifting_policy.config import NamedConfig, SamplerConfig, TaskConfig
from drifting_policy.seams import Execution
from drifting_policy.types import ConfigError

EXPORT_FORMATS = ("onnx", "torch_export")
METRICS = ("max_score", "final_score", "success")


@dataclass
class EvalConfig:
    """Everything that `python -m drifting_policy.eval` accepts."""

    ckpt: str = ""
    task: TaskConfig | None = None
    encoder: NamedConfig | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    episodes: int = 50
    split: str = "test"
    num_envs: int = 10
    inference_batch: int = 1
    workers: int | None = None
    step_timeout: float = 60.0
    latency_steps: Any = 0
    seam: str = "snap"
    fade_steps: int = 4
    commit_steps: int = 0
    exec_horizon: int | None = None
    held_noise: bool = False
    shard: str | None = None
    videos: int = 9
    device: str = "cpu"
    threads: int = 1
    out: str | None = None

    def __post_init__(self) -> None:
        given = self.latency_steps if isinstance(self.latency_steps, list) else [self.latency_steps]
        if not given or not all(type(steps) is int and steps >= 0 for steps in given):
            raise ConfigError(f"latency_steps must be a number of control steps or a list of them; got {self.latency_steps}.")
        _ = self.execution  # checks

    @property
    def execution(self) -> Execution:
        """How plans are executed."""
        return Execution(self.seam, self.fade_steps, self.commit_steps, self.exec_horizon, self.held_noise)


@dataclass
class BenchConfig:
    """Everything that `python -m drifting_policy.bench` accepts."""

    ckpt: str = ""
    task: TaskConfig | None = None
    encoder: NamedConfig | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    hz: float = 10.0
    cycles: int = 1000
    accelerate: bool = False
    dtype: str | None = None
    device: str = "cpu"
    threads: int = 1
    out: str | None = None

    def __post_init__(self) -> None:
        if not 0.1 <= self.hz <= 10_000:
            raise ConfigError(f"hz must lie between 0.1 and 10000; got {self.hz}.")
        if self.cycles < 1:
            raise ConfigError(f"cycles must be at least 1; got {self.cycles}.")
        if self.dtype and not self.accelerate:
            raise ConfigError(f"dtype={self.dtype} is a setting of acceleration; add accelerate=true.")


@dataclass
class CompareConfig:
    """Everything that `python -m drifting_policy.compare` accepts."""

    a: str = ""
    b: str = ""
    task: TaskConfig | None = None
    encoder: NamedConfig | None = None
    episodes: int = 100
    split: str = "validation"
    noise_seed_a: int = 0
    noise_seed_b: int = 0
    num_envs: int = 10
    inference_batch: int = 1
    workers: int | None = None
    step_timeout: float = 60.0
    device: str = "cpu"
    threads: int = 1
    out: str = "runs/compare"


@dataclass
class ProtocolConfig:
    """Everything that `python -m drifting_policy.protocol` accepts."""

    runs: list[str] = field(default_factory=list)
    task: TaskConfig | None = None
    encoder: NamedConfig | None = None
    checkpoints: int = 10
    episodes: int = 50
    split: str = "test"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    select: int = 3
    select_by: str = "max_score"
    select_episodes: int = 50
    num_envs: int = 10
    inference_batch: int = 1
    workers: int | None = None
    step_timeout: float = 60.0
    threads: int = 1
    out: str = "runs/protocol"

    def __post_init__(self) -> None:
        for name in ("checkpoints", "episodes", "select_episodes", "num_envs", "inference_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.select_by not in METRICS:
            raise ConfigError(f"select_by must be one of {METRICS}; got '{self.select_by}'.")


@dataclass
class ExportConfig:
    """Everything that `python -m drifting_policy.export` accepts."""

    ckpt: str = ""
    task: TaskConfig | None = None
    encoder: NamedConfig | None = None
    format: str = "onnx"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    out: str | None = None

    def __post_init__(self) -> None:
        if self.format not in EXPORT_FORMATS:
            raise ConfigError(f"Unknown format '{self.format}'; choose one of {', '.join(EXPORT_FORMATS)}.")


@dataclass
class ReplayConfig:
    """Everything that `python -m drifting_policy.replay` accepts."""

    task: TaskConfig = field(default_factory=TaskConfig)
    encoder: NamedConfig | None = None
    data: str | None = None
    episodes: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise ConfigError(f"episodes must be at least 0, which stands for all; got {self.episodes}.")


@dataclass
class ServeConfig:
    """Everything that `python -m drifting_policy.serve` accepts."""

    ckpt: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    insecure: bool = False
    name: str | None = None
    deadline: float = 5.0
    max_message: int = 64 << 20
    connections: int = 16
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must lie between 0 and 65535; got {self.port}.")


@dataclass
class RolloutConfig:
    """Everything that `python -m drifting_policy.datasets.push_t` accepts."""

    ckpt: str = ""
    episodes: int = 200
    max_steps: int = 200
    most: int = 2000
    out: str = "push_t.zarr.zip"


@dataclass
class PlaybackConfig:
    """Everything that `python -m drifting_policy.playback` accepts."""

    log: str = ""
    ckpt: str = ""
    view: str | None = None
    threads: int = 1


COMMANDS: dict[str, type] = {
    "eval": EvalConfig,
    "bench": BenchConfig,
    "compare": CompareConfig,
    "protocol": ProtocolConfig,
    "export": ExportConfig,
    "replay": ReplayConfig,
    "serve": ServeConfig,
    "rollout": RolloutConfig,
    "playback": PlaybackConfig,
}


@cache  # the store keeps what it was told
def register() -> None:
    """Tell Hydra the schemas of these commands."""
    for name, node in COMMANDS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=node)
