"""Lift, Can, Square, Transport and ToolHang: the tasks of robomimic in the simulator robosuite, with arms of Franka."""

from collections.abc import Mapping
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces

from drifting_policy.envs.arguments import check_rendering, finite_vector, restored
from drifting_policy.envs.arm_actions import DELTA, FARTHEST, controller_action
from drifting_policy.envs.robomimic_tasks import task_named, task_of, world_settings
from drifting_policy.envs.robomimic_world import World
from drifting_policy.envs.rotation import six_of_matrix

BOUND = 1e4  # of what is observed


@final
class RobomimicEnv(gymnasium.Env[Any, np.ndarray]):
    """A task of robomimic at 20 Hz, with the observations of its files of demonstrations.

    Observations (float32): `object`, robosuite's state of the objects, in the order of robosuite 1.5; for each arm, 0 and in
    Transport 1, `robot0_eef_pos` (3,) m, `robot0_eef_quat` (4,) x y z w, `robot0_gripper_qpos` (2,) m; `states`, the state of
    the simulator; with `images` also `NAME_image` (uint8 "h w c") of the cameras that robomimic uses. All are functions of
    the state. The action has for each arm, one after the other,

    * `absolute`: 10 numbers, the goal of the grip site in the world: position in m, the first two rows of the rotation, and the
      gripper (-1 opens, 1 closes); positions are clipped to 2 m, the gripper to [-1, 1];
    * `delta`: 7 numbers in [-1, 1], as stored in the files: translation (5 cm at 1), rotation vector (0.5 rad at 1), gripper.

    The reward is 1 in the step that succeeds, else 0; success ends the episode. info tells `success`.

    Args:
        task: lift, can, square, transport or tool_hang; by default that of `env_args`.
        action: "absolute" or "delta".
        images: whether the cameras are observed; they are slow without a graphics card.
        env_args: of a file of demonstrations, for its settings; by default those that robomimic published.
        render_mode: only "rgb_array"; no window is ever opened.
        render_size: edge of the rendered square in px, at least 96.

    Raises:
        ValueError: a setting that is not known here, by name.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(
        self,
        *,
        task: str | None = None,
        action: str = "absolute",
        images: bool = False,
        env_args: Mapping[str, Any] | None = None,
        render_mode: str = "rgb_array",
        render_size: int = 256,
    ) -> None:
        check_rendering(render_mode, render_size)
        if action not in ("absolute", "delta"):
            raise ValueError(f"action must be 'absolute' or 'delta'; got {action!r}.")
        if task is None and env_args is None:
            raise ValueError("Say which task: task=lift, or the env_args of a file.")
        name = task if task is not None else task_of(env_args or {})
        self.render_mode = render_mode
        self.render_size = render_size
        self._task = task_named(name)
        self._absolute = action == "absolute"
        self._images = images
        settings = world_settings(name, env_args=env_args, absolute=self._absolute)
        self.world = World(self._task, settings)
        sizes = {"object": self._task.object_size, "states": self._task.state_size}
        for arm in range(self._task.arms):
            sizes |= {f"robot{arm}_eef_pos": 3, f"robot{arm}_eef_quat": 4, f"robot{arm}_gripper_qpos": 2}
        observed: dict[str, spaces.Space[Any]] = {key: spaces.Box(-BOUND, BOUND, (n,), np.float32) for key, n in sizes.items()}
        if images:
            shape = (self._task.camera_size, self._task.camera_size, 3)
            observed |= {f"{camera}_image": spaces.Box(0, 255, shape, np.uint8) for camera in self._task.cameras}
        self.observation_space = spaces.Dict(observed)
        high = [FARTHEST] * 3 + [1.0] * 7 if self._absolute else [1.0] * DELTA
        limit = np.array(high * self._task.arms, np.float32)
        self.action_space = spaces.Box(-limit, limit, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation and info of an episode: at random as in robosuite, or in a recorded state.

        Args:
            seed: seeds the initial states of this episode and the following ones.
            options: {"states": [...]} restores that state of the simulator exactly. With it, {"model": XML} gives the objects
                the sizes of the recorded episode, which Lift and Transport draw anew for each.

        Raises:
            ValueError: an unknown option, or one that does not fit.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        model = given.pop("model", None)
        states = restored(given, name="states", size=self._task.state_size)
        if model is not None and (states is None or not isinstance(model, str)):
            raise ValueError("options['model'] must be the XML of a recorded episode, beside its options['states'].")
        self.world.reset(self.np_random, states=states, model=model)
        return self._observe(), {"success": self.world.is_success}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never) and info after 0.05 s of heading for the goals of `action`.

        Raises:
            ValueError: `action` is not as many finite numbers as the action space has, or holds no rotation.
        """
        assert self.action_space.shape is not None
        values = finite_vector(action, size=self.action_space.shape[0], name="action")
        self.world.step(controller_action(values) if self._absolute else values.clip(-1, 1))
        success = self.world.is_success
        return self._observe(), float(success), success, False, {"success": success}

    def render(self) -> np.ndarray:
        """The world as an image "h w c", uint8 RGB, seen from the front or, in ToolHang, from the side; without shadows."""
        return self.world.draw(self._task.view, self.render_size, shadows=False)

    def close(self) -> None:
        """Frees the simulator."""
        self.world.close()

    def absolute_actions(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Recorded delta actions "n 7a" as absolute ones "n 10a" (float64): the goals that the controllers make of them.

        The environment must take delta actions; its episode is over afterwards.

        Args:
            states: the state "n k" of the simulator before each action.
            actions: in [-1, 1].

        Raises:
            ValueError: arrays that do not fit the task, or an environment that takes absolute actions.
        """
        if self._absolute:
            raise ValueError("Only an environment with action='delta' knows what delta actions mean.")
        size = DELTA * self._task.arms
        if states.shape != (len(states), self._task.state_size) or actions.shape != (len(states), size):
            raise ValueError(
                f"{self._task.world} has states of {self._task.state_size} and actions of {size} numbers, as many of both; "
                f"got shapes {states.shape} and {actions.shape}."
            )
        rows = []
        for state, action in zip(states, np.asarray(actions, np.float64), strict=True):
            self.world.restore(state)
            goals = self.world.goals(action)
            grippers = action.reshape(-1, DELTA)[:, 6:]
            rows.append([np.concatenate([p, six_of_matrix(r), g]) for (p, r), g in zip(goals, grippers, strict=True)])
        return np.array(rows).reshape(len(rows), -1)

    def _observe(self) -> dict[str, np.ndarray]:
        seen = self.world.observe()
        observation = {"object": seen["object-state"], "states": self.world.state}
        for arm in range(self._task.arms):
            observation |= {
                key: seen[key] for key in (f"robot{arm}_eef_pos", f"robot{arm}_eef_quat", f"robot{arm}_gripper_qpos")
            }
        images = {}
        if self._images:
            size = self._task.camera_size
            images = {f"{camera}_image": self.world.draw(camera, size, shadows=True) for camera in self._task.cameras}
        return {key: value.astype(np.float32) for key, value in observation.items()} | images
