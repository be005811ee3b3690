"""The five tasks of robomimic (Mandlekar et al. 2021, What Matters in Learning from Offline Human Demonstrations), as robosuite
1.5 makes them: from the name of a task, or from the `env_args` of a file of demonstrations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from drifting_policy.envs.controllers import composite

PUBLISHED = "1.5.1"  # the version whose settings are taken where no file says any
CONFIGURATIONS = {"single-arm-opposed": "opposed", "opposed": "opposed", "default": "opposed"}
# What files say besides: how pictures are made and when episodes end, which is decided elsewhere; and `lite_physics`, which
# leaves out computations that change nothing.
IGNORED = {
    "camera_depths",
    "camera_heights",
    "camera_names",
    "camera_segmentations",
    "camera_widths",
    "hard_reset",
    "has_offscreen_renderer",
    "has_renderer",
    "horizon",
    "ignore_done",
    "lite_physics",
    "render_camera",
    "render_collision_mesh",
    "render_gpu_device_id",
    "render_visual_mesh",
    "renderer",
    "renderer_config",
    "seed",
    "use_camera_obs",
    "use_object_obs",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is known of a task: its name in robosuite, its robots, the sizes of its observations and its cameras.

    `drawn` is the prefix of the names of the geoms whose sizes robosuite draws for every episode.
    """

    world: str
    arms: int
    object_size: int
    state_size: int
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    camera_size: int = 84
    view: str = "agentview"
    drawn: str | None = None


TASKS = {
    "lift": Task("Lift", 1, 10, 32, drawn="cube_"),
    "can": Task("PickPlaceCan", 1, 14, 71),
    "square": Task("NutAssemblySquare", 1, 14, 45),
    "transport": Task(
        "TwoArmTransport",
        2,
        41,
        115,
        cameras=("shouldercamera0", "shouldercamera1", "robot0_eye_in_hand", "robot1_eye_in_hand"),
        drawn="payload_",
    ),
    "tool_hang": Task("ToolHang", 1, 44, 58, cameras=("sideview", "robot0_eye_in_hand"), camera_size=240, view="sideview"),
}


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {name!r}.")
    return TASKS[name]


def task_of(env_args: Mapping[str, Any]) -> str:
    """The name of the task that the `env_args` of a file belong to.

    Raises:
        ValueError: it is none of the five.
    """
    worlds = {task.world: name for name, task in TASKS.items()}
    if env_args.get("env_name") not in worlds:
        raise ValueError(f"env_args must name one of the worlds {', '.join(worlds)}; got {env_args.get('env_name')!r}.")
    return worlds[str(env_args["env_name"])]


def world_settings(name: str, *, env_args: Mapping[str, Any] | None = None, absolute: bool) -> dict[str, Any]:
    """The keyword arguments with which robosuite 1.5 makes the world of task `name`.

    Args:
        name: of the task.
        env_args: those of a file, for the settings that it was recorded with; by default those that robomimic published.
        absolute: actions are goals in the world, else deltas.

    Raises:
        ValueError: names what in `env_args` this project does not know.
    """
    task = task_named(name)
    if env_args is not None and task_of(env_args) != name:
        raise ValueError(f"env_args belong to the task {task_of(env_args)}, not to {name}.")
    version = str((env_args or {}).get("env_version", PUBLISHED))
    given = dict((env_args or {}).get("env_kwargs", {}))
    robots = given.pop("robots", ["Panda"] * task.arms)
    if ([robots] if isinstance(robots, str) else list(robots)) != ["Panda"] * task.arms:
        raise ValueError(f"The robots of {name} must be {['Panda'] * task.arms}; got {robots}.")
    if given.pop("reward_shaping", False):
        raise ValueError("reward_shaping must be False: the reward of this environment is the score.")
    config = given.pop("controller_configs", {"input_ref_frame": "world"} if env_args is None else None)
    if config is None:
        raise ValueError("env_args hold no controller_configs, which say what the actions mean.")
    settings = {
        "robots": ["Panda"] * task.arms,
        "controller_configs": composite(_one(config), version=version, absolute=absolute),
        "control_freq": given.pop("control_freq", 20),
        "reward_shaping": False,
        "lite_physics": True,
    }
    configuration = given.pop("env_configuration", "default")
    if task.arms == 2:
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"The env_configuration of {name} must be 'opposed'; got {configuration!r}.")
        settings["env_configuration"] = CONFIGURATIONS[configuration]
    unknown = sorted(set(given) - IGNORED)
    if unknown:
        raise ValueError(f"env_args hold settings that are not known here: {unknown}.")
    return settings


def _one(config: Any) -> Mapping[str, Any]:
    """The configuration of every robot, which files may repeat."""
    configs = list(config) if isinstance(config, list | tuple) else [config]
    if not configs or not all(isinstance(each, Mapping) and each == configs[0] for each in configs):
        raise ValueError("controller_configs must be one configuration for all robots.")
    return dict(configs[0])
