"""Blocks of samples: shared without gaps, resumed without loss, and never mixed with those of another generator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drifting_policy.imagenet.sample_blocks import KEY, SampleBlocks, SampleShard
from drifting_policy.types import ConfigError


def blocks_in(folder: Path, *, count: int = 10, size: int = 4, **key: Any) -> SampleBlocks:
    return SampleBlocks(folder / "samples", {"seed": 0, "cfg": 1.0, **key}, count=count, size=size)


def picture(index: int) -> np.ndarray:
    return np.full((2, 2, 1), index, np.uint8)


def fill(blocks: SampleBlocks, chosen: list[int]) -> None:
    for block in chosen:
        blocks.write(block, np.stack([picture(index) for index in blocks.rows(block)]))


def indices(blocks: SampleBlocks, *, shards: int = 1) -> list[int]:
    return [int(image[0, 0, 0]) for part in blocks.whole(SampleShard(None, shards)) for image in part]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_share_all_blocks_without_overlap(tmp_path: Path, count: int) -> None:
    blocks = blocks_in(tmp_path, count=18)
    parts = [list(blocks.blocks(SampleShard(index, count))) for index in range(count)]
    assert (
        sorted(block for part in parts for block in part)
        == [0, 1, 2, 3, 4]
        == list(blocks.blocks())
        == list(blocks.blocks(SampleShard(None, count)))
    )
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [index for block in blocks.blocks() for index in blocks.rows(block)] == list(range(18))


def test_what_is_there_is_not_missing_and_comes_back_in_order(tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path)
    fill(blocks, [2, 0])
    assert blocks.missing() == [1]
    with pytest.raises(ConfigError, match=r"lacks 1 of 3 blocks; draw them: shard=1/2\."):
        indices(blocks, shards=2)
    again = blocks_in(tmp_path)
    fill(again, again.missing())
    assert indices(again) == list(range(10))
    assert not [path for path in blocks.folder.iterdir() if path.suffix not in (".npy", ".json")]


def test_more_or_fewer_samples_use_the_same_blocks(tmp_path: Path) -> None:
    fill(blocks_in(tmp_path), [0, 1, 2])
    more = blocks_in(tmp_path, count=15)
    assert more.missing() == [2, 3]  # the last block was shorter
    fill(more, more.missing())
    assert indices(more) == list(range(15))
    fewer = blocks_in(tmp_path, count=6)
    assert fewer.missing() == []
    assert indices(fewer) == list(range(6))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_damaged_blocks_are_drawn_again(tmp_path: Path, damage: bytes | None) -> None:
    blocks = blocks_in(tmp_path)
    fill(blocks, [0, 1, 2])
    file = blocks.folder / "block_000001.npy"
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert blocks.missing() == [1]
    np.save(file, np.zeros((4, 2, 2, 1)))  # whole, but no bytes
    assert blocks.missing() == [1]


@pytest.mark.parametrize(("change", "told"), [({"seed": 1}, "seed 0, not 1"), ({"vae": "x"}, "vae None, not x")])
def test_samples_of_another_key_are_not_mixed(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    blocks_in(tmp_path)
    with pytest.raises(ConfigError, match=rf"{told}; remove them or choose another out=DIR"):
        blocks_in(tmp_path, **change)
    with pytest.raises(ConfigError, match="block 4, not 5"):
        blocks_in(tmp_path, size=5)


def test_places_that_cannot_hold_samples_are_named(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used"):
        blocks_in(tmp_path)
    (tmp_path / "samples").unlink()
    blocks = blocks_in(tmp_path)
    (blocks.folder / KEY).write_text("{")
    with pytest.raises(ConfigError, match="cannot be used"):
        blocks_in(tmp_path)
    with pytest.raises(ValueError, match="Block 2 holds 2 images; got 4"):
        blocks.write(2, np.zeros((4, 2, 2, 1), np.uint8))


def test_shards_are_read_as_they_are_written() -> None:
    assert SampleShard.parse("3/8") == SampleShard(3, 8)
    assert SampleShard.parse("merge/8") == SampleShard(None, 8)


@pytest.mark.parametrize("text", ["", "8/8", "-1/2", "0/0", "merge", "merge/0", "1/2/3", "a/b", "²/3"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard=merge/N"):
        SampleShard.parse(text)
