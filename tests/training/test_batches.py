"""A batch is a function of (seed, step) alone, and an epoch shows every chunk at most once."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_policy.data.chunks import ChunkIndex, chunk_index
from drifting_policy.data.thumbnails import thumbnails
from drifting_policy.training.batches import Batch, Batches, mix
from drifting_policy.types import DatasetError

CPU = torch.device("cpu")


def make(chunks: int = 10, *, batch_size: int = 3, seed: int = 0) -> Batches:
    """Chunk i covers the steps i, i + 1, i + 2 of x = 0, 1, 2, ... and actions ten times as large."""
    steps, x = np.arange(chunks)[:, None] + np.arange(3), np.arange(chunks + 2.0)[:, None]
    index = ChunkIndex(steps, steps % 2 == 0, np.zeros(chunks, int))
    return Batches({"x": x}, 10 * x, index, obs_horizon=2, batch_size=batch_size, seed=seed, device=CPU)


def numbers(batch: Batch) -> list[int]:
    """Which chunks of `make` are in the batch."""
    return batch.obs["x"][:, 0, 0].int().tolist()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 2**40), st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_depends_on_seed_and_step_alone(batch_size: int, spare: int, seed: int, asked: list[int]) -> None:
    served, state = make(batch_size + spare, batch_size=batch_size, seed=seed), torch.get_rng_state()
    for step in asked:
        batch, again = served.batch(step), make(batch_size + spare, batch_size=batch_size, seed=seed).batch(step)
        assert numbers(batch) == numbers(again)
        assert len(set(numbers(batch))) == batch_size
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("chunks", "batch_size"), [(10, 3), (12, 4), (7, 7), (5, 1)])
def test_every_epoch_is_a_new_permutation(chunks: int, batch_size: int) -> None:
    served = make(chunks, batch_size=batch_size)
    epochs = [
        list(itertools.chain(*(numbers(served.batch(epoch * len(served) + i)) for i in range(len(served)))))
        for epoch in range(4)
    ]
    for seen in epochs:
        assert len(seen) == len(set(seen)) == chunks // batch_size * batch_size
        assert set(seen) <= set(range(chunks))
    assert len(set(map(tuple, epochs))) == 4
    assert numbers(served.batch(0)) != numbers(make(chunks, batch_size=batch_size, seed=1).batch(0)) or batch_size == 1


def test_rows_of_a_batch_belong_together() -> None:
    batch = make().batch(5)
    first = torch.tensor(numbers(batch))
    steps = first[:, None] + torch.arange(3)
    assert torch.equal(batch.obs["x"], steps[:, :2, None].float())
    assert torch.equal(batch.action, 10 * steps[:, :, None].float())
    assert torch.equal(batch.valid, steps % 2 == 0)
    assert batch.action.dtype == batch.obs["x"].dtype == torch.float32


def test_padding_is_marked() -> None:
    index = chunk_index(np.array([2, 20]), obs_horizon=2, pred_horizon=5, exec_horizon=3)
    action = np.arange(20.0)[:, None]
    served = Batches({"x": action}, action, index, obs_horizon=2, batch_size=1, seed=0, device=CPU)
    first = served.rows(torch.tensor([0]))
    assert first.action[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    assert first.valid[0].tolist() == [False, True, True, False, False]
    whole = served.rows(torch.arange(len(index.steps)))
    assert torch.equal(whole.valid, torch.as_tensor(index.valid))
    assert torch.equal(whole.action[whole.valid], torch.as_tensor(action[index.steps][index.valid], dtype=torch.float32))


def test_a_data_set_smaller_than_a_batch_is_refused() -> None:
    make(4, batch_size=4)
    with pytest.raises(DatasetError, match=r"hold 4 chunks, fewer than one batch of 5: choose a smaller trainer.batch_size"):
        make(4, batch_size=5)


def test_mixed_seeds_are_spread_over_63_bits() -> None:
    pairs = list(itertools.product(range(100), range(100)))
    mixed = [mix(*pair) for pair in pairs]
    assert len(set(mixed)) == len(pairs)
    assert 0 <= min(mixed) <= max(mixed) < 2**63
    bits = np.array([[value >> bit & 1 for bit in range(63)] for value in mixed])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.03
    flips = bits.reshape(100, 100, 63)
    assert np.abs((flips[1:] != flips[:-1]).mean(axis=(0, 1)) - 0.5).max() < 0.03
    assert np.abs((flips[:, 1:] != flips[:, :-1]).mean(axis=(0, 1)) - 0.5).max() < 0.03
    assert mix(2**40, 3) != mix(0, 3)


def with_images(images: np.ndarray) -> Batches:
    """Chunks of four steps of two episodes, whose image of step i is known."""
    index = chunk_index(np.array([6, len(images)]), obs_horizon=2, pred_horizon=4, exec_horizon=2)
    x = np.arange(float(len(images)))[:, None]
    return Batches({"image": images, "x": x}, x, index, obs_horizon=2, batch_size=5, seed=3, device=CPU)


def test_images_are_those_of_their_steps_and_stay_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (15, 9, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = with_images(np.load(tmp_path / "images.npy", mmap_mode="r"))
    for step in range(9):
        batch, again = mapped.batch(step), with_images(images).batch(step)
        assert batch.obs["image"].dtype == torch.uint8
        assert torch.equal(batch.obs["image"], again.obs["image"])
        assert np.array_equal(batch.obs["image"], images[batch.obs["x"][..., 0].int()])
        assert np.array_equal(mapped.rows(mapped.order(step)).action, batch.action)
    kept = mapped.batch(0).obs["image"]
    kept += 1  # a batch is a copy: the file and the next batch know nothing of it
    assert not torch.equal(mapped.batch(0).obs["image"], kept)


def test_what_is_searched_are_thumbnails() -> None:
    images = np.random.default_rng(0).integers(0, 256, (15, 16, 8, 3), dtype=np.uint8)
    batches, rows = with_images(images), torch.tensor([4, 0, 9])
    found, batch = batches.searchable(rows), batches.rows(rows)
    assert torch.equal(found["x"], batch.obs["x"])
    expected = thumbnails(batch.obs["image"].flatten(0, 1).numpy())
    assert np.array_equal(found["image"].flatten(0, 1), expected)
