"""Conveyor: catch a block on a moving belt, carry it round a post on its left or its right, and drop it into a bin.

Both ways are equally good, and their mean runs into the post; a gripper that acts on what it saw a moment ago misses the block.
"""

from importlib.resources import files
from typing import Any, final

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored
from drifting_policy.envs.offscreen import OffscreenCamera

STEP_SECONDS = 0.05
LEFT, NEITHER, RIGHT = 1, 0, -1
GRIPPER, BLOCK, BELT = slice(0, 4), slice(4, 7), slice(7, 11)  # the parts of a state
STATE = 11
# Uniform ranges of the initial state: gripper x, y, z and opening, block x, y, z (m), and of the belt the mean speed (m/s), the
# amplitude of its swing (m/s), how fast it swings (rad/s), and where the swing begins (rad).
LOWEST = np.array([-0.10, -0.14, 0.15, 0.08, -0.32, -0.23, 0.08, 0.08, 0.00, 2.0, 0.0])
HIGHEST = np.array([0.10, -0.06, 0.19, 0.08, -0.22, -0.17, 0.08, 0.20, 0.05, 3.0, 2 * np.pi])
REACH = (np.array([-0.4, -0.3, 0.02, 0.0]), np.array([0.4, 0.4, 0.2, 0.09]))  # of the targets x, y, z and opening, m
LIFTED = 0.13  # height of the middle of the block, m; 5 cm above where it rides
POST, POST_WIDTH = np.array([0.0, 0.04]), 0.07  # its middle, and half its width, m
BIN, BIN_SIZE, BIN_DEPTH = np.array([0.0, 0.32]), 0.085, 0.045  # its middle, half its width, and what lies lower is in it, m
BELT_END, FALLEN = 0.45, 0.05  # m; what has passed this, or lies lower and not in the bin, is out of reach
VIEW = {"lookat": (0.0, 0.06, 0.05), "distance": 1.04, "azimuth": 90.0, "elevation": -62.0}


def initial_state(rng: np.random.Generator) -> np.ndarray:
    """A random state [gripper x, y, z, opening, block x, y, z, belt speed, swing, rate, phase], float64."""
    return rng.uniform(LOWEST, HIGHEST)


def belt_speed(state: np.ndarray, seconds: float = 0.0) -> float:
    """Speed of the belt in m/s some seconds after the `state` (11,): its mean, and a sine around it."""
    mean, swing, rate, phase = state[BELT]
    return float(mean + swing * np.sin(phase + rate * seconds))


def above_bin(block: np.ndarray) -> bool:
    """Whether a block with its middle at `block` (3,) is within the walls of the bin, or above it."""
    return bool((np.abs(block[:2] - BIN) < BIN_SIZE).all())


def in_bin(block: np.ndarray) -> bool:
    """Whether a block with its middle at `block` (3,) lies in the bin."""
    return above_bin(block) and bool(block[2] < BIN_DEPTH)


@final
class ConveyorEnv(gymnasium.Env[Any, np.ndarray]):
    """A gantry above a belt, at 20 Hz. The belt has another speed in every episode, and swings a little around it.

    Observations (float32): `gripper` (4,) [x, y, z, opening] and `block` (3,) [x, y, z] in m, without their speeds, and
    `state` (11,): both, and the belt's mean speed (m/s), swing (m/s), rate (rad/s) and phase (rad). The action is the target
    [x, y, z, opening] in m, clipped to the reach of the gantry. The reward is 0.5 from the moment that the block has been
    lifted 5 cm above the belt, and 1 when it lies in the bin. That, a touch of the post, and a block that the belt has carried
    out of reach or that fell down end the episode. info tells `success`, `lifted`, `hit`, and the `side` on which the block was
    carried past the post: LEFT (1), RIGHT (-1), or NEITHER (0) so far.

    Args:
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self, *, render_mode: str = "rgb_array", render_size: int = 256) -> None:
        check_rendering(render_mode, render_size)
        self.render_mode = render_mode
        self.render_size = render_size
        self._model = mujoco.MjModel.from_xml_string(
            (files("drifting_policy.envs") / "assets" / "conveyor.xml").read_text(encoding="utf-8")
        )
        self._data = mujoco.MjData(self._model)
        self._substeps = round(STEP_SECONDS / self._model.opt.timestep)
        self._post = self._model.geom("post").id
        self._camera: OffscreenCamera | None = None
        sizes = {"state": STATE, "gripper": 4, "block": 3}
        self.observation_space = spaces.Dict({key: spaces.Box(-1e3, 1e3, (size,), np.float32) for key, size in sizes.items()})
        low, high = (bound.astype(np.float32) for bound in REACH)
        self.action_space = spaces.Box(low, high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation and info of an episode: at random, or in a recorded state.

        Args:
            seed: seeds the initial states of this episode and the following ones.
            options: {"state": 11 numbers} restores that state, with the gripper at rest and the block riding on the belt; that
                is how every episode begins.

        Raises:
            ValueError: an unknown option, or a state that is not 11 finite numbers.
        """
        super().reset(seed=seed)
        state, recorded = initial_state(self.np_random), restored(options, name="state", size=STATE)
        self._start = state if recorded is None else recorded
        self._steps, self._lifted, self._hit, self._side = 0, False, False, NEITHER
        data, speed = self._data, belt_speed(self._start)
        mujoco.mj_resetData(self._model, data)
        # Joints in the order of the XML: belt, gripper x, y, z, left and right finger, block.
        x, y, z, opening = self._start[GRIPPER]
        data.qpos[:6] = [0, x, y, z, opening / 2, opening / 2]
        data.qpos[6:9] = self._start[BLOCK]
        data.qvel[0] = data.qvel[6] = speed
        mujoco.mj_forward(self._model, data)
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never) and info after 0.05 s of moving towards `action`.

        Raises:
            ValueError: `action` is not four finite numbers.
        """
        x, y, z, opening = finite_vector(action, size=4, name="action").clip(*REACH)
        speed = belt_speed(self._start, self._steps * STEP_SECONDS)
        self._data.ctrl[:] = [x, y, z, opening / 2, opening / 2, speed]
        before = self._data.qpos[6:9].copy()
        mujoco.mj_step(self._model, self._data, self._substeps)
        self._steps += 1
        block = self._data.qpos[6:9]
        self._lifted |= bool(block[2] > LIFTED)
        self._hit |= bool((self._data.contact.geom == self._post).any())
        if before[1] < POST[1] <= block[1]:
            self._side = LEFT if block[0] < POST[0] else RIGHT
        info = self._info()
        lost = bool(block[0] > BELT_END or (block[2] < FALLEN and not above_bin(block)))
        reward = 1.0 if info["success"] else 0.5 * self._lifted
        return self._observe(), reward, info["success"] or self._hit or lost, False, info

    def render(self) -> np.ndarray:
        """The world as an image "h w c", uint8 RGB, seen from the side of the belt, which runs to the right.

        Raises:
            ValueError: this machine cannot draw without a screen.
        """
        if self._camera is None:
            view = mujoco.MjvCamera()
            view.lookat[:], view.distance = VIEW["lookat"], VIEW["distance"]
            view.azimuth, view.elevation = VIEW["azimuth"], VIEW["elevation"]
            self._camera = OffscreenCamera(self._model, size=self.render_size, view=view, shadows=True)
        return self._camera.shoot(self._data)

    def close(self) -> None:
        """Frees what the drawing holds."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _observe(self) -> dict[str, np.ndarray]:
        qpos, belt = self._data.qpos, self._start[BELT].copy()
        belt[3] += belt[2] * self._steps * STEP_SECONDS
        state = np.array([*qpos[1:4], qpos[4] + qpos[5], *qpos[6:9], *belt], np.float32)
        return {"state": state, "gripper": state[GRIPPER].copy(), "block": state[BLOCK].copy()}

    def _info(self) -> dict[str, Any]:
        success = self._lifted and not self._hit and in_bin(self._data.qpos[6:9])
        return {"success": success, "lifted": self._lifted, "hit": self._hit, "side": self._side}
