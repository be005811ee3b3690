"""Push-T: push a T-shaped block onto its goal with a round finger, seen from above in a 512 x 512 px world."""

import warnings
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored

with warnings.catch_warnings():
    # pygame asks setuptools for `pkg_resources`, which warns on setuptools 67 to 81.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated as an API")
    warnings.filterwarnings("ignore", message="Deprecated call to `pkg_resources.declare_namespace")
    from gym_pusht.envs import pusht  # after gymnasium, which silences pygame's greeting

WORLD_SIZE = 512.0
SUCCESS_COVERAGE = 0.95
IMAGE_SIZE = 96  # px, of the published demonstrations

# The nine keypoints of the published demonstrations in the frame of the block, px: the median over all 25,650 steps of the
# recorded keypoints, moved by the inverse of the recorded block pose (they agree to 0.01 px on 92 % of the steps).
BODY_KEYPOINTS = np.array(
    [
        [9.26979, 90.04097],
        [-60.98347, -1.18673],
        [60.91276, -1.39336],
        [-0.27050, 25.54363],
        [-14.06493, 122.81585],
        [39.00274, 32.85740],
        [-39.96641, 32.72966],
        [-16.82434, 62.86318],
        [23.54146, -1.70029],
    ]
)


def keypoints_of(block_pose: np.ndarray) -> np.ndarray:
    """World positions "9 2" in px of the block's keypoints at `block_pose` [x, y, angle], with the angle in radians."""
    cos, sin = np.cos(block_pose[2]), np.sin(block_pose[2])
    rotation = np.array([[cos, -sin], [sin, cos]])
    return np.asarray(BODY_KEYPOINTS @ rotation.T + block_pose[:2])


@final
class PushTEnv(gymnasium.Env[Any, np.ndarray]):
    """Push-T of gym-pusht at 10 Hz, with the observations of the published demonstrations.

    Observations (float32): `state` (5,) [agent x, agent y, block x, block y, block angle in 0..2 pi], `keypoints` (9, 2) world
    px, `agent_pos` (2,) px; with `images` also `image` (96, 96, 3), uint8 RGB: the picture of the published demonstrations,
    without the target. The action is the absolute target of the agent in px; a target outside the world is clipped to its
    border. The reward is coverage / 0.95, at most 1; the episode terminates when the block covers 95 % of the goal.

    Args:
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.
        images: observe `image` too, which costs more than the step itself.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self, *, render_mode: str = "rgb_array", render_size: int = 256, images: bool = False) -> None:
        check_rendering(render_mode, render_size)
        self.render_mode = render_mode
        self.render_size = render_size
        self.images = images
        self._world = pusht.PushTEnv(visualization_width=render_size, visualization_height=render_size)
        self._world._get_coverage = self._coverage
        # A hard push squeezes the block through a wall, so positions can leave the world by less than its size.
        low, high = -WORLD_SIZE, 2 * WORLD_SIZE
        observed: dict[str, spaces.Space[Any]] = {
            "state": spaces.Box(
                np.array([low] * 4 + [0], np.float32), np.array([high] * 4 + [2 * np.pi], np.float32), dtype=np.float32
            ),
            "keypoints": spaces.Box(low, high, (len(BODY_KEYPOINTS), 2), np.float32),
            "agent_pos": spaces.Box(low, high, (2,), np.float32),
        }
        if images:
            observed["image"] = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.observation_space = spaces.Dict(observed)
        self.action_space = spaces.Box(0.0, WORLD_SIZE, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation and info of an episode at rest: at random as in gym-pusht, or in a recorded state.

        Args:
            seed: seeds the initial states of this episode and the following ones.
            options: {"state": [agent x, agent y, block x, block y, block angle]} restores that state exactly.

        Raises:
            ValueError: an unknown option, or a state that is not five finite numbers.
        """
        super().reset(seed=seed)
        state = restored(options, name="state", size=5)
        self._world.reset(seed=seed)
        if state is not None:
            self._world.reset(options={"reset_to_state": self._before_rotation(state)})
        self._world._last_action = None  # else the first frame shows the last target of the previous episode
        return self._observe(), self._info(self._coverage())

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never) and info after 0.1 s of moving towards `action`.

        Raises:
            ValueError: `action` is not two finite numbers.
        """
        target = finite_vector(action, size=2, name="action").clip(0.0, WORLD_SIZE)
        self._world.step(target)
        coverage = self._coverage()
        reward = float(np.clip(coverage / SUCCESS_COVERAGE, 0.0, 1.0))
        return self._observe(), reward, coverage >= SUCCESS_COVERAGE, False, self._info(coverage)

    def render(self) -> np.ndarray:
        """The world as an image "h w c", uint8 RGB, with a cross at the last target."""
        return np.array(self._world.render(), dtype=np.uint8)

    def close(self) -> None:
        """Frees the simulator."""
        self._world.close()

    def _before_rotation(self, state: np.ndarray) -> np.ndarray:
        """The state to hand to gym-pusht, which sets the position first and then turns the block about its centre of mass."""
        centre = np.array(self._world.block.center_of_gravity)
        cos, sin = np.cos(state[4]), np.sin(state[4])
        turned = np.array([cos * centre[0] - sin * centre[1], sin * centre[0] + cos * centre[1]])
        return np.concatenate([state[:2], state[2:4] + turned - centre, state[4:]])

    def _observe(self) -> dict[str, np.ndarray]:
        state = self._world.get_obs()
        seen = {
            "state": state.astype(np.float32),
            "keypoints": keypoints_of(state[2:]).astype(np.float32),
            "agent_pos": state[:2].astype(np.float32),
        }
        return seen | {"image": self._image()} if self.images else seen

    def _image(self) -> np.ndarray:
        """The world from above, as gym-pusht draws its pixels."""
        screen = self._world._draw()
        return np.array(self._world._get_img(screen, width=IMAGE_SIZE, height=IMAGE_SIZE), dtype=np.uint8)

    def _coverage(self) -> float:
        """Share of the goal under the block, in 0..1.

        gym-pusht adds up the areas in the order of a set, which differs between processes, and with it the last bit.
        """
        shapes = self._world._block_shapes
        goal = pusht.pymunk_to_shapely(self._world.get_goal_pose_body(self._world.goal_pose), shapes)
        block = pusht.pymunk_to_shapely(self._world.block, shapes)
        return float(goal.intersection(block).area / goal.area)

    def _info(self, coverage: float) -> dict[str, Any]:
        return {"coverage": coverage, "success": coverage >= SUCCESS_COVERAGE}
