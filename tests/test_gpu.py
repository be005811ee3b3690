"""What a GPU computes is what a CPU computes, to rounding; skipped where there is none."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy import cli, train
from drifting_policy.acceleration import accelerate, quicken, warm_up
from drifting_policy.checkpoint import load_policy, resumable
from drifting_policy.data.chunks import chunk_index
from drifting_policy.drift import drift_loss, drift_loss_features
from drifting_policy.imagenet import train as image_training
from drifting_policy.imagenet.checkpoints import load_generator
from drifting_policy.imagenet.config import register
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.policy import DriftingPolicy
from drifting_policy.training.batches import Batches
from drifting_policy.types import ArraySpec, ObservationError, PolicySpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SPEC = PolicySpec(
    observations={"image": ArraySpec((24, 24, 3), dtype="uint8"), "pose": ArraySpec((3,))},
    action=ArraySpec((2,)),
    obs_horizon=2,
    pred_horizon=8,
    exec_horizon=3,
    control_hz=10.0,
)
HEADS: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet", "channels": [16, 32, 64], "kernel": 5, "groups": 4, "film_dim": 16},
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
}


def policy(head: str = "unet") -> DriftingPolicy:
    """A policy for states whose weights are drawn at random."""
    spec = PolicySpec(**{**vars(SPEC), "observations": {"grip": ArraySpec(()), "pose": ArraySpec((3,))}})
    result = DriftingPolicy(spec, encoder={"name": "state", "embed_dim": 8}, generator=HEADS[head], clip=None)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) / max(parameter[0].numel(), 4) ** 0.5)
    return result.requires_grad_(False).eval()


def inputs(spec: PolicySpec, batch: int = 1, *, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    obs = {
        key: rng.standard_normal((batch, spec.obs_horizon, *array.shape), dtype=np.float32)
        for key, array in spec.observations.items()
    }
    return {"obs": obs, "noise": rng.standard_normal((batch, *spec.sample_shape), dtype=np.float32)}


def on_gpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cuda().requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("coordinates", [8, 200])
def test_the_field_is_the_same(coordinates: int) -> None:
    drawn = torch.Generator().manual_seed(0)
    x, pos, neg = (torch.randn(3, count, coordinates, generator=drawn) for count in (20, 12, 5))
    x.requires_grad_()
    losses = []
    for values in ((x, pos, neg), gpu := tuple(map(on_gpu, (x, pos, neg)))):
        loss, field = drift_loss(*values, temperatures=(0.2, 0.05))
        loss.sum().backward()
        losses.append((loss.detach().cpu(), field.velocity.cpu(), field.rms.cpu()))
    for here, there in zip(*losses, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gpu[0].grad.cpu(), x.grad, rtol=1e-4, atol=1e-7)


def test_the_field_on_feature_maps_is_the_same() -> None:
    drawn = torch.Generator().manual_seed(0)
    maps = {f"{f}": tuple(torch.randn(4, n, s, f, generator=drawn) for n in (24, 16, 8)) for s, f in ((9, 96), (1, 32))}
    weight = torch.rand(4, 8, generator=drawn)
    here, _ = drift_loss_features(maps, neg_weight=weight, temperatures=(0.2, 0.02))
    there, _ = drift_loss_features(
        {name: tuple(value.cuda() for value in triple) for name, triple in maps.items()},
        neg_weight=weight.cuda(),
        temperatures=(0.2, 0.02),
    )
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_cuda_graph_plans_what_the_policy_plans(head: str) -> None:
    slow = policy(head)
    moved = copy.deepcopy(slow).cuda()
    fast = accelerate(moved, convolutions=False, cuda_graph=True)
    for seed in range(3):  # the graph reads what it is given each time
        given = inputs(slow.spec, seed=seed)
        plan = fast.act(**given)
        np.testing.assert_allclose(plan, moved.act(**given), atol=1e-5)
        np.testing.assert_allclose(plan, slow.act(**given), atol=2e-3)  # a GPU's convolutions round to TF32
    with pytest.raises(ObservationError, match="one observation at a time; got 2"):
        fast.act(**inputs(slow.spec, 2))
    assert len(warm_up(quicken(moved))) == 3


@pytest.mark.parametrize("options", [(), ("trainer.bf16=true",), ("objective=diffusion",), ("generator=unet",)])
def test_training_on_a_gpu_ends_in_a_policy_for_any_device(push_t_data: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    small = [] if "generator=unet" in options else ["generator.width=32", "generator.depth=1"]
    settings = ["trainer=debug", *small, "trainer.eval_episodes=0", "device=cuda", f"data={push_t_data}", *options]
    assert train.run(cli.compose("train", [*settings, f"run_dir={tmp_path}"])) == 0
    here, there = (load_policy(resumable(tmp_path), device=device) for device in ("cpu", "cuda"))
    given = inputs(here.spec)
    np.testing.assert_allclose(there.act(**given), here.act(**given), atol=2e-2 * np.abs(here.act(**given)).max())


def test_images_reach_the_gpu_unchanged() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 8, 3), dtype=np.uint8)
    x = np.arange(20.0)[:, None]
    index = chunk_index(np.array([8, 20]), obs_horizon=2, pred_horizon=4, exec_horizon=2)
    options: dict[str, Any] = {"obs_horizon": 2, "batch_size": 5, "seed": 3}
    here, there = (Batches({"image": images, "x": x}, x, index, **options, device=torch.device(d)) for d in ("cpu", "cuda"))
    for step in range(5):
        assert torch.equal(there.batch(step).obs["image"].cpu(), here.batch(step).obs["image"])
        assert torch.equal(there.batch(step).action.cpu(), here.batch(step).action)


def test_image_networks_compute_the_same() -> None:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2, "cond_dim": 16, "registers": 2, "styles": 4, "style_tokens": 2}
    generator = ImageGenerator(classes=4, image_size=8, in_channels=3, out_channels=3, patch=2, precision="float32", **sizes)
    torch.nn.init.normal_(generator.output.weight, std=0.1)
    encoder = ImageEncoder(in_channels=3, width=8, layers=[1, 1, 1, 1])
    noise, labels = torch.randn(5, 3, 8, 8), torch.arange(5) % 4
    style, scales = torch.randint(4, (5, 2)), torch.ones(5)
    image = generator(noise, labels=labels, cfg_scale=scales, style=style)
    moved = generator.cuda()(noise.cuda(), labels=labels.cuda(), cfg_scale=scales.cuda(), style=style.cuda())
    torch.testing.assert_close(moved.cpu(), image, rtol=1e-3, atol=1e-4)
    features = encoder.features(noise)
    for name, value in encoder.cuda().features(noise.cuda()).items():
        torch.testing.assert_close(value.cpu(), features[name], rtol=2e-2, atol=2e-2)  # convolutions in TF32


def test_the_image_generator_trains_and_resumes(tmp_path: Path) -> None:
    register()
    sizes = {"width": 16, "depth": 1, "heads": 2, "cond_dim": 16, "registers": 1, "styles": 2, "style_tokens": 1}
    settings = [f"task.generator.{name}={value}" for name, value in sizes.items()]
    settings += ["task=digits", "task.encoder=none", "device=cuda", f"run_dir={tmp_path}", "task.trainer.checkpoint_every=2"]
    for more in (["task.trainer.steps=2"], ["task.trainer.steps=4", "resume=true"]):
        assert image_training.run(cli.compose("imagenet.train", [*settings, *more])) == 0
    here, there = (load_generator(tmp_path, device=device) for device in ("cpu", "cuda"))
    drawn = torch.randn(2, *here.image_shape)
    more = {"labels": torch.tensor([1, 7]), "cfg_scale": torch.ones(2), "style": torch.zeros(2, 1, dtype=torch.long)}
    moved = there(drawn.cuda(), **{name: value.cuda() for name, value in more.items()})
    torch.testing.assert_close(moved.cpu(), here(drawn, **more), rtol=1e-3, atol=1e-4)
