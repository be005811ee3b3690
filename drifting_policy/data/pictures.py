"""Pictures of a data set: PNG or JPEG bytes, and frames of films at given times."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.types import DatasetError, MissingPackage

BLOCK = 64  # pictures that are handed on at once
MAX_PIXELS = 1 << 26  # of one picture; what claims more would only fill the memory
MODES = {"L": 1, "RGB": 3, "RGBA": 4}


def decode_picture(data: bytes, what: str) -> np.ndarray:
    """The picture "h w c", uint8, in PNG or JPEG bytes; grey ones have one channel.

    Raises:
        DatasetError: where the bytes are no such picture, or one of more than 8 bits per channel.
        MissingPackage: where Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackage("Reading pictures needs Pillow: pip install 'drifting-policy[formats]'.") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"{what} is a picture of {image.width} x {image.height} pixels, which is too large.")
            if image.mode not in (*MODES, "P"):
                raise DatasetError(f"{what} is a picture of mode {image.mode}; L, RGB and RGBA can be read.")
            values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{what} is no readable PNG or JPEG picture ({type(error).__name__}).") from error
    return values if values.ndim == 3 else values[..., None]


def in_blocks(pictures: Iterable[np.ndarray], what: str) -> Iterator[np.ndarray]:
    """The pictures "h w c" in stacks "k h w c".

    Raises:
        DatasetError: where one differs in shape from those before it.
    """
    block: list[np.ndarray] = []
    for picture in pictures:
        if block and picture.shape != block[0].shape:
            raise DatasetError(f"{what} has pictures of several shapes: {block[0].shape} and {picture.shape}.")
        block.append(picture)
        if len(block) == BLOCK:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def frames_at(file: Path, times: Sequence[float], *, tolerance: float) -> Iterator[np.ndarray]:
    """The frame "h w c" (RGB, uint8) of a film nearest to each of the ascending `times`, in seconds of the film's own clock.

    The film is decoded once, from its beginning.

    Raises:
        DatasetError: where no frame lies within `tolerance` seconds of a time, or the film cannot be decoded.
        MissingPackage: where PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingPackage("Reading films needs PyAV: pip install 'drifting-policy[formats]'.") from error
    place, before = 0, None
    try:
        with av.open(str(file), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise DatasetError(f"{file} holds no film.")
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise DatasetError(f"{file} is a film of {stream.width} x {stream.height} pixels, which is too large.")
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                now = (float(frame.time), frame)
                while place < len(times) and times[place] <= now[0]:
                    yield _nearest([before, now] if before else [now], times[place], tolerance, file)
                    place += 1
                if place == len(times):
                    return
                before = now
            for time in times[place:]:
                yield _nearest([before] if before else [], time, tolerance, file)
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{file} is no readable film ({type(error).__name__}: {error}).") from error


def _nearest(frames: Sequence[tuple[float, Any]], time: float, tolerance: float, file: Path) -> np.ndarray:
    found, frame = min(frames, key=lambda pair: abs(pair[0] - time), default=(float("inf"), None))
    if frame is None or abs(found - time) > tolerance:
        raise DatasetError(f"{file} has no frame at {time:.4f} s; the nearest lies at {found:.4f} s.")
    values: np.ndarray = frame.to_ndarray(format="rgb24")
    return values
