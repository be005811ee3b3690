"""Franka Kitchen: a nine-joint arm opens, switches, slides and moves things in a kitchen, in any order."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, final

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored
from drifting_policy.envs.offscreen import OffscreenCamera

with contextlib.redirect_stderr(io.StringIO()):  # some versions print a notice about other environments
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

TASKS = tuple(kitchen_env.OBS_ELEMENT_GOALS)
COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")  # those of the data set kitchen-complete
JOINTS, OBJECTS, SPEEDS = 9, 21, 20  # positions of the robot and of the objects; the kettle has one speed less than numbers
STATE = 2 * JOINTS + OBJECTS + SPEEDS
BOUND = 1e3  # far from any position (rad, m) and speed (rad/s, m/s)
VIEW = {"lookat": (-0.2, 0.5, 2.0), "distance": 2.2, "azimuth": 70.0, "elevation": -35.0}


def positions_of(state: np.ndarray) -> np.ndarray:
    """Positions "... 30" of robot and objects, which are MuJoCo's qpos, in states "... 59"."""
    return np.concatenate([state[..., :JOINTS], state[..., 2 * JOINTS : 2 * JOINTS + OBJECTS]], axis=-1)


def speeds_of(state: np.ndarray) -> np.ndarray:
    """Speeds "... 29" of robot and objects, which are MuJoCo's qvel, in states "... 59"."""
    return np.concatenate([state[..., JOINTS : 2 * JOINTS], state[..., 2 * JOINTS + OBJECTS :]], axis=-1)


@final
class KitchenEnv(gymnasium.Env[Any, np.ndarray]):
    """FrankaKitchen-v1 of gymnasium-robotics at 12.5 Hz, with the observations of its demonstrations.

    Observations (float32; rad, m and their rates, with the sensor noise of the original, which the reset seed determines):
    `state` (59,) [robot positions 9, robot speeds 9, object positions 21, object speeds 20], and of these the positions alone:
    `qpos` (30,). The action is the speed of each joint in -1..1 (2 rad/s, 2 m/s for the fingers), clipped. Every episode
    begins in the one initial state of the original. The reward is the share of the tasks that have been completed so far; the
    episode terminates with the last one. info tells `success` and the number `completed`.

    Args:
        tasks: what is to be done, names of `TASKS`; a completed task stays completed.
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.

    Raises:
        ValueError: no tasks, unknown ones, or one twice.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(self, *, tasks: Sequence[str] = COMPLETE, render_mode: str = "rgb_array", render_size: int = 256) -> None:
        check_rendering(render_mode, render_size)
        names = list(tasks)
        if not names or len(set(names)) != len(names) or not set(names) <= set(TASKS):
            raise ValueError(f"tasks must be different names of {list(TASKS)}; got {names}.")
        self.render_mode = render_mode
        self.render_size = render_size
        self._world = kitchen_env.KitchenEnv(tasks_to_complete=names)
        self._camera: OffscreenCamera | None = None
        sizes = {"state": STATE, "qpos": JOINTS + OBJECTS}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-BOUND, BOUND, (size,), np.float32) for key, size in sizes.items()}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (JOINTS,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation and info of an episode: in the initial state of the original, or in a recorded one.

        Args:
            seed: seeds the sensor noise of this episode and the following ones.
            options: {"state": 59 numbers} restores that state; a recorded one holds the noise of its recording, and the
                observation adds fresh noise.

        Raises:
            ValueError: an unknown option, or a state that is not 59 finite numbers.
        """
        super().reset(seed=seed)
        state = restored(options, name="state", size=STATE)
        observation, _ = self._world.reset(seed=seed)
        if state is None:
            return self._observe(observation), self._info()
        robot = self._world.robot_env
        robot.set_state(positions_of(state), speeds_of(state))
        return self._observe(self._world._get_obs(robot._get_obs())), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never) and info after 0.08 s at the joint speeds `action`.

        Raises:
            ValueError: `action` is not nine finite numbers.
        """
        observation = self._world.step(finite_vector(action, size=JOINTS, name="action"))[0]
        info = self._info()
        return self._observe(observation), info["completed"] / len(self._world.goal), info["success"], False, info

    def render(self) -> np.ndarray:
        """The kitchen as an image "h w c", uint8 RGB.

        Raises:
            ValueError: this machine cannot draw without a screen.
        """
        if self._camera is None:
            view = mujoco.MjvCamera()
            view.lookat[:], view.distance = VIEW["lookat"], VIEW["distance"]
            view.azimuth, view.elevation = VIEW["azimuth"], VIEW["elevation"]
            self._camera = OffscreenCamera(self._world.model, size=self.render_size, view=view)
        return self._camera.shoot(self._world.data)

    def close(self) -> None:
        """Frees the simulator."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        self._world.close()

    def _observe(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        state = observation["observation"].astype(np.float32)
        return {"state": state, "qpos": positions_of(state)}

    def _info(self) -> dict[str, Any]:
        completed = len(self._world.episode_task_completions)
        return {"success": completed == len(self._world.goal), "completed": float(completed)}
