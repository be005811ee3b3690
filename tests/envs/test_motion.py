"""The motion of a scripted gripper against closed forms, and against a gripper that does exactly what it is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from drifting_policy.envs.experts import motion
from drifting_policy.envs.experts.motion import CLOSED, OPEN, REACH, TURN, Manner, Motion, Phase, Pose

STEADY = Manner(pace=1.0, onset=1.0, noise=0.0)
PARTS = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda parts: np.linalg.norm(parts) > 0.1)


def state_at(pose: Pose) -> dict[str, np.ndarray]:
    """What the simulator would say of a gripper in that pose."""
    return {"robot0_eef_pos": pose.position, "robot0_eef_quat_site": motion.quaternion(pose.rotation)}


def followed(pose: Pose, action: np.ndarray) -> Pose:
    """The pose after an action that is carried out to the letter."""
    spin = Rotation.from_rotvec(TURN * action[3:6]).as_matrix()
    return Pose(pose.position + REACH * action[:3], spin @ pose.rotation)


@given(PARTS)
def test_rotations_agree_with_another_implementation(parts: list[float]) -> None:
    reference = Rotation.from_quat(parts)
    rotation = motion.matrix(np.array(parts))
    np.testing.assert_allclose(rotation, reference.as_matrix(), atol=1e-12)
    assert abs(motion.quaternion(rotation) @ reference.as_quat()) == pytest.approx(1.0)
    np.testing.assert_allclose(
        Rotation.from_rotvec(motion.rotation_vector(rotation)).as_matrix(), reference.as_matrix(), atol=1e-7
    )


@given(st.floats(-3.1, 3.1))
def test_a_downward_gripper_looks_down_and_closes_along_its_yaw(yaw: float) -> None:
    rotation = motion.downward(yaw)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1])
    assert motion.yaw_of(rotation) == pytest.approx(yaw)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_the_nearest_turn_is_the_same_angle_within_half_a_period(angle: float, reference: float) -> None:
    found = motion.nearest_turn(angle, reference, np.pi)
    assert abs(found - reference) <= np.pi / 2 + 1e-9
    assert np.cos(2 * (found - angle)) == pytest.approx(1.0)


def test_a_funnel_is_open_at_its_mouth_and_rises_outside() -> None:
    target = Pose(np.zeros(3), np.eye(3))
    inside, outside = (motion.funnelled(target, target.moved((x, 0.0, 0.3)), slope=4.0, mouth=0.01) for x in (0.009, 0.03))
    np.testing.assert_allclose(inside.position, 0)
    np.testing.assert_allclose(outside.position, [0, 0, 0.08])


def test_a_motion_reaches_every_phase_in_order_and_then_holds() -> None:
    goals = [Pose(np.array([0.2, 0.0, 0.1]), motion.downward(1.0)), Pose(np.array([0.0, -0.1, 0.3]), motion.downward(-0.5))]
    phases = [
        Phase(lambda state, start, goal=goal: goal, fingers, near=(1e-3, 1e-2))  # type: ignore[misc]
        for goal, fingers in zip(goals, (OPEN, CLOSED), strict=True)
    ]
    walk = Motion(np.random.default_rng(0), phases, manner=STEADY)
    pose, gaps, fingers = Pose(np.zeros(3), motion.downward(0.0)), [], []
    for _ in range(60):
        action = walk.act(state_at(pose))
        assert np.linalg.norm(action[:3]) <= 1 + 1e-9
        gaps.append([motion.gap(pose, goal)[0] for goal in goals])
        fingers.append(action[6])
        pose = followed(pose, action)
    nearest = np.argmin(gaps, axis=0)
    assert np.min(gaps, axis=0).max() < 1e-3
    assert nearest[0] < nearest[1]
    assert walk.finished
    assert motion.gap(pose, goals[1]) == pytest.approx((0, 0), abs=1e-6)
    assert sorted(fingers) == fingers


def test_a_phase_waits_for_its_steps_its_condition_and_no_longer_than_its_patience() -> None:
    here = Pose(np.zeros(3), np.eye(3))
    phases = [
        Phase(lambda state, start: start, OPEN, steps=4),
        Phase(lambda state, start: start, OPEN, until=lambda state: False, patience=6),
        Phase(lambda state, start: start.moved((9.0, 0.0, 0.0)), OPEN, patience=3),
    ]
    walk, seen = Motion(np.random.default_rng(0), phases, manner=STEADY), []
    for _ in range(15):
        walk.act(state_at(here))
        seen.append(walk.index)
    assert np.bincount(seen).tolist() == [4, 6, 3, 2]


def test_the_tremor_is_as_large_as_the_manner_says_and_rests_with_the_gripper() -> None:
    target = Pose(np.array([1e6, 0.0, 0.0]), np.eye(3))
    phase = Phase(lambda state, start: target, OPEN, speed=0.5, patience=10**6)
    walk = Motion(np.random.default_rng(0), [phase], manner=Manner(onset=1.0, noise=0.1))
    across = np.array([walk.act(state_at(Pose(np.zeros(3), np.eye(3))))[1] for _ in range(5_000)])
    assert across.std() == pytest.approx(0.05, rel=0.1)
    assert np.corrcoef(across[1:], across[:-1])[0, 1] == pytest.approx(Manner().memory, abs=0.03)
    resting = Motion(np.random.default_rng(0), [Phase(lambda state, start: start, OPEN)])
    assert np.abs(resting.act(state_at(target))[:6]).max() < 1e-9


def test_a_turned_controller_gets_the_same_motion_in_its_own_axes() -> None:
    turn = motion.about((0.0, 0.0, 1.0), np.pi / 2)
    phase = Phase(lambda state, start: Pose(np.array([0.02, 0.01, 0.0]), motion.about((1.0, 0.0, 0.0), 0.2)), OPEN)
    state = state_at(Pose(np.zeros(3), np.eye(3)))
    plain, turned = (Motion(np.random.default_rng(0), [phase], manner=STEADY, frame=frame).act(state) for frame in (None, turn))
    np.testing.assert_allclose(turn @ turned[:3], plain[:3], atol=1e-12)
    np.testing.assert_allclose(turn @ turned[3:6], plain[3:6], atol=1e-12)
