"""The schema of every YAML in configs/, as plain dataclasses. Derived values are properties; nobody writes to them."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

from drifting_policy.types import ArraySpec, ConfigError, PolicySpec


@dataclass
class ArrayConfig:
    """One observation key or the action: its shape, and where a data set keeps it.

    `source` names the array under data/; with `start`, its flat elements from there on are taken. A key of `dtype` uint8 is an
    image "h w c" in bytes, whose 0..255 are -1..1 to networks.
    """

    shape: list[int] = field(default_factory=list)
    dtype: str = "float32"
    source: str = ""
    start: int | None = None
    normalize: str = "range"
    unit: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint8"):
            raise ConfigError(f"The dtype of '{self.source}' must be float32, or uint8 for images; got {self.dtype}.")
        if self.dtype == "uint8" and (self.start is not None or self.normalize != "range"):
            raise ConfigError(f"Images ('{self.source}') are taken whole and by normalize=range; remove start and normalize.")


@dataclass
class KeypointsConfig:
    """Keypoints of a rigid planar body, computed where a data set holds only its pose (x, y, angle)."""

    source: str = ""
    start: int = 0
    points: list[list[float]] = field(default_factory=list)


@dataclass
class RestoreConfig:
    """A reset option of the environment that restores a recorded step: a row of the array `source` of the data set.

    Unless `compare` is 0, the environment shows an observation of the option's name; its first `compare` elements (default:
    all) are held against the recording when demonstrations are replayed. With `model`, the data set also keeps the XML of each
    episode's model, which the reset option "model" takes.
    """

    source: str = ""
    compare: int | None = None
    unit: str = ""
    model: bool = False


@dataclass
class PictureConfig:
    """Where actions that are planar positions lie in the rendered image: those of its left upper and right lower corner."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == 2 or any(a == b for a, b in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"A picture needs two corners low and high that differ in x and y; got {self.low}, {self.high}.")


@dataclass
class DataConfig:
    """One data set of a task: a path (relative to DRIFTING_POLICY_DATA, or bundled://), and where it can be had.

    `replay_score` is the mean max score that its demonstrations must reach when their actions are replayed. `hint` is a
    sentence that tells where data come from that cannot be downloaded. `filter_key` names a list of demonstrations in a file
    of robomimic (below mask/); the others are left out.
    """

    path: str = ""
    url: str | None = None
    member: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    replay_score: float | None = None
    hint: str = ""
    filter_key: str | None = None


@dataclass
class TaskConfig:
    """A task: its environment, the interface of its policies, and its data sets.

    `stages` is the number of equal stages of the score: p1 .. pn are the shares of episodes that reached each.
    """

    name: str = ""
    env_id: str = ""
    env_options: dict[str, Any] = field(default_factory=dict)
    max_steps: int = 1
    control_hz: float = 1.0
    obs_horizon: int = 2
    pred_horizon: int = 16
    exec_horizon: int = 8
    stages: int = 0
    observations: dict[str, ArrayConfig] = field(default_factory=dict)
    action: ArrayConfig = field(default_factory=ArrayConfig)
    keypoints: dict[str, KeypointsConfig] = field(default_factory=dict)
    restore: dict[str, RestoreConfig] = field(default_factory=dict)
    picture: PictureConfig | None = None
    data: dict[str, DataConfig] = field(default_factory=dict)

    @property
    def spec(self) -> PolicySpec:
        """The contract of the task's policies."""

        def spec(array: ArrayConfig) -> ArraySpec:
            return ArraySpec(tuple(array.shape), array.dtype, array.unit)

        return PolicySpec(
            observations={key: spec(array) for key, array in self.observations.items()},
            action=spec(self.action),
            obs_horizon=self.obs_horizon,
            pred_horizon=self.pred_horizon,
            exec_horizon=self.exec_horizon,
            control_hz=self.control_hz,
        )


@dataclass
class NamedConfig:
    """A choice from a registry: its name, and in subclasses its keyword arguments."""

    name: str = ""


@dataclass
class StateEncoderConfig(NamedConfig):
    """Keyword arguments of StateEncoder."""

    name: str = "state"
    embed_dim: int = 64


@dataclass
class ImageEncoderConfig(NamedConfig):
    """Keyword arguments of ImageEncoder."""

    name: str = "image"
    embed_dim: int = 64
    width: int = 64
    blocks: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    keypoints: int = 32
    share: bool = False
    crop: float = 0.875
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclass
class VitEncoderConfig(NamedConfig):
    """Keyword arguments of VitEncoder."""

    name: str = "vit"
    embed_dim: int = 64
    weights: str = ""
    architecture: dict[str, Any] | None = None
    size: int = 224
    crop: float = 0.875


@dataclass
class MlpConfig(NamedConfig):
    """Keyword arguments of MlpGenerator."""

    name: str = "mlp"
    width: int = 256
    depth: int = 4


@dataclass
class UnetConfig(NamedConfig):
    """Keyword arguments of UnetGenerator."""

    name: str = "unet"
    channels: list[int] = field(default_factory=lambda: [256, 512, 1024])
    kernel: int = 5
    groups: int = 8
    film_dim: int = 256


@dataclass
class TransformerConfig(NamedConfig):
    """Keyword arguments of TransformerGenerator."""

    name: str = "transformer"
    width: int = 256
    depth: int = 6
    heads: int = 4


@dataclass
class DriftConfig(NamedConfig):
    """Keyword arguments of DriftObjective; `repulsion` None is 1 - 1/samples, or 1 where the batch is one condition."""

    name: str = "drift"
    samples: int = 4
    grouping: str = "chunk"
    temperatures: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.2])
    kernel: str = "laplace"
    coupling: str = "row_column"
    scale: str = "batch"
    force: str = "batch"
    affinity_floor: float = 1e-6
    attraction: float = 1.0
    repulsion: float | None = 1.0
    noise_scale: float = 0.5
    condition: str = "observation"


@dataclass
class RegressionConfig(NamedConfig):
    """RegressionObjective has no options."""

    name: str = "regression"


@dataclass
class DiffusionConfig(NamedConfig):
    """Keyword arguments of DiffusionObjective."""

    name: str = "diffusion"
    samples: int = 1
    prediction: str = "epsilon"
    timesteps: int = 100
    clip_sample: bool = True
    scheduler: str = "ddpm"
    steps: int = 100


@dataclass
class FlowConfig(NamedConfig):
    """Keyword arguments of FlowObjective."""

    name: str = "flow"
    samples: int = 1
    time_sampling: str = "uniform"
    time_bias: float = 2.0
    steps: int = 10


@dataclass
class SamplerConfig:
    """What may change about how a trained policy draws its chunks; None leaves it as it was trained for."""

    scheduler: str | None = None
    steps: int | None = None
    noise_scale: float | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that are given."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class TrainerConfig:
    """Length, optimiser, validation, checkpoints, and the evaluation that ends a training."""

    steps: int = 12000
    batch_size: int = 128
    learning_rate: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 1e-2
    warmup_steps: int = 300
    final_factor: float = 0.001
    clip_norm: float = 1.0
    ema_power: float = 0.75
    ema_max: float = 0.9999
    bf16: bool = False
    observation_noise: float = 0.0
    validation_fraction: float = 0.05
    validation_samples: int = 8
    validation_chunks: int = 1024
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 10
    tensorboard: bool = False
    eval_episodes: int = 50
    eval_videos: int = 9
    rehearse_resume: bool = False

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(("steps", "batch_size", "log_every", "validate_every", "checkpoint_every"), 1)
        lowest |= dict.fromkeys(("keep_checkpoints", "validation_samples", "validation_chunks"), 1)
        lowest |= dict.fromkeys(("warmup_steps", "weight_decay", "observation_noise", "eval_episodes", "eval_videos"), 0)
        for name, low in lowest.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"trainer.{name} must be at least {low}; got {getattr(self, name)}.")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"trainer.{name} must be a positive number; got {getattr(self, name)}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"trainer.betas must be two numbers in [0, 1); got {self.betas}.")


@dataclass
class TrainConfig:
    """Everything that `python -m drifting_policy.train` accepts."""

    task: TaskConfig = field(default_factory=TaskConfig)
    encoder: NamedConfig = field(default_factory=NamedConfig)
    generator: NamedConfig = field(default_factory=NamedConfig)
    objective: NamedConfig = field(default_factory=NamedConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    data: str | None = None
    max_prefix: int = 0
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
    def data_set(self) -> str:
        """The data set of the task, or the path, to train on."""
        return choose_data(self.task, self.data)

    @property
    def directory(self) -> str:
        """Where the run is written: `run_dir`, or a name made of the choices."""
        data = self.data_set if self.data_set in self.task.data else "data"
        prefix = f"_prefix{self.max_prefix}" if self.max_prefix else ""
        name = f"{data}_{self.objective.name}_{self.generator.name}{prefix}_seed{self.seed}"
        return self.run_dir or f"runs/{self.task.name}/{name}"


def choose_data(task: TaskConfig, data: str | None) -> str:
    """`data`, or without it the bundled data set of the task, or else the first that it names.

    Raises:
        ConfigError: where there is neither.
    """
    if chosen := data or next(iter(sorted(task.data, key=lambda name: name != "bundled")), None):
        return chosen
    raise ConfigError(f"Task {task.name} names no data set; say which to use: data=PATH.")


def options(choice: NamedConfig) -> dict[str, Any]:
    """Name and keyword arguments of a registry choice."""
    return asdict(choice)


def arguments(choice: NamedConfig) -> dict[str, Any]:
    """The keyword arguments alone."""
    return {key: value for key, value in asdict(choice).items() if key != "name"}


_CHOICES: dict[str, list[type[NamedConfig]]] = {
    "encoder": [StateEncoderConfig, ImageEncoderConfig, VitEncoderConfig],
    "generator": [MlpConfig, UnetConfig, TransformerConfig],
    "objective": [DriftConfig, RegressionConfig, DiffusionConfig, FlowConfig],
}


@cache  # the store keeps what it was told
def register() -> None:
    """Tell Hydra the schemas that the YAML files refer to."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(group="task", name="schema", node=TaskConfig)
    store.store(group="trainer", name="schema", node=TrainerConfig)
    for group, nodes in _CHOICES.items():
        for node in nodes:
            store.store(group=group, name=f"{_default_name(node)}_schema", node=node)


def _default_name(node: type[NamedConfig]) -> str:
    default = next(f.default for f in fields(node) if f.name == "name")
    if default is MISSING:
        raise TypeError(f"{node.__name__} needs a default name.")
    return str(default)
