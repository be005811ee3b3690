"""BlockPush: push two blocks into two target zones, in any order, with the tip of an arm that moves in a plane over a table.

The task is that of Shafiullah et al. 2022 (Behavior Transformers), after Florence et al. 2021 (Implicit Behavioral Cloning):
the same observations, actions, initial states, tolerance, rate and bounds, in a world of our own on MuJoCo.
"""

from pathlib import Path
from typing import Any, Final, final

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored
from drifting_policy.envs.offscreen import OffscreenCamera

WORKSPACE = np.array([[0.15, -0.5], [0.7, 0.5]])  # of the effector's target, m
HOME = (0.3, -0.4)  # where the effector begins, m
TOLERANCE = 0.05  # between the centres of a block and its target, m
LARGEST_DELTA = 0.1  # of one element of a relative action, m
STEP_SECONDS = 0.1
ACTIONS: Final = ("delta", "absolute")
# Where the parts of an observation begin; a pose is x, y, yaw.
BLOCKS, EFFECTOR, COMMAND, TARGETS = (0, 3), 6, 8, (10, 13)
# Joint positions: x, y, z, yaw of each block, then x, y of the effector.
BLOCK_JOINTS, EFFECTOR_JOINTS = (0, 4), 8
MODES: Final = ((0, 0), (0, 1), (1, 0), (1, 1))  # which block enters which target first


def initial_state(rng: np.random.Generator) -> np.ndarray:
    """A random state (16,) in the order of the observation, float64 values that float32 holds exactly.

    The blocks lie in a field of 0.2 m x 0.3 m, more than 0.1 m apart in x; the targets, 0.24 m apart, change places at random. As
    in the published world the yaw of a block begins between 1 and pi.
    """
    x = rng.uniform(0.3, 0.5)
    gap = abs(x - 0.4)  # the width of what is left for the other block
    x2 = x + 0.1 + rng.uniform(0, gap) if x < 0.4 else x - 0.1 - rng.uniform(0, gap)
    blocks = [[x_, rng.uniform(-0.35, -0.05), rng.uniform(1.0, np.pi)] for x_ in (x, x2)]
    side = rng.choice([-1, 1])
    low, high = (-0.005, -0.0075, -np.pi / 30), (0.005, 0.0075, np.pi / 30)
    targets = [np.array([0.4 + 0.12 * s, 0.2, np.pi]) + rng.uniform(low, high) for s in (side, -side)]
    state = np.concatenate([*blocks, HOME, HOME, *targets])
    state[[2, 5, 12, 15]] %= np.pi
    return state.astype(np.float32).astype(np.float64)


def within(state: np.ndarray) -> np.ndarray:
    """Which block lies in which target: booleans "... block target" for states "... 16"."""
    blocks, targets = (np.stack([state[..., i : i + 2] for i in begin], axis=-2) for begin in (BLOCKS, TARGETS))
    distance = np.linalg.norm(blocks[..., :, None, :] - targets[..., None, :, :], axis=-1)
    return np.asarray(distance < TOLERANCE)


def placed(inside: np.ndarray) -> np.ndarray:
    """How many blocks lie in different targets: integers "..." for booleans "... block target"."""
    return np.minimum(inside.any(axis=-1).sum(axis=-1), inside.any(axis=-2).sum(axis=-1))


@final
class BlockPushEnv(gymnasium.Env[Any, np.ndarray]):
    """Two blocks of 4 cm, two targets, and a cylindrical effector whose target moves at 10 Hz.

    The observation `obs` (16,) float32 is [block x, y, yaw, block2 x, y, yaw, effector x, y, effector target x, y, target x, y,
    yaw, target2 x, y, yaw] in m and rad, with every yaw in 0..pi. The action moves the effector's target, which stays within
    the workspace. The reward is half the number of blocks within 5 cm of different targets; the episode terminates when it is 1.
    info tells `success`, `blocks` (that number) and `mode`: the index in MODES of the block and the target that met first, -1
    before. Friction and compliance are chosen so that over half a second of the published pushes a block is, in the median, within 5 mm and
    0.06 rad of the published simulation.

    Args:
        action: "delta" is a displacement of the effector's target of at most 0.1 m per axis, "absolute" is that target itself.
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self, *, action: str = "delta", render_mode: str = "rgb_array", render_size: int = 256) -> None:
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}; got {action!r}.")
        check_rendering(render_mode, render_size)
        self.action = action
        self.render_mode = render_mode
        self.render_size = render_size
        low = np.array([-5, -5, 0] * 2 + [-5] * 4 + [-5, -5, 0] * 2, np.float32)
        high = np.array([5, 5, np.pi] * 2 + [5] * 4 + [5, 5, np.pi] * 2, np.float32)
        self.observation_space = spaces.Dict({"obs": spaces.Box(low, high, dtype=np.float32)})
        bounds = WORKSPACE if action == "absolute" else LARGEST_DELTA * np.array([[-1, -1], [1, 1]])
        self.action_space = spaces.Box(*bounds.astype(np.float32), dtype=np.float32)
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("assets") / "block_push.xml"))
        self._data = mujoco.MjData(self._model)
        self._substeps = round(STEP_SECONDS / self._model.opt.timestep)
        self._camera: OffscreenCamera | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation and info of an episode at rest: at random, or in a recorded configuration.

        Args:
            seed: seeds the initial states of this episode and the following ones.
            options: {"obs": 16 numbers in the order of the observation} restores the poses, the effector and its target.

        Raises:
            ValueError: an unknown option, or a configuration that is not sixteen finite numbers.
        """
        super().reset(seed=seed)
        state, recorded = initial_state(self.np_random), restored(options, name="obs", size=16)
        self._place(state if recorded is None else recorded)
        self._mode = -1
        return self._outcome()[::3]

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never) and info after 0.1 s.

        Raises:
            ValueError: `action` is not two finite numbers.
        """
        values = finite_vector(action, size=2, name="action")
        if self.action == "delta":
            values = self._command + values.clip(-LARGEST_DELTA, LARGEST_DELTA)
        self._data.ctrl[:] = self._command = values.clip(*WORKSPACE)
        mujoco.mj_step(self._model, self._data, self._substeps)
        observation, reward, success, info = self._outcome()
        return observation, reward, success, False, info

    def render(self) -> np.ndarray:
        """The table from above at an angle, uint8 RGB "h w c": blocks, zones, the effector, and a red disc at its target.

        Raises:
            ValueError: this machine cannot draw without a screen.
        """
        if self._camera is None:
            view = mujoco.MjvCamera()
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera("view").id
            self._camera = OffscreenCamera(self._model, size=self.render_size, view=view)
        self._data.mocap_pos[2, :2] = self._command
        mujoco.mj_kinematics(self._model, self._data)  # of the present positions; the next step computes it anyway
        mujoco.mj_camlight(self._model, self._data)
        return self._camera.shoot(self._data)

    def close(self) -> None:
        """Frees what the drawing holds."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _place(self, state: np.ndarray) -> None:
        """Everything at rest in `state` (16,)."""
        mujoco.mj_resetData(self._model, self._data)
        for joint, begin in zip(BLOCK_JOINTS, BLOCKS, strict=True):
            self._data.qpos[[joint, joint + 1, joint + 3]] = state[begin : begin + 3]
        self._data.qpos[EFFECTOR_JOINTS:] = state[EFFECTOR : EFFECTOR + 2]
        self._command = state[COMMAND : COMMAND + 2].copy()
        self._targets = state[TARGETS[0] :].copy()
        for zone, (x, y, yaw) in enumerate(self._targets.reshape(2, 3)):
            self._data.mocap_pos[zone, :2] = x, y
            self._data.mocap_quat[zone] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)

    def _outcome(self) -> tuple[dict[str, np.ndarray], float, bool, dict[str, Any]]:
        """Observation, reward, success and info of the present state."""
        joints = self._data.qpos
        blocks = [value for i in BLOCK_JOINTS for value in (joints[i], joints[i + 1], joints[i + 3] % np.pi)]
        state = np.concatenate([blocks, joints[EFFECTOR_JOINTS:], self._command, self._targets])
        inside = within(state)
        count = int(placed(inside))
        if self._mode < 0 and inside.any():
            self._mode = int(inside.argmax())
        info = {"success": count == 2, "blocks": count, "mode": self._mode}
        return {"obs": state.astype(np.float32)}, count / 2, count == 2, info
