"""The own classifier: what it learns, that it does so again, and that damaged files are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from drifting_policy.checkpoint import WEIGHTS, write_checkpoint
from drifting_policy.imagenet.classifier import (
    OPTIONS,
    ClassifierOptions,
    ImageClassifier,
    classifier_accuracy,
    load_classifier,
    moved_batch,
    save_classifier,
    train_classifier,
)
from drifting_policy.imagenet.images import ImageSet, open_images
from drifting_policy.types import CheckpointError, ConfigError

CPU = torch.device("cpu")
QUICK = replace(OPTIONS["digits"], width=12, epochs=5, batch_size=32, learning_rate=1e-2)


def stripes(count: int, *, seed: int = 0, size: int = 8, channels: int = 3) -> ImageSet:
    """Noise over stripes that lie or stand."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    wave = np.where(np.arange(size) % 4 < 2, 60, 190)
    plain = np.where(labels[:, None, None] == 0, wave[:, None], wave[None])[..., None]
    images = np.clip(plain + rng.normal(0, 30, (count, size, size, channels)), 0, 255).astype(np.uint8)
    return ImageSet(images=images, labels=labels, class_names=("lying", "standing"), kind="pixels")


def test_digits_are_told_apart_and_features_are_what_the_head_sees() -> None:
    model = train_classifier(open_images("digits"), QUICK, device=CPU)
    testing = open_images("digits", split="test")
    assert classifier_accuracy(model, testing) > 0.9
    pixels, labels = testing.batch(range(50))
    assert torch.equal(model(pixels), model.head(model.features(pixels)))
    assert model.features(pixels).shape == (50, model.feature_dim)
    assert float((model(pixels).argmax(1) == labels).double().mean()) > 0.8


def test_training_is_a_function_of_images_options_and_seed() -> None:
    images, options = stripes(40), ClassifierOptions(width=4, epochs=2, batch_size=16, shift=1)
    first, again = (train_classifier(images, options, device=CPU).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.randn(3, generator=torch.default_generator)  # what others draw does not matter
    assert torch.equal(train_classifier(images, options, device=CPU).state_dict()["head.weight"], first["head.weight"])
    for change in ({"seed": 1}, {"flips": False}, {"shift": 0}):
        other = train_classifier(images, replace(options, **change), device=CPU).state_dict()
        assert not torch.equal(other["head.weight"], first["head.weight"]), change


@pytest.mark.parametrize("size", [8, 20])
def test_images_of_any_small_size_are_learnt(size: int) -> None:
    options = ClassifierOptions(width=8, epochs=10, batch_size=20, shift=0, flips=False)
    model = train_classifier(stripes(100, size=size), options, device=CPU)
    assert classifier_accuracy(model, stripes(100, seed=1, size=size)) > 0.95


def test_augmentation_moves_and_flips_but_invents_nothing() -> None:
    images = ImageSet(
        images=np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4, 1),
        labels=np.array([0, 1]),
        class_names=("a", "b"),
        kind="pixels",
    )
    options, rows = ClassifierOptions(shift=1), torch.tensor([1, 0, 1, 0, 1, 0])
    seen = [moved_batch(images, rows, options, step=step) for step in range(20)]
    for pixels, labels in seen:
        assert labels.tolist() == [1, 0, 1, 0, 1, 0]
        assert pixels.shape == (6, 1, 4, 4)
        for image, label in zip(pixels, labels, strict=True):
            known = set(images.batch([int(label)])[0].flatten().tolist())
            assert set(image.flatten().tolist()) <= known
    assert len({tuple(image.flatten().tolist()) for pixels, _ in seen for image in pixels}) > 20
    still = moved_batch(images, rows, ClassifierOptions(shift=0, flips=False), step=0)[0]
    assert torch.equal(still, images.batch(rows)[0])


def test_a_saved_classifier_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    model = train_classifier(stripes(20), ClassifierOptions(width=4, epochs=1), device=CPU)
    pixels, _ = stripes(4).batch(range(4))
    place = save_classifier(tmp_path / "c", model, options=QUICK, accuracy=0.5, count=20)
    loaded, about = load_classifier(place)
    assert torch.equal(loaded(pixels), model(pixels))
    assert loaded.class_names == ("lying", "standing")
    assert (about["test_accuracy"], about["test_images"], about["options"]["width"]) == (0.5, 20, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    weights = place / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(place)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_classifier(tmp_path)


def test_another_checkpoint_is_no_classifier(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", config={"policy": {}}, write=lambda draft: None)
    with pytest.raises(CheckpointError, match="another network"):
        load_classifier(tmp_path / "other")
    write_checkpoint(
        tmp_path / "newer",
        config={"classifier": {"surprise": 1}},
        write=lambda draft: save_file({"x": torch.zeros(1)}, draft / WEIGHTS),
    )
    with pytest.raises(CheckpointError, match="of this version"):
        load_classifier(tmp_path / "newer")
    model = ImageClassifier(class_names=["a", "b"], image_shape=(1, 8, 8), width=4)
    write_checkpoint(
        tmp_path / "untold",
        config={"classifier": model.recipe},
        write=lambda draft: save_file(model.state_dict(), draft / WEIGHTS),
    )
    with pytest.raises(CheckpointError, match="of this version: 'options'"):
        load_classifier(tmp_path / "untold")


def test_what_it_is_not_made_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="up to 64 pixels"):
        ImageClassifier(class_names=("a", "b"), image_shape=(3, 65, 8), width=4)
    with pytest.raises(ConfigError, match="at least 2 classes"):
        ImageClassifier(class_names=("a",), image_shape=(3, 8, 8), width=4)
    with pytest.raises(ConfigError, match=r"\(3, 8, 8\); got \(1, 8, 8\)"):
        ImageClassifier(class_names=("a", "b"), image_shape=(3, 8, 8), width=4)(torch.zeros(1, 1, 8, 8))
    latents = ImageSet(
        images=np.zeros((4, 4, 8, 8), np.float32), labels=np.arange(4) % 2, class_names=("a", "b"), kind="latents"
    )
    with pytest.raises(ConfigError, match="trained on pixels"):
        train_classifier(latents, QUICK, device=CPU)
