"""robomimic's tasks: recorded states come back exactly, goals are what controllers make of deltas, and the past is past."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from published import COMPOSITE, FLAT, PART, env_args

from drifting_policy.envs import robomimic_world
from drifting_policy.envs.arm_actions import SITE
from drifting_policy.envs.robomimic import RobomimicEnv
from drifting_policy.envs.robomimic_tasks import TASKS, world_settings
from drifting_policy.envs.robomimic_world import World
from drifting_policy.envs.rotation import matrix_of_quaternion, matrix_of_vector, six_of_matrix
from drifting_policy.rollout.environment import open_environment
from drifting_policy.rollout.evaluate import evaluate
from drifting_policy.types import ArraySpec, PolicySpec


@functools.cache
def made(task: str, action: str = "delta") -> RobomimicEnv:
    """One environment of each kind for all tests: an episode may not depend on those before."""
    return RobomimicEnv(task=task, action=action)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    """Free the simulators in the end."""
    yield
    made.cache_clear()


def wander(env: RobomimicEnv, steps: int) -> np.ndarray:
    """Smooth random deltas "n 7a"."""
    assert env.action_space.shape is not None
    walk = np.random.default_rng(0).normal(0, 0.3, (steps, *env.action_space.shape)).cumsum(axis=0)
    return np.clip(walk, -1, 1)


def played(env: RobomimicEnv, actions: np.ndarray, **reset: Any) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """States "n+1 k" and observations of an episode."""
    observations = [env.reset(**reset)[0]]
    states = [env.world.state]
    for action in actions:
        observations.append(env.step(action)[0])
        states.append(env.world.state)
    return np.array(states), observations


@pytest.mark.parametrize("task", TASKS)
def test_a_recorded_first_state_gives_the_same_episode(task: str) -> None:
    env = made(task)
    actions = wander(env, 12)
    states, observations = played(env, actions, seed=5)
    model = env.world.model
    again, _ = played(env, actions, seed=8, options={"states": states[0], "model": model})
    np.testing.assert_array_equal(states, again)
    restored, info = env.reset(
        seed=9, options={"states": states[7], "model": model}
    )  # an observation is a function of the state
    assert info == {"success": False}
    for key, value in restored.items():
        np.testing.assert_array_equal(value, observations[7][key], err_msg=key)
    assert env.observation_space.contains(restored)
    other, _ = played(env, actions[:0], seed=6)
    assert np.abs(other[0] - states[0]).max() > 1e-3


@pytest.mark.parametrize(("task", "steps"), [("lift", 20), ("square", 20), ("transport", 8)])
def test_absolute_actions_lead_where_the_deltas_led(task: str, steps: int) -> None:
    env, goals = made(task), made(task, "absolute")
    actions = wander(env, steps)
    states, _ = played(env, actions, seed=3)
    model = env.world.model
    absolute = env.absolute_actions(states[:-1], actions)
    assert absolute.shape == (steps, actions.shape[1] // 7 * 10)
    reached, _ = played(goals, absolute, seed=4, options={"states": states[0], "model": model})
    assert np.abs(states - states[0]).max() > 0.05
    np.testing.assert_allclose(reached, states, atol=2e-5)  # robosuite turns in single precision


def test_a_goal_is_where_the_grip_site_goes() -> None:
    env = made("can", "absolute")
    seen, _ = env.reset(seed=0)
    start = matrix_of_quaternion(seen["robot0_eef_quat"]) @ SITE
    np.testing.assert_allclose(start, matrix_of_quaternion(env.world.observe()["robot0_eef_quat_site"]), atol=1e-6)
    turned = matrix_of_vector(np.array([0.0, 0.1, 0.4])) @ start
    position = seen["robot0_eef_pos"] + [0.05, -0.04, 0.03]
    for _ in range(25):
        seen = env.step(np.concatenate([position, six_of_matrix(turned), [1.0]]))[0]
    np.testing.assert_allclose(seen["robot0_eef_pos"], position, atol=0.01)
    reached = matrix_of_quaternion(seen["robot0_eef_quat"]) @ SITE
    assert np.arccos((np.trace(reached.T @ turned) - 1) / 2) < 0.05
    assert np.abs(seen["robot0_gripper_qpos"]).max() < 0.005  # closed


def test_deltas_of_a_base_turn_with_it() -> None:
    """The arms of Transport face each other; a delta along x in the frame of the base is one along y in the world."""
    in_base = {"type": "BASIC", "body_parts": {"right": {**PART, "input_ref_frame": "base"}}}
    step = np.array([1, 0, 0, 0, 0, 0.4, 0] * 2, np.float64)
    goals = []
    for config in (COMPOSITE, in_base):
        env = RobomimicEnv(env_args=env_args("TwoArmTransport", version="1.5.1", config=config), action="delta")
        env.reset(seed=0)
        states = env.world.state
        goals.append(env.absolute_actions(states[None], step[None])[0].reshape(2, 10))
        starts = env.absolute_actions(states[None], 0 * step[None])[0].reshape(2, 10)
        env.close()
    np.testing.assert_allclose(goals[0][:, :3] - starts[:, :3], [[0.05, 0, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(goals[1][:, :3] - starts[:, :3], [[0, 0.05, 0], [0, -0.05, 0]], atol=1e-6)
    np.testing.assert_allclose(goals[0][:, 3:9], goals[1][:, 3:9], atol=1e-6)  # they turn about z


@pytest.mark.parametrize(("config", "version"), [(FLAT, "1.2.0"), (FLAT, "1.4.1"), (COMPOSITE, "1.5.1")])
def test_an_environment_can_be_made_of_a_file(config: dict[str, Any], version: str) -> None:
    env = RobomimicEnv(env_args=env_args("NutAssemblySquare", version=version, config=config), action="delta")
    actions = wander(env, 4)
    np.testing.assert_array_equal(played(env, actions, seed=2)[0], played(made("square"), actions, seed=2)[0])
    env.close()


@pytest.mark.parametrize("setting", [{"lite_physics": False}, {"hard_reset": True}])
def test_what_is_left_out_changes_nothing(setting: dict[str, bool]) -> None:
    """Twelve steps down onto the table, with contacts."""
    episodes = []
    for changed in (False, True):
        settings = world_settings("can", absolute=False)
        if changed and "lite_physics" in setting:
            settings |= setting
        world = World(TASKS["can"], settings)
        if changed and "hard_reset" in setting:
            world.robosuite.hard_reset = True
        states = []
        for seed in (1, 2):
            world.reset(np.random.default_rng(seed))
            for _ in range(12):
                world.step(np.array([0, 0, -1, 0, 0, 0, 1.0]))
                states.append(world.state)
        episodes.append(np.array(states))
        world.close()
    np.testing.assert_array_equal(episodes[0], episodes[1])


def test_success_ends_an_episode_with_a_score_of_one() -> None:
    env = made("lift")
    env.reset(seed=0)
    lifted = env.world.state
    lifted[1 + 7 + 2 + 2] += 0.2  # time, arm, fingers, then the cube's x, y, z
    _, info = env.reset(seed=0, options={"states": lifted})
    assert info == {"success": True}
    _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"success": True})
    env.reset(seed=0)
    assert env.step(np.zeros(7))[1:] == (0.0, False, False, {"success": False})


@pytest.mark.parametrize(("task", "geom"), [("lift", "cube_g0"), ("transport", "payload_head")])
def test_a_recorded_model_gives_its_sizes(task: str, geom: str) -> None:
    env = made(task)

    def size() -> np.ndarray:
        model = env.world.robosuite.sim.model
        return np.array(model.geom_size[model.geom_name2id(geom)])

    env.reset(seed=1)
    first, states, model = size(), env.world.state, env.world.model
    env.reset(seed=2, options={"states": states})
    assert np.abs(size() - first).max() > 1e-6
    env.reset(seed=2, options={"states": states, "model": model})
    np.testing.assert_array_equal(size(), first)
    env.reset(seed=1)
    np.testing.assert_array_equal(size(), first)
    assert "/" not in model.split("robosuite/models")[0].rsplit('"', 1)[1]  # no folder of this machine


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"states": [1.0] * 3}, "must be 32 finite numbers"),
        ({"states": [np.nan] * 32}, "must be 32 finite numbers"),
        ({"model": "<mujoco/>"}, "beside its options"),
        ({"states": [0.0] * 32, "model": 3}, "must be the XML of a recorded episode"),
        ({"states": [0.0] * 32, "model": "<mujoco>"}, "cannot be read"),
        ({"states": [0.0] * 32, "model": "<mujoco><geom name='can'/></mujoco>"}, "no geom named cube_"),
    ],
)
def test_what_cannot_be_restored_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made("lift").reset(seed=0, options=options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "stack"}, "one of lift, can, square, transport, tool_hang; got 'stack'"),
        ({"task": "lift", "action": "joint"}, "'absolute' or 'delta'; got 'joint'"),
        ({}, "Say which task"),
        ({"env_args": env_args("Door")}, "got 'Door'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RobomimicEnv(**settings)


def test_arrays_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Lift has states of 32 and actions of 7 numbers"):
        made("lift").absolute_actions(np.zeros((2, 32)), np.zeros((3, 7)))
    with pytest.raises(ValueError, match="Only an environment with action='delta'"):
        made("lift", "absolute").absolute_actions(np.zeros((2, 32)), np.zeros((2, 7)))
    with pytest.raises(ValueError, match="rows that are not parallel"):
        made("lift", "absolute").step(np.zeros(10))


def test_cameras_are_observed_when_asked_for() -> None:
    env = RobomimicEnv(task="can", images=True)
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    images = [seen["agentview_image"], seen["robot0_eye_in_hand_image"]]
    assert [image.shape for image in images] == [(84, 84, 3)] * 2
    assert all(image.std() > 10 for image in images)
    white = np.argwhere((images[0] > 215).all(axis=2))
    assert len(white) > 20
    assert white[:, 0].mean() < 30  # the arm is above, the bins below
    again, _ = env.reset(seed=0)
    np.testing.assert_array_equal(again["agentview_image"], images[0])
    env.close()


def test_a_machine_that_cannot_draw_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ImportError("Cannot initialize a EGL device display.")

    env = RobomimicEnv(task="can")  # no context is kept from other tests
    env.reset(seed=0)
    monkeypatch.setattr(robomimic_world, "MjRenderContextOffscreen", fails)
    with pytest.raises(ValueError, match=r"no OpenGL to draw with .*Cannot initialize a EGL.*apt install libegl1"):
        env.render()
    assert env.step(np.r_[0.4, 0.0, 1.0, 1, 0, 0, 0, -1, 0, -1])[1] == 0.0  # without pictures it goes on
    env.close()


class Waver:
    """Commands its noise, cut to [-1, 1]."""

    max_prefix = 0
    spec = PolicySpec({"robot0_eef_pos": ArraySpec((3,))}, ArraySpec((7,)), 1, 4, 4, 20.0)

    def act(self, obs: Mapping[str, np.ndarray], *, noise: np.ndarray | None = None) -> np.ndarray:
        assert noise is not None
        return noise.clip(-1, 1)


def test_a_worker_process_plays_the_same_episodes() -> None:
    factory = functools.partial(open_environment, "drifting_policy.envs:drifting/Square-v0", {"action": "delta"}, task="square")
    outcomes = [
        evaluate(Waver(), factory, [3, 4], num_envs=2, max_steps=8, workers=workers, keep_trajectories=True)
        for workers in (0, 1)
    ]
    assert outcomes[0].episodes == outcomes[1].episodes
    for seed in (3, 4):
        first, second = (outcome.trajectories[seed]["robot0_eef_pos"] for outcome in outcomes)
        np.testing.assert_array_equal(first, second)
