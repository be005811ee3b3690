"""A data set as one picture: images at the beginning, middle and end of some episodes, and curves of the actions."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_policy.atomic import write_bytes
from drifting_policy.data.replay_buffer import ReplayBuffer
from drifting_policy.data.suspicions import ACTIONS
from drifting_policy.types import ConfigError, DatasetError, MissingPackage

EPISODES = 4
CURVES = 16  # elements of the action that are drawn
HEIGHT, MARGIN, TEXT = 128, 8, 14  # px
PANEL = (320, 120)  # px of one curve
COLORS = ((31, 119, 180), (214, 96, 20), (44, 140, 44), (180, 40, 120))
INK, FRAME = (40, 40, 40), (200, 200, 200)


def draw_sheet(buffer: ReplayBuffer, file: str | Path) -> Path:
    """The sheet of `buffer`, written as the PNG file `file`, whole or not at all.

    A row of images is an episode, evenly chosen; of each image key it shows the first, the middle and the last step. Below,
    each element of the action over time, an episode a colour; without an action, of the first array of numbers.

    Raises:
        ConfigError: where the name does not end in .png.
        DatasetError: where the file cannot be written.
        MissingPackage: where Pillow is not installed.
    """
    target = Path(file)
    if target.suffix != ".png":
        raise ConfigError(f"The sheet is a PNG file: its name must end in .png; got {target}.")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackage("Drawing a sheet needs Pillow: pip install 'drifting-policy[formats]'.") from error
    episodes = np.unique(np.linspace(0, buffer.num_episodes - 1, EPISODES).astype(int)).tolist()
    parts = [part for part in (_image_rows(buffer, episodes), _curves(buffer, episodes)) if part is not None]
    width, height = max([part.width for part in parts] + [1]), max(1, sum(part.height for part in parts))
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    picture = io.BytesIO()
    canvas.save(picture, format="PNG")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, picture.getvalue())
    except OSError as error:
        raise DatasetError(f"The sheet {target} could not be written ({error}).") from error
    return target


def action_key(buffer: ReplayBuffer) -> str | None:
    """The array of actions, by its name; else the first array of floating-point numbers."""
    numbers = [key for key, values in buffer.arrays.items() if values.dtype.kind == "f"]
    named = [key for key in buffer.arrays if key.split("/")[-1].split(".")[-1] in ACTIONS]
    return next(iter([*named, *numbers]), None)


def _image_rows(buffer: ReplayBuffer, episodes: Sequence[int]) -> Any:
    """A picture of rows of images; None where there are none."""
    from PIL import Image, ImageDraw

    images = {key: values for key, values in buffer.arrays.items() if values.ndim == 4 and values.dtype == np.uint8}
    if not images:
        return None
    widths = {key: max(1, round(HEIGHT * values.shape[2] / values.shape[1])) for key, values in images.items()}
    row = HEIGHT + TEXT + MARGIN
    canvas = Image.new("RGB", (MARGIN + sum(3 * (width + MARGIN) for width in widths.values()), row * len(episodes)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, episode in enumerate(episodes):
        left, first, last = MARGIN, int(buffer.starts[episode]), int(buffer.episode_ends[episode]) - 1
        for key, values in images.items():
            for step in (first, (first + last) // 2, last):
                picture = np.asarray(values[step])
                shown = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture[..., :3])
                canvas.paste(shown.convert("RGB").resize((widths[key], HEIGHT)), (left, place * row + TEXT))
                draw.text((left, place * row + 1), _fitting(f"{key} {episode}:{step - first}", widths[key]), fill=INK)
                left += widths[key] + MARGIN
    return canvas


def _curves(buffer: ReplayBuffer, episodes: Sequence[int]) -> Any:
    """A picture of one panel per element of the action; None where there is nothing to draw."""
    from PIL import Image, ImageDraw

    key = action_key(buffer)
    if key is None:
        return None
    values = buffer.arrays[key].reshape(buffer.num_steps, -1)[:, :CURVES].astype(np.float64)
    columns = min(3, values.shape[1])
    rows = -(-values.shape[1] // columns)
    width, height = PANEL[0] + MARGIN, PANEL[1] + TEXT + MARGIN
    canvas = Image.new("RGB", (MARGIN + columns * width, rows * height), "white")
    draw = ImageDraw.Draw(canvas)
    longest = max(int(buffer.lengths[episode]) for episode in episodes)
    for element in range(values.shape[1]):
        left, top = MARGIN + element % columns * width, element // columns * height + TEXT
        low, high = values[:, element].min(), values[:, element].max()
        title = f"{key}[{element}]  {low:.4g} .. {high:.4g}, {longest} steps"
        draw.text((left, top - TEXT + 1), _fitting(title, PANEL[0]), fill=INK)
        draw.rectangle((left, top, left + PANEL[0], top + PANEL[1]), outline=FRAME)
        for color, episode in zip(COLORS, episodes, strict=False):
            part = values[buffer.starts[episode] : buffer.episode_ends[episode], element]
            x = left + np.arange(len(part)) / max(1, longest - 1) * PANEL[0]
            y = top + PANEL[1] - (part - low) / max(high - low, 1e-12) * PANEL[1]
            draw.line([*zip(x.tolist(), y.tolist(), strict=True)] * (2 if len(part) == 1 else 1), fill=color)
    return canvas


def _fitting(text: str, width: int) -> str:
    """The text, cut to about `width` px."""
    return text[: max(1, width // 6)]
