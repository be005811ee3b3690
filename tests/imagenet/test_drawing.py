"""Samples of an evaluation are a function of seed and number, however they are shared, batched or interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drifting_policy.imagenet.drawing import draw_blocks, place_labels, sample_places
from drifting_policy.imagenet.generator import ImageGenerator
from drifting_policy.imagenet.images import to_bytes
from drifting_policy.imagenet.sample_blocks import SampleBlocks, SampleShard
from drifting_policy.types import CheckpointError

ALL = SampleShard(None, 1)


@pytest.fixture(scope="module")
def generator() -> ImageGenerator:
    sizes = {
        "classes": 3,
        "image_size": 4,
        "in_channels": 1,
        "out_channels": 1,
        "patch": 2,
        "width": 16,
        "depth": 1,
        "heads": 2,
    }
    made = ImageGenerator(**sizes, cond_dim=8, styles=4, style_tokens=2, registers=1, precision="float32")
    source = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    return made.eval()


def drawn(
    generator: ImageGenerator, folder: Path, *, shards: int = 1, batch: int = 4, count: int = 13, seed: int = 0
) -> np.ndarray:
    blocks = SampleBlocks(folder, {}, count=count, size=5)
    places = sample_places(count, classes=generator.classes)
    for index in range(shards):
        shard = SampleShard(index, shards)
        settings = {"decode": to_bytes, "cfg_scale": 1.5, "seed": seed, "batch": batch}
        draw_blocks(generator, blocks, places, shard=shard, **settings)  # type: ignore[arg-type]
    return np.concatenate(list(blocks.whole(ALL)))


def test_samples_depend_on_neither_batches_nor_shards(generator: ImageGenerator, tmp_path: Path) -> None:
    whole = drawn(generator, tmp_path / "a")
    assert whole.shape == (13, 4, 4, 1)
    for name, options in {"b": {"batch": 1}, "c": {"shards": 3}, "d": {"count": 7}}.items():
        other = drawn(generator, tmp_path / name, **options)
        assert np.abs(whole[: len(other)].astype(int) - other).max() <= 1, name  # a byte at the edge of rounding
    assert (drawn(generator, tmp_path / "e", seed=1) != whole).mean() > 0.5
    assert len({image.tobytes() for image in whole}) == 13


def test_an_interrupted_evaluation_draws_the_rest_only(generator: ImageGenerator, tmp_path: Path) -> None:
    whole = drawn(generator, tmp_path)
    (tmp_path / "block_000001.npy").unlink()
    kept = (tmp_path / "block_000000.npy").stat().st_mtime_ns
    blocks, places = SampleBlocks(tmp_path, {}, count=13, size=5), sample_places(13, classes=3)
    settings = {"shard": None, "decode": to_bytes, "cfg_scale": 1.5, "seed": 0, "batch": 4}
    assert draw_blocks(generator, blocks, places, **settings) == 5  # type: ignore[arg-type]
    assert draw_blocks(generator, blocks, places, **settings) == 0  # type: ignore[arg-type]
    assert (tmp_path / "block_000000.npy").stat().st_mtime_ns == kept
    assert np.array_equal(np.concatenate(list(blocks.whole(ALL))), whole)


def test_broken_generators_are_named(generator: ImageGenerator, tmp_path: Path) -> None:
    sizes = generator.recipe
    broken = ImageGenerator(**sizes)
    torch.nn.init.constant_(broken.output.bias, torch.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        drawn(broken, tmp_path)


@given(count=st.integers(1, 60), classes=st.integers(1, 7))
def test_classes_take_turns(count: int, classes: int) -> None:
    places = sample_places(count, classes=classes)
    numbers = np.bincount(place_labels(places), minlength=classes)
    assert numbers.max() - numbers.min() <= 1
    assert len(set(places)) == count
    assert places == sample_places(count + 5, classes=classes)[:count]


@given(count=st.integers(1, 400), shares=st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(any))
def test_classes_are_as_frequent_as_in_the_data(count: int, shares: list[int]) -> None:
    places = sample_places(count, classes=len(shares), shares=shares)
    labels = place_labels(places)
    found = np.bincount(labels, minlength=len(shares)) / count
    assert np.abs(found - np.array(shares) / sum(shares)).max() <= 5 * (1 + np.log(count)) / count
    assert all(shares[label] for label in labels)
    assert len(set(places)) == count
    assert places == sample_places(count + 5, classes=len(shares), shares=shares)[:count]
