"""The expert of TwoArmTransport: how it sees the hammer, its way in a world without physics, and an episode of robosuite."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drifting_policy.envs.experts.motion import Pose, about, downward, quaternion, rotation_vector
from drifting_policy.envs.experts.transport import STYLES, UP, Hold, yaw_of_handle
from drifting_policy.envs.experts.transport import expert as make

LYING = np.stack([UP, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])], axis=1)  # a hammer on its side, its head at +y
BINS = {"target_bin_pos": np.array([-0.2, 0.45, 0.806]), "trash_bin_pos": np.array([0.2, 0.45, 0.806])}


@pytest.fixture(params=[0.0, np.pi], ids=["head at robot 1", "head at robot 0"])
def tables(request: pytest.FixtureRequest, puppets: Callable[..., Any], thing: Callable[..., Any]) -> Any:
    """The things of TwoArmTransport as they lie at the beginning, and the hands of both arms."""
    turned = about(UP, 0.3 + request.param) @ LYING
    point = np.zeros(3)
    things = {
        "payload": thing(Pose(np.array([0.2, -0.45, 0.826]), turned), point, np.array([0.0, 0.0, 0.1]), 0.83),
        "trash": thing(Pose(np.array([-0.2, 0.45, 0.831]), about(UP, 0.7)), point, point, 0.83),
        "lid_handle": thing(Pose(np.array([0.2, -0.45, 0.976]), np.eye(3)), point, np.array([0.0, 0.04, 0.0]), 0.825),
    }
    hands = {
        "robot0": Pose(np.array([0.0, -0.33, 1.03]), downward(np.pi)),
        "robot1": Pose(np.array([0.0, 0.36, 1.0]), downward(0.0)),
    }
    return puppets(hands, things, BINS)


def hammer(yaw: float, *, flipped: bool = False) -> dict[str, np.ndarray]:
    """The observations of a hammer whose handle runs `yaw` rad from world y, to its head or, `flipped`, away from it."""
    rotation = about(UP, yaw + (np.pi if flipped else 0.0)) @ LYING
    return {"payload_pos": np.array([0.1, 0.2, 0.3]), "payload_quat": quaternion(rotation)}


@pytest.mark.parametrize("yaw", [-0.5, 0.0, 0.4])
def test_hold_is_square_to_the_handle_wherever_the_head_is(yaw: float) -> None:
    start = Pose(np.zeros(3), downward(np.pi))
    along = about(UP, yaw)[:, 1]
    for flipped in (False, True):
        state = hammer(yaw, flipped=flipped)
        pose = Hold(0.05, 0.0, 0.0)(state, start)
        np.testing.assert_allclose(pose.position, state["payload_pos"] + 0.05 * along + 0.002 * UP, atol=1e-9)
        assert pose.rotation[:, 0] @ along == pytest.approx(0.0, abs=1e-9)  # the fingers close across it
        np.testing.assert_allclose(pose.rotation[:, 2], -UP, atol=1e-9)
        leaning = Hold(0.05, 0.0, 0.2)(state, start)
        assert leaning.rotation[:, 2] @ along == pytest.approx(-np.sin(0.2))  # the palm is over the far part of the handle
        assert leaning.rotation[:, 0] @ along == pytest.approx(0.0, abs=1e-9)


def test_hold_takes_the_nearer_of_two_turns() -> None:
    for near in (0.0, np.pi):
        start = Pose(np.zeros(3), downward(near))
        turn = rotation_vector(Hold(0.0, 0.0, 0.0)(hammer(0.3), start).rotation @ start.rotation.T)
        assert np.linalg.norm(turn) == pytest.approx(0.3)


@pytest.mark.parametrize("style", range(len(STYLES)))
def test_plan_brings_hammer_and_trash_where_they_belong(tables: Any, style: int) -> None:
    handed_over, expert = [False], make(np.random.default_rng(style), style)

    def until() -> bool:
        handed_over[0] |= tables.holders["payload"] == ["robot0", "robot1"]
        return all(motion.finished for motion in expert.motions)

    tables.play(expert.act, until=until)
    things = tables.things
    assert handed_over[0]  # it was never in the air by itself
    middle = things["payload"].pose.at((0.0, 0.0, 0.017))
    assert np.all(np.abs(middle - BINS["target_bin_pos"])[:2] < 0.06)
    assert np.all(np.abs(things["trash"].pose.position - BINS["trash_bin_pos"])[:2] < 0.08)
    assert things["lid_handle"].pose.position[0] < 0.2 - 0.3  # the whole lid is beside the bin
    yaw = yaw_of_handle(things["payload"].pose)
    assert yaw == pytest.approx(np.pi / 2.0, abs=0.25)  # along y, in which a bin is no shorter than the hammer
    assert not any(tables.holders.values())


def test_only_in_turn_does_robot_0_wait_for_the_trash(tables: Any) -> None:
    together, in_turn = (make(np.random.default_rng(0), style) for style in range(2))
    state = tables.observe()
    first, second = (np.array([expert.act(state) for _ in range(30)]) for expert in (together, in_turn))
    np.testing.assert_allclose(second[:, :6], 0.0, atol=1e-12)
    assert np.abs(first[-1, :6]).max() > 0.1
    assert np.abs(second[-1, 7:13]).max() > 0.1  # robot 1 is on its way
    away = {**state, "trash_pos": BINS["trash_bin_pos"] + 0.02 * UP}
    assert np.abs(np.array([in_turn.act(away) for _ in range(10)])[-1, :6]).max() > 0.1


def test_robot_0_keeps_the_hammer_until_robot_1_has_it(tables: Any) -> None:
    expert = make(np.random.default_rng(0), 0)
    offer = 15  # the phase of robot 0 that waits
    tables.play(expert.act, until=lambda: expert.motions[0].index == offer)
    waiting = {**tables.observe(), "robot1_gripper_qpos": np.array([0.04, -0.04])}
    assert all(expert.motions[0].act(waiting)[6] == 1.0 for _ in range(40))
    closed = {**waiting, "robot1_gripper_qpos": np.array([0.015, -0.015])}
    assert [expert.motions[0].act(closed)[6] for _ in range(2)][-1] == -1.0


def test_same_generator_gives_the_same_actions(tables: Any) -> None:
    state = tables.observe()
    one, same, other = (make(np.random.default_rng(seed), 0) for seed in (0, 0, 1))
    actions = [np.array([expert.act(state) for _ in range(20)]) for expert in (one, same, other)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_episode_of_robosuite() -> None:
    """The expert succeeds from a beginning that is known to be good."""
    pytest.importorskip("robosuite")
    from drifting_policy.datasets.recorder import record
    from drifting_policy.envs.robomimic_tasks import task_named, world_settings
    from drifting_policy.envs.robomimic_world import World

    task = task_named("transport")
    world = World(task, world_settings("transport", absolute=False))
    try:
        expert = make(np.random.default_rng([2, 1]), 0)
        episode = record(world, task, expert.act, np.random.default_rng([2, 0]), max_steps=500)
    finally:
        world.close()
    assert episode is not None
    assert episode["rewards"][-1] == 1.0
    assert episode["actions"].shape == (len(episode["rewards"]), 14)
