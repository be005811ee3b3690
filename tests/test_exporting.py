"""An exported policy is the same policy: for every kind of architecture that a task uses, any batch, noise and prefix."""

import functools
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drifting_policy import cli
from drifting_policy.commands import EXPORT_FORMATS
from drifting_policy.config import TaskConfig
from drifting_policy.control.onnx_policy import OnnxPolicy
from drifting_policy.exporting import FILES, IR_VERSION, OPSET, Graph, load_program, write_graph
from drifting_policy.models.layers import for_each_sample
from drifting_policy.normalize import Normalizer
from drifting_policy.parity import TOLERANCE, Difference, Parity, compare
from drifting_policy.policy import DriftingPolicy
from drifting_policy.types import CheckpointError, ConfigError, Policy, Stats

TASKS = sorted(
    file.stem
    for file in (Path(str(files("drifting_policy.configs"))) / "task").glob("*.yaml")
    if not file.stem.endswith("_base")
)
IMAGE = {"name": "image", "embed_dim": 8, "width": 8, "blocks": [1], "keypoints": 3, "share": False, "crop": 0.9}
IMAGE |= {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
HEADS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "depth": 1},
    # Groups of 8 channels or more, as by default: of 2, the variance can nearly vanish at zero noise, and then
    # float32 itself is up to 3e-5 away from float64.
    "unet": {"channels": [16, 32], "kernel": 3, "groups": 2, "film_dim": 8},
    "transformer": {"width": 16, "depth": 1, "heads": 2},
}
FLOW = {"name": "flow", "steps": 2}
DDIM = {"name": "diffusion", "scheduler": "ddim", "steps": 2, "prediction": "epsilon", "timesteps": 50, "clip_sample": True}
# One task of each kind, with the heads and samplers spread over them.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "block_push": ("unet", {"noise_scale": 0.5}),
    "push_t": ("transformer", {"max_prefix": 4}),
    "toy_mixture": ("mlp", {"clip": None, "sampler": FLOW}),  # both horizons are 1
    "can_image": ("mlp", {"noise_scale": 0.0}),  # two cameras
}


def kind(task: TaskConfig) -> tuple[object, ...]:
    """What decides on the operations of a graph: whether there are cameras, and the axes of the other arrays."""
    arrays = list(task.spec.observations.values())
    return any(array.is_image for array in arrays), frozenset(len(array.shape) for array in arrays if not array.is_image)


@functools.cache
def task(name: str) -> TaskConfig:
    found: TaskConfig = cli.compose("train", [f"task={name}"]).task
    return found


def build(name: str, head: str, settings: dict[str, Any]) -> DriftingPolicy:
    """A small policy for the task, whose every weight matters."""
    spec = task(name).spec
    images = any(array.is_image for array in spec.observations.values())
    timed = {"time": True} if "sampler" in settings else {}
    torch.manual_seed(0)
    policy = DriftingPolicy(
        spec,
        encoder=IMAGE if images else {"name": "state", "embed_dim": 8},
        generator={"name": head, **HEADS[head], **timed},
        **settings,
    )
    rng = np.random.default_rng(0)
    arrays = {key: array for key, array in spec.observations.items() if not array.is_image} | {"action": spec.action}
    stats = {key: Stats.of(rng.normal(3, 20, (50, *array.shape))) for key, array in arrays.items()}
    stats |= {key: Stats.of_images() for key in set(spec.observations) - set(arrays)}
    policy.normalizer = Normalizer.fit(stats, dict.fromkeys(stats, "range"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return policy.requires_grad_(False).eval()


def held_against(policy: DriftingPolicy, exported: Policy) -> Parity:
    scale = policy.normalizer.get_buffer("scale_action").numpy()
    return compare(policy, exported, span=2 / scale, demonstrations=None)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_of_a_kind_that_is_exported_here(name: str) -> None:
    assert kind(task(name)) in {kind(task(tested)) for tested in CASES}


@pytest.mark.parametrize("name", CASES)
def test_onnx_is_the_same_policy(name: str, tmp_path: Path) -> None:
    import onnx

    head, settings = CASES[name]
    policy = build(name, head, settings)
    manifest = write_graph(policy, tmp_path / "policy.onnx", form="onnx", about={})
    exported = OnnxPolicy(tmp_path)
    assert isinstance(exported, Policy)
    assert (exported.spec, exported.max_prefix) == (policy.spec, settings.get("max_prefix", 0))
    parity = held_against(policy, exported)
    assert parity.holds, parity.largest
    assert manifest.about["noise_scale"] == policy.noise_scale
    model = onnx.load(tmp_path / "policy.onnx")
    assert (model.ir_version, [each.version for each in model.opset_import if each.domain == ""]) == (IR_VERSION, [OPSET])
    assert {node.domain for node in model.graph.node} == {""}
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input] == ["batch"] * len(
        Graph(policy).names
    )


@pytest.mark.parametrize("settings", [{"max_prefix": 3}, {"sampler": DDIM}], ids=["prefix", "ddim"])
def test_a_program_of_torch_export_is_the_same_policy(settings: dict[str, Any], tmp_path: Path) -> None:
    policy = build("push_t", "mlp", settings)
    write_graph(policy, tmp_path / "policy.pt2", form="torch_export", about={"source": "test"})
    exported = load_program(tmp_path)
    parity = held_against(policy, exported)
    assert parity.holds, parity.largest
    assert len({row.prefix for row in parity.differences}) == (3 if "max_prefix" in settings else 1)
    assert exported.manifest.about["source"] == "test"


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (DDIM | {"scheduler": "ddpm"}, "sampler.scheduler=ddim"),
        (FLOW | {"steps": 21}, "evaluates the head 21 times.*sampler.steps=20"),
    ],
)
def test_a_sampler_that_no_graph_can_hold_is_told(sampler: dict[str, Any], words: str, tmp_path: Path) -> None:
    policy = build("push_t", "mlp", {"sampler": sampler})
    with pytest.raises(ConfigError, match=words):
        write_graph(policy, tmp_path / "policy.onnx", form="onnx", about={})
    assert list(tmp_path.iterdir()) == []


def test_the_formats_of_the_command_are_those_that_can_be_written(tmp_path: Path) -> None:
    assert tuple(FILES) == EXPORT_FORMATS
    with pytest.raises(ConfigError, match="Unknown format 'pickle'; choose one of onnx, torch_export"):
        write_graph(build("push_t", "mlp", {}), tmp_path / "policy", form="pickle", about={})


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive"])
def test_a_damaged_program_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "policy.pt2").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"exported program|cannot be loaded"):
        load_program(tmp_path)


class Shifted:
    """A policy that is off by a constant, and remembers what it was asked."""

    def __init__(self, policy: DriftingPolicy, shift: float) -> None:
        self.policy, self.shift = policy, shift
        self.spec, self.max_prefix = policy.spec, policy.max_prefix
        self.batches: set[int] = set()

    def act(self, obs: Any, *, noise: np.ndarray | None = None, prefix: np.ndarray | None = None) -> np.ndarray:
        chunk = self.policy.act(obs, noise=noise, prefix=prefix)
        self.batches.add(len(chunk))
        return chunk + np.float32(self.shift)


def test_parity_measures_what_it_says() -> None:
    policy = build("push_t", "mlp", {"max_prefix": 2})
    assert held_against(policy, Shifted(policy, 0.0)).largest == {"network": 0.0, "raw": 0.0, "relative": 0.0}
    off = Shifted(policy, 0.5)
    parity = held_against(policy, off)
    scale = policy.normalizer.get_buffer("scale_action").numpy()
    assert off.batches == {1, 2, 3, 8}
    assert not parity.holds
    assert parity.largest["raw"] == pytest.approx(0.5, rel=1e-4)
    assert parity.largest["network"] == pytest.approx(0.5 * scale.max(), rel=1e-4)
    assert parity.largest["relative"] == pytest.approx(0.25 * scale.max(), rel=1e-4)
    assert {row.prefix for row in parity.differences} == {0, 1, 2}
    assert not held_against(policy, Shifted(policy, float("nan"))).holds


@pytest.mark.parametrize(("network", "relative", "holds"), [(1, 1, True), (1.1, 0, False), (0, 1.1, False)])
def test_both_units_decide(network: float, relative: float, holds: bool) -> None:
    row = Difference("random", 1, "zero", 0, network * TOLERANCE, 7.0, relative * TOLERANCE)
    assert Parity((row,)).holds == holds


@pytest.mark.parametrize("samples", [1, 3])
def test_rows_are_repeated_in_succession(samples: int) -> None:
    rows = torch.randn(4, 2, 3, requires_grad=True)
    same = rows.detach().clone().requires_grad_()
    weight = torch.randn(4 * samples, 2, 3)
    repeated, expected = for_each_sample(rows, samples), same.repeat_interleave(samples, dim=0)
    assert torch.equal(repeated, expected)
    (repeated * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(rows.grad, same.grad)
