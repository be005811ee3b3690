"""robosuite's worlds: made without noise on the screen, put into recorded states, looked at, and drawn without a screen."""

import logging
import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import mujoco
import numpy as np

from drifting_policy.envs.robomimic_tasks import Task

# Advice about private settings and about packages for humanoids, which have nothing to do with these tasks.
NEEDLESS = re.compile(
    r"No private macro file found|It is recommended to use a private macro file|To setup, run: python .*setup_macros"
    r"|Could not import robosuite_models|Could not load the mink-based whole-body IK"
)
LOGGER = logging.getLogger("robosuite_logs")
UNDRAWABLE = (ImportError, AttributeError, RuntimeError, OSError)  # what robosuite raises without a usable EGL


def _is_needed(record: logging.LogRecord) -> bool:
    return NEEDLESS.match(record.getMessage()) is None


LOGGER.addFilter(_is_needed)
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="invalid escape sequence")  # where its files are compiled
        import robosuite
        from robosuite.utils.binding_utils import MjRenderContextOffscreen
finally:
    LOGGER.removeFilter(_is_needed)

ASSETS = str(Path(robosuite.__file__).parent)


@final
class World:
    """A world of robosuite, in which every observation is a function of the state of the simulator.

    robosuite's own observations are sampled before the last step of the integrator, and some of them from those of the control
    step before; these are what robomimic's files hold: the state is set, and all sensors are read.

    Args:
        task: which world.
        settings: keyword arguments for robosuite.
    """

    def __init__(self, task: Task, settings: Mapping[str, Any]) -> None:
        self._task = task
        self._recorded: dict[str, dict[str, str]] = {}
        self.robosuite = robosuite.make(
            task.world,
            **settings,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=True,
            ignore_done=True,
            hard_reset=task.drawn is not None,  # sizes are drawn when a model is built
            renderer="mujoco",  # the only one that opens nothing by itself
            seed=0,
        )
        self.robosuite.set_xml_processor(self._with_recorded_sizes)
        # The sensors are read after the control step; robosuite would go through them in each of its 25 parts.
        self._read_sensors = self.robosuite._update_observables
        self.robosuite._update_observables = lambda force=False: None

    def reset(self, rng: np.random.Generator, *, states: np.ndarray | None = None, model: str | None = None) -> None:
        """Begin an episode: as robosuite draws it with `rng`, or in the state `states` of the simulator.

        With `model`, the XML of a recorded episode, the objects have the sizes that they had there.

        Raises:
            ValueError: `model` is no model of this task.
        """
        self._recorded = {} if model is None else self._sizes_in(model)
        self._draw_from(rng)
        self.robosuite.reset()
        # The same path for both, so that a recorded first state gives the same episode bit for bit.
        self.restore(self.state if states is None else states)

    def restore(self, states: np.ndarray) -> None:
        """Put the simulator into the state `states`, and the controllers' goals to where the arms are.

        The position that the fingers were told is no part of a state; it begins in the middle, as in a fresh episode.
        """
        sim = self.robosuite.sim
        sim.reset()
        sim.set_state_from_flattened(np.asarray(states, np.float64))
        sim.forward()
        for robot in self.robosuite.robots:
            for arm in robot.arms:
                controller = robot.part_controllers[arm]
                controller.update(force=True)
                controller.update_initial_joints(controller.joint_pos)
                robot.gripper[arm].current_action = np.zeros(robot.gripper[arm].dof)
            robot.composite_controller.update_state()
            robot.composite_controller.reset()

    def step(self, action: np.ndarray) -> None:
        """One control step."""
        self.robosuite.step(action)
        self.robosuite.sim.forward()

    @property
    def state(self) -> np.ndarray:
        """Time, positions and velocities of the simulator, as robomimic's `states` hold them."""
        return np.asarray(self.robosuite.sim.get_state().flatten(), np.float64)

    def observe(self) -> dict[str, np.ndarray]:
        """All observations of robosuite in the present state."""
        self.robosuite._obs_cache = {}
        for _ in range(2):  # poses relative to a gripper are made of the poses that the first reading leaves
            self._read_sensors(force=True)
        return {name: np.array(value) for name, value in self.robosuite._get_observations().items()}

    @property
    def is_success(self) -> bool:
        """Whether the task is done in the present state."""
        return bool(self.robosuite._check_success())

    @property
    def model(self) -> str:
        """The XML of the episode's model, with paths below robosuite, which robomimic completes."""
        return self.robosuite.model.get_xml().replace(ASSETS, "robosuite")

    def goals(self, action: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each arm the position (3,) and rotation (3, 3) in the world that its controller heads for after `action`."""
        found = []
        size = len(action) // len(self.robosuite.robots)
        for number, robot in enumerate(self.robosuite.robots):
            robot.composite_controller.update_state()
            controller = robot.part_controllers["right"]
            controller.set_goal(action[number * size : number * size + 6])
            position, rotation = np.array(controller.goal_pos), np.array(controller.goal_ori)
            if controller.input_ref_frame == "base":
                position = controller.origin_pos + controller.origin_ori @ position
                rotation = controller.origin_ori @ rotation
            found.append((position, rotation))
        return found

    def draw(self, camera: str, size: int, *, shadows: bool) -> np.ndarray:
        """The image "h w c", uint8 RGB, that `camera` sees, with edges of `size` px; shadows take most of the time.

        Raises:
            ValueError: this machine cannot draw without a screen.
        """
        sim = self.robosuite.sim
        if sim._render_context_offscreen is None:
            try:
                context = MjRenderContextOffscreen(sim, device_id=-1)
            except UNDRAWABLE as error:
                raise ValueError(
                    f"robosuite found no OpenGL to draw with (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}, "
                    f"{type(error).__name__}: {error}). Without a screen install libEGL (Debian and Ubuntu: apt install "
                    "libegl1 libgl1) and set MUJOCO_GL=egl, or do without films and pictures."
                ) from error
            context.vopt.geomgroup[:2] = (0, 1)  # what is seen, not what collides
        context = sim._render_context_offscreen
        context.gl_ctx.make_current()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            context.scn.flags[flag] = shadows
        return np.ascontiguousarray(sim.render(camera_name=camera, width=size, height=size)[::-1])

    def close(self) -> None:
        """Frees the simulator."""
        if self.robosuite.sim is not None:
            self.robosuite.close()

    def _draw_from(self, rng: np.random.Generator) -> None:
        """Let whatever is random in robosuite come from `rng`; its samplers keep the generator that they were made with."""
        self.robosuite.rng = rng
        if self._task.drawn is not None:
            self.robosuite.placement_initializer = None  # made anew with the model
            return
        samplers = [self.robosuite.placement_initializer]
        for sampler in samplers:
            sampler.rng = rng
            samplers.extend(getattr(sampler, "samplers", {}).values())

    def _sizes_in(self, model: str) -> dict[str, dict[str, str]]:
        """Sizes and places of the geoms of `model` that robosuite draws, by name."""
        try:
            geoms = ElementTree.fromstring(model).iter("geom")
        except ElementTree.ParseError as error:
            raise ValueError(f"options['model'] must be the XML of a model; it cannot be read ({error}).") from error
        prefix = self._task.drawn
        named = {str(geom.get("name")): geom for geom in geoms if prefix and str(geom.get("name")).startswith(prefix)}
        if prefix and not named:
            raise ValueError(f"options['model'] must be a model of {self._task.world}; it has no geom named {prefix}...")
        return {name: {key: geom.get(key, "") for key in ("size", "pos") if geom.get(key)} for name, geom in named.items()}

    def _with_recorded_sizes(self, xml: str) -> str:
        """The model that robosuite drew, with the sizes of the recorded episode."""
        if not self._recorded:
            return xml
        root = ElementTree.fromstring(xml)
        for geom in root.iter("geom"):
            for key, value in self._recorded.get(str(geom.get("name")), {}).items():
                geom.set(key, value)
        return ElementTree.tostring(root, encoding="unicode")
