"""SampleBlocks: generated images as files of equal size, so that drawing them can be interrupted, and shared by machines."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import UInt8

from drifting_policy.atomic import write_json
from drifting_policy.types import ConfigError

BLOCK = 500  # images of a file: what an interruption can cost
KEY = "samples.json"
FORM = "shard=i/N draws part i = 0 .. N-1 of N, shard=merge/N puts the parts together"


@dataclass(frozen=True)
class SampleShard:
    """Part `index` of `count` parts of the samples; without index, all of them together."""

    index: int | None
    count: int

    @staticmethod
    def parse(text: str) -> "SampleShard":
        """The shard that "3/8" or "merge/8" means.

        Raises:
            ConfigError: another form, or a part that there is not.
        """
        match = re.fullmatch(r"(\d+|merge)/(\d+)", text, re.ASCII)
        shard = SampleShard(None if match[1] == "merge" else int(match[1]), int(match[2])) if match else SampleShard(0, 0)
        if shard.count < 1 or (shard.index or 0) >= shard.count:
            raise ConfigError(f"shard '{text}' does not exist: {FORM}.")
        return shard


@final
class SampleBlocks:
    """The first `count` images that `key` stands for, in blocks; block b holds the images from b * size on.

    Blocks depend neither on `count`, but for the last one, nor on how many shards draw them: what is there already is used.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, count: int, size: int = BLOCK) -> None:
        """Blocks in `folder`, which is made.

        Raises:
            ConfigError: `folder` cannot be written, or holds images that another key stands for.
        """
        self.folder, self.count, self.size = folder, count, size
        file, wanted = folder / KEY, {**key, "block": size}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                write_json(file, wanted)
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The samples in {folder} cannot be used ({error}); remove them or choose another out=DIR."
            ) from error
        wanted = json.loads(json.dumps(wanted))
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise ConfigError(
                    f"The samples in {folder} were drawn with {name} {found.get(name)}, not {wanted.get(name)}; remove them or "
                    "choose another out=DIR."
                )

    def blocks(self, shard: SampleShard | None = None) -> range:
        """The numbers of all blocks, or of those of a shard: every N-th, so that shards are of one length."""
        all_blocks = range(-(-self.count // self.size))
        return all_blocks if shard is None or shard.index is None else all_blocks[shard.index :: shard.count]

    def rows(self, block: int) -> range:
        """Which images a block holds."""
        return range(block * self.size, min((block + 1) * self.size, self.count))

    def missing(self, shard: SampleShard | None = None) -> list[int]:
        """The blocks of a shard that are not there, damaged, or shorter than they must be."""
        return [block for block in self.blocks(shard) if self.read(block) is None]

    def write(self, block: int, images: UInt8[np.ndarray, "n h w c"]) -> None:
        """Keep the images of a block.

        Raises:
            ValueError: another number of images than the block holds.
            ConfigError: the file system refuses.
        """
        if len(images) != len(self.rows(block)):
            raise ValueError(f"Block {block} holds {len(self.rows(block))} images; got {len(images)}.")
        file = self._file(block)
        draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
        try:
            with draft.open("wb") as stream:
                np.save(stream, images, allow_pickle=False)
            draft.replace(file)
        except OSError as error:
            raise ConfigError(f"The samples {file} could not be written ({error}); free some space.") from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def read(self, block: int) -> UInt8[np.ndarray, "n h w c"] | None:
        """The images of a block, mapped from the file; None where they are not whole."""
        try:
            images = np.load(self._file(block), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        needed = len(self.rows(block))
        return images[:needed] if images.dtype == np.uint8 and images.ndim == 4 and len(images) >= needed else None

    def whole(self, shard: SampleShard) -> Iterator[UInt8[np.ndarray, "n h w c"]]:
        """All images, block by block, as `shard.count` shards drew them.

        Raises:
            ConfigError: names the shards of which blocks are missing.
        """
        if lost := self.missing():
            shards = sorted({block % shard.count for block in lost})
            again = ", ".join(f"{index}/{shard.count}" for index in shards)
            raise ConfigError(f"{self.folder} lacks {len(lost)} of {len(self.blocks())} blocks; draw them: shard={again}.")
        for block in self.blocks():
            images = self.read(block)
            assert images is not None
            yield images

    def _file(self, block: int) -> Path:
        return self.folder / f"block_{block:06d}.npy"
