"""docs/tasks.jpg: every world of the tasks at the beginning of an episode, as the environments render it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from drifting_policy.eval import load_task
from drifting_policy.evaluation import make_env

TASKS = ("push_t", "lift", "can", "square", "tool_hang", "transport", "kitchen", "block_push", "conveyor", "toy_obstacle")
COLUMNS, SIZE, CAPTION = 5, 240, 22
SEED = 3


def main() -> None:
    """Render, caption, tile and write."""
    tiles = []
    for name in TASKS:
        task = load_task(name)
        task.env_options = {**task.env_options, "render_size": SIZE}
        env = make_env(task)
        env.reset(seed=SEED)
        tile = Image.new("RGB", (SIZE, SIZE + CAPTION), (255, 255, 255))
        tile.paste(Image.fromarray(np.asarray(env.render())), (0, CAPTION))
        ImageDraw.Draw(tile).text((6, 5), name, fill=(40, 40, 40), font_size=13)
        env.close()
        tiles.append(tile)
    sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(tiles) // COLUMNS) * (SIZE + CAPTION)), (255, 255, 255))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % COLUMNS * SIZE, number // COLUMNS * (SIZE + CAPTION)))
    out = Path(__file__).resolve().parents[1] / "docs" / "tasks.jpg"
    sheet.save(out, quality=88)
    print(out)


if __name__ == "__main__":
    main()
