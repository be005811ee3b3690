"""Obstacle: a point in the plane must pass a disc on its left or on its right to reach its goal, in a 2 m x 2 m world.

Both ways are equally good, and their mean runs into the disc: a policy that averages its demonstrations fails here.
"""

from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored

RADIUS = 0.2  # of the obstacle, m
REACH = 0.2  # longest move of one step, m
GOAL_RADIUS = 0.075  # m
LEFT, HIT, RIGHT = 1, 0, -1
# Uniform ranges of the initial state, m: the start is below, the goal above, and the obstacle near the middle between them.
START = ((-0.3, -0.9), (0.3, -0.8))
GOAL = ((-0.3, 0.8), (0.3, 0.9))
OFF_CENTRE = ((-0.05, -0.1), (0.05, 0.1))
COLORS = {"obstacle": (120, 120, 130), "goal": (120, 200, 120), "trail": (60, 90, 200), "target": (220, 60, 60)}


def initial_state(rng: np.random.Generator) -> np.ndarray:
    """A random state [agent x, y, goal x, y, obstacle x, y] in m, float64."""
    start, goal = rng.uniform(*START), rng.uniform(*GOAL)
    return np.concatenate([start, goal, (start + goal) / 2 + rng.uniform(*OFF_CENTRE)])


def move(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Positions "... 2" after one step towards targets "... 2": there, or as far as a step reaches, inside the world."""
    way = np.clip(target, -1.0, 1.0) - position
    length = np.linalg.norm(way, axis=-1, keepdims=True)
    return np.asarray(position + way * np.minimum(1.0, REACH / np.maximum(length, 1e-12)))


def follow(start: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Paths "... t+1 2" of agents that start at "... 2" and are sent to the targets "... t 2" one after the other."""
    path = [np.broadcast_to(np.asarray(start, np.float64), (*targets.shape[:-2], 2))]
    for step in range(targets.shape[-2]):
        path.append(move(path[-1], targets[..., step, :].astype(np.float64)))
    return np.stack(path, axis=-2)


def clearance(path: np.ndarray, obstacle: np.ndarray) -> np.ndarray:
    """Smallest distances "..." in m of paths "... k 2", straight from point to point, from centres of obstacles "... 2"."""
    begin, way, centre = path[..., :-1, :], np.diff(path, axis=-2), obstacle[..., None, :]
    share = ((centre - begin) * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12)
    nearest = begin + np.clip(share, 0.0, 1.0)[..., None] * way
    return np.asarray(np.linalg.norm(nearest - centre, axis=-1).min(axis=-1))


def passage(path: np.ndarray, goal: np.ndarray, obstacle: np.ndarray) -> np.ndarray:
    """How paths "... k 2" pass obstacles "... 2" on their way to goals "... 2": LEFT, RIGHT or HIT, integers "...".

    The side is the one on which a path, seen in the direction from its first point to the goal, first gets level with the
    centre of the obstacle. A path that touches the disc anywhere, or never gets level with it, is a HIT.
    """
    ahead = goal - path[..., 0, :]
    ahead = ahead / np.maximum(np.linalg.norm(ahead, axis=-1, keepdims=True), 1e-12)
    offset = path - obstacle[..., None, :]
    along = (offset * ahead[..., None, :]).sum(-1)
    left = ahead[..., None, 0] * offset[..., 1] - ahead[..., None, 1] * offset[..., 0]
    passed = (along[..., :-1] < 0) & (along[..., 1:] >= 0)
    first = passed.argmax(axis=-1)[..., None]
    before, after = (np.take_along_axis(along, first + i, -1)[..., 0] for i in (0, 1))
    share = -before / np.where(passed.any(-1), after - before, 1.0)
    from_left, to_left = (np.take_along_axis(left, first + i, -1)[..., 0] for i in (0, 1))
    side = np.where(from_left + share * (to_left - from_left) > 0, LEFT, RIGHT)
    return np.where(passed.any(-1) & (clearance(path, obstacle) >= RADIUS), side, HIT)


@final
class ObstacleEnv(gymnasium.Env[Any, np.ndarray]):
    """A point that moves up to 0.2 m per step (10 Hz) towards its absolute target, and a disc in its way.

    Observations (float32, m): `state` (6,) [agent x, y, goal x, y, obstacle x, y], and its parts `agent_pos`, `goal`,
    `obstacle` (2,). The action is the target in m. The reward is 1 in the step that comes within 7.5 cm of the goal without
    having touched the obstacle, else 0; either event ends the episode. info tells `success`, `hit`, and `side`: LEFT (1) or
    RIGHT (-1) once the obstacle is passed, before that and after a touch HIT (0).

    Args:
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self, *, render_mode: str = "rgb_array", render_size: int = 256) -> None:
        check_rendering(render_mode, render_size)
        self.render_mode = render_mode
        self.render_size = render_size
        sizes = {"state": 6, "agent_pos": 2, "goal": 2, "obstacle": 2}
        self.observation_space = spaces.Dict({key: spaces.Box(-1.0, 1.0, (size,), np.float32) for key, size in sizes.items()})
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation and info of an episode: at random, or in a recorded state.

        Args:
            seed: seeds the initial states of this episode and the following ones.
            options: {"state": [agent x, y, goal x, y, obstacle x, y]} restores that state.

        Raises:
            ValueError: an unknown option, or a state that is not six finite numbers.
        """
        super().reset(seed=seed)
        state, recorded = initial_state(self.np_random), restored(options, name="state", size=6)
        state = state if recorded is None else recorded
        self._goal, self._obstacle = state[2:4], state[4:]
        self._path, self._target = [state[:2]], state[:2]
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never) and info after one move towards `action`.

        Raises:
            ValueError: `action` is not two finite numbers.
        """
        self._target = finite_vector(action, size=2, name="action").clip(-1.0, 1.0)
        self._path.append(move(self._path[-1], self._target))
        info = self._info()
        return self._observe(), float(info["success"]), info["success"] or info["hit"], False, info

    def render(self) -> np.ndarray:
        """The world as an image "h w c", uint8 RGB: obstacle, goal, the path so far, the agent, and a cross at its target."""
        fine = 2 * self.render_size  # drawn at twice the size and shrunk: smooth edges
        image = Image.new("RGB", (fine, fine), (255, 255, 255))
        draw = ImageDraw.Draw(image)

        def pixel(point: np.ndarray) -> tuple[float, float]:
            return (point[0] + 1) * fine / 2, (1 - point[1]) * fine / 2

        def disc(centre: np.ndarray, radius: float, color: tuple[int, int, int]) -> None:
            (x, y), r = pixel(centre), radius * fine / 2
            draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

        disc(self._goal, GOAL_RADIUS, COLORS["goal"])
        disc(self._obstacle, RADIUS, COLORS["obstacle"])
        draw.line([pixel(point) for point in [*self._path, self._path[-1]]], fill=COLORS["trail"], width=max(1, fine // 100))
        disc(self._path[-1], 0.04, COLORS["trail"])
        (x, y), arm = pixel(self._target), 0.02 * fine
        for line in ((x - arm, y, x + arm, y), (x, y - arm, x, y + arm)):
            draw.line(line, fill=COLORS["target"], width=max(1, fine // 128))
        return np.array(image.resize((self.render_size, self.render_size), Image.Resampling.BOX), dtype=np.uint8)

    def _observe(self) -> dict[str, np.ndarray]:
        parts = {"agent_pos": self._path[-1], "goal": self._goal, "obstacle": self._obstacle}
        state = np.concatenate(list(parts.values()))
        return {key: value.astype(np.float32) for key, value in {"state": state, **parts}.items()}

    def _info(self) -> dict[str, Any]:
        path = np.stack([self._path[0], *self._path])  # a first segment of no length, so that there always is one
        hit = bool(clearance(path, self._obstacle) < RADIUS)
        near = bool(np.linalg.norm(path[-1] - self._goal) <= GOAL_RADIUS)
        return {"success": near and not hit, "hit": hit, "side": int(passage(path, self._goal, self._obstacle))}
