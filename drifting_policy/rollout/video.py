"""Films of episodes: side by side in a grid, and as H.264 files."""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

BORDER = 3  # px
SUCCESS_COLOR, FAILURE_COLOR, NEUTRAL_COLOR = (0, 160, 60), (200, 40, 40), (128, 128, 128)


def write_video(path: Path, frames: Sequence[np.ndarray], *, fps: float) -> None:
    """Writes `frames` "h w c" (uint8 RGB) as an H.264 mp4; no reader ever sees half a file.

    Odd sizes grow by one repeated row or column, as the codec needs even ones.

    Raises:
        ValueError: no frames, or frames that are not uint8 RGB of one size.
    """
    if len(frames) == 0:
        raise ValueError(f"A video needs at least one frame; got none for {path}.")
    _check_frames(frames)
    height, width = frames[0].shape[:2]
    partial = path.with_name(f".{path.name}.partial")
    import av  # only who writes a film needs it

    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            for frame in frames:
                even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def tile_episodes(
    frames: Mapping[int, Sequence[np.ndarray]],
    *,
    columns: int,
    captions: Mapping[int, str] | None = None,
    success: Mapping[int, bool] | None = None,
) -> list[np.ndarray]:
    """Frames "h w c" of one film that shows all episodes in a grid, in order of their seeds.

    Shorter episodes hold their last frame. The border of an episode is green if it succeeded and red if not (grey if unknown).

    Args:
        frames: the frames of each episode by seed, uint8 RGB, all of one size.
        columns: episodes per row.
        captions: text in the upper left corner, by seed.
        success: outcome by seed.

    Raises:
        ValueError: no episodes, an episode without frames, frames of several sizes, or columns below one.
    """
    if columns < 1 or not frames or not all(len(film) for film in frames.values()):
        raise ValueError(f"A grid needs columns >= 1 and episodes with frames; got {columns} columns, {len(frames)} episodes.")
    _check_frames([frame for film in frames.values() for frame in film])
    seeds = sorted(frames)
    columns = min(columns, len(seeds))
    rows = -(-len(seeds) // columns)
    height, width = (size + 2 * BORDER for size in frames[seeds[0]][0].shape[:2])
    film = []
    for step in range(max(len(episode) for episode in frames.values())):
        canvas = np.zeros((rows * height, columns * width, 3), np.uint8)
        for place, seed in enumerate(seeds):
            top, left = place // columns * height, place % columns * width
            frame = frames[seed][min(step, len(frames[seed]) - 1)]
            canvas[top : top + height, left : left + width] = _framed(
                frame, color=_color(seed, success), caption=(captions or {}).get(seed, "")
            )
        film.append(canvas)
    return film


def _color(seed: int, success: Mapping[int, bool] | None) -> tuple[int, int, int]:
    if success is None or seed not in success:
        return NEUTRAL_COLOR
    return SUCCESS_COLOR if success[seed] else FAILURE_COLOR


def _framed(frame: np.ndarray, *, color: tuple[int, int, int], caption: str) -> np.ndarray:
    """`frame` with a border around it and a caption in it."""
    height, width = frame.shape[:2]
    image = Image.new("RGB", (width + 2 * BORDER, height + 2 * BORDER), color)
    image.paste(Image.fromarray(frame), (BORDER, BORDER))
    if caption:
        ImageDraw.Draw(image).text((BORDER + 3, BORDER + 2), caption, fill=(0, 0, 0))
    return np.asarray(image)


def _check_frames(frames: Sequence[np.ndarray]) -> None:
    kinds = {(frame.shape, str(frame.dtype)) for frame in frames}
    shape, dtype = next(iter(kinds))
    if len(kinds) != 1 or len(shape) != 3 or shape[2] != 3 or dtype != "uint8":
        raise ValueError(f"Frames must all be uint8 images (h, w, 3) of one size; got {sorted(kinds)}.")
