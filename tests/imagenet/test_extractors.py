"""Extractors: features as the networks tell them, under names that keep them apart, and sentences where one is missing."""

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from drifting_policy.imagenet import extractors
from drifting_policy.imagenet.classifier import ClassifierOptions, ImageClassifier, save_classifier
from drifting_policy.imagenet.extractors import (
    ClassifierExtractor,
    Dinov2Extractor,
    InceptionExtractor,
    open_extractor,
    to_network,
    weights_digest,
)
from drifting_policy.types import CheckpointError, ConfigError, MissingPackage

CPU = torch.device("cpu")


def pictures(count: int = 3, *, size: int = 8, channels: int = 3) -> torch.Tensor:
    shape = (count, size, size, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def own_classifier() -> ImageClassifier:
    return ImageClassifier(class_names=("cat", "dog"), image_shape=(3, 8, 8), width=4).eval()


def test_the_own_classifier_is_an_extractor_that_never_passes_for_another(tmp_path: Path) -> None:
    model = own_classifier()
    folder = save_classifier(tmp_path / "c", model, options=ClassifierOptions(), accuracy=0.5, count=2)
    extractor = open_extractor(f"classifier:{folder}", device=CPU)
    features, probabilities = extractor.extract(pictures())
    expected = pictures().permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(features, model.features(expected))
    assert probabilities is not None
    torch.testing.assert_close(probabilities, model(expected).softmax(1))
    assert features.shape == (3, extractor.dim)
    assert extractor.class_names == ("cat", "dog")
    assert extractor.test_accuracy == 0.5
    assert extractor.distance == "feature distance (own classifier)"
    assert extractor.name == f"classifier:{weights_digest(model)[:12]}"
    other = ClassifierExtractor(own_classifier())
    assert other.name != extractor.name


def test_a_digest_tells_weights_apart() -> None:
    model = torch.nn.Linear(2, 2)
    first = weights_digest(model)
    assert first == weights_digest(model)
    with torch.no_grad():
        model.bias[1] += 1
    assert weights_digest(model) != first


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("models") / "dinov2"
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_is_that_of_transformers(dinov2_folder: Path) -> None:
    from transformers import Dinov2Model

    extractor = open_extractor(f"dinov2:{dinov2_folder}", device=CPU)
    images = pictures(2, size=224)  # nothing to resize
    features, probabilities = extractor.extract(images)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    reference = Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        states = reference(pixel_values=(images.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state
    torch.testing.assert_close(features, states[:, 0], atol=1e-4, rtol=1e-4)
    assert probabilities is None
    assert (extractor.dim, features.shape) == (16, (2, 16))
    assert "DINOv2" in extractor.distance
    assert extractor.name.startswith("dinov2:")


def test_dinov2_sees_small_and_grey_images(dinov2_folder: Path) -> None:
    extractor = Dinov2Extractor(str(dinov2_folder), device=CPU)
    grey = pictures(2, channels=1)
    torch.testing.assert_close(extractor.extract(grey)[0], extractor.extract(grey.repeat(1, 1, 1, 3))[0])
    with pytest.raises(ConfigError, match="1 or 3 channels; got 4"):
        extractor.extract(pictures(channels=4))


def test_another_model_is_no_dinov2(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ConfigError, match="of the type vit"):
        Dinov2Extractor(str(tmp_path), device=CPU)


class FakeInception(torch.nn.Module):
    """Stands for torchmetrics' network: the mean of each channel, as bytes came in."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, antialias: bool) -> None:
        super().__init__()
        assert (name, features_list, antialias) == ("inception-v3-compat", ["2048"], False)
        self.fc = torch.nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3))


@pytest.fixture
def fake_inception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Weights for the network that takes the place of Inception, which is not to be had in every environment."""
    monkeypatch.setattr(extractors, "_inception_class", lambda: FakeInception)
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.eye(5)[:, :3] / 100, "fc.bias": torch.full((5,), 9.0)}, file)
    return file


def test_inception_is_canonical_only_with_the_published_weights(fake_inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = open_extractor(f"inception:{fake_inception}", device=CPU)
    checksum = hashlib.sha256(fake_inception.read_bytes()).hexdigest()
    assert other.name == f"inception:{checksum[:12]}"
    assert "FID" not in other.distance
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", checksum[:8])
    published = open_extractor(f"inception:{fake_inception}", device=CPU)
    assert (published.name, published.distance) == ("inception", "FID")
    features, probabilities = published.extract(pictures(channels=1))
    assert torch.equal(features, pictures(channels=1).float().mean((1, 2)).repeat(1, 3))
    assert probabilities is not None
    logits = torch.cat([features / 100, torch.zeros(3, 2)], dim=1)  # without the bias
    torch.testing.assert_close(probabilities, logits.softmax(1))


def test_weights_come_from_the_cache_or_a_download_that_is_checked(
    fake_inception: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def download(url: str, target: str, **options: Any) -> None:
        asked.append(options)
        Path(target).write_bytes(fake_inception.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, again = (InceptionExtractor(device=CPU).fingerprint for _ in range(2))
    assert first == again
    assert asked == [{"hash_prefix": extractors.INCEPTION_SHA256}]
    extractors.inception_weights().unlink()

    def offline(url: str, target: str, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(no network\).*extractor=inception:FILE"):
        InceptionExtractor(device=CPU)


class Trap:
    """Something that a careless loader would build."""


def test_weights_that_are_not_weights_are_refused(fake_inception: Path) -> None:
    torch.save({"fc.weight": Trap()}, fake_inception)
    with pytest.raises(ConfigError, match="holds more than tensors"):
        InceptionExtractor(fake_inception, device=CPU)
    with pytest.raises(ConfigError, match="cannot be read"):
        InceptionExtractor(fake_inception / "nothing", device=CPU)
    fake_inception.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read"):
        InceptionExtractor(fake_inception, device=CPU)
    torch.save({"other": torch.zeros(1)}, fake_inception)
    with pytest.raises(ConfigError, match="does not hold the weights"):
        InceptionExtractor(fake_inception, device=CPU)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="torch-fidelity and torchvision"):
        open_extractor("inception", device=CPU)
    monkeypatch.setattr(extractors, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", types.ModuleType("without"))
    with pytest.raises(MissingPackage, match="NoTrainInceptionV3"):
        open_extractor("inception", device=CPU)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match="transformers"):
        open_extractor("dinov2", device=CPU)


@pytest.mark.parametrize("text", ["", "fid", "classifier", "Inception"])
def test_unknown_words_are_answered_with_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigError, match="dinov2:NAME_OR_FOLDER"):
        open_extractor(text, device=CPU)


def test_places_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_extractor(f"classifier:{tmp_path}", device=CPU)
    with pytest.raises(ConfigError, match="no folder"):
        open_extractor(f"dinov2:{tmp_path / 'nothing'}", device=CPU)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_extractor(f"dinov2:{tmp_path}", device=CPU)


def test_bytes_become_levels() -> None:
    assert torch.equal(to_network(pictures(), own_classifier()), pictures().permute(0, 3, 1, 2).float())
