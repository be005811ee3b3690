"""A frozen transformer gives the features that its own library gives, stays as it is, and travels with the policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_policy import train
from drifting_policy.checkpoint import list_checkpoints, load_policy
from drifting_policy.cli import compose
from drifting_policy.data.replay_buffer import write_replay
from drifting_policy.models.vit_encoder import DEVIATION, MEAN, VitEncoder
from drifting_policy.training.trainer import trainable
from drifting_policy.types import ArraySpec, ConfigError, MissingPackage

transformers = pytest.importorskip("transformers")
CAMERA = ArraySpec((32, 32, 3), "uint8")
OBSERVATIONS = {"front": CAMERA, "pose": ArraySpec((3,)), "wrist": CAMERA}
KINDS = ("vit", "dinov2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small network of each kind with random weights, as transformers writes them."""
    made = {}
    for kind in KINDS:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **shape))
        made[kind] = str(tmp_path_factory.mktemp(kind))
        model.save_pretrained(made[kind])
    return made


def encoder(observations: dict[str, ArraySpec] = OBSERVATIONS, **options: Any) -> VitEncoder:
    given = {"embed_dim": 5, "weights": "", "architecture": None, "size": 28, "crop": 0.875}
    return VitEncoder(observations=observations, obs_horizon=2, **(given | options))


def observation(b: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: 2 * torch.rand(b, 2, *array.shape, generator=generator) - 1 for key, array in OBSERVATIONS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_features_are_those_of_the_library(kind: str, folders: dict[str, str]) -> None:
    network, obs = encoder(weights=folders[kind]), observation()
    assert network(obs).shape == (3, network.tokens, network.embed_dim)
    middle = (obs["front"][:, :, 2:30, 2:30] + 1) / 2  # 28 px, the edge that the network sees
    pixels = ((middle - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).flatten(0, 1).permute(0, 3, 1, 2)
    theirs = transformers.AutoModel.from_pretrained(folders[kind]).eval()(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(network._features("front", obs["front"]).flatten(0, 1), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_is_not_its_own_is_seen_too(kind: str, folders: dict[str, str]) -> None:
    assert encoder(weights=folders[kind], size=42)(observation()).isfinite().all()


def test_nothing_of_the_transformer_learns(folders: dict[str, str]) -> None:
    network = encoder(weights=folders["dinov2"]).train()
    assert network.training
    assert not network.backbone.training
    network(observation()).square().sum().backward()
    learning = {name for name, value in network.named_parameters() if value.grad is not None}
    assert learning == {"project.weight", "project.bias", "step_embedding"}


def test_a_crop_is_shared_by_the_frames_of_a_window(folders: dict[str, str]) -> None:
    network, obs = encoder(weights=folders["vit"]), observation()
    obs["front"] = obs["front"][:, :1].expand(-1, 2, -1, -1, -1)
    seen = network.augment(obs, torch.Generator().manual_seed(0))
    assert seen["front"].shape == (3, 2, 28, 28, 3)
    assert torch.equal(seen["front"][:, 0], seen["front"][:, 1])
    assert torch.equal(seen["pose"], obs["pose"])


def test_what_it_settled_makes_it_again(folders: dict[str, str]) -> None:
    first = encoder(weights=folders["dinov2"])
    again = encoder(**first.settled)
    assert not torch.equal(first(observation()), again(observation()))
    again.load_state_dict(first.state_dict())
    assert torch.equal(first(observation()), again(observation()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "encoder.weights=FOLDER"),
        ({"weights": "/nowhere/at/all"}, "encoder.weights=/nowhere/at/all holds no network"),
        ({"size": 30}, "encoder.size must be a multiple of the patches of 14 px; got 30"),
        ({"crop": 0.0}, "encoder.crop is the share"),
        ({"observations": {"pose": ArraySpec((3,))}}, "needs observations of dtype uint8"),
        ({"observations": {"depth": ArraySpec((32, 32, 1), "uint8")}}, "needs observations of dtype uint8"),
    ],
)
def test_what_cannot_be_built_is_said(options: dict[str, Any], words: str, folders: dict[str, str]) -> None:
    given = {"weights": folders["vit"]} if options else {}
    with pytest.raises(ConfigError, match=words):
        encoder(**(given | options))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'drifting-policy\[vit\]'"):
        encoder(weights="somewhere")


def test_a_policy_needs_no_other_file(folders: dict[str, str], tmp_path: Path, program: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    arrays = {"img": rng.integers(0, 255, (40, 96, 96, 3), dtype=np.uint8), "action": rng.uniform(0, 512, (40, 2)).astype("f4")}
    arrays["state"] = rng.uniform(0, 512, (40, 5)).astype("f4")
    data = write_replay(tmp_path / "data.zarr", arrays, np.array([20, 40]))
    typed = ["task=push_t_image", "encoder=vit", f"encoder.weights={folders['dinov2']}", "encoder.size=28", "trainer=debug"]
    typed += [f"data={data}", f"run_dir={tmp_path / 'run'}", "trainer.eval_episodes=0", "trainer.batch_size=4"]
    typed += ["generator.width=16", "generator.depth=1", "trainer.steps=4", "threads=1"]
    config = compose("train", typed)
    assert train.run(config) == 0  # with a resumption in the middle
    moved = tmp_path / "moved"
    Path(folders["dinov2"]).rename(moved)
    try:
        policy = load_policy(list_checkpoints(tmp_path / "run")[-1])
    finally:
        moved.rename(folders["dinov2"])
    original = transformers.AutoModel.from_pretrained(folders["dinov2"]).state_dict()
    assert all(torch.equal(policy.encoder.backbone.state_dict()[name], value) for name, value in original.items())
    assert len(list(trainable(policy))) < len(list(policy.parameters()))
