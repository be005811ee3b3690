"""The recorder of demonstrations in robomimic's worlds: an expert acts, and what robomimic's files hold is written down."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from drifting_policy.envs.robomimic_tasks import Task
from drifting_policy.envs.robomimic_world import World
from drifting_policy.envs.rotation import six_of_matrix

Act = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # observations of robosuite in, delta actions out

AFTER = 5  # steps for which a demonstration goes on after its success
ARM = 7  # numbers of a delta action per arm
SEEN = ("eef_pos", "eef_quat", "gripper_qpos", "gripper_qvel", "joint_pos", "joint_vel")  # of each arm, as in robomimic's files


def record(
    world: World, task: Task, act: Act, rng: np.random.Generator, *, max_steps: int, images: bool = False
) -> dict[str, Any] | None:
    """The episode that `act` plays from the initial state drawn with `rng`, in the form of `write_robomimic`; None if it fails.

    It ends AFTER steps after the success, and fails where there is none within `max_steps`. Actions are rounded to float32, so
    that what is stored is what was done. `actions_abs` "n 10a" are the goals that the controllers make of the `actions` "n 7a".
    """
    world.reset(rng)
    seen = world.observe()
    rows: dict[str, list[Any]] = {key: [] for key in ("actions", "actions_abs", "states", "rewards")}
    observations, left = [observed(world, task, seen, images=images)], None
    for _ in range(max_steps + AFTER):
        action = np.asarray(act(seen), np.float32).astype(np.float64)
        rows["states"].append(world.state)
        rows["actions"].append(action)
        rows["actions_abs"].append(absolute(world, action))
        world.step(action)
        seen = world.observe()
        observations.append(observed(world, task, seen, images=images))
        rows["rewards"].append(float(world.is_success))
        if left is None and world.is_success:
            left = AFTER
        elif left is not None:
            left -= 1
        if left == 0 or (left is None and len(rows["rewards"]) >= max_steps):
            break
    if left is None:
        return None
    arrays = {key: np.array(values) for key, values in rows.items()}
    dones = np.arange(len(arrays["rewards"])) == len(arrays["rewards"]) - 1
    stacked = {key: np.stack([step[key] for step in observations]) for key in observations[0]}
    obs = {key: values[:-1] for key, values in stacked.items()}
    next_obs = {key: values[1:] for key, values in stacked.items()}
    return {**arrays, "dones": dones.astype(np.int64), "obs": obs, "next_obs": next_obs, "model_file": world.model}


def observed(world: World, task: Task, seen: Mapping[str, np.ndarray], *, images: bool) -> dict[str, np.ndarray]:
    """What a file holds of one observation: `object`, the SEEN of each arm, and with `images` what the cameras see."""
    kept = {"object": seen["object-state"]}
    kept |= {key: seen[key] for arm in range(task.arms) for key in (f"robot{arm}_{name}" for name in SEEN)}
    if images:
        size = task.camera_size
        kept |= {f"{camera}_image": world.draw(camera, size, shadows=True) for camera in task.cameras}
    return kept


def absolute(world: World, action: np.ndarray) -> np.ndarray:
    """The delta action "7a" as the goals of the controllers "10a": position, first two rows of the rotation, gripper."""
    grippers = action.reshape(-1, ARM)[:, 6:]
    goals = world.goals(action)
    parts = [(place, six_of_matrix(turn), grip) for (place, turn), grip in zip(goals, grippers, strict=True)]
    return np.concatenate([np.concatenate(part) for part in parts])
