"""The adapter for robomimic's rollouts, on observations that are made up: commands come in the form that controllers take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import COMPOSITE, FLAT, PART, env_args

from drifting_policy.chunking import plan_noise
from drifting_policy.envs.arm_actions import SITE
from drifting_policy.envs.rotation import matrix_of_quaternion, matrix_of_vector, quaternion_of_matrix, six_of_matrix
from drifting_policy.robomimic_policy import RobomimicPolicy
from drifting_policy.types import ArraySpec, CheckpointError, ConfigError, ObservationError, PolicySpec

ABSOLUTE = {**COMPOSITE, "body_parts": {"right": {**PART, "control_delta": False}}}


class Scripted:
    """Commands the chunk of given rows; keeps what it saw."""

    max_prefix = 0

    def __init__(self, rows: np.ndarray, **observations: ArraySpec) -> None:
        steps, size = rows.shape
        given = observations or {"object": ArraySpec((10,))}
        self.spec = PolicySpec(given, ArraySpec((size,)), 2, steps, steps - 1, 20.0)
        self.rows, self.seen, self.noises = rows.astype(np.float32), list[Any](), list[Any]()

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        self.seen.append({key: value.copy() for key, value in obs.items()})
        self.noises.append(noise)
        return self.rows[None]


def observation(**more: Any) -> dict[str, Any]:
    """What robomimic's environment of Lift gives, in part."""
    quaternion = quaternion_of_matrix(matrix_of_vector(np.array([3.0, 0.2, 0.1])))
    given = {"object": np.arange(1.0, 11.0), "robot0_eef_pos": np.array([0.1, 0.2, 1.0]), "robot0_eef_quat": quaternion}
    return {**given, "robot0_gripper_qpos": np.zeros(2), "robot0_joint_pos": np.zeros(7), **more}


def goal(vector: list[float], *, position: tuple[float, float, float] = (0.1, 0.22, 1.0), gripper: float = 1.0) -> np.ndarray:
    """An absolute action: the present pose of the observation, moved 2 cm along y and turned by `vector` in the world."""
    now = matrix_of_quaternion(observation()["robot0_eef_quat"]) @ SITE
    return np.concatenate([position, six_of_matrix(matrix_of_vector(np.array(vector)) @ now), [gripper]])


def test_absolute_commands_become_deltas_where_the_environment_wants_them() -> None:
    chunk = np.stack([goal([0, 0, 0.1]), goal([0, 0, 0.1]), goal([0.2, 0, 0], position=(0.6, 0.2, 0.9), gripper=-1)])
    for config, version in ((FLAT, "1.4.1"), (COMPOSITE, "1.5.1")):
        policy = RobomimicPolicy(Scripted(chunk), env_args=env_args(version=version, config=config))
        policy.start_episode()
        first, second = policy(observation()), policy(observation(), goal=None)
        np.testing.assert_allclose(first, [0, 0.4, 0, 0, 0, 0.2, 1], atol=1e-5)
        np.testing.assert_allclose(second, [1, 0, -0.2, 0.4, 0, 0, -1], atol=1e-5)
        assert first.dtype == np.float64


def test_absolute_commands_keep_their_goals_where_the_environment_wants_those() -> None:
    policy = RobomimicPolicy(Scripted(np.stack([goal([0, 0, 0.1])] * 3)), env_args=env_args(version="1.5.1", config=ABSOLUTE))
    policy.start_episode()
    action = policy({"object": np.zeros(10)})  # needs no pose of the arm
    np.testing.assert_allclose(action[:3], [0.1, 0.22, 1.0], atol=1e-6)
    expected = matrix_of_vector(np.array([0, 0, 0.1])) @ matrix_of_quaternion(observation()["robot0_eef_quat"]) @ SITE
    np.testing.assert_allclose(matrix_of_vector(action[3:6]), expected, atol=1e-6)
    assert action[6] == 1


def test_deltas_pass_and_history_chunks_and_noise_are_those_of_the_executor() -> None:
    rows = np.arange(28.0).reshape(4, 7) / 20
    scripted = Scripted(rows)
    policy = RobomimicPolicy(scripted, env_args=env_args(version="1.5.1", config=COMPOSITE), seed=7)
    for episode in range(2):
        policy.start_episode()
        for step in range(4):  # a plan of three commands, then another
            command = policy(observation(object=np.full(10, 10.0 * episode + step)))
            np.testing.assert_allclose(command, rows[1 + step % 3].clip(-1, 1), atol=1e-6)
    assert [seen["object"][0, :, 0].tolist() for seen in scripted.seen] == [[0, 0], [2, 3], [10, 10], [12, 13]]
    for number, noise in enumerate(scripted.noises):
        np.testing.assert_array_equal(noise[0], plan_noise(7 + number // 2, number % 2, (4, 7)))


def test_objects_and_images_come_as_the_policy_knows_them() -> None:
    image = ArraySpec((4, 6, 3), "uint8")
    scripted = Scripted(np.zeros((3, 7)), object=ArraySpec((10,)), agentview_image=image)
    policy = RobomimicPolicy(scripted, env_args=env_args(version="1.4.1"))
    policy.start_episode()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    policy(observation(agentview_image=np.moveaxis(pixels, -1, 0).astype(np.float32) / 255))
    np.testing.assert_array_equal(scripted.seen[0]["agentview_image"][0, 1], pixels)
    np.testing.assert_array_equal(scripted.seen[0]["object"][0, 1], [1, 2, 3, 4, 5, 6, 7, -8, -9, -10])
    policy.start_episode()
    policy(observation(agentview_image=pixels))
    np.testing.assert_array_equal(scripted.seen[1]["agentview_image"][0, 1], pixels)


@pytest.mark.parametrize(
    ("rows", "stored", "words"),
    [
        (np.zeros((3, 8)), env_args(), "commands 8 numbers; 1 arms take 10 .absolute. or 7"),
        (np.zeros((3, 7)), env_args(version="1.5.1", config=ABSOLUTE), "commands deltas, but the environment's controllers"),
        (np.zeros((3, 10)), env_args(config={**FLAT, "output_max": [1, 2, 3]}), "not known here: .*symmetric"),
        (np.zeros((3, 20)), env_args("TwoArmTransport", version="1.5.1", config=FLAT), "set their input_ref_frame to 'world'"),
        (np.zeros((3, 10)), env_args(config=None), "hold no controller_configs"),
        (np.zeros((3, 10)), env_args(config=[]), "hold no controller_configs"),
    ],
)
def test_what_cannot_be_translated_is_refused(rows: np.ndarray, stored: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RobomimicPolicy(Scripted(rows), env_args=stored)


def test_observations_that_are_missing_are_named(tmp_path: Path) -> None:
    policy = RobomimicPolicy(Scripted(np.stack([goal([0, 0, 0])] * 3)), env_args=env_args())
    policy.start_episode()
    with pytest.raises(ObservationError, match="no observation 'object'; it gives"):
        policy({"proprio": np.zeros(3)})
    with pytest.raises(ObservationError, match="no observation 'robot0_eef_pos'"):
        policy({"object": np.zeros(10)})
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        RobomimicPolicy.load(tmp_path / "none", env_args=env_args())
