"""Mixture: draw one point of the plane from eight clusters on a ring. There is nothing to observe; an episode is one draw."""

from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored

CLUSTERS, RING, DEVIATION = 8, 0.7, 0.05
NEAR = 3 * DEVIATION  # a point within this distance of a centre belongs to its cluster


def centres() -> np.ndarray:
    """The centres "8 2" of the clusters."""
    angles = 2 * np.pi * np.arange(CLUSTERS) / CLUSTERS
    return RING * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def draw_points(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points "n 2" of the mixture: a cluster with equal probabilities, and a normal deviation of 0.05 around it."""
    return np.asarray(centres()[rng.integers(CLUSTERS, size=count)] + DEVIATION * rng.standard_normal((count, 2)))


def cluster_of(points: np.ndarray) -> np.ndarray:
    """The number of the cluster that each of the points "... 2" belongs to, and -1 for a point far from all: integers "..."."""
    distances = np.linalg.norm(points[..., None, :] - centres(), axis=-1)
    return np.where(distances.min(axis=-1) <= NEAR, distances.argmin(axis=-1), -1)


@final
class MixtureEnv(gymnasium.Env[Any, np.ndarray]):
    """One step per episode: the action is the point that was drawn.

    The observation `nothing` (1,) is always 0. The reward is 1 for a point within three deviations of a cluster, else 0, and
    info tells `success` and the `cluster`. The picture shows the clusters and the point that was drawn.

    Args:
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self, *, render_mode: str = "rgb_array", render_size: int = 256) -> None:
        check_rendering(render_mode, render_size)
        self.render_mode = render_mode
        self.render_size = render_size
        self.observation_space = spaces.Dict({"nothing": spaces.Box(-1.0, 1.0, (1,), np.float32)})
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._point: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The observation, which says nothing, and info of an episode before its draw.

        Args:
            seed: changes nothing.
            options: {"nothing": [0]} is the state in which every episode begins.

        Raises:
            ValueError: an unknown option.
        """
        super().reset(seed=seed)
        restored(options, name="nothing", size=1)
        self._point = None
        return self._observe(), {"success": False, "cluster": -1}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated (always), truncated (never) and info of the draw `action`.

        Raises:
            ValueError: `action` is not two finite numbers.
        """
        self._point = point = finite_vector(action, size=2, name="action")
        cluster = int(cluster_of(point))
        return self._observe(), float(cluster >= 0), True, False, {"success": cluster >= 0, "cluster": cluster}

    def render(self) -> np.ndarray:
        """The plane as an image "h w c", uint8 RGB: the clusters, and a cross at the point that was drawn."""
        size = self.render_size
        image = Image.new("RGB", (size, size), (255, 255, 255))
        draw = ImageDraw.Draw(image)

        def pixel(point: np.ndarray) -> tuple[float, float]:
            return (point[0] + 1) * size / 2, (1 - point[1]) * size / 2

        for centre in centres():
            (x, y), r = pixel(centre), NEAR * size / 2
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(205, 215, 240))
        if self._point is not None:
            (x, y), arm = pixel(self._point), 0.03 * size
            for line in ((x - arm, y, x + arm, y), (x, y - arm, x, y + arm)):
                draw.line(line, fill=(220, 60, 60), width=max(1, size // 64))
        return np.array(image, dtype=np.uint8)

    def _observe(self) -> dict[str, np.ndarray]:
        return {"nothing": np.zeros(1, np.float32)}
