"""Policies of this project where robomimic rolls out its own: an object with `start_episode()` and `__call__(ob, goal)`.

    policy = RobomimicPolicy.load("runs/lift/...", env_args=env.serialize())
    robomimic.utils.train_utils.run_rollout(policy=policy, env=env, horizon=400)

robomimic itself is not imported. Its environments must give single observations, without FrameStackWrapper, for the history is
kept here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from drifting_policy.checkpoint import load_policy
from drifting_policy.chunking import ChunkExecutor
from drifting_policy.data.object_order import in_present_order
from drifting_policy.envs.arm_actions import ABSOLUTE, DELTA, SITE, controller_action, delta_action
from drifting_policy.envs.controllers import before, delta_scale, is_delta, reference_frame
from drifting_policy.envs.rotation import matrix_of_quaternion
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, Policy


@final
class RobomimicPolicy:
    """One environment's commands, step by step, in the form that its controllers take.

    Args:
        policy: sees robomimic's observations, and commands absolute actions (10 numbers per arm) or deltas (7).
        env_args: what `env.serialize()` of robomimic's environment returns: they say what its actions mean, and by the version
            of robosuite in which order it gives `object`.
        seed: of the first episode; each following one has the next. It decides the noise of every plan.

    Raises:
        ConfigError: a policy or a controller whose actions cannot be translated.
    """

    def __init__(self, policy: Policy, *, env_args: Mapping[str, Any], seed: int = 0) -> None:
        kwargs = env_args.get("env_kwargs", {})
        robots = kwargs.get("robots", "Panda")
        self._arms = 1 if isinstance(robots, str) else len(robots)
        self._world, self._version = str(env_args.get("env_name")), str(env_args.get("env_version"))
        size = policy.spec.action.shape[0]
        if size not in (DELTA * self._arms, ABSOLUTE * self._arms):
            raise ConfigError(f"The policy commands {size} numbers; {self._arms} arms take 10 (absolute) or 7 (delta) each.")
        self._absolute = size == ABSOLUTE * self._arms
        controller = _first(kwargs.get("controller_configs"))
        try:
            self._to_delta = is_delta(controller)
            self._scale = delta_scale(controller) if self._to_delta else (1.0, 1.0)
            in_base = reference_frame(controller, version=self._version) == "base"
        except ValueError as error:
            raise ConfigError(f"The environment's controller is not known here: {error}") from error
        if self._absolute and in_base and (self._arms > 1 or not self._to_delta):
            raise ConfigError("The environment's controllers count from their bases; set their input_ref_frame to 'world'.")
        if not self._absolute and not self._to_delta:
            raise ConfigError("The policy commands deltas, but the environment's controllers take absolute actions.")
        self._spec = policy.spec
        self._executor = ChunkExecutor(policy)
        self._next_seed = seed

    @staticmethod
    def load(path: str | Path, *, env_args: Mapping[str, Any], seed: int = 0, device: str = "cpu") -> "RobomimicPolicy":
        """The policy of a run directory or checkpoint, ready to be rolled out.

        Raises:
            CheckpointError: there is none, or it is damaged.
            ConfigError: it does not fit the environment.
        """
        return RobomimicPolicy(load_policy(path, device=device), env_args=env_args, seed=seed)

    def start_episode(self) -> None:
        """Forget the episode before."""
        self._executor.reset(seeds=[self._next_seed])
        self._next_seed += 1

    def __call__(self, ob: Mapping[str, Any], goal: Any = None) -> np.ndarray:
        """The command for the newest observation: 7 numbers per arm, float64. Policies of this project know no `goal`.

        Raises:
            ObservationError: a key is missing, or has another shape than the policy was trained for.
        """
        obs = {key: self._array(ob, key, spec)[None] for key, spec in self._spec.observations.items()}
        command = self._executor.step(obs)[0].astype(np.float64)
        if not self._absolute:
            return command.clip(-1, 1)
        if not self._to_delta:
            return controller_action(command)
        positions = np.stack([_observed(ob, f"robot{arm}_eef_pos") for arm in range(self._arms)])
        hands = np.stack([_observed(ob, f"robot{arm}_eef_quat") for arm in range(self._arms)])
        return delta_action(command, positions=positions, rotations=matrix_of_quaternion(hands) @ SITE, scale=self._scale)

    def _array(self, ob: Mapping[str, Any], key: str, spec: ArraySpec) -> np.ndarray:
        """One observation as the policy knows it."""
        value = _observed(ob, key)
        if key == "object" and before(self._version, (1, 5)):
            return in_present_order(value[None], world=self._world, version=self._version)[0]
        if spec.dtype == "uint8" and value.dtype.kind == "f":  # robomimic hands out "c h w" in 0..1
            return np.round(255 * np.moveaxis(value, 0, -1)).clip(0, 255).astype(np.uint8)
        return value


def _observed(ob: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in ob:
        raise ObservationError(f"The environment gives no observation '{key}'; it gives {sorted(ob)}.")
    return np.asarray(ob[key])


def _first(configs: Any) -> Mapping[str, Any]:
    """The configuration of the first robot, where files hold one for each."""
    config = configs[0] if isinstance(configs, list | tuple) and configs else configs
    if not isinstance(config, Mapping):
        raise ConfigError("env_args hold no controller_configs, which say what the actions mean.")
    return config
