"""All images of a source decoded in their order, the broken ones among them named, counted and left out."""

import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from drifting_policy.imagenet.pixels import BrokenImage
from drifting_policy.imagenet.sources import ImageSource
from drifting_policy.types import DatasetError

BLOCK = 256  # images that are decoded at a time
BROKEN_SHARE = 0.1  # of broken images, above which a data set is refused


def decode(source: ImageSource, size: int | None, *, start: int = 0) -> Iterator[tuple[int, np.ndarray | str]]:
    """Positions from `start` on, in order, each with its image uint8 "h w c", or the reason why it is broken."""

    def one(position: int) -> np.ndarray | str:
        try:
            return source.pixels(position, size)
        except BrokenImage as error:
            return str(error)

    ahead: deque[Iterator[tuple[int, np.ndarray | str]]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the interpreter's lock
        for first in range(start, len(source.names), BLOCK):
            positions = range(first, min(first + BLOCK, len(source.names)))
            ahead.append(zip(positions, pool.map(one, positions), strict=True))
            if len(ahead) > 1:  # the pool decodes the next block while the caller is busy with this one
                yield from ahead.popleft()
        for block in ahead:
            yield from block


def check_broken(source: ImageSource, broken: Mapping[int, str]) -> None:
    """Refuse a data set of which too much is broken.

    Raises:
        DatasetError: more than a tenth of all images, or all of a class.
    """
    if not broken:
        return
    count, position = len(source.names), max(broken)
    example = f"the last one found is {source.names[position]}: {broken[position]}"
    if len(broken) > BROKEN_SHARE * count:
        raise DatasetError(
            f"{source.place}: {len(broken)} of {count} images are broken already ({example}). Copy the data again."
        )
    lost, all_of = (
        np.bincount(labels, minlength=len(source.class_names)) for labels in (source.labels[[*broken]], source.labels)
    )
    if (gone := np.flatnonzero((lost == all_of) & (all_of > 0))).size:
        raise DatasetError(f"{source.place}: no image of the class '{source.class_names[gone[0]]}' can be read ({example}).")


def tell_broken(source: ImageSource, broken: Mapping[int, str]) -> None:
    """Name each broken image on the error output, then their number."""
    for position, reason in broken.items():
        print(f"broken image {source.names[position]}: {reason}", file=sys.stderr)
    if broken:
        print(f"{source.place}: {len(broken)} of {len(source.names)} images are broken and were left out.", file=sys.stderr)
