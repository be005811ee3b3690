"""The features of a ConvNeXt V2 against a computation in NumPy from the maps that its own library gives."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from drifting_policy.imagenet.convnext import ConvNextFeatures, normalized
from drifting_policy.imagenet.encoder import ImageEncoder
from drifting_policy.imagenet.features import combine
from drifting_policy.types import ConfigError, MissingPackage

transformers = pytest.importorskip("transformers")
ARCHITECTURE = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "drop_path_rate": 0.5}
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network as transformers writes it, with random weights where fresh ones are zero or one."""
    torch.manual_seed(0)
    model = transformers.ConvNextV2Model(transformers.ConvNextV2Config(**ARCHITECTURE))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("convnext")
    model.save_pretrained(path)
    return str(path)


def images(size: int = 64) -> torch.Tensor:
    return 1.2 * torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).tanh()  # beyond [-1, 1] too


def test_features_are_those_of_a_plain_computation(folder: str) -> None:
    ours = ConvNextFeatures(weights=folder, size=64).features(images())
    model = transformers.ConvNextV2Model.from_pretrained(folder).eval()
    pixels = ((images() + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    with torch.no_grad():
        maps = [x.double().numpy() for x in model(pixels.float(), output_hidden_states=True).hidden_states[1:]]
    assert [x.shape[1:] for x in maps] == [(8, 16, 16), (12, 8, 8), (16, 4, 4), (24, 2, 2)]
    wanted = {}
    for i, x in enumerate(maps, start=1):
        tokens = x.reshape(2, x.shape[1], -1).transpose(0, 2, 1)
        tokens = (tokens - tokens.mean(-1, keepdims=True)) / (tokens.std(-1, keepdims=True) + 1e-3)
        if i < 4:
            wanted[f"convenxt_stage_{i}"] = tokens
        wanted[f"convenxt_stage_{i}_mean"] = tokens.mean(1, keepdims=True)
        wanted[f"convenxt_stage_{i}_std"] = np.sqrt(tokens.var(1, keepdims=True) + 1e-6)
    mean = maps[-1].mean((2, 3))
    mean = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    weight, bias = (p.detach().double().numpy() for p in (model.layernorm.weight, model.layernorm.bias))
    wanted["global_mean"] = (mean * weight + bias)[:, None]
    wanted["global_std"] = wanted["convenxt_stage_4_std"]
    assert list(ours) == list(wanted)
    for name, values in wanted.items():
        assert ours[name].shape == values.shape, name
        assert np.abs(ours[name].numpy() - values).max() < 1e-4 * np.abs(values).max(), name


@pytest.mark.parametrize("size", [32, 96])
def test_images_of_any_size_are_brought_to_that_of_the_network(folder: str, size: int) -> None:
    extractor = ConvNextFeatures(weights=folder, size=64)
    resized = functional.interpolate(images(size), (64, 64), mode="bilinear", antialias=size > 64)
    for ours, theirs in zip(extractor(images(size)), extractor(resized), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_network_stays_as_it_is(folder: str) -> None:
    extractor = ConvNextFeatures(weights=folder, size=32).train()
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert torch.equal(extractor(images())[-1], extractor(images())[-1])  # though half of its paths would drop in training


def test_checkpointing_computes_stages_twice_and_changes_no_gradient_of_the_images(folder: str) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        pixels, count = images().requires_grad_(), []
        extractor = ConvNextFeatures(weights=folder, size=64, checkpointing=checkpointing)
        extractor.network.encoder.stages[2].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        sum(values.square().mean() for values in extractor.features(pixels).values()).backward()
        gradients.append(pixels.grad)
        calls.append(len(count))
    assert calls == [1, 2]
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_half_precision_is_close(folder: str) -> None:
    exact, half = (ConvNextFeatures(weights=folder, size=64, precision=kind) for kind in ("float32", "bfloat16"))
    assert half.network.dtype == torch.bfloat16
    for (name, ours), theirs in zip(half.features(images()).items(), exact.features(images()).values(), strict=True):
        assert ours.dtype == torch.float32, name
        assert 0 < (ours - theirs).square().mean().sqrt() < 0.05 * theirs.square().mean().sqrt(), name


def test_a_position_without_contrast_has_a_finite_gradient() -> None:
    maps = torch.ones(1, 3, 2, 2, requires_grad=True)
    normalized(maps).square().sum().backward()
    assert maps.grad.isfinite().all()


def test_it_stands_beside_the_encoder() -> None:
    encoder = ImageEncoder(in_channels=3, width=8, layers=(1, 1, 1, 1), fold=4)
    extractor = ConvNextFeatures(architecture=ARCHITECTURE, size=32)
    found = combine(encoder.features, extractor.features)(images(32))
    assert list(found) == [*encoder.features(images(32)), *extractor.features(images(32))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "no/such-network"}, "'no/such-network' holds no ConvNeXt V2"),
        ({"architecture": ARCHITECTURE, "size": 31}, "at least 32 pixels; got size 31"),
        ({"architecture": ARCHITECTURE, "precision": "half"}, "Unknown precision 'half'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvNextFeatures(**options)


def test_networks_and_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.ViTModel(transformers.ViTConfig(**shape)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="of the kind vit, not a ConvNeXt V2"):
        ConvNextFeatures(weights=str(tmp_path))
    with pytest.raises(ConfigError, match="got 4 channels"):
        ConvNextFeatures(architecture=ARCHITECTURE, size=32).features(torch.zeros(1, 4, 32, 32))


def test_without_transformers_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"drifting-policy\[vit\]"):
        ConvNextFeatures(architecture=ARCHITECTURE)
